"""The likelihood bound against closed forms, and against sums over all states."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from sigdeg.discrete import Absorbing, ExactDenoiser, Uniform
from sigdeg.discrete.likelihood import nelbo, step_divergence
from sigdeg.errors import SigdegError

BITS = torch.tensor([[0, 0], [1, 1]])


@pytest.mark.parametrize("steps", [1, 4])
def test_of_two_equal_bits_it_is_their_entropy_but_for_those_that_fall_together(steps: int) -> None:
    """One bit costs ln 2 and then the other nothing; both in one step, once in K, twice ln 2."""
    denoiser, data = ExactDenoiser(BITS, torch.ones(2), Absorbing(2)), BITS.repeat(4000, 1)
    bound = nelbo(denoiser, data, steps=steps, draws=2)
    expected = math.log(2) * (1 + 1 / steps) / 2
    assert abs(bound.mean - expected) < 4 * bound.se + 1e-9
    assert bound.se < 0.02


def transition(process: Uniform, s: float, t: float) -> Tensor:
    """$Q_{t|s}$ of two symbols, as the process is defined."""
    kept = math.exp(-process.rate * (t - s))
    return kept * torch.eye(2).double() + (1 - kept) / 2


def test_of_a_uniform_process_it_is_the_sum_over_all_states() -> None:
    """Every x_t, every x_s, by Bayes on one position; and no less than the chain's likelihood."""
    process, steps = Uniform(2, "exponential", rate=2.0), 3
    weights = torch.tensor([0.7, 0.3], dtype=torch.float64)
    denoiser = ExactDenoiser(BITS, weights, process)
    states = torch.tensor(list(itertools.product(range(2), repeat=2)))
    whole, chain = 0.0, torch.full((4,), 0.25, dtype=torch.float64)
    for k in range(steps, 0, -1):
        t, s = k / steps, (k - 1) / steps
        p = denoiser(states, torch.tensor(t)).exp()  # (4, D, S)
        first, short = transition(process, 0, s), transition(process, s, t)
        bridge = first[:, :, None] * short[None] / transition(process, 0, t)[:, None, :]  # 0, s, t
        model = torch.stack(
            [
                torch.stack([p[i, d] @ bridge[:, :, x[d]] for d in range(2)])
                for i, x in enumerate(states)
            ]
        )  # (x_t, d, s)
        for row, weight in zip(BITS, weights, strict=True):
            for i, x in enumerate(states):
                chance = math.prod(float(transition(process, 0, t)[row[d], x[d]]) for d in range(2))
                for d in range(2):
                    known = bridge[row[d], :, x[d]]
                    ratio = (known / model[i, d]).log().where(known > 0, 0.0)
                    whole += float(weight) * chance * float((known * ratio).sum())
        moved = model[:, 0, states[:, 0]] * model[:, 1, states[:, 1]]  # (x_t, x_s)
        chain = chain @ moved
    final = transition(process, 0, 1)
    for row, weight in zip(BITS, weights, strict=True):
        for d in range(2):
            whole += float(weight) * float((final[row[d]] * (2 * final[row[d]]).log()).sum())
    data = BITS[torch.tensor([0] * 7 + [1] * 3)].repeat(800, 1)
    bound = nelbo(denoiser, data, steps=steps, draws=2)
    assert abs(bound.mean - whole / 2) < 4 * bound.se
    assert bound.se < 0.02
    likelihood = -float((weights * chain[[0, 3]].log()).sum())
    assert whole > likelihood


def test_a_step_of_the_truth_costs_nothing() -> None:
    process, clean = Absorbing(3), torch.tensor([[0, 2, 1]])
    log_p = torch.full((1, 3, 4), -40.0).scatter(2, clean[..., None], 0.0)
    x, t, s = torch.tensor([[3, 2, 3]]), torch.tensor(0.8), torch.tensor(0.3)
    assert float(step_divergence(process, clean, log_p, x, t, s).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (torch.zeros(4, 3).long(), r"sequences \(n, 2\), got \(4, 3\)"),
        (torch.full((4, 2), 2), "hold the mask symbol 2"),
        (torch.full((4, 2), 5), "between 0 and 1, got 5"),
        (torch.zeros(4, 2), "int64, got float32"),
        (torch.zeros(1, 2).long(), "number of sequences must be at least 2, got 1"),
    ],
)
def test_what_is_no_data_is_refused(data: Tensor, said: str) -> None:
    denoiser = ExactDenoiser(BITS, torch.ones(2), Absorbing(2))
    with pytest.raises(SigdegError, match=said):
        nelbo(denoiser, data)
