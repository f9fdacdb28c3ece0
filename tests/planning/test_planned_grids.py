"""Planned grids: shortest paths, Gaussian plans and plans from measured costs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sigdeg.datasets.mixture import GaussianMixture1D
from sigdeg.denoiser import GaussianDenoiser, GaussianMixtureDenoiser
from sigdeg.distillation.paths import TeacherPaths
from sigdeg.errors import SigdegError
from sigdeg.grids import coarse_grid, refine
from sigdeg.metrics.wasserstein import w1_exact
from sigdeg.planning import (
    FineSDE,
    LinearStudent,
    MeasuredCost,
    PlannedGrid,
    StepRegression,
    dp_grid,
    measured_cost,
    shortest_path,
    warped_points,
)
from sigdeg.schedule import VPLinear
from sigdeg.steps import Exponential

SCHEDULE = VPLinear()


def spectrum(d: int = 64) -> np.ndarray:
    return np.arange(1, d + 1) ** -2.0


@pytest.fixture(scope="module")
def fine() -> FineSDE:
    return FineSDE(spectrum(), 512)


# --- shortest paths -------------------------------------------------------------------------------


@pytest.mark.parametrize("edges", range(1, 7))
def test_shortest_path_is_brute_force(edges: int) -> None:
    rng = np.random.default_rng(edges)
    for _ in range(20):
        cost = rng.standard_normal((7, 7))
        paths = [(0, *inner, 6) for inner in itertools.combinations(range(1, 6), edges - 1)]
        totals = [sum(cost[l, r] for l, r in itertools.pairwise(path)) for path in paths]
        path, total = shortest_path(cost, edges)
        assert tuple(path) == paths[int(np.argmin(totals))]
        assert total == pytest.approx(min(totals), abs=1e-13)


def test_a_missing_edge_is_avoided() -> None:
    cost = np.full((4, 4), np.inf)
    cost[0, 2], cost[2, 3], cost[0, 1] = 5.0, 1.0, 0.0
    assert shortest_path(cost, 2) == ([0, 2, 3], 6.0)
    with pytest.raises(SigdegError, match="no path of 1 edges has a finite cost"):
        shortest_path(cost, 1)


def test_bad_costs_are_refused() -> None:
    with pytest.raises(SigdegError, match="square matrix of two nodes or more"):
        shortest_path(np.zeros((2, 3)), 1)
    for edges in (0, 3):
        with pytest.raises(SigdegError, match=f"over 3 nodes has 1 to 2 edges, got {edges}"):
            shortest_path(np.zeros((3, 3)), edges)
    with pytest.raises(SigdegError, match="a number for every pair l < r, got NaN"):
        shortest_path(np.full((3, 3), math.nan), 1)


# --- Gaussian plans -------------------------------------------------------------------------------


def test_warped_points_are_distinct_and_nearest() -> None:
    assert warped_points(48, 4) == [0, 12, 24, 36, 48]
    assert warped_points(48, 4, power=2.0) == [0, 3, 12, 27, 48]
    for steps, power in itertools.product((1, 5, 47, 48), (0.2, 1.0, 4.0)):
        points = warped_points(48, steps, power)
        assert len(points) == steps + 1
        assert (points[0], points[-1]) == (0, 48)
        assert min(np.diff(points)) >= 1
    with pytest.raises(SigdegError, match="on 48 fine steps has 1 to 48 steps, got 49"):
        warped_points(48, 49)


@pytest.mark.parametrize(
    ("student", "points"),
    [
        (LinearStudent(), (0, 2, 9, 28, 48)),
        (LinearStudent(budget=0.5, start="zero"), (0, 28, 43, 47, 48)),
        (LinearStudent(budget=0.5), (0, 2, 7, 14, 48)),
        (LinearStudent(budget=2.0), (0, 2, 9, 25, 48)),
        (LinearStudent(budget=2.0, start="zero"), (0, 23, 40, 43, 48)),
        (LinearStudent(budget=0.0), (0, 3, 8, 14, 48)),
    ],
)
def test_the_planned_grid_is_brute_force(student: LinearStudent, points: tuple[int, ...]) -> None:
    sde = FineSDE(spectrum(), 48)
    gain, noise = sde.student_table(student)
    grids = np.array([(0, *inner, 48) for inner in itertools.combinations(range(1, 48), 3)])
    variance = sde.variance[-1]
    for i in (3, 2, 1, 0):
        l, r = grids[:, i], grids[:, i + 1]
        variance = gain[l, r] * variance + noise[l, r]
    distances = sde.distance(variance)
    plan = dp_grid(sde, 4, student)
    assert plan.points == tuple(grids[distances.argmin()]) == points
    assert plan.cost == pytest.approx(distances.min(), rel=1e-10)
    assert plan.cost == pytest.approx(sde.w2(points, student), rel=1e-10)


def test_the_planned_grid_beats_the_uniform_one() -> None:
    sde = FineSDE(spectrum(), 48)
    plan = dp_grid(sde, 4)
    assert plan.cost == pytest.approx(0.0019964, abs=5e-8)
    assert sde.w2(warped_points(48, 4)) == pytest.approx(0.04852, abs=5e-6)
    assert torch.equal(plan.times * 48, torch.tensor([48, 28, 9, 2, 0], dtype=torch.float64))


def test_more_steps_never_hurt_a_converged_student() -> None:
    sde = FineSDE(spectrum(16), 48)
    for order in (1, 2):
        costs = [dp_grid(sde, steps, LinearStudent(order)).cost for steps in range(1, 13)]
        assert all(after <= before for before, after in itertools.pairwise(costs))


@pytest.mark.parametrize(
    ("times", "cost"),
    [
        ((0, 0.021, 0.137, 0.488, 1), 0.0050),
        ((0, 0.006, 0.018, 0.045, 0.100, 0.201, 0.348, 0.674, 1), 0.00028),
    ],
)
def test_best_grids_of_an_inverse_square_spectrum(
    fine: FineSDE, times: tuple[float, ...], cost: float
) -> None:
    plan = dp_grid(fine, len(times) - 1)
    np.testing.assert_allclose(plan.times.flip(0), times, atol=6e-4)
    assert plan.cost == pytest.approx(cost, rel=0.03)


def test_a_plan_out_of_range_is_refused() -> None:
    sde = FineSDE([1.0], 12)
    for steps in (0, 13):
        with pytest.raises(SigdegError, match=f"on 12 fine steps has 1 to 12 steps, got {steps}"):
            dp_grid(sde, steps)


# --- regressions and measured costs ---------------------------------------------------------------


def test_a_regression_recovers_its_own_model() -> None:
    rng = np.random.default_rng(0)
    z, c, other = rng.standard_normal((3000, 2)), rng.standard_normal((3000, 2, 2)), 0.1
    noise = other * rng.standard_normal((3000, 2))
    linear = z @ np.array([[0.5, 0.1], [0.0, 0.2]]) + 0.3 * c[:, 0] - 0.2 * c[:, 1, ::-1] + 1
    fit = StepRegression.fit(z, c, linear + noise)
    np.testing.assert_allclose(fit.residual, other**2, rtol=0.08)  # 2.6% is one sigma
    np.testing.assert_allclose(fit(z, c), linear, atol=0.03)
    cubic = (z + np.abs(z)) * (1 + c[:, 0] ** 2 * c[:, 1]) + c[:, 1] ** 3
    fit = StepRegression.fit(z, c, cubic + noise, "cubic", knots=9)  # the middle knot is near 0
    np.testing.assert_allclose(fit.residual, other**2, rtol=0.25)
    assert StepRegression.fit(z, c, cubic + noise).residual.min() > 1


def test_the_residual_counts_the_degrees_of_freedom() -> None:
    rng = np.random.default_rng(1)
    z, c = rng.standard_normal((200, 1)), rng.standard_normal((200, 2, 1))
    target = rng.standard_normal((200, 40))
    # 10 noise features times 6 of the state, of 200 samples: unaware of it, RSS / n is 0.7.
    found = [StepRegression.fit(z, c, y[:, None], "cubic", knots=4).residual for y in target.T]
    assert np.mean(found) == pytest.approx(1, abs=0.06)  # 1.9% is one sigma


def test_a_measured_cost_of_gaussian_data_is_the_exact_one() -> None:
    std = torch.tensor([1.0, 0.3], dtype=torch.float64)
    times = torch.tensor([1.0, 0.625, 0.25, 0.125, 0.0], dtype=torch.float64)

    teacher = Exponential(GaussianDenoiser(0.0, std, SCHEDULE))
    found = measured_cost(teacher, times, (2,), paths=3000, refinement=24)
    sde = FineSDE((std**2).numpy(), 512)
    points = [round(512 * float(t)) for t in times]
    for i, j in itertools.combinations(range(5), 2):
        lost = sde.stats(points[j], points[i]).R
        np.testing.assert_allclose(found.residual[i, j], lost, rtol=0.12, atol=3e-4)
    np.testing.assert_allclose(found.variance, sde.variance[points], rtol=0.1)


def test_directions_undo_a_rotation_of_the_sample() -> None:
    rows = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    std = torch.tensor([1.0, 0.3])
    times = torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64)

    class Turned(GaussianDenoiser):
        """Data whose principal components are the rows."""

        def forward(self, x: Tensor, t: Tensor, **condition: object) -> Tensor:
            return super().forward(x @ rows.T, t) @ rows

    teacher = Exponential(Turned(0.0, std, SCHEDULE))
    found = measured_cost(teacher, times, (2,), paths=2000, directions=rows.T)
    sde = FineSDE((std**2).double().numpy(), 512)
    np.testing.assert_allclose(found.residual[0, 1], sde.stats(128, 512).R, rtol=0.15)
    assert found.variance[-1, 1] == pytest.approx(0.09, rel=0.15)


def planned(*points: int) -> PlannedGrid:
    return PlannedGrid(points, 1 - torch.tensor(points, dtype=torch.float64) / 4, 0.0)


def test_the_measured_plan_is_trusted_where_they_disagree() -> None:
    times = torch.linspace(1, 0, 5, dtype=torch.float64)
    residual = np.zeros((5, 5, 1))
    residual[0, 1:, 0], residual[1, 4, 0], residual[2, 4, 0], residual[3, 4, 0] = 1, 1, 4, 1.5
    measured = MeasuredCost(times, residual, np.full((5, 1), 2.0))
    assert measured.grid(2).points == (0, 1, 4)
    assert measured.grid(2).cost == 2
    assert measured.grid(2, relative=True).cost == 1
    far = measured.compare(planned(0, 2, 4))
    assert far.ratio == 2.5
    assert far.trusted is far.measured
    near = planned(0, 3, 4)
    agreed = measured.compare(near)
    assert agreed.ratio == 1.25
    assert agreed.trusted is near


def test_a_grid_moves_to_the_nearest_distinct_candidates() -> None:
    times = torch.linspace(1, 0, 5, dtype=torch.float64)
    measured = MeasuredCost(times, np.ones((5, 5, 1)), np.ones((5, 1)))
    assert measured.nearest(torch.tensor([1, 0.55, 0.0])).points == (0, 2, 4)
    assert measured.nearest(torch.tensor([1, 0.3, 0.22, 0.0])).points == (0, 2, 3, 4)
    assert measured.nearest(torch.tensor([1, 0.1, 0.05, 0.01, 0.0])).points == (0, 1, 2, 3, 4)
    with pytest.raises(SigdegError, match="must run from 1 to 0 as the candidates do, got 0.9"):
        measured.nearest(torch.tensor([0.9, 0.3, 0.0]))
    with pytest.raises(SigdegError, match="5 candidates are too few for 6 times"):
        measured.nearest(torch.linspace(1, 0, 6))


def test_bad_measurements_are_refused() -> None:
    teacher = Exponential(GaussianDenoiser(0.0, 1.0, SCHEDULE))
    for times, line in (
        ([1.0, 0.5, 0.1], "must decrease to 0, got 0.1"),
        ([1.0, 0.5, 0.5, 0.0], "must strictly decrease"),
    ):
        with pytest.raises(SigdegError, match=line):
            measured_cost(teacher, torch.tensor(times), (1,))
    times = torch.tensor([1.0, 0.5, 0.0])
    with pytest.raises(SigdegError, match="4 features need more than 4 paths: simulate more"):
        measured_cost(teacher, times, (1,), paths=4)
    with pytest.raises(SigdegError, match="unknown features 'cosine': choose from linear, cubic"):
        measured_cost(teacher, times, (1,), paths=4, features="cosine")  # type: ignore[arg-type]
    broken = Exponential(GaussianDenoiser(math.nan, 1.0, SCHEDULE))
    with pytest.raises(SigdegError, match="teacher gave NaN or infinite values between times"):
        measured_cost(broken, times, (1,), paths=8)
