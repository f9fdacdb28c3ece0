r"""What a plan costs to train, and plans compared on equal terms.

The theory gives every merge the same training time s, so that BOOT, with T - 1 merges, trains
T - 1 times longer than vanilla. Three ways to spend a budget, all of them worth reporting:

| accounting | s of a merge |
|---|---|
| `equal-s` | the budget |
| `equal-steps` | budget / number of merges: the same optimiser steps in all |
| `equal-compute` | budget / $\sum (3 + k)$ over the merges: the same network calls in all |

One optimiser step of a merge of k children costs k network calls for the target and 3 for the
student's forward and backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from sigdeg.errors import SigdegError, check_choice
from sigdeg.planning.operators import Array, gamma, w2
from sigdeg.planning.plans import Plan, check_operators, evaluate, hybrid, merges
from sigdeg.planning.programmes import hybrid_operators

__all__ = ["Accounting", "Prediction", "best_hybrid", "plan_cost", "predict", "training_time"]

Accounting = Literal["equal-s", "equal-steps", "equal-compute"]


def plan_cost(plan: Plan) -> int:
    r"""Network calls of one optimiser step of every merge, $\sum (3 + k)$."""
    return sum(3 + merge.arity for merge in merges(plan))


def training_time(plan: Plan, budget: float, accounting: Accounting = "equal-s") -> float:
    """The training time s of each merge of a plan.

    Raises:
        SigdegError: If the budget is negative or the accounting is unknown.
    """
    if not budget >= 0:
        raise SigdegError(f"a budget must not be negative, got {budget}")
    check_choice(accounting, get_args(Accounting), "accounting")
    count = len(merges(plan))
    if accounting == "equal-s" or count == 0:
        return budget
    return budget / (count if accounting == "equal-steps" else plan_cost(plan))


@dataclass(frozen=True)
class Prediction:
    r"""What a plan is expected to reach.

    Arguments:
        plan: The plan.
        s: Training time of each merge.
        retention: Smallest and largest $\gamma$ over its merges and directions.
        operator: The final operator, shape (d,).
        distance: W2 distance to the target.
    """

    plan: Plan
    s: float
    retention: tuple[float, float]
    operator: Array
    distance: float


def predict(
    plan: Plan,
    operators: ArrayLike,
    n2: ArrayLike,
    target: ArrayLike,
    budget: float,
    accounting: Accounting = "equal-s",
) -> Prediction:
    r"""Predict the outcome of a plan.

    Arguments:
        plan: The plan.
        operators: $A_t$, shape (T,) or (T, d).
        n2: $n_t^2$, same shape; its last row weights the distance.
        target: The operator to come near to, shape (d,).
        budget: The budget, see `accounting`.
        accounting: How the budget is spent.

    Raises:
        SigdegError: If the arguments do not fit each other.
    """
    variance = np.asarray(n2, dtype=np.float64)
    s = training_time(plan, budget, accounting)
    gammas = gamma(variance, s)
    operator = evaluate(plan, operators, gammas)
    used = gammas[sorted({merge.stop - 1 for merge in merges(plan)})]
    retention = (float(used.min(initial=1.0)), float(used.max(initial=0.0)))
    distance = float(w2(operator, target, variance[-1]))
    return Prediction(plan, s, retention, operator, distance)


def best_hybrid(
    operators: ArrayLike,
    n2: ArrayLike,
    target: ArrayLike,
    budget: float,
    accounting: Accounting = "equal-s",
) -> tuple[int, Prediction]:
    """The best m of `hybrid(T, m)` and its prediction, when s depends on the plan, in O(T^2 d).

    Arguments and errors as `predict`.
    """
    variance = np.asarray(n2, dtype=np.float64)
    a, _ = check_operators(operators, gamma(variance, 0.0))
    steps = len(a)
    times = [training_time(hybrid(steps, m), budget, accounting) for m in range(1, steps + 1)]
    last = variance[-1]
    reached = [
        float(w2(hybrid_operators(a, gamma(last, s))[row], target, last))
        for row, s in enumerate(times)
    ]
    m = int(np.argmin(reached)) + 1
    return m, predict(hybrid(steps, m), a, variance, target, budget, accounting)
