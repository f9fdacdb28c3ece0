"""Steps on tokens: their laws by enumeration, seeds and batches, what they are told and refuse."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from sigdeg.discrete import (
    Absorbing,
    Ancestral,
    Confidence,
    DiscretisedGaussian,
    ExactDenoiser,
    GuidedTokens,
    Halton,
    Hybrid,
    Latent,
    MixtureStudent,
    NetworkTokenDenoiser,
    RandomOrder,
    TauLeaping,
    TokenStep,
    Uniform,
    as_token_model,
    uniform_grid,
)
from sigdeg.discrete.exact import sampler_law
from sigdeg.discrete.steps import TokenNoise, poisson
from sigdeg.errors import SigdegError
from sigdeg.sampling import network_calls, sample

BITS, XOR = torch.tensor([[0, 0], [1, 1]]), torch.tensor(
    [[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]
)  # fmt: skip
Law = dict[tuple[int, ...], float]


def exact(support: Tensor = BITS, process: Any = None, weights: Sequence[float] = ()) -> Any:
    """The exact denoiser of a law, uniform on its support where no weights are told."""
    told = torch.tensor(weights) if weights else torch.ones(len(support))
    return ExactDenoiser(support, told, process or Absorbing(2))


class Table(nn.Module):
    """A network that knows a table of laws, one a component of its latent, and nothing else."""

    def __init__(self, laws: Sequence[Sequence[Sequence[float]]]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(laws).log())
        self.seen: list[dict[str, Any]] = []

    def forward(self, x: Tensor, t: Tensor, latent: Tensor | None = None, **told: Any) -> Tensor:
        self.seen.append({"latent": latent, **told})
        which = torch.zeros(len(x)) if latent is None else latent[:, 0]
        return self.logits[which.long()]


ZEROS, ONES = [[1.0, 0.0, 0.0]] * 2, [[0.0, 1.0, 0.0]] * 2
SURE = [[0.9, 0.1, 0.0]] * 2


def mixture(*laws: Any, **options: Any) -> MixtureStudent:
    return MixtureStudent(Table(laws), Absorbing(2), 2, Latent("categorical", 2), **options)


def product(law: Any, parameterisation: Any = "masked") -> NetworkTokenDenoiser:
    return NetworkTokenDenoiser(Table([law]), Absorbing(2), 2, parameterisation)


def midpoints(points: int, positions: int, draws: int = 1) -> Tensor:
    """All uniform numbers of a step on a lattice, shape (points^(positions draws), ...)."""
    axis = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    every = torch.cartesian_prod(*[axis] * (positions * draws))
    return every.reshape(-1, positions, draws)


def push(step: TokenStep, law: Law, t: float, s: float, noise: TokenNoise, **told: Any) -> Law:
    """The law at s of states that have a law at t, over all rows of the noise."""
    after: Law = {}
    n = len(noise.uniform)
    for state, chance in law.items():
        for end in step(torch.tensor(state).expand(n, -1), t, s, noise, **told).tolist():
            after[tuple(end)] = after.get(tuple(end), 0.0) + chance / n
    return after


def distance(law: Law, other: Law) -> float:
    """Total variation."""
    return sum(abs(law.get(x, 0) - other.get(x, 0)) for x in {*law, *other}) / 2


# --- laws, over all uniform numbers on a lattice --------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_two_equal_bits_are_lost_as_often_as_they_move_together(steps: int) -> None:
    """In N equal steps both masks fall at once in 1 of N, and then differ in half of the cases."""
    step, law = Ancestral(exact()), {(2, 2): 1.0}
    noise = TokenNoise(midpoints(24, 2))  # all chances of these steps are multiples of 1/24
    for t, s in itertools.pairwise(uniform_grid(steps).tolist()):
        law = push(step, law, t, s, noise)
    unequal = 0.25 / steps
    expected = {(0, 0): 0.5 - unequal, (1, 1): 0.5 - unequal, (0, 1): unequal, (1, 0): unequal}
    assert distance(law, expected) < 1e-12


def test_a_mixture_of_two_has_them_equal_in_one_step() -> None:
    step, uniform = Ancestral(mixture(ZEROS, ONES)), midpoints(4, 2)
    noise = TokenNoise(uniform.repeat(2, 1, 1), torch.arange(2.0).repeat_interleave(16)[:, None])
    assert push(step, {(2, 2): 1.0}, 1.0, 0.0, noise) == {(0, 0): 0.5, (1, 1): 0.5}


def test_without_a_mask_a_step_is_the_bridge() -> None:
    """Half of the tokens are drawn anew until 1/2: 3/4 of the zeros are zero there, 1/4 of others.

    x at time 1 says nothing, so the clean bit is 0 with 3/4.
    """
    denoiser = exact(torch.tensor([[0], [1]]), Uniform(2), (3.0, 1.0))
    law = push(Ancestral(denoiser), {(0,): 1.0}, 1.0, 0.5, TokenNoise(midpoints(16, 1)))
    assert law == {(0,): 10 / 16, (1,): 6 / 16}


def test_tau_leaping_holds_the_rate_of_a_mask() -> None:
    """At 1 it is 1, halved by two tokens; of one jump in Poisson(1/2), in half of the time."""
    n = 4000
    step = TauLeaping(exact(torch.tensor([[0], [1]])))
    law = push(step, {(2,): 1.0}, 1.0, 0.5, TokenNoise(midpoints(n, 1)))
    falls = 0.5 * math.exp(-0.5)
    assert distance(law, {(0,): falls / 2, (1,): falls / 2, (2,): 1 - falls}) < 2 / n
    assert push(step, law, 0.5, 0.0, TokenNoise(midpoints(64, 1))).keys() == {(0,), (1,)}
    # Of two equal bits those differ that fall together, in the first step or in the second.
    found = sampler_law(TauLeaping(exact()), uniform_grid(2))
    unequal = (falls**2 + (1 - falls) ** 2) / 2
    assert float(found[0, 1] + found[1, 0]) == pytest.approx(unequal, abs=1e-12)


@pytest.mark.parametrize("process", [Uniform(3, "exponential"), DiscretisedGaussian(3, scale=0.02)])
def test_tau_leaping_tends_to_the_ancestral_law(process: Any) -> None:
    """With one position the ancestral law is exact at any number of steps; the error is O(1/N)."""
    denoiser = exact(torch.arange(3)[:, None], process, (0.5, 0.2, 0.3))
    found = []
    for count in (16, 128, 256):
        laws = [
            functools.reduce(torch.matmul, transitions(step, uniform_grid(count)))
            for step in (Ancestral(denoiser), TauLeaping(denoiser))
        ]
        found.append(float((process.stationary() @ (laws[0] - laws[1])).abs().sum() / 2))
    assert found[0] < 0.1
    assert math.log2(found[1] / found[2]) == pytest.approx(1, abs=0.1)


def transitions(step: Ancestral, grid: Tensor) -> Tensor:
    """Its matrices for one position, all steps in one call, with a time a row."""
    rows = [torch.repeat_interleave(v, 3) for v in (grid[:-1], grid[1:])]
    x = torch.arange(3).repeat(len(grid) - 1)[:, None]
    log_p = step.laws(x, *rows, None, {})
    if type(step) is TauLeaping and step.process.ordered:
        found = leaps(step.means(x, *rows, log_p)[:, 0], x)
    else:
        found = step.kernel(x, *rows, log_p)[:, 0]
    found = found.reshape(-1, 3, 3)
    if grid[-1] == 0:  # the last step draws clean tokens
        found[-1] = log_p[-3:, 0].exp()
    return found


def leaps(means: Tensor, x: Tensor) -> Tensor:
    """Where Poisson counts lead ordered tokens, summed over counts of up to seven a symbol."""
    counts = torch.cartesian_prod(*[torch.arange(8)] * 3)
    chances = scipy.stats.poisson.pmf(counts.numpy(), means[:, None].numpy()).prod(-1)
    ends = (x + (counts * (torch.arange(3) - x[..., None])).sum(-1)).clamp(0, 2)
    return torch.zeros_like(means).scatter_add(1, ends, torch.from_numpy(chances))


def test_ordered_tokens_leap_by_the_sum_of_their_jumps() -> None:
    """The step itself, on a lattice of numbers, against the sum over all counts."""
    process = DiscretisedGaussian(3, scale=0.02)
    step = TauLeaping(exact(torch.arange(3)[:, None], process, (0.5, 0.2, 0.3)))
    x, log_p = torch.tensor([[0]]), torch.zeros(1, 1, 3)
    assert float(step.means(x, 0.8, 0.6, log_p).sum()) > 0.3
    expected = transitions(step, torch.tensor([0.8, 0.6], dtype=torch.float64))[0]
    for start in range(3):
        law = push(step, {(start,): 1.0}, 0.8, 0.6, TokenNoise(midpoints(40, 1, 3)))
        for y in range(3):
            assert law.get((y,), 0.0) == pytest.approx(float(expected[start, y]), abs=0.02)


def test_poisson_counts_are_scipys() -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.cat([torch.zeros(9), torch.logspace(-4, 3.5, 4000)]).double()
    uniform = torch.rand(len(means), generator=generator, dtype=torch.float64)
    found = poisson(means, uniform)
    np.testing.assert_array_equal(found[9:], scipy.stats.poisson.ppf(uniform[9:], means[9:]))
    assert not bool(found[:9].any())


# --- seeds and batches ----------------------------------------------------------------------------

STEPS: dict[str, Callable[[], Any]] = {
    "ancestral": lambda: Ancestral(exact(XOR)),
    "tau-leaping": lambda: TauLeaping(exact(XOR)),
    "confidence": lambda: Confidence(exact(XOR)),
    "random": lambda: RandomOrder(exact(XOR)),
    "halton": lambda: Halton(exact(XOR)),
    "no mask": lambda: Ancestral(exact(XOR, Uniform(2))),
    "ordered": lambda: TauLeaping(exact(XOR, DiscretisedGaussian(2))),
    "mixture": lambda: Ancestral(mixture(SURE, ONES)),
    "best of 3": lambda: Ancestral(mixture(SURE, ONES), best_of=3),
    "hybrid": lambda: Hybrid(Ancestral(mixture(SURE, ONES)), Ancestral(exact()), 0.4),
}


@pytest.mark.parametrize("build", STEPS.values(), ids=STEPS)
def test_a_seed_gives_its_sample_in_any_batch_and_no_mask_is_left(build: Callable[[], Any]) -> None:
    step, n = build(), 33
    shape = (n, step.denoiser.length)
    for grid in (uniform_grid(1), uniform_grid(3), torch.tensor([1.0, 0.9, 0.05, 0.0])):
        whole = sample(step, grid, shape, seeds=range(n))
        assert whole.dtype == torch.int64
        assert {*whole.unique().tolist()} <= {0, 1}
        for size in (1, 7):
            assert torch.equal(sample(step, grid, shape, range(n), batch_size=size), whole)
        some = [31, 2, 8]
        assert torch.equal(sample(step, grid, (3, shape[1]), seeds=some), whole[some])
    assert len(whole.unique(dim=0)) > 1


# --- what a step is told --------------------------------------------------------------------------


def test_what_is_given_is_kept_and_seen() -> None:
    model = as_token_model(exact(XOR))
    drawn = model.sample(64, 1, seed=0, prefix=[1, 1])
    assert torch.equal(drawn, XOR[3].expand(64, 3))
    given = torch.tensor([[0, -1, 1], [-1, 1, 0]])
    drawn = model.sample(2, 1, seed=0, given=given)
    assert drawn.tolist() == [[0, 1, 1], [1, 1, 0]]


def test_without_a_mask_what_is_given_walks_as_its_own_law_does() -> None:
    """At s it is what noise makes of it, 3/4 at 1/2; the other bit learns of it on the way."""
    denoiser, n, states = exact(BITS, Uniform(2)), 4000, {}
    given = torch.tensor([1, -1]).expand(n, 2)
    step, generator = Ancestral(denoiser), torch.Generator().manual_seed(0)
    drawn = sample(
        step, uniform_grid(64), (n, 2), generator=generator, given=given,
        callback=lambda k, t, x: states.update({float(t): x}),
    )  # fmt: skip
    assert bool((drawn[:, 0] == 1).all())
    for time, share in ((0.75, 0.625), (0.5, 0.75), (0.25, 0.875)):
        found = float((states[time][:, 0] == 1).double().mean())
        assert found == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5)
    # Over many steps it follows; a single one sees noise alone.
    followed = float((drawn[:, 1] == 1).double().mean())
    blind = sample(step, uniform_grid(1), (n, 2), generator=generator, given=given)
    assert followed > 0.85
    assert float((blind[:, 1] == 1).double().mean()) == pytest.approx(0.5, abs=0.04)


def test_a_latent_that_is_given_stays() -> None:
    student = mixture(ZEROS, ONES)
    latent = torch.tensor([[0.0], [1.0], [1.0]])
    drawn = as_token_model(student).sample(3, 4, seed=0, latent=latent)
    assert drawn.tolist() == [[0, 0], [1, 1], [1, 1]]
    assert all(torch.equal(told["latent"], latent) for told in student.network.seen)


def test_an_elastic_student_is_told_where_the_step_ends() -> None:
    student = mixture(ZEROS, ONES, elastic=True)
    as_token_model(student).sample(2, 4, seed=0)
    ends = [told["step"].tolist() for told in student.network.seen]
    assert ends == [[0.75] * 2, [0.5] * 2, [0.25] * 2, [0.0] * 2]


def test_the_best_of_several_latents_is_the_surest_and_its_calls_count() -> None:
    """The sure component is taken unless none of three latents is it: in 1 of 8."""
    step, n = Ancestral(mixture(SURE, ONES), best_of=3), 4000
    drawn = sample(step, uniform_grid(1), (n, 2), generator=torch.Generator().manual_seed(0))
    ones = 1 - 1 / 8  # of the second component, which is certain
    expected = {(1, 1): ones + 0.01 / 8, (0, 0): 0.81 / 8, (0, 1): 0.09 / 8, (1, 0): 0.09 / 8}
    law = {x: float((drawn == torch.tensor(x)).all(1).double().mean()) for x in expected}
    assert distance(law, expected) < 0.02
    assert network_calls(step, uniform_grid(4)) == 3 + 3
    last, first = (step.noise(t, s, (5, 2)).latent for t, s in ((0.5, 0.0), (1.0, 0.5)))
    assert (last.shape, first.shape) == ((5, 3, 1), (5, 1))


@pytest.mark.parametrize(("temperature", "chance"), [(0, 1.0), (0.5, 0.9), (1, 0.75), (2, 0.634)])
def test_temperature_divides_log_probabilities(temperature: float, chance: float) -> None:
    step = Ancestral(product([[0.75, 0.25, 0.0]] * 2), temperature)
    log_p = step.laws(torch.full((1, 2), 2), 1.0, 0.0, None, {})
    assert log_p.exp()[0, 0].tolist() == pytest.approx([chance, 1 - chance, 0], abs=1e-3)


@pytest.mark.parametrize("build", [Ancestral, TauLeaping, Confidence])
def test_the_share_of_a_mask_is_dropped(build: Any) -> None:
    """A softmax over all symbols may give the mask some of it, or all."""
    for law, expected in (([0.3, 0.1, 0.6], 0.75), ([1e-30, 1e-30, 1.0], 0.5)):
        step, n = build(product([law] * 2, "all")), 2000
        drawn = sample(step, uniform_grid(2), (n, 2), seeds=range(n))
        assert {*drawn.unique().tolist()} == {0, 1}
        assert float((drawn == 0).double().mean()) == pytest.approx(expected, abs=0.04)


def guided(scale: float, **options: Any) -> GuidedTokens:
    """A law guided away from another, which is what it says without its class."""

    class Network(nn.Module):
        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            laws = torch.tensor([[0.5, 0.5, 0.0], [0.8, 0.2, 0.0]]).log()
            return laws[label][:, None].expand(-1, 2, -1)

    denoiser = NetworkTokenDenoiser(Network(), Absorbing(2), 2)
    return GuidedTokens(denoiser, scale, {"label": torch.tensor([0])}, **options)


@pytest.mark.parametrize("ramp", [False, True])
def test_guidance_has_its_whole_scale_in_the_last_step(ramp: bool) -> None:
    step, x = Ancestral(guided(3.0, ramp=ramp)), torch.full((1, 2), 2)
    told = {"label": torch.tensor([1])}
    for s, scale in ((0.0, 3.0), (0.75, 1.5 if ramp else 3.0)):
        odds = 4**scale  # the odds 4 of the class over the odds 1 without, to the scale
        found = step.laws(x, 1.0, s, None, told).exp()[0, 0]
        assert found.tolist() == pytest.approx([odds / (1 + odds), 1 / (1 + odds), 0], rel=1e-5)
    assert network_calls(step, uniform_grid(4)) == 8


# --- a student first, its teacher last ------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_hybrid_ends_with_another_step(count: int) -> None:
    grid, first, last = uniform_grid(3), Ancestral(mixture(SURE, ONES)), Ancestral(guided(2.0))
    hybrid = Hybrid.on(grid, first, last, count)
    taken = [hybrid.at(t) for t in grid[:-1].tolist()]
    assert taken == [first] * (3 - count) + [last] * count
    assert network_calls(hybrid, grid) == 3 + count


def test_a_product_at_the_end_hears_no_latent() -> None:
    hybrid = Hybrid(Ancestral(mixture(ZEROS, ZEROS)), Ancestral(exact()), 0.5)
    drawn = as_token_model(hybrid).sample(4, 2, seed=0, latent=torch.zeros(4, 1))
    assert drawn.shape == (4, 2)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "line"),
    [
        (lambda: Ancestral(exact(), -1.0), "temperature must be at least 0 and finite, got -1"),
        (lambda: Ancestral(exact(), best_of=2), "a product has no latents to choose among"),
        (lambda: Ancestral(mixture(ZEROS, ONES), best_of=0), "best_of must be at least 1, got 0"),
        (lambda: Hybrid(Ancestral(exact()), Ancestral(exact(XOR, Uniform(3))), 0.5), "one process"),
        (
            lambda: Hybrid.on(uniform_grid(3), Ancestral(exact()), Ancestral(exact()), 4),
            "of 3 steps the last 4 cannot be another's",
        ),
    ],
)
def test_steps_that_cannot_be_are_refused(build: Callable[[], Any], line: str) -> None:
    with pytest.raises(SigdegError, match=line):
        build()


@pytest.mark.parametrize(
    ("step", "told", "line"),
    [
        (Ancestral(exact()), {"latent": torch.zeros(2, 1)}, "a product, which hears none"),
        (Ancestral(exact()), {"given": torch.zeros(2, 3).long()}, "have the shape of the samples"),
        (Ancestral(exact()), {"given": torch.full((2, 2), 2)}, "hold the mask symbol 2"),
        (Ancestral(exact()), {"given": torch.full((2, 2), 5)}, "must lie between 0 and 1, got 5"),
        (TauLeaping(exact(BITS, Uniform(2))), {}, "its rates are infinite: take the schedule exp"),
        (Ancestral(product([[math.nan] * 3] * 2)), {}, "sampling gave NaN: the model is broken"),
    ],
)
def test_what_a_step_cannot_do_is_refused(step: TokenStep, told: Any, line: str) -> None:
    with pytest.raises(SigdegError, match=line):
        sample(step, uniform_grid(2), (2, 2), seeds=[0, 1], **told)
