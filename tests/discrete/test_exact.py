"""Exact laws of samplers: against closed forms, brute force and draws."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from sigdeg.datasets import load_problem
from sigdeg.discrete import (
    Absorbing,
    Ancestral,
    ExactDenoiser,
    Hybrid,
    Latent,
    MixtureStudent,
    Uniform,
    as_token_model,
    uniform_grid,
)
from sigdeg.discrete.exact import (
    all_states,
    collision_bound,
    joint_law,
    kl_divergence,
    latent_points,
    law_on,
    loss_bound,
    noised_law,
    sampler_law,
    total_correlation,
    total_variation,
    transition,
)
from sigdeg.discrete.process import DiscreteProcess
from sigdeg.errors import SigdegError

# Total variation of the exact product teacher on 1, 2, 4, 8 equal steps.
GOLDEN = {
    "bits2": (0.5, 0.25, 0.125, 0.0625),
    "xor3": (0.5, 0.3125, 0.171875, 0.08984375),
    "copy6": (0.96875, 0.6748046875, 0.36532592773437494, 0.18628215789794922),
    "checker8": (0.5, 0.25, 0.125, 0.0625),
}
CORRELATION = {"bits2": 1, "xor3": 1, "copy6": 5, "checker8": 1, "checker32": 1}  # in log 2


def teacher(name: str, process: DiscreteProcess | None = None) -> tuple[Ancestral, Tensor]:
    """The exact product teacher of a problem, and the law of the problem."""
    law = load_problem(name)
    process = process or Absorbing(law.tokens)
    step = Ancestral(ExactDenoiser(law.support, law.weights, process))
    return step, joint_law(law.support, law.weights, process.states)


def distances(step: Ancestral, law: Tensor, counts: tuple[int, ...]) -> list[float]:
    return [total_variation(sampler_law(step, uniform_grid(n)), law) for n in counts]


@pytest.mark.parametrize("name", GOLDEN)
def test_what_steps_of_a_product_lose(name: str) -> None:
    step, law = teacher(name)
    assert distances(step, law, (1, 2, 4, 8)) == pytest.approx(GOLDEN[name], abs=1e-9)


def test_copies_collide_as_balls_in_bins() -> None:
    """TV of one bit in D places: 1 - E 2^(1-k), k the size of the first bin that is not empty."""
    step, law = teacher("copy6")
    for n in (1, 2, 3):
        first = [min(bins) for bins in product(range(n), repeat=6)]
        sizes = [b.count(min(b)) for b in product(range(n), repeat=6)]
        closed = 1 - sum(2.0 ** (1 - k) for k in sizes) / len(first)
        assert distances(step, law, (n,)) == pytest.approx([closed], abs=1e-9)


def test_two_positions_err_as_often_as_they_collide() -> None:
    for name in ("checker8", "moons16"):
        step, law = teacher(name)
        grid = torch.tensor([1.0, 0.7, 0.45, 0.0], dtype=torch.float64)
        once = total_variation(sampler_law(step, uniform_grid(1)), law)
        collided = float((grid.diff() ** 2).sum())
        found = total_variation(sampler_law(step, grid), law)
        assert found == pytest.approx(once * collided, abs=1e-9)


def test_words_and_chain_keep_their_distances() -> None:
    """The laws with parameters chosen here: what they are, and what steps lose on them."""
    for name, values in (
        ("words4", (0.906275, 0.5868884740259741, 0.3287750710227283, 0.1734568803267)),
        ("markov4", (0.764466, 0.4297756223563, 0.2322398147089)),
        ("moons16", (0.5100726287266997,)),
    ):
        step, law = teacher(name)
        found = distances(step, law, (1, 2, 4, 8)[: len(values)])
        assert found == pytest.approx(values, abs=1e-9)


def test_uniform_noise_costs_more_steps_than_masks() -> None:
    """Rate 1 over a time of 3, from the exact law at the end."""
    process = Uniform(2, "exponential", 3.0)
    step, law = teacher("bits2", process)
    start = noised_law(law, process, 1.0)
    found = [
        total_variation(sampler_law(step, uniform_grid(n), start=start), law)
        for n in (1, 2, 4, 8, 16, 32, 64, 128)
    ]
    kept = math.exp(-6.0)  # that both bits are still their own
    assert found[0] == pytest.approx(0.5 - kept / (1 + kept), abs=1e-9)
    told = [0.4975273768, 0.4546049645, 0.3387727157, 0.2172468327, 0.126023319]
    told += [0.068447758, 0.0357609486, 0.0182905514]
    assert found == pytest.approx(told, abs=1e-9)
    slopes = [n * d for n, d in zip((1, 2, 4, 8, 16, 32, 64, 128), found, strict=True)]
    assert slopes == sorted(slopes)
    assert slopes[-1] < 2.4  # O(1/N)


@pytest.mark.parametrize("name", ["bits2", "xor3", "copy6", "words4"])
def test_errors_fall_as_one_over_the_steps(name: str) -> None:
    """N TV rises to a constant below the number of pairs, and no grid is above the bound."""
    step, law = teacher(name)
    counts = (1, 2, 4, 8)
    found = distances(step, law, counts)
    scaled = [n * d for n, d in zip(counts, found, strict=True)]
    assert scaled == sorted(scaled)
    process = Absorbing(step.process.states - 1)
    for n, d in zip(counts, found, strict=True):
        bound = collision_bound(process, law.ndim, uniform_grid(n))
        assert bound == pytest.approx(math.comb(law.ndim, 2) / n)
        assert d <= bound
    uneven = torch.tensor([1.0, 0.9, 0.2, 0.0], dtype=torch.float64)
    distance = total_variation(sampler_law(step, uneven), law)
    assert distance <= collision_bound(process, law.ndim, uneven)


def test_total_correlation_of_problems() -> None:
    for name, nats in CORRELATION.items():
        law = load_problem(name)
        found = total_correlation(joint_law(law.support, law.weights, law.tokens))
        assert found == pytest.approx(nats * math.log(2), abs=1e-12)


def test_distances_of_laws() -> None:
    p, q = torch.tensor([[0.5, 0.0], [0.0, 0.5]]).double(), torch.full((2, 2), 0.25).double()
    assert total_variation(p, q) == 0.5
    assert kl_divergence(p, q) == pytest.approx(math.log(2), abs=1e-12)
    assert kl_divergence(q, p) == math.inf
    assert kl_divergence(p, p) == 0
    assert total_correlation(p) == pytest.approx(kl_divergence(p, q), abs=1e-12)
    assert total_correlation(q) == pytest.approx(0, abs=1e-12)


def test_a_noised_law_is_that_of_noised_sequences() -> None:
    process = Uniform(3)
    support, weights = torch.tensor([[0, 2], [1, 1]]), torch.tensor([0.3, 0.7])
    found = noised_law(joint_law(support, weights, 3), process, 0.4)
    rows = process.push(torch.eye(3).double(), 0.0, 0.4)
    expected = sum(
        w * torch.outer(rows[a], rows[b])
        for (a, b), w in zip(support.tolist(), weights.double().tolist(), strict=True)
    )
    assert torch.allclose(found, torch.as_tensor(expected), atol=1e-7)


class Leaning(nn.Module):
    """Logits that lean towards a token by place, time and latent."""

    def __init__(self, states: int) -> None:
        super().__init__()
        self.states = states

    def forward(self, x: Tensor, t: Tensor, latent: Tensor, **condition: Tensor) -> Tensor:
        place = torch.arange(x.shape[1])[None, :, None]
        symbol = torch.arange(self.states)[None, None, :]
        wave = 3 * latent.double()[:, :1, None] + place + t[:, None, None] + x[..., None]
        return 2 * torch.sin(wave * (symbol + 1))


def mixture(latent: Latent, process: DiscreteProcess, length: int = 3) -> Ancestral:
    network = Leaning(process.states)
    return Ancestral(MixtureStudent(network, process, length, latent))


@pytest.mark.parametrize("process", [Absorbing(2), Uniform(3)])
def test_the_law_of_a_mixture_by_brute_force(process: DiscreteProcess) -> None:
    """Every path of two steps, with every pair of components, on its own."""
    step, x = mixture(Latent("categorical", 2), process, 2), all_states(3, 2)
    grid = torch.tensor([1.0, 0.4, 0.0], dtype=torch.float64)

    def move(a: Tensor, b: Tensor, t: float, s: float) -> float:
        chances = []
        for component in range(2):
            told = torch.tensor([[component]])
            p = step.denoiser(a[None], torch.tensor(t), told).double().exp()
            rows = process.posterior(p, a[None], t, s)[0]
            chances.append(float(rows[0, b[0]] * rows[1, b[1]]))
        return sum(chances) / 2

    first = {(a, b): move(x[a], x[b], 1.0, 0.4) for a, b in product(range(9), range(9))}
    then = {(a, b): move(x[a], x[b], 0.4, 0.0) for a, b in product(range(9), range(9))}
    law = torch.zeros(3, 3, dtype=torch.float64)
    prior = process.stationary()
    for a, b, c in product(range(9), range(9), range(9)):
        law[tuple(x[c])] += float(prior[x[a]].prod()) * first[a, b] * then[b, c]
    found = sampler_law(step, grid)
    assert float(found.sum()) == pytest.approx(1, abs=1e-12)
    assert torch.allclose(found, law, atol=1e-12)


def test_exact_laws_are_those_of_draws() -> None:
    step, grid, n = mixture(Latent(), Absorbing(2)), uniform_grid(2), 8000
    drawn = as_token_model(step).sample(n, 2, seed=0)
    counts = joint_law(drawn, torch.ones(n), 3)
    exact = sampler_law(step, grid)
    assert bool(((counts - exact).abs() < 5 * (exact / n).sqrt() + 1e-9).all())


def test_a_mixture_of_two_has_no_error() -> None:
    class Copy(nn.Module):
        def forward(self, x: Tensor, t: Tensor, latent: Tensor, **condition: Tensor) -> Tensor:
            sign = torch.where(latent < 0.5, 1.0, -1.0)[..., None]
            return 100 * sign * torch.tensor([1.0, -1.0, 0.0]).expand(*x.shape, 3)

    _, law = teacher("copy6")
    step = Ancestral(MixtureStudent(Copy(), Absorbing(2), 6, Latent()))
    assert total_variation(sampler_law(step, uniform_grid(1)), law) < 1e-9


def test_a_hybrid_is_one_step_and_then_the_other() -> None:
    student, (own, _) = mixture(Latent(), Absorbing(2)), teacher("xor3")
    grid, x = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64), all_states(3, 3)
    first, last = transition(student, x, 1.0, 0.5), transition(own, x, 0.5, 0.0)
    found = sampler_law(Hybrid(student, own, 0.5), grid)
    assert torch.allclose(found.flatten(), (first @ last)[-1], atol=1e-12)


def test_rows_do_not_depend_on_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    step, x = mixture(Latent(), Absorbing(2)), all_states(3, 3)
    whole = transition(step, x, 0.7, 0.2)
    monkeypatch.setattr("sigdeg.discrete.exact.MOST_NUMBERS", 2000)
    assert torch.allclose(transition(step, x, 0.7, 0.2), whole, atol=1e-12)


def test_latents_that_stand_for_all() -> None:
    assert latent_points(Latent("categorical", 3)).tolist() == [[0], [1], [2]]
    assert latent_points(Latent(), 4)[:, 0].tolist() == [0.125, 0.375, 0.625, 0.875]
    normal = latent_points(Latent("gaussian", 1), 1000)
    assert float(normal.std()) == pytest.approx(1, abs=0.01)
    many = latent_points(Latent("gaussian", 4), 1024)
    assert many.shape == (1024, 4)
    assert torch.allclose(many.T.cov(), torch.eye(4), atol=0.02)
    with pytest.raises(SigdegError, match="latents must be at least 1, got 0"):
        latent_points(Latent(), 0)


@pytest.mark.parametrize("steps", [1, 2])
def test_probabilities_of_some_sequences_without_all_others(steps: int) -> None:
    step, support = mixture(Latent(), Absorbing(2)), load_problem("xor3").support
    exact = sampler_law(step, uniform_grid(steps))[tuple(support.T)]
    generator = torch.Generator().manual_seed(0)
    found = law_on(step, uniform_grid(steps), support, 500, generator)
    assert torch.allclose(found, exact, atol=1e-12 if steps == 1 else 0.03)


def test_sudoku_is_too_much_for_one_call_of_a_product() -> None:
    """Every cell alone is any of four digits: one filling of 4^16 is as likely as another."""
    law = load_problem("sudoku4")
    step = Ancestral(ExactDenoiser(law.support, law.weights, Absorbing(4)))
    found = law_on(step, uniform_grid(1), law.support)
    assert torch.allclose(found, torch.full_like(found, 4.0**-16), rtol=1e-9)
    few = law_on(step, uniform_grid(8), law.support, 200, torch.Generator().manual_seed(0))
    assert 0.1 < float(few.sum()) < 0.9


def test_losses_bound_the_distance_to_the_teacher() -> None:
    """An own student, exactly: the bound holds, and it is the losses' own sum."""
    own, _ = teacher("bits2")
    student = mixture(Latent(), Absorbing(2), 2)
    found = loss_bound(own, student, uniform_grid(4))
    assert 0 < found.distance <= found.bound
    terms = [found.distil, *found.consistency]
    assert found.bound == pytest.approx(sum(math.sqrt(v / 2) for v in terms), abs=1e-12)
    assert len(found.consistency) == 3


def test_a_product_student_has_the_consistency_loss_that_is_known() -> None:
    """Two equal bits, both masked: log 2 - h(((1 - r)^2 + r^2) / 2), r = Delta / t = 1/2."""
    own, law = teacher("bits2")
    found = loss_bound(own, own, uniform_grid(2))
    mu = 0.25
    entropy = -mu * math.log(mu) - (1 - mu) * math.log(1 - mu)
    assert found.distil == pytest.approx(0, abs=1e-9)
    assert found.consistency == pytest.approx([math.log(2) - entropy], abs=1e-9)
    assert found.consistency[0] == pytest.approx(0.1308, abs=1e-4)
    once, twice = distances(own, law, (1, 2))
    assert found.distance == pytest.approx(once - twice, abs=1e-9)


def test_what_is_too_long_is_refused() -> None:
    law = load_problem("sudoku4")
    step = Ancestral(ExactDenoiser(law.support, law.weights, Absorbing(4)))
    with pytest.raises(SigdegError, match=r"5\^16 sequences are too many to enumerate"):
        sampler_law(step, uniform_grid(1))
    with pytest.raises(SigdegError, match="an axis of 3 for each of 2 positions"):
        sampler_law(teacher("bits2")[0], uniform_grid(1), start=torch.ones(2, 2))
