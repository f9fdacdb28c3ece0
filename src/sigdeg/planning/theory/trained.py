r"""Plans carried out: linear students trained by stochastic gradient descent, merge after merge.

The theory predicts what a plan ends with (`predict`); this is the experiment beside it. A merge
starts from the operator at its noise end and descends, for s / rate steps on batches of inputs
$z_t$,

$$ a \leftarrow a - 2\, \mathrm{rate}\; \hat{E}[(a - P R) z z^\top], $$

P R being the product of its children: the gradient flow of `gamma` for a small rate.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from sigdeg.errors import SigdegError
from sigdeg.planning.plans import Plan, fold, plan_steps
from sigdeg.planning.spectrum import Floats

__all__ = ["train_plan"]


def train_plan(
    plan: Plan,
    operators: ArrayLike,
    draw: Callable[[int], Floats],
    s: float,
    rate: float = 1e-3,
) -> Floats:
    r"""Train a linear student by a plan.

    Arguments:
        plan: The plan.
        operators: The teacher's steps: diagonals, shape (T, d), for a diagonal student, or
            matrices, shape (T, d, d), for a full one.
        draw: A batch of inputs $z_t$, shape (n, d), for a time t = 1, ..., T.
        s: Training time of each merge: rate times steps.
        rate: The learning rate.

    Returns:
        The operator from time T to 0, shape (d,) or (d, d).

    Raises:
        SigdegError: If the plan is broken or of another size, or the training diverges.
    """
    a = np.asarray(operators, dtype=np.float64)
    if a.ndim not in (2, 3) or plan_steps(plan) != len(a):
        raise SigdegError(
            f"the plan merges {plan_steps(plan)} steps: operators must have shape (T, d) or "
            f"(T, d, d), got {a.shape}"
        )
    diagonal = a.ndim == 2

    def merged(children: list[Floats], time: int) -> Floats:
        student = children[-1]
        target = functools.reduce(np.multiply if diagonal else np.matmul, children)
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(round(s / rate)):
                z = draw(time)
                error = student - target
                gradient = error * (z**2).mean(0) if diagonal else error @ (z.T @ z) / len(z)
                student = student - 2 * rate * gradient
        if not np.isfinite(student).all():
            raise SigdegError(f"the training diverged at time {time}: lower the rate of {rate:g}")
        return student

    return fold(plan, lambda t: a[t - 1], merged)
