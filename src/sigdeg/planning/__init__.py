"""What to distil in which order, and on which grid.

What is not needed to distil, the exact theory of merging, stands in `sigdeg.planning.theory`.

Reference:
    Operator merging (arXiv 2505.16024), for all of it that names no other.
"""

from sigdeg.planning.advice import GridAdvice, plan_grid, recommend_grid
from sigdeg.planning.gaussian import PlannedGrid, dp_grid
from sigdeg.planning.linear import FineSDE, LinearStudent
from sigdeg.planning.measured import MeasuredCost, candidate_times, measured_cost
from sigdeg.planning.plans import (
    Merge,
    Plan,
    canonical_plans,
    format_plan,
    hybrid,
    merges,
    parse_plan,
    plan_from_intervals,
    plan_steps,
    progressive,
    seq_boot,
    seq_consistency,
    vanilla,
)
from sigdeg.planning.spectrum import Spectrum

__all__ = [
    "FineSDE",
    "GridAdvice",
    "LinearStudent",
    "MeasuredCost",
    "Merge",
    "Plan",
    "PlannedGrid",
    "Spectrum",
    "candidate_times",
    "canonical_plans",
    "dp_grid",
    "format_plan",
    "hybrid",
    "measured_cost",
    "merges",
    "parse_plan",
    "plan_from_intervals",
    "plan_grid",
    "plan_steps",
    "progressive",
    "recommend_grid",
    "seq_boot",
    "seq_consistency",
    "vanilla",
]
