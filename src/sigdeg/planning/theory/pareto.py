r"""Dynamic programme over all plans for many directions: a set of vectors a state.

The states and updates are those of `sigdeg.planning.theory.programmes`, with vectors in $R^d$. In a
direction where no plan can undercut the target smaller is better, where none can exceed it larger
is better, and elsewhere two states compare only when they agree; a state that another one equals
or beats in every direction is dropped. Without `eps` and `cap` this is exact, but the sets explode
for mixed spectra. The greedy variant keeps one vector a state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sigdeg.errors import SigdegError
from sigdeg.planning.plans import Plan, merges, plan_from_intervals, seq_boot, vanilla
from sigdeg.planning.spectrum import Floats
from sigdeg.planning.theory.operators import check_operators, composites, merged, w2

__all__ = ["Found", "dp_greedy", "dp_pareto", "local_search"]

REWEIGHTINGS = 8  # a beam keeps the best under as many weightings of the directions

Indices = NDArray[np.int64]
Thin = Callable[[Floats, int, int], Indices]


class Found(NamedTuple):
    """A plan, its operator with shape (d,), and its W2 distance to the target."""

    plan: Plan
    operator: Floats
    distance: float


class States(NamedTuple):
    """The vectors of one interval (l, r] and where each came from.

    `split` is the m of the update, 0 for an X taken as a Y; `right` and `left` are rows of the
    states of (m, r] and (l, m], or `right` the row of that X.
    """

    values: Floats
    split: Indices
    right: Indices
    left: Indices

    def take(self, rows: Indices) -> States:
        """Some of the states."""
        return States(self.values[rows], self.split[rows], self.right[rows], self.left[rows])


def programme(a: Floats, g: Floats, thin: Thin) -> tuple[Floats, Callable[[int], Plan]]:
    """Run the updates, thinning each state's vectors; return the root's and a way back."""
    steps = len(a)
    x: dict[tuple[int, int], States] = {}
    y: dict[tuple[int, int], States] = {}
    none = np.zeros(1, dtype=np.int64)
    for t in range(steps):
        x[t, t + 1] = y[t, t + 1] = States(a[t : t + 1], none, none, none)
    for length in range(2, steps + 1):
        for start in range(steps - length + 1):
            stop = start + length
            pairs = [grid(x[m, stop], y[start, m], m) for m in range(start + 1, stop)]
            right, left, split, i, j = (np.concatenate(part) for part in zip(*pairs, strict=True))
            keep = g[stop - 1]
            joined = States(right * ((1 - keep) * left + keep), split, i, j)
            joined = joined.take(thin(joined.values, start, stop))
            x[start, stop] = joined
            zeros = np.zeros(len(joined.values), dtype=np.int64)
            whole = States(joined.values, zeros, np.arange(len(zeros)), zeros)
            tiles = States(right * left, split, i, j)
            both = States(*(np.concatenate(part) for part in zip(whole, tiles, strict=True)))
            y[start, stop] = both.take(thin(both.values, start, stop))

    def plan(row: int) -> Plan:
        intervals = []
        todo = [(x, 0, steps, row)]
        while todo:
            table, start, stop, row = todo.pop()
            if stop - start == 1:
                continue
            _, split, right, left = (field[row] for field in table[start, stop])
            if table is y and split == 0:
                todo.append((x, start, stop, int(right)))
                continue
            if table is x:
                intervals.append((start, stop))
            todo += [(y, start, int(split), int(left)), (x, int(split), stop, int(right))]
        return plan_from_intervals(steps, intervals)

    return x[0, steps].values, plan


def grid(
    right: States, left: States, split: int
) -> tuple[Floats, Floats, Indices, Indices, Indices]:
    """Every pair of states: both vectors, the split, and both rows."""
    i, j = (v.ravel() for v in np.indices((len(right.values), len(left.values))))
    return right.values[i], left.values[j], np.full(len(i), split), i, j


def dp_pareto(
    operators: ArrayLike,
    gammas: ArrayLike,
    target: ArrayLike,
    signs: ArrayLike | None = None,
    eps: float = 0.0,
    cap: int | None = None,
    variance: ArrayLike = 1.0,
) -> Found:
    r"""The plan nearest to a target in W2, over all directions at once.

    Arguments:
        operators: $A_t$, shape (T, d).
        gammas: $\gamma_t$, shape (T, d).
        target: The operator to come near to, shape (d,).
        signs: -1 where smaller is better, 1 where larger is, 0 where neither, shape (d,). Worked
            out when not given: -1 where $A_t \le 1$ for $t < T$ and not even BOOT undercuts the
            target, 1 where $A_t \ge 1$ and not even vanilla exceeds it.
        eps: States whose logarithms fall in one cell of this width are one; 0 is exact. Those of
            the result are off by at most the number of merges times eps.
        cap: Most vectors kept a state (a beam), ranked by the relative distance to the teacher's
            composite, weighted by the target, under several random reweightings; none is exact.
        variance: $n_T^2$ of the input, shape (d,) or a scalar.

    Raises:
        SigdegError: If shapes do not fit, eps is negative or cap is less than 1.
    """
    a, g, goal = check_vectors(operators, gammas, target)
    if eps < 0 or (cap is not None and cap < 1):
        raise SigdegError(f"eps must not be negative and cap at least 1, got {eps} and {cap}")
    order = preferred(a, g, goal) if signs is None else np.asarray(signs)
    if order.shape != goal.shape or not np.isin(order, (-1, 0, 1)).all():
        raise SigdegError("signs must be -1, 0 or 1, one a direction")
    rank = ranking(a, goal) if cap is not None else None

    def thin(values: Floats, start: int, stop: int) -> Indices:
        cells = np.floor(np.log(values) / eps) if eps > 0 else values
        rows = undominated(cells, order)
        if rank is None or cap is None or len(rows) <= cap:
            return rows
        scores = rank(values[rows], start, stop)[: min(cap, REWEIGHTINGS)]
        share = cap // len(scores)
        return rows[np.unique(np.argpartition(scores, share - 1, axis=1)[:, :share])]

    return nearest(*programme(a, g, thin), goal, variance)


def dp_greedy(
    operators: ArrayLike, gammas: ArrayLike, target: ArrayLike, variance: ArrayLike = 1.0
) -> Found:
    """The greedy plan: each interval keeps the one vector nearest to the teacher's composite.

    Arguments and errors as `dp_pareto`. Not exact, but within a few percent in practice.
    """
    a, g, goal = check_vectors(operators, gammas, target)
    total = composites(a)

    def thin(values: Floats, start: int, stop: int) -> Indices:
        return np.asarray(((values - total[start, stop]) ** 2).sum(1).argmin(keepdims=True))

    return nearest(*programme(a, g, thin), goal, variance)


def check_vectors(
    operators: ArrayLike, gammas: ArrayLike, target: ArrayLike
) -> tuple[Floats, Floats, Floats]:
    """Operators and gammas of shape (T, d) and a target of shape (d,), all positive."""
    a, g = check_operators(operators, gammas)
    goal = np.asarray(target, dtype=np.float64)
    if a.ndim != 2 or goal.shape != a.shape[1:]:
        raise SigdegError(
            f"operators must be (T, d) and the target (d,), got {a.shape} and {goal.shape}"
        )
    if not (a > 0).all():
        raise SigdegError("operators must be positive to be compared by their logarithms")
    return a, g, goal


def nearest(
    values: Floats, plan: Callable[[int], Plan], target: Floats, variance: ArrayLike
) -> Found:
    """The root's vector nearest to the target."""
    distances = w2(values, target, variance)
    row = int(distances.argmin())
    return Found(plan(row), values[row], float(distances[row]))


def preferred(a: Floats, g: Floats, target: Floats) -> NDArray[np.int64]:
    """Where smaller (-1) or larger (1) is better for sure: no plan gets past the target."""
    steps, slack = len(a), 1e-12
    low, high = merged(seq_boot(steps), a, g), merged(vanilla(steps), a, g)
    falls = (a[:-1] <= 1).all(0) & (target <= low * (1 + slack))
    rises = (a[:-1] >= 1).all(0) & (target >= high * (1 - slack))
    return np.where(falls, -1, np.where(rises, 1, 0))


def ranking(a: Floats, target: Floats) -> Callable[[Floats, int, int], Floats]:
    r"""Scores $\sum_k w_k\, target_k^2 (\log x_k - \log C_{lr,k})^2$, one row a weighting w.

    The first weighting is 1, the others are random.
    """
    total = np.log(composites(a))
    weights = np.random.default_rng(0).exponential(size=(REWEIGHTINGS, a.shape[1]))
    weights[0] = 1
    weights *= target**2

    def rank(values: Floats, start: int, stop: int) -> Floats:
        return np.asarray(weights @ ((np.log(values) - total[start, stop]) ** 2).T)

    return rank


def undominated(cells: Floats, signs: NDArray[np.int64]) -> Indices:
    """Rows that no other row equals or beats in every direction; of equal rows, one."""
    # A direction without preference counts in both senses: only equal cells compare.
    free = cells[:, signs == 0]
    keys = np.concatenate([-signs[signs != 0] * cells[:, signs != 0], free, -free], axis=1)
    _, left = np.unique(keys, axis=0, return_index=True)
    if not signs.any():
        return left
    left = left[keys[left].sum(1).argsort(kind="stable")]  # a better row has a smaller sum
    kept = []
    while len(left):
        kept.append(left[0])
        left = left[(keys[left] < keys[left[0]]).any(1)]
    return np.array(kept)


def local_search(
    plan: Plan,
    operators: ArrayLike,
    gammas: ArrayLike,
    target: ArrayLike,
    variance: ArrayLike = 1.0,
) -> Found:
    """Improve a plan until no single move does.

    A move flattens a merge into its parent, or groups a run of its children in a merge.

    Arguments and errors as `dp_pareto`.
    """
    a, g, goal = check_vectors(operators, gammas, target)
    steps = len(a)

    def found(spans: set[tuple[int, int]]) -> Found:
        tree = plan_from_intervals(steps, spans)
        operator = merged(tree, a, g)
        return Found(tree, operator, float(w2(operator, goal, variance)))

    spans = {(start, stop) for start, stop, _ in merges(plan)}
    best, before = found(spans), math.inf
    moves = [(p, q) for p in range(steps) for q in range(p + 2, steps + 1) if q - p < steps]
    while best.distance < before:
        before = best.distance
        for p, q in moves:
            if any(s < p < e < q or p < s < q < e for s, e in spans):
                continue
            trial = found(spans ^ {(p, q)})
            if trial.distance < best.distance:
                best, spans = trial, spans ^ {(p, q)}
    return best
