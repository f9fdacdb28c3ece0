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
from sigdeg.planning.plans import Plan, hybrid, merges, vanilla
from sigdeg.planning.spectrum import Floats
from sigdeg.planning.theory.operators import check_operators, final_operator, gamma, w2
from sigdeg.planning.theory.programmes import hybrid_operators

__all__ = [
    "Accounting",
    "Outcome",
    "best_hybrid",
    "one_shot_budget",
    "plan_cost",
    "predict",
    "training_time",
]

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


def one_shot_budget(steps: int, s: float, accounting: Accounting = "equal-s") -> float:
    """What the one-shot student of T steps spends in a training time s."""
    return s * (plan_cost(vanilla(steps)) if accounting == "equal-compute" else 1)


@dataclass(frozen=True)
class Outcome:
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
    operator: Floats
    distance: float


def predict(
    plan: Plan,
    operators: ArrayLike,
    n2: ArrayLike,
    target: ArrayLike,
    budget: float,
    accounting: Accounting = "equal-s",
    weight: ArrayLike | None = None,
) -> Outcome:
    r"""Predict the outcome of a plan.

    Arguments:
        plan: The plan.
        operators: $A_t$, shape (T,) or (T, d).
        n2: $n_t^2$, same shape.
        target: The operator to come near to, shape (d,).
        budget: The budget, see `accounting`.
        accounting: How the budget is spent.
        weight: Weights of the squared distance, shape (d,): $n_T^2$ by default, times the
            multiplicities of directions that are given once.

    Raises:
        SigdegError: If the arguments do not fit each other.
    """
    variance = np.asarray(n2, dtype=np.float64)
    s = training_time(plan, budget, accounting)
    gammas = gamma(variance, s)
    operator = final_operator(plan, operators, gammas)
    used = gammas[sorted({merge.stop - 1 for merge in merges(plan)})]
    retention = (float(used.min(initial=1.0)), float(used.max(initial=0.0)))
    distance = float(w2(operator, target, variance[-1] if weight is None else weight))
    return Outcome(plan, s, retention, operator, distance)


def best_hybrid(
    operators: ArrayLike,
    n2: ArrayLike,
    target: ArrayLike,
    budget: float,
    accounting: Accounting = "equal-s",
    weight: ArrayLike | None = None,
) -> tuple[int, Outcome]:
    """The best m of `hybrid(T, m)` and its outcome.

    A scan in O(T d) where every merge has the same s, in O(T^2 d) where s depends on the plan.
    Arguments and errors as `predict`.
    """
    variance = np.asarray(n2, dtype=np.float64)
    a, _ = check_operators(operators, gamma(variance, 0.0))
    last, steps = variance[-1], len(a)
    times = [training_time(hybrid(steps, m), budget, accounting) for m in range(1, steps + 1)]
    tables = {s: hybrid_operators(a, gamma(last, s)) for s in set(times)}
    reached = np.stack([tables[s][row] for row, s in enumerate(times)]).reshape(steps, -1)
    m = 1 + int(w2(reached, target, last if weight is None else weight).argmin())
    return m, predict(hybrid(steps, m), a, variance, target, budget, accounting, weight)
