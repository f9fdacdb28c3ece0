"""Operator merging: the exact theory behind the plans, for Gaussian data and for mixtures.

`operators` says what a merge does, `budget` what a plan costs and reaches, `programmes` and
`pareto` search all plans, `phase` and `recommend` say which is best, `trained` carries one out, and
`mixture` is the regime in which no training time suffices.
"""

from sigdeg.planning.theory.budget import (
    Accounting,
    Outcome,
    best_hybrid,
    one_shot_budget,
    plan_cost,
    predict,
    training_time,
)
from sigdeg.planning.theory.mixture import MixtureTeacher, accumulated_error
from sigdeg.planning.theory.operators import (
    StepSchedule,
    composites,
    data_target,
    discretise,
    final_operator,
    gamma,
    teacher_ops,
    w2,
    windows,
)
from sigdeg.planning.theory.pareto import Found, dp_greedy, dp_pareto, local_search
from sigdeg.planning.theory.phase import Phase, phase_diagram
from sigdeg.planning.theory.programmes import all_plans, dp_scalar, hybrid_operators
from sigdeg.planning.theory.recommend import PlanAdvice, recommend_plan, regime
from sigdeg.planning.theory.trained import train_plan

__all__ = [
    "Accounting",
    "Found",
    "MixtureTeacher",
    "Outcome",
    "Phase",
    "PlanAdvice",
    "StepSchedule",
    "accumulated_error",
    "all_plans",
    "best_hybrid",
    "composites",
    "data_target",
    "discretise",
    "dp_greedy",
    "dp_pareto",
    "dp_scalar",
    "final_operator",
    "gamma",
    "hybrid_operators",
    "local_search",
    "one_shot_budget",
    "phase_diagram",
    "plan_cost",
    "predict",
    "recommend_plan",
    "regime",
    "teacher_ops",
    "train_plan",
    "training_time",
    "w2",
    "windows",
]
