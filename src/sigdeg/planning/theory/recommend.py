r"""What to do: the plan for a spectrum, with what each alternative would give.

A budget is stated as s, the training time (learning rate times steps) of the one-shot student,
which makes one merge. A plan of several merges is judged on the same terms three times over: with s
for every merge (`equal-s`, the terms of the theory), with as many optimiser steps in all
(`equal-steps`), and with as many network calls in all (`equal-compute`). Under each, vanilla is
the same one-shot student.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from sigdeg.errors import SigdegError, check_choice
from sigdeg.planning.plans import canonical_plans, merges, vanilla
from sigdeg.planning.spectrum import Spectrum
from sigdeg.planning.theory.budget import (
    Accounting,
    Outcome,
    best_hybrid,
    one_shot_budget,
    predict,
)
from sigdeg.planning.theory.operators import (
    StepSchedule,
    data_target,
    gamma,
    teacher_ops,
    w2,
    windows,
)
from sigdeg.planning.theory.pareto import local_search

__all__ = ["PlanAdvice", "Regime", "recommend_plan", "regime"]

Regime = Literal["boot", "vanilla", "mixed"]

MOST_STEPS = 1000
SEARCHED = 64  # steps of the largest plan whose neighbours are tried
WORTHWHILE = 0.99  # what is hardly nearer is not worth a plan without a name
TINY = 1e-12  # a direction without variance stands as this share of the largest: A_t must be > 0


def regime(schedule: StepSchedule, spectrum: Spectrum) -> Regime:
    r"""Where the spectrum lies: all below $\lambda_B$, all above $\lambda_V$, or mixed."""
    low, high = windows(schedule)
    if spectrum.eigenvalues.max() <= low:
        return "boot"
    return "vanilla" if spectrum.eigenvalues.min() >= high else "mixed"


@dataclass(frozen=True)
class PlanAdvice:
    r"""Plans compared, and the one to take.

    Arguments:
        regime: Where the spectrum lies, see `regime`.
        windows: $\lambda_B$ and $\lambda_V$.
        accounting: The terms that the recommendation is made under.
        plans: Under each accounting, the predictions of the four canonical plans, the best hybrid
            and what was found beyond it, by name.
        teacher: W2 distance of the teacher's own samples to the data.
    """

    regime: Regime
    windows: tuple[float, float]
    accounting: Accounting
    plans: dict[Accounting, dict[str, Outcome]]
    teacher: float

    def winner(self, accounting: Accounting | None = None) -> str:
        """The plan that ends nearest; of plans that are equally near, the one of fewest merges."""
        plans = self.plans[accounting or self.accounting]
        # Where gamma underflows every plan is exact but for rounding.
        rounding = 1e-12 * float(np.linalg.norm(plans["vanilla"].operator))
        near = min(p.distance for p in plans.values()) * (1 + 1e-9) + rounding
        return min(
            (name for name, p in plans.items() if p.distance <= near),
            key=lambda name: len(merges(plans[name].plan)),
        )

    @property
    def name(self) -> str:
        """The recommended plan: a canonical one's name, `hybrid-M` or `searched`."""
        return self.winner()

    @property
    def best(self) -> Outcome:
        """The recommended plan's prediction."""
        return self.plans[self.accounting][self.name]

    def gain(self, name: str | None = None, accounting: Accounting | None = None) -> float:
        """How many times nearer to the teacher than one-shot a plan ends (default: the winner)."""
        plans = self.plans[accounting or self.accounting]
        one_shot = plans["vanilla"].distance
        own = plans[name or self.winner(accounting)].distance
        return one_shot / own if own > 0 else (1.0 if one_shot == 0 else np.inf)


def recommend_plan(
    spectrum: Spectrum,
    schedule: StepSchedule,
    s: float = 0.5,
    accounting: Accounting = "equal-s",
) -> PlanAdvice:
    """Predict every canonical plan and the best hybrid, and choose.

    Of plans that come equally near, the one with the fewest merges is chosen. Under `equal-s`, BOOT
    below the lower window and vanilla above the upper one are the best of all plans, which is
    proved. Elsewhere a local search starts from the best hybrid and from vanilla; where it comes
    nearer, as it does for data of nearly one variance between the windows, its plan is `searched`.

    Arguments:
        spectrum: The spectrum; directions without variance count as nearly so.
        schedule: The schedule at the T steps that are merged into one.
        s: Training time of the one-shot student, learning rate times steps of gradient descent.
        accounting: What the plans share.

    Raises:
        SigdegError: If there are not 2 to 1000 steps, s is not positive and finite, or the
            accounting is unknown.
    """
    steps = schedule.steps
    if not 2 <= steps <= MOST_STEPS:
        raise SigdegError(f"a plan merges 2 to {MOST_STEPS} steps, got {steps}")
    if not 0 < s < np.inf:
        raise SigdegError(f"the training time s must be positive and finite, got {s}")
    check_choice(accounting, get_args(Accounting), "accounting")
    values = np.maximum(spectrum.eigenvalues, TINY * spectrum.eigenvalues.max())
    a, n2 = teacher_ops(schedule, values)
    target, weight = a.prod(axis=0), n2[-1] * spectrum.multiplicity
    place = regime(schedule, spectrum)
    plans: dict[Accounting, dict[str, Outcome]] = {}
    for kind in get_args(Accounting):
        budget = one_shot_budget(steps, s, kind)
        m, best = best_hybrid(a, n2, target, budget, kind, weight)
        considered = canonical_plans(steps)
        considered.setdefault(hybrid_name(steps, m), best.plan)
        if kind == "equal-s" and place == "mixed" and steps <= SEARCHED:
            starts = (best.plan, vanilla(steps))
            found = [local_search(start, a, gamma(n2, s), target, weight) for start in starts]
            better = min(found, key=lambda f: f.distance)
            if better.distance < WORTHWHILE * best.distance:
                considered["searched"] = better.plan
        plans[kind] = {
            name: predict(plan, a, n2, target, budget, kind, weight)
            for name, plan in considered.items()
        }
    distance = float(w2(target, data_target(values, n2), weight))
    return PlanAdvice(place, windows(schedule), accounting, plans, distance)


def hybrid_name(steps: int, m: int) -> str:
    """`hybrid-M`, or the canonical plan that it is."""
    return "boot" if m <= 2 else "vanilla" if m == steps else f"hybrid-{m}"
