r"""Where the steps of a teacher of tokens should go: what a step between any two times loses.

A step from t to s draws one by one positions that depend on each other. What that loses is their
total correlation given the state,

$$ c(t, s) = E_{x_t} KL\Big(q_{s|t}(\cdot | x_t) \Big\| \prod_d q^d_{s|t}(\cdot | x_t)\Big), $$

and over the steps of a grid it adds up: $\sum_n c(t_n, t_{n+1})$ is the divergence of the chain of
steps from the reverse process, and bounds that of what is drawn. The times, out of some candidates,
at which the sum is least are found by dynamic programming.

Of a short law $c$ is exact, a difference of entropies:

$$ c(t, s) = \sum_d H(X_s^d | X_t) - H(X_s) + H(X_t) - \sum_d H(X_t^d | X_s^d). $$

Of a network it is measured, beside the steps between neighbouring candidates $t_k$, along noised
sequences $x_0 \to \dots \to x_k \to \dots \to x_t$. The long step keeps what the teacher said at t,
and of all that is drawn on the way a position hears itself alone:

$$ c(t, s) \approx \sum_{t > t_k > s} E \sum_d KL\big(p^d(x_{k+1} | x_k) \big\|
   p^d(x_{k+1} | x_k^d, x_t)\big). $$

Reference:
    Park et al., *Jump your steps: optimizing sampling schedule of discrete diffusion models*
    (2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Generator, Tensor
from tqdm.auto import tqdm

from sigdeg.discrete.denoiser import FLOOR, ExactDenoiser
from sigdeg.discrete.exact import all_states, joint_law, noised_law
from sigdeg.discrete.model import uniform_grid
from sigdeg.discrete.process import DiscreteProcess, choose
from sigdeg.discrete.steps import Ancestral
from sigdeg.errors import SigdegError, check_least
from sigdeg.grids import check_grid
from sigdeg.results import Summary, summarise

__all__ = ["StepLosses", "distance_bound", "exact_losses", "fewest_steps", "measured_losses"]

MOST_NUMBERS = 2**23  # of laws at a time


@dataclass(frozen=True, eq=False)
class StepLosses:
    r"""What steps between candidate times lose, in nats.

    Arguments:
        times: The candidates, K + 1 of them, from 1 to 0.
        each: $c(t_i, t_j)$ for $i < j$, 0 elsewhere, shape (n, K + 1, K + 1): measured on each of
            n samples, or once and exactly.
        exact: Whether it is exact.
    """

    times: Tensor
    each: Tensor
    exact: bool

    @property
    def most_steps(self) -> int:
        """Steps K of the finest grid there is."""
        return len(self.times) - 1

    def grid(self, steps: int) -> Tensor:
        """The best grid of so many steps.

        Raises:
            SigdegError: If there are fewer candidates.
        """
        check_least(steps, 1, "steps")
        if steps > self.most_steps:
            raise SigdegError(
                f"between {self.most_steps + 1} candidate times there are at most "
                f"{self.most_steps} steps, got {steps}"
            )
        nats = self.each.mean(0).clamp(min=0)  # what is measured may be below 0 by chance
        size = self.most_steps + 1
        ahead = torch.ones(size, size).triu(1).bool()
        move = torch.where(ahead, nats, math.inf)
        least, chosen = move[0], []
        for _ in range(steps - 1):
            least, before = (least[:, None] + move).min(0)
            chosen.append(before)
        place = [self.most_steps]
        for before in reversed(chosen):
            place.append(int(before[place[-1]]))
        return self.times[[0, *reversed(place)]]

    def nearest(self, grid: Tensor | Sequence[float]) -> Tensor:
        """The grid of the candidates that are nearest to given times."""
        at = (self.times[:, None] - check_grid(grid)).abs().argmin(0)
        return self.times[at.unique()]

    def lost(self, grid: Tensor | Sequence[float]) -> Summary:
        """Nats that the steps of a grid lose, a mean over samples.

        Raises:
            SigdegError: If a time is no candidate.
        """
        times = check_grid(grid)
        apart = (self.times[:, None] - times).abs()
        if float(apart.amin(0).max()) > 1e-9:
            raise SigdegError("what a step loses is known between candidate times alone")
        at = apart.argmin(0)
        return summarise([{"nats": v} for v in self.each[:, at[:-1], at[1:]].sum(1).tolist()])[
            "nats"
        ]


def distance_bound(nats: float) -> float:
    r"""A bound on total variation, of Pinsker and of Bretagnolle and Huber, by a KL divergence."""
    return min(math.sqrt(max(nats, 0) / 2), math.sqrt(-math.expm1(-max(nats, 0))))


def fewest_steps(
    losses: StepLosses, distance: Callable[[Tensor], float], most: float
) -> int | None:
    """The fewest steps whose best grid comes as near as wanted; None if the finest does not.

    Arguments:
        losses: What steps lose.
        distance: Of a grid, such as the total variation of what is drawn to the law, or a bound.
        most: The largest distance wanted.
    """
    least, enough = 1, losses.most_steps
    if distance(losses.grid(enough)) > most:
        return None
    while least < enough:  # halves the counts: more steps are never worse
        middle = (least + enough) // 2
        if distance(losses.grid(middle)) <= most:
            enough = middle
        else:
            least = middle + 1
    return enough


def entropy(p: Tensor) -> Tensor:
    """Of laws in the last axis, in nats."""
    found: Tensor = torch.special.entr(p).sum(-1)
    return found


def noise_entropy(process: DiscreteProcess, marginals: Tensor, s: float, t: float) -> float:
    r"""$\sum_d H(X_t^d | X_s^d)$, given the marginals at s, shape (D, S)."""
    rows = process.push(torch.eye(process.states, dtype=torch.float64), s, t)
    return float((marginals * entropy(rows)).sum())


def exact_losses(denoiser: ExactDenoiser, candidates: int = 32) -> StepLosses:
    """What steps of an exact teacher lose, by sums over all states.

    Arguments:
        denoiser: The teacher's denoiser, of short sequences.
        candidates: Steps K between candidate times.

    Raises:
        SigdegError: If the states are too many.
    """
    check_least(candidates, 1, "candidates")
    process, times = denoiser.process, uniform_grid(candidates)
    x = all_states(process.states, denoiser.length)
    law = joint_law(denoiser.support, denoiser.weights, process.states)
    first, noise = torch.zeros(2, candidates + 1, candidates + 1, dtype=torch.float64)
    joint = torch.zeros(candidates + 1, dtype=torch.float64)
    for i, t in enumerate(times.tolist()):
        at_t = noised_law(law, process, t)
        joint[i] = entropy(at_t.flatten())
        marginals = torch.stack(
            [at_t.movedim(d, 0).flatten(1).sum(1) for d in range(denoiser.length)]
        )
        for h in range(i):
            noise[h, i] = noise_entropy(process, marginals, t, float(times[h]))
        there = at_t.flatten() > 0
        p = denoiser(x[there], torch.tensor(t)).exp() if i < candidates else None
        for j in range(i + 1, candidates + 1):
            assert p is not None
            laws = process.posterior(p, x[there], t, float(times[j]))
            first[i, j] = at_t.flatten()[there] @ entropy(laws).sum(1)
    lost = first + joint[:, None] - joint - noise
    return StepLosses(times, lost.triu(1)[None], True)


@torch.no_grad()
def measured_losses(
    step: Ancestral,
    data: Tensor,
    candidates: int = 32,
    generator: Generator | None = None,
    progress: bool = False,
    **condition: Tensor,
) -> StepLosses:
    """What steps of a teacher lose, measured on sequences that it drew, or on data.

    Arguments:
        step: The teacher's step, of a product.
        data: Clean sequences, int64, shape (n, D).
        candidates: Steps K between candidate times, each one call of the teacher a sequence.
        generator: For the noise.
        progress: Show a progress bar.
        condition: Passed on to the network, each with n rows.

    Returns:
        What is lost beside the K steps between all candidates, which count as losing nothing.

    Raises:
        SigdegError: If it is a mixture, whose steps lose no correlations, or there are no two
            sequences.
    """
    check_least(candidates, 1, "candidates")
    check_least(len(data), 2, "sequences")
    if step.denoiser.latent is not None:
        raise SigdegError(
            "a mixture is no product: plan for the teacher that it was distilled from"
        )
    process = step.process
    process.check_tokens(data)
    times = uniform_grid(candidates)
    size = max(1, MOST_NUMBERS // (candidates * data.shape[1] * process.states))
    parts = []
    bar = tqdm(total=candidates * len(data), disable=not progress, unit="call")
    for start in range(0, len(data), size):
        rows = slice(start, start + size)
        path = noised_path(process, data[rows], times, generator)
        told = {name: value[rows] for name, value in condition.items()}
        clean = []
        for x, t in zip(path[:-1], times.tolist(), strict=False):
            clean.append(step.laws(x, t, 0.0, None, told).exp())
            bar.update(len(x))
        parts.append(stale(process, path, times.tolist(), clean))
    bar.close()
    return StepLosses(times, torch.cat(parts), False)


def noised_path(
    process: DiscreteProcess, data: Tensor, times: Tensor, generator: Generator | None
) -> list[Tensor]:
    """Sequences on their way from the data to noise; as the times are, from noise to data."""
    path = [data]
    for t, s in pairwise(times.tolist()[::-1]):
        uniform = torch.rand(data.shape, generator=generator, dtype=torch.float64)
        last = torch.nn.functional.one_hot(path[-1], process.states).double()
        path.append(choose(process.push(last, t, s), uniform.to(data.device)))
    return path[::-1]


def stale(
    process: DiscreteProcess, path: list[Tensor], times: list[float], clean: list[Tensor]
) -> Tensor:
    """What steps lose that keep what was said at their start, shape (batch, K + 1, K + 1)."""
    size = len(times)
    nats = torch.zeros(len(path[0]), size, size, dtype=torch.float64)
    for k in range(1, size - 1):
        x, t, s = path[k], times[k], times[k + 1]
        fresh = process.posterior(clean[k], x, t, s)
        heard = process.likelihood(x, 0.0, t)
        for i in range(k):
            own = process.shares(clean[i], path[i], times[i]) * heard
            own = own / own.sum(-1, keepdim=True).clamp(min=1e-300)
            kept = process.posterior(own, x, t, s).clamp(min=math.exp(FLOOR))
            lost = torch.special.xlogy(fresh, fresh) - torch.special.xlogy(fresh, kept)
            nats[:, i, k + 1] = lost.sum((1, 2)).cpu()
    return nats.cumsum(2)
