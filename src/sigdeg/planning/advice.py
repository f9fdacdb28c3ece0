"""Advice on grids: the times at which a student of a few steps loses the least."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sigdeg.costs import check_memory
from sigdeg.errors import SigdegError, check_least
from sigdeg.planning.gaussian import PlannedGrid, dp_grid, warped_points
from sigdeg.planning.linear import FineSDE, LinearStudent
from sigdeg.planning.measured import (
    CANDIDATES,
    Comparison,
    MeasuredCost,
    Weighing,
    candidate_times,
    measured_cost,
)
from sigdeg.planning.spectrum import Spectrum
from sigdeg.rng import Stream, derive_generator
from sigdeg.schedule import Schedule
from sigdeg.steps import GaussianStep

__all__ = ["GridAdvice", "plan_grid", "recommend_grid"]

FINE = 256  # fine steps of the linear teacher
LONGEST = 64  # steps of a grid for a teacher: all pairs of candidates are measured
POWERS = tuple(np.arange(1.25, 4.01, 0.25).tolist())


@dataclass(frozen=True)
class GridAdvice:
    """Grids compared, and the one to take.

    Arguments:
        spectrum: What they were planned from.
        planned: The grid planned from it; its cost is the W2 to the teacher.
        uniform: The uniform grid, alike.
        power: The best power grid $t = (i/K)^p$, alike.
        exponent: Its exponent p.
        measured: What was measured of a teacher, if anything.
        comparison: The planned grid against the measured one, under the measured cost.
        weighing: How measured losses are weighed, see `MeasuredCost.cost`.
        lossless: Whether every grid is exact for Gaussian data: then the planned one is that of the
            same student without its noise.
    """

    spectrum: Spectrum
    planned: PlannedGrid
    uniform: PlannedGrid
    power: PlannedGrid
    exponent: float
    measured: MeasuredCost | None = None
    comparison: Comparison | None = None
    weighing: Weighing | None = None
    lossless: bool = False

    @property
    def grids(self) -> dict[str, PlannedGrid]:
        """The grids by name: `planned`, `measured` where a teacher was, `uniform`, `power-P`."""
        measured = {} if self.comparison is None else {"measured": self.comparison.measured}
        power = {f"power-{self.exponent:g}": self.power}
        return {"planned": self.planned, **measured, "uniform": self.uniform, **power}

    @property
    def name(self) -> str:
        """The grid to take: the measured one where the two disagree by more than a factor 2."""
        return "planned" if self.comparison is None or self.comparison.agree else "measured"

    @property
    def best(self) -> PlannedGrid:
        """The grid to take."""
        return self.grids[self.name]

    def with_measured(self, measured: MeasuredCost, weighing: Weighing | None = None) -> GridAdvice:
        """The same advice, set against what was measured of a teacher.

        Arguments:
            measured: What coarse steps of the teacher lose.
            weighing: How losses are weighed, see `MeasuredCost.cost`.

        Raises:
            SigdegError: If there are more steps than candidates allow.
        """
        comparison = measured.compare(self.planned, weighing)
        return replace(self, measured=measured, comparison=comparison, weighing=weighing)

    @property
    def teacher_nfe(self) -> float:
        """Teacher calls that planning took."""
        return 0 if self.measured is None else self.measured.teacher_nfe

    def measured_cost(self, grid: PlannedGrid) -> float:
        """Measured cost of a grid moved to the candidates."""
        assert self.measured is not None
        return self.measured.nearest(grid.times, self.weighing).cost

    def warnings(self) -> list[str]:
        """What to know before using it."""
        if self.comparison is None or self.name == "planned":
            return self.spectrum.warnings()
        return [
            *self.spectrum.warnings(),
            f"the grid planned from the spectrum loses {self.comparison.ratio:.1f} times what the "
            "measured one loses: this teacher is not Gaussian, use the measured grid",
        ]


def recommend_grid(
    spectrum: Spectrum,
    schedule: Schedule,
    steps: int,
    student: LinearStudent | None = None,
    fine: int = FINE,
) -> GridAdvice:
    """Plan a grid from a spectrum, beside the uniform and the best power grid.

    Arguments:
        spectrum: The spectrum; zero eigenvalues are allowed.
        schedule: The schedule.
        steps: Coarse steps K.
        student: The student, converged and of order 2 by default.
        fine: Fine steps of the linear teacher; fewer where its `t_min` asks for it.

    Raises:
        SigdegError: If there are more steps than fine steps, or none.
    """
    student = student or LinearStudent()
    fine = fine_steps(schedule, fine)
    check_memory(32 * (fine + 1) ** 2 * len(spectrum.eigenvalues))  # four tables of all steps
    sde = FineSDE(spectrum.eigenvalues, fine, schedule, multiplicity=spectrum.multiplicity)

    def grid(power: float) -> PlannedGrid:
        points = warped_points(fine, steps, power)
        times = torch.from_numpy(sde.times[points[::-1]])
        return PlannedGrid(tuple(points), times, sde.w2(points, student))

    lossless = student.residual_noise and student.budget == math.inf
    planned = dp_grid(sde, steps, replace(student, residual_noise=False) if lossless else student)
    if lossless:
        planned = replace(planned, cost=sde.w2(planned.points, student))
    warped = {power: grid(power) for power in POWERS}
    exponent = min(warped, key=lambda power: warped[power].cost)
    return GridAdvice(spectrum, planned, grid(1.0), warped[exponent], exponent, lossless=lossless)


def fine_steps(schedule: Schedule, fine: int) -> int:
    """No more fine steps than leave the first time above `t_min`: a student knows none below."""
    return min(fine, int(schedule.t_max / schedule.t_min * (1 - 1e-9)))


def own_samples(teacher: str, steps: int) -> str:
    """What a spectrum of a teacher is of, in words."""
    return f"{teacher}, its own samples, {steps} steps each"


def plan_grid(
    teacher: GaussianStep,
    steps: int,
    shape: tuple[int, ...],
    student: LinearStudent | None = None,
    *,
    candidates: int | None = None,
    paths: int = 2000,
    refinement: int = 6,
    axes: int = 64,
    weighing: Weighing | None = None,
    fine: int = FINE,
    seed: int = 0,
    source: str = "the teacher",
    **options: Any,
) -> GridAdvice:
    """Measure a teacher and plan a grid for its student.

    The grid is planned from the spectrum of the teacher's samples, unless its measured losses say
    that it is not Gaussian: see `GridAdvice.name`. A single direction is measured with cubic
    features, several with linear ones, along principal axes.

    Arguments:
        teacher: The teacher's step.
        steps: The number of steps of the student.
        shape: Shape of one sample.
        student: The student, converged and of order 2 by default.
        candidates: Candidate times to measure between (default: 19, or more of more than 9 steps).
        paths: Simulated paths.
        refinement: Fine steps between neighbouring candidates.
        axes: Principal axes to measure along, at most.
        weighing: How losses are weighed, see `MeasuredCost.cost`.
        fine: Fine steps of the linear teacher, see `recommend_grid`.
        seed: Seed of the paths.
        source: What the teacher is called.
        options: Passed on to `measured_cost`: condition, device, batch_size, progress.

    Raises:
        SigdegError: If there are more than 64 steps and no candidates are given, fewer of them than
            the grid has times, or the teacher cannot be run there.
    """
    student, schedule, size = student or LinearStudent(), teacher.schedule, math.prod(shape)
    # What does not fit is refused before anything is measured.
    if candidates is None:
        if steps > LONGEST:
            raise SigdegError(f"a grid is planned for at most {LONGEST} steps, got {steps}")
        candidates = max(CANDIDATES, 2 * steps) + 1
    if candidates <= steps:
        raise SigdegError(f"{steps} steps need more than {candidates} candidates to choose from")
    check_least(axes, 1, "axes")
    warped_points(fine_steps(schedule, fine), steps)
    measured = measured_cost(
        teacher,
        candidate_times(schedule, candidates - 1),
        shape,
        student.order,
        paths,
        refinement,
        "cubic" if size == 1 else "linear",
        None if size == 1 else min(size, axes),
        generator=derive_generator(seed, Stream.PLAN),
        **options,
    )
    source = own_samples(source, (candidates - 1) * refinement)
    spectrum = Spectrum.of_eigenvalues(measured.variance[-1], source=source, samples=paths)
    advice = recommend_grid(spectrum, schedule, steps, student, fine)
    return advice.with_measured(measured, weighing)
