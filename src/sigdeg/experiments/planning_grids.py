"""Students on grids that have a name: what the parts of the planning experiment share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sigdeg.experiments.bench import Bench, Spec

__all__ = ["CHOSEN", "GRIDS", "PLANS", "GridSpec", "Grids"]

GRIDS = "Rough Bergomi: grids, one small training budget, by validation paths"
PLANS = "Rough Bergomi: plans, as many optimiser steps a round, by validation paths"
CHOSEN = "Rough Bergomi: planned, and what validation chose, by test paths"


@dataclass(frozen=True)
class GridSpec(Spec):
    """A student on a grid of one name.

    Arguments:
        grid: The name.
        plan: What the plan is called that it is distilled by, on paths of its own.
        tree: The plan, a tree of merges inside every coarse step; None is one shot.
    """

    grid: str = "power 1.5"
    plan: str = ""
    tree: str | None = None


class Grids(Bench):
    """A teacher, grids for its students, and what planning them took."""

    fine_steps: int  # of the teacher, on a path that students learn from
    planning_nfe: float  # teacher calls behind the measured costs

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.tables: dict[int, dict[str, Tensor]] = {}  # grids by step count and name

    def times(self, spec: Spec) -> Tensor:
        """The grid of a student."""
        assert isinstance(spec, GridSpec)
        return self.tables[max(spec.steps)][spec.grid]

    def refinement(self, steps: int) -> int:
        """Fine teacher steps a coarse step."""
        return max(2, self.fine_steps // steps)

    def told(self, steps: int, name: str) -> dict[str, Any]:
        """What a row says of its grid."""
        planned = name.startswith(("planned", "measured"))
        return {
            "grid": name,
            "times": self.tables[steps][name].tolist(),
            "planning_nfe": self.planning_nfe if planned else None,
        }
