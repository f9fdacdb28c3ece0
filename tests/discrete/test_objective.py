"""The objective of Di4C: against its losses in closed form, and what may not enter it."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sigdeg.discrete import Absorbing, Ancestral, ExactDenoiser, Latent, MixtureStudent, Uniform
from sigdeg.discrete.config import DiscreteConfig
from sigdeg.discrete.objective import Drawn, MixtureObjective, draw, saturation
from sigdeg.discrete.process import DiscreteProcess
from sigdeg.errors import SigdegError

BITS, LN2 = torch.tensor([[0, 0], [1, 1]]), math.log(2)


class Table(nn.Module):
    """Logits of each state of two positions, by the component that a latent in [0, 1) falls in."""

    def __init__(self, states: int = 3, components: int = 2, split: float = 0.0) -> None:
        super().__init__()
        self.states, self.components = states, components
        logits = torch.zeros(components, states**2, 2, states)
        logits[0, ..., 0] = logits[1, ..., 1] = split
        self.logits = nn.Parameter(logits)
        self.steps: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, latent: Tensor, step: Tensor | None = None) -> Tensor:
        if step is not None:
            self.steps.append(step)
        component = (latent[:, 0] * self.components).long().clamp(max=self.components - 1)
        return self.logits[component, x[:, 0] * self.states + x[:, 1]]


def make(
    split: float = 0.0,
    process: DiscreteProcess | None = None,
    elastic: bool = False,
    **options: Any,
) -> tuple[MixtureObjective, DiscreteConfig]:
    process = process or Absorbing(2)
    student = MixtureStudent(Table(process.states, 2, split), process, 2, Latent(), elastic)
    config = DiscreteConfig(**options)
    teacher = Ancestral(ExactDenoiser(BITS, torch.ones(2), process))
    return MixtureObjective(student, teacher, config), config


def batch(objective: MixtureObjective, n: int, seed: int = 0, **changed: Any) -> Drawn:
    generator = torch.Generator().manual_seed(seed)
    clean = BITS[torch.randint(2, (n,), generator=generator)]
    drawn = draw(clean, {}, objective.student, objective.teacher(), objective.config, generator)
    return drawn._replace(**changed)


def at(n: int, time: float) -> Tensor:
    return torch.full((n,), time, dtype=torch.float64)


def test_of_a_student_deaf_to_its_latent_it_is_what_is_to_be_learned() -> None:
    """Its marginals are met, and the correlation loss of a product is nothing: it is a saddle."""
    objective, _ = make(alpha=0, marginal=0, latents=256)
    n = 100
    drawn = batch(objective, n, t=at(n, 1.0), u=at(n, 0.5))
    found = objective(drawn)
    assert abs(float(found["consis_joint"].detach())) < 1e-6
    assert abs(float(found["consis_marg"].detach())) < 0.02
    assert set(found) == {"loss", "distil", "consis_joint", "consis_marg", "ess"}
    (slope,) = torch.autograd.grad(found["loss"], objective.student.network.logits)
    assert float(slope.abs().max()) < 0.02


def test_a_perfect_student_reaches_the_least_loss() -> None:
    r"""Consistency ends at minus the total correlation of its target, nearly that of the data."""
    objective, _ = make(split=30.0, alpha=1.0, latents=4)
    n = 4000
    drawn = batch(objective, n, t=at(n, 1.0), u=at(n, 0.9999))
    found = {name: float(v.detach()) for name, v in objective(drawn).items()}
    assert found["consis_joint"] == pytest.approx(-LN2, abs=1e-3)
    assert found["corr"] == pytest.approx(-LN2, abs=1e-3)
    assert found["marg"] == pytest.approx(0, abs=1e-6)
    assert found["ess"] == pytest.approx(2, abs=1e-3)
    parts = sum(v for name, v in found.items() if name not in ("loss", "ess"))
    assert found["loss"] == pytest.approx(parts, abs=1e-5)


def test_its_expectation_is_the_divergence_of_the_composition() -> None:
    """Enumerate what the teacher's step and the student's end make of two masks, and compare."""
    objective, _ = make(split=0.7, alpha=0, marginal=0, latents=256)
    n, r = 300, 0.25
    drawn = batch(objective, n, t=at(n, 1.0), u=at(n, 1 - r))
    found = objective(drawn)
    student = objective.student
    components = torch.tensor([[0.25], [0.75]])

    def law(x: Tensor) -> Tensor:
        """Joint law (2, 2) of the student at a state."""
        p = student(x.expand(2, 2), torch.tensor(1.0), components).double().exp()[..., :2]
        return torch.einsum("ki,kj->ij", p[:, 0], p[:, 1]) / 2

    target = torch.zeros(2, 2, dtype=torch.float64)
    for x in itertools.product((0, 1, 2), repeat=2):
        chance = math.prod(1 - r if v == 2 else r / 2 for v in x)
        target += chance * law(torch.tensor(x)).detach()
    own = law(torch.tensor([2, 2])).detach()
    cross = -(target * own.log()).sum()
    entropies = sum(torch.special.entr(target.sum(d)).sum() for d in (0, 1))
    assert float(found["loss"].detach()) == pytest.approx(float(cross - entropies), abs=0.01)


def test_no_gradient_passes_through_targets() -> None:
    """The student at u is the network with the same weights: only its values may matter."""
    objective, _ = make(split=0.7, alpha=0, marginal=0, latents=4)
    drawn = batch(objective, 64, t=at(64, 1.0), u=at(64, 0.5))
    (own,) = torch.autograd.grad(objective(drawn)["loss"], objective.student.network.logits)
    masked = 2 * 3 + 2  # the state of two masks, the only one at time 1
    others = [i for i in range(9) if i != masked]
    assert float(own[:, others].abs().max()) == 0
    assert float(own[:, masked].abs().max()) > 0


def test_short_times_learn_the_teachers_own_law() -> None:
    objective, _ = make(split=1.0, alpha=0, marginal=0, latents=4)
    drawn = batch(objective, 64, t=at(64, 0.1), u=at(64, 0.0))
    found = objective(drawn)
    assert set(found) == {"loss", "distil", "ess"}
    assert float(found["distil"].detach()) > 0


def test_the_teacher_is_no_part_of_it() -> None:
    objective, _ = make()
    assert {name.split(".")[0] for name in objective.state_dict()} == {"student"}
    other = copy.deepcopy(objective)
    assert other.teacher() is objective.teacher()


def test_a_batch_says_everything_about_the_loss() -> None:
    objective, _ = make(split=0.5)
    first, second = (objective(batch(objective, 16, seed=3))["loss"] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(objective(batch(objective, 16, seed=4))["loss"], first)


def test_parts_of_a_batch_have_the_loss_of_the_whole() -> None:
    objective, _ = make(split=0.5)
    drawn = batch(objective, 16, seed=3)

    def cut(rows: slice) -> Drawn:
        return Drawn(*[v[rows] if isinstance(v, Tensor) else v for v in drawn])

    parts = [float(objective(cut(rows))["loss"].detach()) for rows in (slice(8), slice(8, 16))]
    assert sum(parts) / 2 == pytest.approx(float(objective(drawn)["loss"].detach()), abs=1e-5)


def test_times_are_drawn_as_the_settings_say() -> None:
    objective, _ = make(shortest=0.05, longest=0.2, start=0.25)
    drawn = batch(objective, 4000)
    apart = (drawn.t - drawn.u)[drawn.u > 0]
    assert float(apart.min()) >= 0.05 - 1e-12
    assert float(apart.max()) <= 0.2 + 1e-12
    assert float((apart < 0.1).double().mean()) == pytest.approx(0.5, abs=0.04)  # in logarithms
    assert float((drawn.t == 1).double().mean()) == pytest.approx(0.25, abs=0.03)
    rest = drawn.t[drawn.t < 1]
    assert float(rest.mean()) == pytest.approx(0.5, abs=0.02)
    assert bool((drawn.s == 0).all())
    for row in drawn.latents[:5, :, 0]:  # one in every part, in an order of its own
        assert torch.equal((row * 16).long().sort().values, torch.arange(16))
    assert not torch.equal(drawn.latents[0].argsort(0), drawn.latents[1].argsort(0))


class Weighted(Table):
    """A table whose components have weights, the same in all states."""

    def __init__(self, split: float, tilt: float) -> None:
        super().__init__(split=split)
        self.mixing = nn.Parameter(torch.tensor([tilt, 0.0]))

    def forward(self, x: Tensor, t: Tensor, latent: Tensor, step: Tensor | None = None) -> Tensor:
        assert not latent.is_floating_point()
        return self.logits[latent[:, 0], x[:, 0] * self.states + x[:, 1]]

    def log_weights(self, x: Tensor, t: Tensor) -> Tensor:
        return self.mixing.log_softmax(0).expand(len(x), -1)


def make_weighted(split: float, tilt: float, **options: Any) -> MixtureObjective:
    latent = Latent("weighted", 2)
    student = MixtureStudent(Weighted(split, tilt), Absorbing(2), 2, latent)
    teacher = Ancestral(ExactDenoiser(BITS, torch.ones(2), Absorbing(2)))
    return MixtureObjective(student, teacher, DiscreteConfig(single=True, **options))


def test_of_weighted_components_its_expectation_is_exact() -> None:
    """The teacher reveals one bit, the student ends it: enumerated, without a draw of a latent."""
    objective = make_weighted(0.7, 0.6, alpha=0, marginal=0, latents=256)
    student, n = objective.student, 300

    def law(*x: int) -> Tensor:
        state = torch.tensor([x]).expand(2, 2)
        p = student(state, torch.tensor(1.0), torch.tensor([[0], [1]])).double().exp()[..., :2]
        weights = student.log_weights(state, torch.tensor(1.0))[0].double().exp()
        return torch.einsum("k,ki,kj->ij", weights, p[:, 0], p[:, 1])

    target = (law(0, 2) + law(1, 2) + law(2, 0) + law(2, 1)).detach() / 4
    own = law(2, 2).detach()
    means = [own.sum(1), own.sum(0)]
    surprise = -(target * own.log()).sum()
    known = sum((target.sum(1 - d) * means[d].log()).sum() for d in (0, 1))
    bits = sum(-(math.log(2) + means[d].log().mean()) for d in (0, 1))
    drawn = batch(objective, n, t=at(n, 1.0), u=at(n, 0.9))
    assert drawn.latents.shape == (n, 2, 1)
    found = objective(drawn)
    assert float(found["consis_joint"].detach()) == pytest.approx(float(surprise + known), abs=5e-3)
    assert float(found["consis_marg"].detach()) == pytest.approx(float(bits), abs=1e-5)
    assert float(found["distil"].detach()) == 0


def test_weights_of_settled_components_are_still_learned() -> None:
    """Weights of 0.62 and 0.38 for modes that have a half each, each the only one of its mode."""
    slopes = []
    for tilt in (0.5, 0.0):
        objective = make_weighted(30.0, tilt, alpha=1.0, latents=64)
        n = 400
        found = objective(batch(objective, n, t=at(n, 1.0), u=at(n, 0.9)))
        (slope,) = torch.autograd.grad(found["loss"], [objective.student.network.mixing])
        slopes.append(float(slope[0]))
    assert slopes[0] > 0.1
    assert abs(slopes[1]) < 0.05


def test_one_position_is_revealed_by_the_teachers_law() -> None:
    objective = make_weighted(0.0, 0.0)
    n = 3000
    generator = torch.Generator().manual_seed(0)
    order, uniform = torch.rand(2, n, 2, generator=generator, dtype=torch.float64)
    law = torch.tensor([[0.2, 0.8, 0.0], [0.6, 0.4, 0.0]]).log().expand(n, 2, 3)
    found = objective.reveal(torch.full((n, 2), 2), law, order, uniform)
    for d, share in ((0, 0.8), (1, 0.4)):
        told = found[found[:, d] != 2]
        assert bool((told[:, 1 - d] == 2).all())
        assert len(told) / n == pytest.approx(0.5, abs=0.03)
        assert float(told[:, d].double().mean()) == pytest.approx(share, abs=0.04)
    last = objective.reveal(torch.tensor([[1, 2]]), law[:1], order[:1], uniform[:1])
    assert last[0, 0] == 1
    assert last[0, 1] != 2


def test_the_last_masked_position_learns_the_teachers_law() -> None:
    objective = make_weighted(1.0, 0.3, alpha=0, marginal=0)
    noise = torch.tensor([[0.0], [0.9]]).expand(64, 2, 2)  # the second is masked
    found = objective(batch(objective, 64, t=at(64, 0.5), noise=noise))
    assert set(found) == {"loss", "distil", "ess"}
    assert float(found["distil"].detach()) > 0


@pytest.mark.parametrize("process", [Absorbing(2), Uniform(2)])
def test_an_elastic_student_is_told_where_its_step_ends(process: DiscreteProcess) -> None:
    """And is compared there: with nothing to learn to s = t, where all laws are the state."""
    objective, _ = make(1.0, process, elastic=True, alpha=1.0, latents=4)
    drawn = batch(objective, 64)
    assert bool((drawn.s <= drawn.u).all())
    assert float((drawn.s == 0).double().mean()) > 0.4
    close = at(64, 0.5)
    ended = objective(drawn._replace(t=close, u=close - 1e-7, s=close - 2e-7))
    assert abs(float(ended["loss"].detach())) < 1e-3
    steps = objective.student.network.steps
    assert torch.allclose(steps[-1].double(), close.repeat_interleave(4) - 2e-7, atol=1e-6)
    whole = objective(drawn)
    whole["loss"].backward()
    assert bool(objective.student.network.logits.grad.isfinite().all())


def test_without_a_teacher_it_is_the_likelihood_of_data() -> None:
    objective, config = make(split=30.0, latents=4)
    alone = MixtureObjective(objective.student, None, config)
    n = 64
    found = alone(batch(alone, n, t=at(n, 1.0)))
    assert float(found["loss"].detach()) == pytest.approx(LN2, abs=1e-3)
    assert set(found) == {"loss", "ess"}


def test_a_mixture_is_a_teacher_too() -> None:
    """What it teaches at small times are its marginals; further off, its own correlations."""
    known, config = make(split=30.0, alpha=0, marginal=0, latents=4)
    pupil, _ = make(split=30.0, alpha=0, marginal=0, latents=4)
    objective = MixtureObjective(pupil.student, Ancestral(known.student), config)
    n = 64
    drawn = batch(objective, n, t=at(n, 1.0), u=at(n, 0.5))
    assert drawn.taught is not None
    found = objective(drawn)
    # Each bit that the teacher moves follows its latent; the others, the student's own, or it.
    assert -LN2 - 1e-3 < float(found["consis_joint"].detach()) < 40
    near = objective(drawn._replace(u=at(n, 0.0)))
    assert float(near["distil"].detach()) > 1  # marginals of a half, by components that are sure


def test_saturated_latents_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    objective, _ = make(latents=4)
    objective.say = True
    for _ in range(500):
        objective.watch(torch.tensor(1.02))
    said = capsys.readouterr().err
    assert said.count("warning") == 1
    assert "effective number 1.02 of 4" in said
    assert "try more latents" in said
    assert saturation(1.5, 4, Latent()) is None
    assert saturation(1.0, 4, Latent("weighted", 4)) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"latents": 1}, "learns no correlations: latents must be at least 2"),
        ({"latents": 2, "stratified": False}, "two latents drawn independently learn nothing"),
        ({"alpha": 2.0}, "has no lower bound and diverges"),
        ({"alpha": -1.0}, "alpha must be at least 0"),
        ({"shortest": 0.3}, "0 < shortest <= longest <= 1, got 0.3 and 0.125"),
        ({"alpha_schedule": "cosine"}, "choose from constant, linear, sigmoid"),
        ({"start": 1.5}, "start must lie in"),
        ({"latents": 2.5}, "latents must be a whole number"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SigdegError, match=said) as caught:
        DiscreteConfig(**options)
    assert "\n" not in str(caught.value)


def test_the_weight_of_the_data_follows_its_schedule() -> None:
    t = torch.tensor([0.0, 0.5, 1.0])
    weights = {
        kind: DiscreteConfig(alpha=0.5, alpha_schedule=kind).weight(t).tolist()
        for kind in ("constant", "linear", "sigmoid")
    }
    assert weights["constant"] == [0.5] * 3
    assert weights["linear"] == [0, 0.25, 0.5]
    assert weights["sigmoid"] == pytest.approx([0, 0.25, 0.5], abs=1e-4)
