r"""What a sampler of tokens draws, exactly: its law on all S^D sequences, and bounds on its error.

Laws are arrays $p[x^1, \dots, x^D]$ in double precision, shape (S, ..., S). An ancestral step has,
from each state and given its latent, a product for a law,

$$ p_{s|t}(y | x) = E_\lambda \prod_d p^d_{s|t}(y^d | x, \lambda), $$

so that the law of a sampler is pushed through its steps without a draw. The mean over a uniform
latent is taken at midpoints, over components it is exact.

Of sequences too long to be enumerated, `law_on` has the probabilities of some, such as all that are
valid: that is all that a total variation to their law needs, $\sum_y (q(y) - p(y))^+$.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from sigdeg.discrete.latent import Latent
from sigdeg.discrete.process import Absorbing, DiscreteProcess
from sigdeg.discrete.steps import Ancestral, Hybrid
from sigdeg.errors import SigdegError, check_least
from sigdeg.grids import check_grid, check_span
from sigdeg.sampling import march

__all__ = [
    "LossBound",
    "all_states",
    "collision_bound",
    "joint_law",
    "kl_divergence",
    "latent_points",
    "law_on",
    "loss_bound",
    "noised_law",
    "sampler_law",
    "total_correlation",
    "total_variation",
    "transition",
]

MOST_STATES = 2**14
MOST_NUMBERS = 2**23  # of laws at a time
LATENTS = 128

ExactStep = Ancestral | Hybrid


def all_states(states: int, length: int) -> Tensor:
    """All sequences in lexicographic order, int64, shape (S^D, D).

    Raises:
        SigdegError: If there are more than can be enumerated.
    """
    check_states(states, length)
    return torch.cartesian_prod(*[torch.arange(states)] * length).reshape(-1, length)


def check_states(states: int, length: int) -> None:
    """Refuse what is too long to be enumerated."""
    if states**length > MOST_STATES:
        raise SigdegError(
            f"{states}^{length} sequences are too many to enumerate, at most {MOST_STATES}: "
            "law_on has the probabilities of some"
        )


def joint_law(support: Tensor, weights: Tensor, states: int) -> Tensor:
    """The array of a law on some sequences (n, D): shape (S, ..., S)."""
    length = support.shape[1]
    check_states(states, length)
    law = torch.zeros((states,) * length, dtype=torch.float64)
    law.index_put_(tuple(support.T), weights.double() / weights.double().sum(), accumulate=True)
    return law


def noised_law(law: Tensor, process: DiscreteProcess, t: float) -> Tensor:
    """The law of noised sequences: every position is pushed from 0 to t by its own chain."""
    for d in range(law.ndim):
        law = process.push(law.movedim(d, -1), 0.0, t).movedim(-1, d)
    return law


def total_variation(p: Tensor, q: Tensor) -> float:
    r"""$\frac12 \sum |p - q|$, between 0 and 1."""
    return float((p - q).abs().sum() / 2)


def kl_divergence(p: Tensor, q: Tensor) -> float:
    r"""$\sum p \log (p / q)$ in nats; infinite where q lacks what p has."""
    return float(torch.special.xlogy(p, p).sum() - torch.special.xlogy(p, q).sum())


def total_correlation(law: Tensor) -> float:
    r"""$KL(p \| \prod_d p^d)$ in nats: what a product of the right marginals loses."""
    found = float(torch.special.xlogy(law, law).sum())
    for d in range(law.ndim):
        marginal = law.movedim(d, 0).flatten(1).sum(1)
        found -= float(torch.special.xlogy(marginal, marginal).sum())
    return found


def latent_points(latent: Latent, count: int = LATENTS) -> Tensor:
    r"""Latents whose mean is the mean over all, shape (n, width).

    Midpoints of one number, all components where there are some; of more numbers at once a Sobol
    sequence, which is not exact.
    """
    check_least(count, 1, "latents")
    if latent.components:
        return torch.arange(latent.size)[:, None]
    if latent.width == 1:
        return latent.place((torch.arange(count, dtype=torch.float64)[:, None] + 0.5) / count)
    sobol = torch.quasirandom.SobolEngine(latent.width)
    return latent.place((sobol.draw(count, dtype=torch.float64) + 0.5 / count) % 1)


def own_step(step: ExactStep, t: float) -> Ancestral:
    """The step at a time, if its law is known."""
    found = step.at(t) if isinstance(step, Hybrid) else step
    if not isinstance(found, Ancestral) or (found.process.ordered and found.draws > 1):
        raise SigdegError(f"the law of an ancestral step is known, not of a {type(found).__name__}")
    if found.best_of > 1:
        raise SigdegError("the law of a step that chooses among latents is not known")
    return found


def product_laws(
    step: Ancestral, x: Tensor, t: float, s: float, latent: Tensor | None, count: int
) -> Tensor:
    """Laws of the positions at s, from each state and latent: shape (batch, count, D, S)."""
    rows = x.repeat_interleave(count, 0)
    found = step.kernel(rows, t, s, step.laws(rows, t, s, latent, {}))
    return found.reshape(len(x), count, *found.shape[1:])


def point_weights(step: Ancestral, x: Tensor, t: float, s: float, count: int) -> Tensor:
    """What each of the latents counts, from each state: shape (batch, count)."""
    law = step.denoiser.latent
    if law is None or law.kind != "weighted":
        return torch.full((len(x), count), 1 / count, dtype=torch.float64)
    told = {"step": torch.tensor(s)} if step.denoiser.elastic else {}
    return step.denoiser.log_weights(x, torch.tensor(t), **told).double().exp()


def outer(laws: Tensor) -> Tensor:
    r"""The joint laws of independent positions: (\*, D, S) to (\*, S^D)."""
    found = laws.new_ones(*laws.shape[:-2], 1)
    for d in range(laws.shape[-2]):
        found = (found[..., :, None] * laws[..., d, None, :]).flatten(-2)
    return found


@torch.no_grad()
def transition(step: ExactStep, x: Tensor, t: float, s: float, latents: int = LATENTS) -> Tensor:
    """Laws of what a step draws, one row for each state it starts from.

    Arguments:
        step: An ancestral step of a product or a mixture, or a hybrid of such.
        x: States, shape (batch, D).
        t: Start.
        s: End.
        latents: Points of a latent that is a number.

    Returns:
        Probabilities of all states in the order of `all_states`, shape (batch, S^D).

    Raises:
        SigdegError: If the states are too many, or the step is of another kind.
    """
    own = own_step(step, t)
    check_states(own.process.states, x.shape[1])
    points = None if own.denoiser.latent is None else latent_points(own.denoiser.latent, latents)
    count, half = 1 if points is None else len(points), x.shape[1] // 2
    size = own.process.states ** x.shape[1]
    rows = []
    for some in x.split(max(1, MOST_NUMBERS // max(size, count * math.isqrt(size)))):
        heard = None if points is None else points.repeat(len(some), 1)
        laws = product_laws(own, some, t, s, heard, count)
        first, last = outer(laws[:, :, :half]), outer(laws[:, :, half:])
        weights = point_weights(own, some, t, s, count)
        rows.append(((first * weights[..., None]).mT @ last).flatten(1))
    return torch.cat(rows)


def prior_law(process: DiscreteProcess, length: int) -> Tensor:
    """The law of the state at time 1."""
    return outer(process.stationary().expand(length, -1)).reshape((process.states,) * length)


def laws_on_the_way(
    step: ExactStep, grid: Tensor, latents: int = LATENTS, start: Tensor | None = None
) -> list[Tensor]:
    """The laws of a sampler at all times of its grid."""
    own = own_step(step, float(grid[0]))
    states, length = own.process.states, own.denoiser.length
    x = all_states(states, length)
    law = prior_law(own.process, length) if start is None else start
    if law.shape != (states,) * length:
        raise SigdegError(
            f"a law has an axis of {states} for each of {length} positions, got {tuple(law.shape)}"
        )
    found = [law]
    for t, s in pairwise(grid.tolist()):
        there = law.flatten() > 0
        law = (law.flatten()[there] @ transition(step, x[there], t, s, latents)).reshape(law.shape)
        found.append(law)
    return found


def sampler_law(
    step: ExactStep,
    grid: Tensor | Sequence[float],
    latents: int = LATENTS,
    start: Tensor | None = None,
) -> Tensor:
    """The law of what a sampler draws.

    Arguments:
        step: An ancestral step, or a hybrid of such.
        grid: Its times, from 1 to 0.
        latents: Points of a latent that is a number.
        start: The law of the state at time 1 (default: the process's prior).

    Returns:
        Probabilities, float64, shape (S, ..., S).

    Raises:
        SigdegError: If the states are too many, or the step is of another kind.
    """
    return laws_on_the_way(step, check_span(step.process, grid), latents, start)[-1]


@torch.no_grad()
def law_on(
    step: ExactStep,
    grid: Tensor | Sequence[float],
    sequences: Tensor,
    n: int = 1024,
    generator: Generator | None = None,
    latents: int = LATENTS,
) -> Tensor:
    r"""Probabilities of some sequences, of any length: all steps but the last are drawn.

    The mean of the last step's own probabilities over n states that it starts from is without
    bias, and varies far less than counts of samples. One step of an absorbing process starts from
    masks alone: then nothing is drawn, and n does not count.

    Arguments:
        step: An ancestral step, or a hybrid of such.
        grid: Its times, from 1 to 0.
        sequences: The sequences, shape (m, D).
        n: States drawn before the last step.
        generator: For them.
        latents: Points of the last step's latent from each, where it is a number.

    Returns:
        Estimates, float64, shape (m,).
    """
    times = check_span(step.process, grid)
    t, s = times[-2:].tolist()
    own = own_step(step, t)
    only = len(times) == 2 and isinstance(own.process, Absorbing)
    shape = (1 if only else n, own.denoiser.length)
    x = own.process.prior(shape, generator)
    if len(times) > 2:
        noises = (step.noise(a, b, shape, generator) for a, b in pairwise(times[:-1].tolist()))
        x = march(step, x, times[:-1], noises)
    points = None if own.denoiser.latent is None else latent_points(own.denoiser.latent, latents)
    count = 1 if points is None else len(points)
    found = torch.zeros(len(sequences), dtype=torch.float64)
    for some in x.split(max(1, MOST_NUMBERS // (count * max(len(sequences), shape[1])))):
        heard = None if points is None else points.repeat(len(some), 1)
        logs = product_laws(own, some, t, s, heard, count).flatten(0, 1).log()
        chances = sum(logs[:, d, sequences[:, d]] for d in range(shape[1]))
        weights = point_weights(own, some, t, s, count).flatten()
        found += weights @ torch.as_tensor(chances).exp()
    return found / len(x)


def collision_bound(process: Absorbing, length: int, grid: Tensor | Sequence[float]) -> float:
    r"""A bound on the total variation of an exact product teacher: $\binom D2 \sum_i p_i^2$.

    $p_i$ is the probability that a position is revealed in step i. The teacher errs only where two
    positions are revealed in one step; with N steps of equal probability that is
    $\binom D2 / N$.

    Arguments:
        process: The process that it reverses.
        length: Positions D.
        grid: The times.
    """
    revealed = process.alpha(check_grid(grid)).diff()
    return math.comb(length, 2) * float((revealed**2).sum())


class LossBound(NamedTuple):
    r"""What the losses say of a student of one step, and what is so.

    $$ TV \le \sqrt{L_{distil} / 2} + \sum_n \sqrt{L_{consis}(0, t_n, t_{n+1}) / 2} $$

    Arguments:
        distance: Total variation between its law and that of the teacher's N steps.
        bound: The right-hand side.
        distil: $L_{distil}$ at the teacher's last step, nats.
        consistency: $L_{consis}$ of its other steps, from the data on.
    """

    distance: float
    bound: float
    distil: float
    consistency: tuple[float, ...]


@torch.no_grad()
def loss_bound(
    teacher: ExactStep,
    student: ExactStep,
    grid: Tensor | Sequence[float],
    latents: int = LATENTS,
) -> LossBound:
    r"""Bound the distance of a student's one step from a teacher's N steps by the joint losses.

    The losses are exact, expectations over the states that the teacher itself comes by: of
    $KL(p^{teacher}_{0|t_1} \| p^{student}_{0|t_1})$, and of
    $KL(p^{student}_{0|t_n} \circ p^{teacher}_{t_n|t_{n+1}} \| p^{student}_{0|t_{n+1}})$.

    Arguments:
        teacher: The teacher's step.
        student: The student's, for the same process.
        grid: The teacher's N times before 0, from 1 on, and 0.
        latents: Points of a latent that is a number.

    Raises:
        SigdegError: If the states are too many, or a step is of another kind.
    """
    times = check_span(teacher.process, grid)
    laws = laws_on_the_way(teacher, times, latents)
    x = all_states(teacher.process.states, laws[0].ndim)
    losses: list[float] = []
    target: Tensor | None = None  # what the student makes of all states at the last time looked at
    pairs = list(zip(pairwise(times.tolist()), laws[:-1], strict=True))
    for (t, s), law in reversed(pairs):
        there = law.flatten() > 0
        moved = transition(teacher, x[there], t, s, latents)
        wanted = moved if target is None else moved @ target
        target = transition(student, x, t, 0.0, latents)
        own = target[there]
        each = (torch.special.xlogy(wanted, wanted) - torch.special.xlogy(wanted, own)).sum(1)
        losses.append(float(law.flatten()[there] @ each.clamp(min=0)))
    assert target is not None
    drawn = laws[0].flatten() @ target
    return LossBound(
        total_variation(drawn, laws[-1].flatten()),
        sum(math.sqrt(loss / 2) for loss in losses),
        losses[0],
        tuple(losses[1:]),
    )
