"""Steps that unmask by count: how many, which, and that one at a time is exact."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sigdeg.discrete import (
    Absorbing,
    Ancestral,
    Confidence,
    ExactDenoiser,
    Halton,
    RandomOrder,
    Uniform,
    uniform_grid,
)
from sigdeg.discrete.orders import halton_order
from sigdeg.discrete.process import SCHEDULES
from sigdeg.discrete.steps import TokenNoise
from sigdeg.errors import SigdegError
from sigdeg.sampling import sample

MASK = 2
XOR = torch.tensor([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]])


def bits(length: int, chances: Any = 0.5, **options: Any) -> ExactDenoiser:
    """Independent bits, each 1 with its own chance."""
    support = torch.cartesian_prod(*[torch.arange(2)] * length).reshape(-1, length)
    chance = torch.as_tensor(chances, dtype=torch.float64)
    weights = (support * chance + (1 - support) * (1 - chance)).prod(1)
    return ExactDenoiser(support, weights, Absorbing(2, **options))


@pytest.mark.parametrize("build", [Confidence, RandomOrder, Halton])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_as_many_masks_are_left_as_the_schedule_says(build: Any, schedule: str) -> None:
    """And at least one falls in each step, until there are none."""
    length, step = 7, None
    step = build(bits(length, schedule=schedule))
    for count in (1, 2, 3, 5, 7, 12):
        left: list[int] = []

        def watch(k: int, t: Tensor, x: Tensor, left: list[int] = left) -> None:
            masks = (x == MASK).sum(1)
            assert len(masks.unique()) == 1
            left.append(int(masks[0]))

        grid = uniform_grid(count)
        sample(step, grid, (3, length), seeds=range(3), callback=watch)
        share, expected = 1 - SCHEDULES[schedule](grid), [length]
        for a, b in itertools.pairwise(share.tolist()):
            now = expected[-1]
            expected.append(max(min(math.floor(now * b / a + 1e-9), now - 1), 0))
        assert left == expected
        assert left[-1] == 0


def test_one_at_a_time_is_exact_where_the_ancestral_step_is_not() -> None:
    """Three steps for three positions, over all orders and all tokens on a lattice."""
    denoiser = ExactDenoiser(XOR, torch.ones(4), Absorbing(2))
    orders = torch.tensor(list(itertools.permutations([0.1, 0.5, 0.9])), dtype=torch.float64)
    tokens = torch.cartesian_prod(*[torch.tensor([0.25, 0.75], dtype=torch.float64)] * 3)
    noise = TokenNoise(
        torch.stack([tokens.repeat(6, 1), orders.repeat_interleave(8, dim=0)], dim=-1)
    )
    for build, off in ((RandomOrder, 0.0), (Halton, 0.0), (Ancestral, 0.1)):
        law = {(MASK,) * 3: 1.0}
        for t, s in itertools.pairwise(uniform_grid(3).tolist()):
            after: dict[tuple[int, ...], float] = {}
            for state, chance in law.items():
                x = torch.tensor(state).expand(48, 3)
                for end in build(denoiser)(x, t, s, noise).tolist():
                    after[tuple(end)] = after.get(tuple(end), 0.0) + chance / 48
            law = after
        states = {tuple(x): 0.25 for x in XOR.tolist()}
        found = sum(abs(law.get(x, 0) - states.get(x, 0)) for x in {*law, *states}) / 2
        assert found <= 1e-12 if off == 0 else found > off


def test_confidence_without_noise_keeps_the_most_probable_tokens() -> None:
    """Of four positions half falls: those whose drawn tokens were likeliest, whatever was drawn."""
    chances = [0.9, 0.6, 0.2, 0.35]
    step = Confidence(bits(4, chances), noise_scale=0)
    low, high = torch.full((4,), 0.01), torch.full((4,), 0.99)
    for numbers, kept in ((high, {0, 1}), (low, {2, 3})):  # ones, and zeros
        uniform = torch.stack([numbers, torch.rand(4)], dim=-1).double()[None]
        end = step(torch.full((1, 4), MASK), 1.0, 0.5, TokenNoise(uniform))[0]
        assert {*(end != MASK).nonzero()[:, 0].tolist()} == kept


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.5])
def test_confidence_prefers_by_gumbel_noise(scale: float) -> None:
    """Of two the first falls with p1^(1/c) / (p1^(1/c) + p2^(1/c)), c the noise at the step's end.

    Both tokens are as good as certain to be 1, with 0.96 and 0.64.
    """
    points, s = 400, 0.5
    axis = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    noise = torch.cartesian_prod(axis, axis)
    uniform = torch.stack([torch.full_like(noise, 0.99), noise], dim=-1)
    step = Confidence(bits(2, [0.96, 0.64]), noise_scale=scale)
    end = step(torch.full((len(noise), 2), MASK), 1.0, s, TokenNoise(uniform))
    assert bool(((end == MASK).sum(1) == 1).all())
    first = float((end[:, 0] != MASK).double().mean())
    odds = (0.96 / 0.64) ** (1 / (scale * s)) if scale else math.inf
    assert first == pytest.approx(1 / (1 + 1 / odds), abs=0.005)


def test_a_halton_order_meets_every_cell_once() -> None:
    assert halton_order((8,)).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]  # bits reversed
    for shape in ((5, 3), (4, 4), (7,)):
        assert halton_order(shape).sort().values.tolist() == list(range(math.prod(shape)))
    order = halton_order((6, 6))[:6]  # bases 2 and 3: n is in row 6 * reversed(n), column likewise
    assert order.tolist() == [0, 3 * 6 + 2, 1 * 6 + 4, 4 * 6 + 0, 0 * 6 + 2, 3 * 6 + 4]


def test_halton_unmasks_along_its_order() -> None:
    step = Halton(bits(8, schedule="linear"))
    x = torch.full((2, 8), MASK)
    for t, s, fallen in ((1.0, 0.5, {0, 4, 2, 6}), (0.5, 0.25, {0, 4, 2, 6, 1, 5})):
        x = step(x, t, s, step.noise(t, s, (2, 8)))
        assert all({*(row != MASK).nonzero()[:, 0].tolist()} == fallen for row in x)


def test_what_is_given_is_no_mask() -> None:
    """Of six positions two are given: two of the other four fall by half of the time."""
    step, given = RandomOrder(bits(6)), torch.tensor([[1, 0, -1, -1, -1, -1]])
    x = step(torch.full((1, 6), MASK), 1.0, 0.5, step.noise(1.0, 0.5, (1, 6)), given=given)
    assert x[0, :2].tolist() == [1, 0]
    assert int((x == MASK).sum()) == 2


@pytest.mark.parametrize("build", [Confidence, RandomOrder, Halton])
def test_a_process_without_a_mask_is_refused(build: Any) -> None:
    denoiser = ExactDenoiser(XOR, torch.ones(4), Uniform(2))
    line = f"a {build.__name__} step unmasks, and a Uniform process has no mask"
    with pytest.raises(SigdegError, match=line):
        build(denoiser)


def test_orders_that_cannot_be_are_refused() -> None:
    with pytest.raises(SigdegError, match=r"6 positions do not fill the shape \(4, 2\)"):
        Halton(bits(6), shape=(4, 2))
    with pytest.raises(SigdegError, match="noise_scale must be at least 0, got -1"):
        Confidence(bits(2), noise_scale=-1)
