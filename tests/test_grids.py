"""Time grids: spacings, refinements and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sigdeg.denoiser import GaussianDenoiser
from sigdeg.errors import SigdegError
from sigdeg.grids import Spacing, check_grid, coarse_grid, fine_grid, refine
from sigdeg.networks import ResidualMLP
from sigdeg.sampling import sample
from sigdeg.schedule import EDM, Cosine, DiscreteVP, RectifiedFlow, Schedule, VPLinear
from sigdeg.steps import Exponential
from sigdeg.student import SignatureStudent

SCHEDULES: dict[str, Schedule] = {
    "vp": VPLinear(),
    "cosine": Cosine(),
    "edm": EDM(),
    "flow": RectifiedFlow(shift=3.0),
    "discrete": DiscreteVP(tuple(torch.linspace(5, -6, 50).tolist())),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
every_spacing = pytest.mark.parametrize("spacing", ["uniform", "power", "log_snr"])


def close(actual: Tensor, expected: Tensor, tol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tol, atol=tol)


def even(values: Tensor, tol: float = 1e-10) -> None:
    close(values, torch.linspace(float(values[0]), float(values[-1]), len(values)).double(), 1e-5)
    close(values.diff(), values.diff().mean().expand(len(values) - 1), tol)


# --- coarse grids ---------------------------------------------------------------------------------


@every_schedule
@every_spacing
@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_coarse_grid_runs_from_noise_to_clean_data(
    schedule: Schedule, spacing: Spacing, steps: int
) -> None:
    grid = coarse_grid(schedule, steps, spacing)
    assert grid.shape == (steps + 1,)
    assert grid.dtype == torch.float64
    assert grid[0] == schedule.t_max
    assert grid[-1] == 0
    assert grid[-2] > schedule.t_min  # room for the teacher's own final denoise
    assert torch.equal(check_grid(grid), grid)


@every_schedule
def test_spacings_are_even_in_their_own_clock(schedule: Schedule) -> None:
    n, low, high = 12, schedule.t_min, schedule.t_max
    for spacing, power in (("uniform", 1.0), ("power", 2.5)):
        grid = coarse_grid(schedule, n, spacing, power)
        v = ((grid[:-1] - low) / (high - low)) ** (1 / power)
        close(v, 1 - torch.arange(n).double() / n, 1e-9)
    snr = schedule.log_snr(coarse_grid(schedule, n, "log_snr")[:-1])
    first, last = schedule.log_snr(torch.tensor([high, low], dtype=torch.float64))
    close(snr, first + (last - first) * torch.arange(n) / n, 1e-8)


@every_schedule
@every_spacing
def test_knots_are_nested_where_counts_divide(schedule: Schedule, spacing: Spacing) -> None:
    four, eight = (coarse_grid(schedule, n, spacing) for n in (4, 8))
    close(four, eight[::2])
    four, eight = (fine_grid(schedule, n, spacing) for n in (4, 8))
    close(four[:-1], eight[:-1:2])


# --- fine grids -----------------------------------------------------------------------------------


@every_schedule
@every_spacing
@pytest.mark.parametrize("steps", [1, 7])
def test_fine_grid_integrates_to_t_min_then_denoises(
    schedule: Schedule, spacing: Spacing, steps: int
) -> None:
    grid = check_grid(fine_grid(schedule, steps, spacing))
    assert grid.shape == (steps + 2,)
    assert grid[0] == schedule.t_max
    assert float(grid[-2]) == pytest.approx(schedule.t_min, rel=1e-12)
    assert grid[-1] == 0


@every_schedule
def test_fine_spacings_are_even_in_their_own_clock(schedule: Schedule) -> None:
    even(fine_grid(schedule, 9, "uniform")[:-1])
    even(fine_grid(schedule, 9, "power", power=3.0)[:-1] ** (1 / 3))
    even(schedule.log_snr(fine_grid(schedule, 9, "log_snr")[:-1]), 1e-7)


# --- refinement -----------------------------------------------------------------------------------


@every_schedule
@every_spacing
@pytest.mark.parametrize("refinement", [2, 5])
def test_rows_chain_through_the_coarse_times(
    schedule: Schedule, spacing: Spacing, refinement: int
) -> None:
    coarse = coarse_grid(schedule, 4, spacing)
    rows = refine(schedule, coarse, refinement)
    assert rows.shape == (4, refinement + 1)
    assert torch.equal(rows[:, 0], coarse[:-1])
    assert torch.equal(rows[:, -1], coarse[1:])
    assert bool((rows.diff(dim=1) < 0).all())
    assert rows[-1, -2] == schedule.t_min  # the final denoise starts where the teacher's does
    for row in rows[:-1]:
        even(row.sqrt())
    even(rows[-1, :-1].sqrt())


def test_refining_a_whole_step_is_the_teachers_own_grid() -> None:
    schedule = VPLinear()
    (row,) = refine(schedule, coarse_grid(schedule, 1), 20, power=2.0)
    close(row, fine_grid(schedule, 19, "power", power=2.0))


def test_a_grid_that_stops_before_the_data_is_refined_without_a_denoise() -> None:
    rows = refine(VPLinear(), [1.0, 0.5, 0.1], 1)
    assert torch.equal(rows, torch.tensor([[1.0, 0.5], [0.5, 0.1]], dtype=torch.float64))
    assert torch.equal(refine(VPLinear(), [1.0, 0.5, 0.1], 3)[-1, -1:], rows[-1, -1:])


def test_a_teachers_grid_refined_once_is_itself() -> None:
    grid = fine_grid(VPLinear(), 5)
    rows = refine(VPLinear(), grid, 1)
    assert torch.equal(torch.cat([rows[:, 0], rows[-1:, -1]]), grid)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "line"),
    [
        ([1.0], "at least two times"),
        ([[1.0, 0.0]], "at least two times"),
        ([0.0, 1.0], r"must strictly decrease, got \[0.0, 1.0\]"),
        ([1.0, 0.5, 0.5, 0.0], "must strictly decrease"),
        ([1.0, float("nan"), 0.0], "must strictly decrease"),
        ([2.0, 0.0], r"must lie in \[0, 1\], got 2.0 to 0.0"),
        ([1.0, -0.1], r"must lie in \[0, 1\]"),
    ],
)
def test_a_broken_grid_is_refused(grid: list[float], line: str) -> None:
    with pytest.raises(SigdegError, match=line):
        check_grid(grid)


def test_bad_counts_and_spacings_are_refused() -> None:
    schedule = VPLinear()
    for build in (coarse_grid, fine_grid):
        with pytest.raises(SigdegError, match="steps must be at least 1, got 0"):
            build(schedule, 0)
        with pytest.raises(SigdegError, match="unknown spacing 'sigmoid': choose from uniform, po"):
            build(schedule, 5, "sigmoid")  # type: ignore[arg-type]  # the point
    for refinement in (0, 1):
        with pytest.raises(SigdegError, match=f"refinement must be at least 2 .*{refinement}"):
            refine(schedule, coarse_grid(schedule, 5), refinement)
    with pytest.raises(SigdegError, match=r"start above t_min = 0.001 to be refined, got 0.001"):
        refine(schedule, fine_grid(schedule, 5), 2)


SPANS = [([1, 0.4, 0], True), ([1, 0.4, 0.1], False), ([0.9, 0.4, 0], False), ([0.3, 0.1], False)]


@pytest.mark.parametrize(("times", "whole"), SPANS, ids=str)
def test_samples_are_drawn_from_noise_to_data(times: list[float], whole: bool) -> None:
    """A student's times are whole; a step may be stopped before, but starts where noise is."""
    schedule = VPLinear()
    network = ResidualMLP(SignatureStudent.in_channels(1, 2), 1, 8, 1)
    options: dict[str, Any] = {"steps": (len(times) - 1,), "data_std": 1.0}
    if whole:
        student = SignatureStudent(network, schedule, 1, times=times, **options)
        assert student.at_times([1, 0.5, 0]).grid().tolist() == [1, 0.5, 0]
    else:
        with pytest.raises(SigdegError, match=f"must run from 1, .* to 0, got {times[0]:g} to"):
            SignatureStudent(network, schedule, 1, times=times, **options)
        with pytest.raises(SigdegError, match="must run from 1, "):
            SignatureStudent(network, schedule, 1, **options).at_times(times)
    teacher = Exponential(GaussianDenoiser(0.0, 1.0, schedule))
    if times[0] == 1:
        assert sample(teacher, times, (2, 1), seeds=[0, 1]).shape == (2, 1)
    else:
        with pytest.raises(SigdegError, match="must run from 1, "):
            sample(teacher, times, (2, 1), seeds=[0, 1])


def test_times_start_where_the_schedule_does() -> None:
    denoiser = GaussianDenoiser(0.0, 1.0, Cosine())
    with pytest.raises(SigdegError, match=r"must run from 0\.995, where this Cosine is noise"):
        sample(Exponential(denoiser), [1.0, 0.5, 0.0], (1, 1), seeds=[0])
