"""Planned grids of tokens: closed forms, sums over all states, and what they win exactly."""

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
    Latent,
    MixtureStudent,
    Uniform,
    uniform_grid,
)
from sigdeg.discrete.exact import (
    all_states,
    joint_law,
    kl_divergence,
    noised_law,
    sampler_law,
    total_correlation,
    total_variation,
)
from sigdeg.discrete.planning import (
    distance_bound,
    exact_losses,
    fewest_steps,
    measured_losses,
)
from sigdeg.discrete.process import DiscreteProcess
from sigdeg.errors import SigdegError

SMALL = torch.tensor([[0, 1], [1, 0], [1, 1]]), torch.tensor([0.5, 0.2, 0.3])


def teacher(name: str, process: DiscreteProcess | None = None) -> tuple[ExactDenoiser, Tensor]:
    law = load_problem(name)
    process = process or Absorbing(law.tokens)
    denoiser = ExactDenoiser(law.support, law.weights, process)
    return denoiser, joint_law(law.support, law.weights, process.states)


@pytest.mark.parametrize("process", [Absorbing(2), Uniform(2, "exponential", 2.0)])
def test_a_step_loses_the_total_correlation_of_where_it_goes(process: DiscreteProcess) -> None:
    """By its definition: Bayes over all pairs of states."""
    denoiser = ExactDenoiser(*SMALL, process)
    losses = exact_losses(denoiser, 4)
    law = joint_law(*SMALL, process.states)
    x = all_states(process.states, 2)
    for i, j in ((0, 1), (0, 4), (1, 3), (2, 4)):
        t, s = losses.times[[i, j]].tolist()
        at_t, at_s = (noised_law(law, process, v) for v in (t, s))
        expected = 0.0
        for state in x:
            if at_t[tuple(state)] > 0:
                likely = process.likelihood(state[None], s, t)[0]
                back = at_s * torch.outer(likely[0], likely[1])
                expected += float(at_t[tuple(state)]) * total_correlation(back / back.sum())
        assert float(losses.each[0, i, j]) == pytest.approx(expected, abs=1e-9)


def test_two_bits_lose_what_collides_and_no_grid_is_better_than_the_even_one() -> None:
    denoiser, law = teacher("bits2")
    losses = exact_losses(denoiser, 16)
    for grid in ([1, 0.75, 0.25, 0], [1, 0.5, 0.125, 0]):
        collided = float((torch.tensor(grid).diff() ** 2).sum())
        assert losses.lost(grid)["mean"] == pytest.approx(math.log(2) * collided, abs=1e-7)
        found = total_variation(sampler_law(Ancestral(denoiser), grid), law)
        assert found == pytest.approx(collided / 2, abs=1e-9)
    for steps in (1, 2, 4, 8):
        assert torch.equal(losses.grid(steps), uniform_grid(steps))


def test_copies_are_planned_where_their_entropy_falls() -> None:
    """One bit in D places: a masked token is unknown with probability t^(D-1) at time t.

    Hence two steps by way of u lose D log 2 (1 - u + u^D - 1/D), least at u = D^(-1/(D-1)).
    """
    denoiser, law = teacher("copy6")
    losses = exact_losses(denoiser, 32)
    for u in (0.25, 0.75):
        nats = 6 * math.log(2) * (1 - u + u**6 - 1 / 6)
        assert losses.lost([1, u, 0])["mean"] == pytest.approx(nats, abs=1e-7)
    best = losses.grid(2)
    assert float(best[1]) == pytest.approx(6 ** (-1 / 5), abs=1 / 64)

    def closed(u: float) -> float:
        shares = [math.comb(6, k) * (1 - u) ** k * u ** (6 - k) for k in range(7)]
        return 1 - sum(share * 2.0 ** (1 - (k or 6)) for k, share in enumerate(shares))

    for grid in (best, uniform_grid(2)):
        found = total_variation(sampler_law(Ancestral(denoiser), grid), law)
        assert found == pytest.approx(closed(float(grid[1])), abs=1e-9)
    assert closed(float(best[1])) < 0.75 * closed(0.5)


@pytest.mark.parametrize(
    ("name", "process", "least"),
    [("copy6", None, 0.7), ("words4", None, 0.99), ("words4", Uniform(4, "exponential", 5.0), 0.3)],
)
def test_planned_grids_win_exactly(
    name: str, process: DiscreteProcess | None, least: float
) -> None:
    denoiser, law = teacher(name, process)
    step, losses = Ancestral(denoiser), exact_losses(denoiser, 32)
    planned, even = (
        total_variation(sampler_law(step, grid), law) for grid in (losses.grid(4), uniform_grid(4))
    )
    assert planned < least * even


def test_a_plan_is_the_best_of_all_grids() -> None:
    losses = exact_losses(teacher("words4")[0], 8)
    for steps in (1, 2, 3):
        inner = [c for c in product(range(1, 8), repeat=steps - 1) if sorted(set(c)) == list(c)]
        every = [losses.lost(losses.times[[0, *c, 8]])["mean"] for c in inner]
        assert losses.lost(losses.grid(steps))["mean"] == pytest.approx(min(every), abs=1e-12)


def test_what_is_lost_bounds_what_is_drawn() -> None:
    for name in ("xor3", "words4"):
        denoiser, law = teacher(name)
        losses = exact_losses(denoiser, 8)
        for steps in (1, 2, 4):
            nats = losses.lost(losses.grid(steps))["mean"]
            drawn = sampler_law(Ancestral(denoiser), losses.grid(steps))
            assert kl_divergence(law, drawn) <= nats + 1e-7
            assert total_variation(law, drawn) <= distance_bound(nats)
    assert distance_bound(0.02) == pytest.approx(0.1)
    assert distance_bound(50.0) == pytest.approx(1.0)
    assert distance_bound(-1e-9) == 0


@pytest.mark.parametrize(
    ("name", "process"), [("words4", None), ("xor3", Uniform(2, "exponential", 4.0))]
)
def test_measured_losses_are_the_exact_ones(name: str, process: DiscreteProcess | None) -> None:
    """Beside those between neighbouring candidates, which count as nothing when measured."""
    denoiser, _ = teacher(name, process)
    exact = exact_losses(denoiser, 8).each[0]
    data = load_problem(name).sample(600, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    losses = measured_losses(Ancestral(denoiser), data, 8, generator)
    assert losses.each.shape == (600, 9, 9)
    assert bool((losses.each >= -1e-9).all())
    near = exact.diagonal(1)
    beside = torch.cat([near.new_zeros(1), near.cumsum(0)])
    expected = (exact - (beside[None, :] - beside[:, None])).triu(1)
    error = losses.each.std(0) / 600**0.5
    assert bool(((losses.each.mean(0) - expected).abs() < 4.5 * error + 1e-6).all())
    assert float(losses.each.mean(0).max()) > 0.1


def test_the_fewest_steps_for_a_distance() -> None:
    denoiser, law = teacher("bits2")
    losses = exact_losses(denoiser, 16)

    def distance(grid: Tensor) -> float:
        return total_variation(sampler_law(Ancestral(denoiser), grid), law)

    assert fewest_steps(losses, distance, 0.5) == 1
    assert fewest_steps(losses, distance, 0.126) == 4
    assert fewest_steps(losses, distance, 0.1) == 6  # 5 of 16 candidates are not even
    assert fewest_steps(losses, distance, 1 / 32) == 16
    assert fewest_steps(losses, distance, 0.03) is None


def test_what_cannot_be_planned_is_refused() -> None:
    denoiser = teacher("bits2")[0]
    losses = exact_losses(denoiser, 4)
    with pytest.raises(SigdegError, match="between 5 candidate times there are at most 4 steps"):
        losses.grid(5)
    with pytest.raises(SigdegError, match="steps must be at least 1, got 0"):
        losses.grid(0)
    with pytest.raises(SigdegError, match="between candidate times alone"):
        losses.lost([1, 0.3, 0])
    assert losses.nearest([1, 0.3, 0]).tolist() == [1, 0.25, 0]
    with pytest.raises(SigdegError, match="candidates must be at least 1, got 0"):
        exact_losses(denoiser, 0)
    mixture = Ancestral(MixtureStudent(nn.Identity(), Absorbing(2), 2, Latent()))
    data = torch.zeros(4, 2, dtype=torch.int64)
    with pytest.raises(SigdegError, match="a mixture is no product"):
        measured_losses(mixture, data)
    with pytest.raises(SigdegError, match="sequences must be at least 2, got 1"):
        measured_losses(Ancestral(denoiser), data[:1])
