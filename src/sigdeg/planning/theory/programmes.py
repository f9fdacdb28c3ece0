r"""Dynamic programme over all plans in one direction, and the hybrid family in one product.

Two states for the steps (l, r]: $X_{lr}$, one distilled operator, and $Y_{lr}$, a product of any
distilled operators that tile it. With $l < m < r$,

$$ X_{t-1,t} = A_t, \qquad X_{lr} = X_{mr} f_{\gamma_r}(Y_{lm}), \qquad
   Y_{lr} = X_{lr} \ \text{or}\ Y_{lm} X_{mr}. $$

Both updates rise with each child, so where smaller (or larger) is better one number a state is
enough, and the programme is exact.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import ArrayLike

from sigdeg.errors import SigdegError, check_choice, check_least
from sigdeg.planning.plans import Plan, plan_from_intervals
from sigdeg.planning.spectrum import Floats
from sigdeg.planning.theory.operators import check_operators

__all__ = ["all_plans", "dp_scalar", "hybrid_operators"]

CACHE = 32768  # float64 values a block of rows may take, to stay in a core's cache


def all_plans(steps: int) -> Iterator[Plan]:
    """Every plan; there are 1, 1, 3, 11, 45, 197, 903, 4279, ... (little Schroeder numbers)."""
    check_least(steps, 1, "steps")

    @functools.cache
    def trees(start: int, stop: int) -> list[Plan]:
        if stop - start == 1:
            return [stop]
        return [
            (first, *rest)
            for middle in range(start + 1, stop)
            for first in trees(start, middle)
            for rest in rows(middle, stop)
        ]

    def rows(start: int, stop: int) -> list[tuple[Plan, ...]]:
        # As one block, or as the children of a merge taken one by one.
        blocks = trees(start, stop)
        return [(b,) for b in blocks] + [b for b in blocks if isinstance(b, tuple)]

    yield from trees(0, steps)


def dp_scalar(
    operators: ArrayLike, gammas: ArrayLike, mode: Literal["min", "max"]
) -> tuple[float, Plan]:
    r"""The plan with the smallest or the largest operator in one direction.

    The smallest is the best for a target that no plan undercuts, the largest for one that no plan
    exceeds (see `windows`): one number a state, O(T^3) time, O(T^2) memory. For a target between
    them, see `dp_pareto`.

    Arguments:
        operators: $A_t$, shape (T,).
        gammas: $\gamma_t$, shape (T,).
        mode: `min` or `max`.

    Returns:
        The operator and its plan.

    Raises:
        SigdegError: If there are several directions, or the mode is unknown.
    """
    a, g = check_operators(operators, gammas)
    if a.ndim != 1:
        raise SigdegError(f"operators must have one direction, got shape {a.shape}")
    check_choice(mode, ("min", "max"), "mode")
    sign = 1 if mode == "min" else -1
    x, y = one_sided(a, g, sign)
    return float(x[-1, 0]), trace(x, y, g, sign)


def one_sided(a: Floats, g: Floats, sign: int) -> tuple[Floats, Floats]:
    """The best X[l, r] at x[r, l] and Y[l, r] at y[l, r]; sign 1 minimises, -1 maximises.

    With these layouts the split m runs along a row of both factors, and all intervals of one length
    are rows of one strided view.
    """
    best, better = (np.min, np.minimum) if sign > 0 else (np.max, np.maximum)
    steps, t = len(a), np.arange(len(a))
    x, y, kept = (np.zeros((steps + 1, steps + 1)) for _ in range(3))
    x[t + 1, t] = y[t, t + 1] = a
    kept[t + 1, t] = g * a  # gamma_r X[m, r], so that X = (1 - gamma_r) X Y + kept
    down, right = x.strides
    for length in range(2, steps + 1):
        rows = steps - length + 1
        x_band, kept_band, y_band = (
            as_strided(table[top:, 1:], (rows, length - 1), (down + right, right))
            for table, top in ((x, length), (kept, length), (y, 0))
        )
        keep = g[length - 1 :, None]
        merged, product = np.empty(rows), np.empty(rows)
        size = max(1, CACHE // length)
        for first in range(0, rows, size):
            part = slice(first, first + size)
            values = x_band[part] * y_band[part]
            product[part] = best(values, axis=1)
            values *= 1 - keep[part]
            values += kept_band[part]
            merged[part] = best(values, axis=1)
        start = np.arange(rows)
        x[start + length, start] = merged
        kept[start + length, start] = merged * keep[:, 0]
        y[start, start + length] = better(merged, product)
    return x, y


def trace(x: Floats, y: Floats, g: Floats, sign: int) -> Plan:
    """The plan behind the tables of `one_sided`: the winning split of each state is found again."""
    intervals = []
    todo = [(True, 0, len(g))]
    while todo:
        merge, start, stop = todo.pop()
        if stop - start == 1:
            continue
        values = x[stop, start + 1 : stop] * y[start, start + 1 : stop]
        # A tie goes to the product, which costs no merge.
        if not merge and y[start, stop] != (values.min() if sign > 0 else values.max()):
            merge = True
        if merge:
            intervals.append((start, stop))
            keep = g[stop - 1]
            values = (1 - keep) * values + keep * x[stop, start + 1 : stop]
        split = start + 1 + int((sign * values).argmin())
        todo += [(False, start, split), (True, split, stop)]
    return plan_from_intervals(len(g), intervals)


def hybrid_operators(operators: Floats, keep: Floats) -> Floats:
    r"""The operators of `hybrid(T, m)` for m = 1, ..., T, all trained at input time T.

    $$ X_m = A_T\, f_\gamma\Big(\prod_{t=T-m+1}^{T-1} A_t\Big) \prod_{t \le T-m} f_\gamma(A_t) $$

    In nearly every spectrum tried the best of all plans lies in this family, which goes from BOOT
    (m = 1) to vanilla (m = T).

    Arguments:
        operators: $A_t$, shape (T, \*).
        keep: $\gamma_T$, shape (\*).

    Returns:
        Row m - 1 of shape (T, \*).
    """
    inner, last = operators[:-1], operators[-1]
    one = np.ones_like(operators[:1])
    vanilla = np.concatenate([one, np.cumprod(inner[::-1], axis=0)])
    boot = np.concatenate([one, np.cumprod((1 - keep) * inner + keep, axis=0)])[::-1]
    return np.asarray(last * ((1 - keep) * vanilla + keep) * boot)
