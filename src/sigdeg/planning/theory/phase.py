r"""The phase diagram: which plan is best for data of one variance, trained for a given time.

Below $\lambda_B$ every product of the teacher's operators is at most 1 and BOOT is the best of all
plans, above $\lambda_V$ vanilla is, whatever the training time; between them the best is mixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sigdeg.errors import SigdegError
from sigdeg.planning.plans import Plan, canonical_plans, hybrid
from sigdeg.planning.spectrum import Floats
from sigdeg.planning.theory.budget import Accounting, one_shot_budget, training_time
from sigdeg.planning.theory.operators import StepSchedule, gamma, merged, teacher_ops, windows
from sigdeg.planning.theory.programmes import dp_scalar, hybrid_operators

__all__ = ["Phase", "phase_diagram"]

LARGEST = 128  # teacher steps: a diagram of more takes minutes
ROUNDING = 1e-13


@dataclass(frozen=True)
class Phase:
    r"""Which plan is best, over eigenvalues and training times.

    Arguments:
        eigenvalues: $\lambda$, shape (L,).
        times: Training time s of the one-shot student, shape (S,).
        best: Distance $|X - X^*|$ of the best plan to the teacher's composite, shape (L, S).
        canonical: Distances of the canonical plans by name, alike.
        windows: $\lambda_B$ and $\lambda_V$.
        accounting: What the plans share.
    """

    eigenvalues: Floats
    times: Floats
    best: Floats
    canonical: dict[str, Floats]
    windows: tuple[float, float]
    accounting: Accounting

    @property
    def kind(self) -> Floats:
        """0 where BOOT is best, 1 where a mixed plan is, 2 where vanilla is; shape (L, S)."""
        boot, one_shot = self.canonical["boot"], self.canonical["vanilla"]
        either = np.where(boot < one_shot * (1 - 1e-9) - ROUNDING, 0.0, 2.0)
        mixed = self.best < np.minimum(boot, one_shot) * (1 - 1e-9) - ROUNDING
        return np.where(mixed, 1.0, either)

    def gain(self, over: str | None = None) -> Floats:
        """How many times nearer the best plan is than a canonical one (default: the worst).

        NaN where every plan is exact but for rounding: there is nothing to choose.
        """
        worst = np.max(list(self.canonical.values()), axis=0)
        other = worst if over is None else self.canonical[over]
        return np.where(worst > 1e-10, other / np.maximum(self.best, ROUNDING), np.nan)


def phase_diagram(
    schedule: StepSchedule,
    eigenvalues: ArrayLike,
    times: ArrayLike,
    accounting: Accounting = "equal-s",
) -> Phase:
    r"""The best plan for every pair of an eigenvalue and a training time.

    With one s for every merge it is the best of all plans: outside the windows by theorem, between
    them by two dynamic programmes, for the smallest and the largest operator that a plan can have.
    A target that lies between these two counts as reached. On other terms, where s depends on the
    plan, it is the best hybrid or canonical plan.

    Arguments:
        schedule: The schedule of T steps, at least 2.
        eigenvalues: $\lambda > 0$, shape (L,).
        times: Training times s > 0 of the one-shot student, shape (S,).
        accounting: What the plans share with it, see `sigdeg.planning.theory.budget`.

    Raises:
        SigdegError: If there are not 2 to 128 steps, or a value is not positive.
    """
    steps = schedule.steps
    if not 2 <= steps <= LARGEST:
        raise SigdegError(f"a phase diagram takes 2 to {LARGEST} steps, got {steps}")
    lam, s = (np.atleast_1d(np.asarray(v, dtype=np.float64)) for v in (eigenvalues, times))
    if not ((s > 0) & np.isfinite(s)).all():
        raise SigdegError("training times must be positive and finite")
    shape = (len(lam), len(s))
    a, n2 = (np.repeat(v, len(s), axis=1) for v in teacher_ops(schedule, lam))
    exponent = n2 * np.tile(s, len(lam))
    target, budget = a.prod(axis=0), one_shot_budget(steps, 1.0, accounting)

    def distance(operator: Floats) -> Floats:
        return np.asarray(np.abs(operator - target).reshape(shape))

    def kept(plan: Plan) -> Floats:
        """Gamma at every input time, shape (T, L S)."""
        return gamma(exponent, training_time(plan, budget, accounting))

    canonical = {
        name: distance(merged(plan, a, kept(plan))) for name, plan in canonical_plans(steps).items()
    }
    rows = [hybrid_operators(a, kept(hybrid(steps, m))[-1])[m - 1] for m in range(1, steps + 1)]
    best = np.min([*map(distance, rows), *canonical.values()], axis=0)
    low, high = windows(schedule)
    if accounting == "equal-s":
        for k in np.flatnonzero(np.repeat((lam > low) & (lam < high), len(s))):
            g = np.exp(-2 * exponent[:, k])
            ends = [dp_scalar(a[:, k], g, mode)[0] for mode in ("min", "max")]
            missed = max(ends[0] - target[k], target[k] - ends[1], 0.0)
            best.flat[k] = min(best.flat[k], missed)
    return Phase(lam, s, best, canonical, (low, high), accounting)
