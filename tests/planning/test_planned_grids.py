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
from sigdeg.errors import SigdegError
from sigdeg.grids import coarse_grid, refine
from sigdeg.metrics.wasserstein import w1_exact
from sigdeg.paths import TeacherPaths
from sigdeg.planning import (
    FineSDE,
    LinearStudent,
    MeasuredCost,
    PlannedGrid,
    dp_grid,
    measured_cost,
)
from sigdeg.planning.gaussian import shortest_path, warped_points
from sigdeg.planning.linear import FineStep
from sigdeg.planning.measured import StepRegression, Weighing
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
        totals = [
            sum(cost[left, right] for left, right in itertools.pairwise(path)) for path in paths
        ]
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
        left, right = grids[:, i], grids[:, i + 1]
        variance = gain[left, right] * variance + noise[left, right]
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
    ("times", "cost", "tolerance"),
    [
        ((0, 0.021, 0.137, 0.488, 1), 0.0050, 6e-4),
        # The minimum is flat: this grid is nearly as good as the best one.
        ((0, 0.006, 0.018, 0.045, 0.100, 0.201, 0.348, 0.674, 1), 0.00028, 7e-3),
    ],
)
def test_best_grids_of_an_inverse_square_spectrum(
    fine: FineSDE, times: tuple[float, ...], cost: float, tolerance: float
) -> None:
    plan = dp_grid(fine, len(times) - 1)
    np.testing.assert_allclose(plan.times.flip(0), times, atol=tolerance)
    assert plan.cost == pytest.approx(cost, rel=0.02)
    printed = fine.w2([round(512 * t) for t in times])
    assert plan.cost * (1 - 1e-9) <= printed < 1.02 * plan.cost


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
    std = 0.5
    times = torch.tensor([1.0, 0.625, 0.25, 0.125, 0.0], dtype=torch.float64)
    teacher = Exponential(GaussianDenoiser(0.0, std, SCHEDULE), data_std=std)  # exact in law
    found = measured_cost(teacher, times, (2,), paths=3000, refinement=24)
    sde = FineSDE([std**2], 512)
    points = [round(512 * float(t)) for t in times]
    for i, j in itertools.combinations(range(5), 2):
        lost = np.repeat(sde.stats(points[j], points[i]).R, 2)
        np.testing.assert_allclose(found.residual[i, j], lost, rtol=0.12, atol=3e-4)
    np.testing.assert_allclose(found.variance, np.repeat(sde.variance[points], 2, 1), rtol=0.1)


def test_directions_turn_the_measurement() -> None:
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    times = torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64)
    teacher = Exponential(GaussianDenoiser(0.0, torch.tensor([1.0, 0.3]), SCHEDULE))
    plain, turned = (
        measured_cost(teacher, times, (2,), paths=500, directions=directions)
        for directions in (None, turn)
    )
    # Linear features span the same in any basis, and traces do not turn.
    costs = [found.cost(1, "plain") for found in (turned, plain)]
    np.testing.assert_allclose(*costs, rtol=1e-4)
    np.testing.assert_allclose(turned.variance.sum(axis=1), plain.variance.sum(axis=1), rtol=1e-4)
    assert not np.allclose(turned.residual, plain.residual, rtol=0.1)


def planned(*points: int) -> PlannedGrid:
    return PlannedGrid(points, 1 - torch.tensor(points, dtype=torch.float64) / 4, 0.0)


def test_the_measured_plan_is_trusted_where_they_disagree() -> None:
    times = torch.linspace(1, 0, 5, dtype=torch.float64)
    residual = np.zeros((5, 5, 1))
    residual[0, 1:, 0], residual[1, 4, 0], residual[2, 4, 0], residual[3, 4, 0] = 1, 1, 4, 1.5
    measured = MeasuredCost(times, residual, np.full((5, 1), 2.0))
    assert measured.grid(2).points == (0, 1, 4)
    assert measured.grid(2).cost == 2
    assert measured.grid(2, "relative").cost == 1
    far = measured.compare(planned(0, 2, 4))
    assert far.ratio == 2.5
    assert not far.agree
    agreed = measured.compare(planned(0, 3, 4))
    assert agreed.ratio == 1.25
    assert agreed.agree


def test_a_balanced_grid_is_near_the_best_by_either_cost() -> None:
    """Its cost is the sum of both in units of the best: that bounds each."""
    rng = np.random.default_rng(0)
    times = torch.linspace(1, 0, 9, dtype=torch.float64)
    for _ in range(20):
        measured = MeasuredCost(
            times, rng.exponential(size=(9, 9, 3)), rng.exponential(size=(9, 3))
        )
        found = measured.grid(4)
        kinds: tuple[Weighing, ...] = ("plain", "relative")
        ratios = [
            measured.nearest(found.times, kind).cost / measured.grid(4, kind).cost for kind in kinds
        ]
        assert found.cost == pytest.approx(sum(ratios))
        assert min(ratios) >= 1 - 1e-12
        for single in kinds:  # neither single-minded grid does better by the sum
            other = measured.grid(4, single).times
            assert found.cost <= 1e-9 + sum(
                measured.nearest(other, kind).cost / measured.grid(4, kind).cost for kind in kinds
            )


def test_an_unknown_weighing_is_refused() -> None:
    measured = MeasuredCost(torch.tensor([1.0, 0.0]), np.ones((2, 2, 1)), np.ones((2, 1)))
    with pytest.raises(SigdegError, match="unknown weighing 'both': choose from plain, relative"):
        measured.grid(1, "both")  # type: ignore[arg-type]


def test_a_grid_moves_to_the_nearest_distinct_candidates() -> None:
    times = torch.linspace(1, 0, 5, dtype=torch.float64)
    measured = MeasuredCost(times, np.ones((5, 5, 1)), np.ones((5, 1)))
    assert measured.nearest(torch.tensor([1, 0.55, 0.0])).points == (0, 2, 4)
    assert measured.nearest(torch.tensor([1, 0.3, 0.22, 0.0])).points == (0, 2, 3, 4)
    assert measured.nearest(torch.tensor([1, 0.1, 0.05, 0.01, 0.0])).points == (0, 1, 2, 3, 4)
    with pytest.raises(SigdegError, match=r"must run from 1 to 0 as the candidates do, got 0\.9"):
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


# --- the published comparisons, in full -----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student", "kind", "costs"),
    [
        (LinearStudent(), "exact", [0.0050, 0.00028, 0.00011, 1.5e-5]),
        (LinearStudent(order=1), "exact", [0.049, 0.0129, 0.0083, 0.0032]),
        (LinearStudent(budget=1.0), "exact", [0.094, 0.054, 0.044, 0.029]),
        (LinearStudent(budget=0.3), "exact", [0.333, 0.200, 0.167, 0.112]),
        (LinearStudent(budget=0.0), "exact", [0.507, 0.317, 0.269, 0.184]),
        (LinearStudent(budget=10.0, start="zero"), "exact", [0.0072, 0.0072, 0.0072, 0.0072]),
        (LinearStudent(), "euler", [0.0066, 0.00032, 0.00012, 1.5e-5]),
    ],
)
def test_planned_grids_of_an_inverse_square_spectrum(
    student: LinearStudent, kind: FineStep, costs: list[float]
) -> None:
    sde = FineSDE(spectrum(), 512, kind=kind)
    found = [dp_grid(sde, steps, student).cost for steps in (4, 8, 10, 16)]
    np.testing.assert_allclose(found, costs, rtol=0.05)


@pytest.mark.slow
def test_relative_losses_plan_a_wide_spectrum_and_plain_ones_do_not(fine: FineSDE) -> None:
    _, kept = fine.student_table(LinearStudent())
    _, all_of_it = fine.student_table(LinearStudent(residual_noise=True))
    lost = all_of_it - kept
    relative = (lost / fine.variance[:, None]).sum(axis=-1)
    found = [fine.w2(shortest_path(relative, steps)[0]) for steps in (4, 8, 10, 16)]
    assert np.all(np.array(found) < 2 * np.array([0.0050, 0.00028, 0.00011, 1.45e-5]))  # the best
    points, _ = shortest_path(lost.sum(axis=-1), 4)
    assert fine.w2(points) == pytest.approx(0.137, rel=0.01)
    assert fine.w2(points) > 2 * fine.w2(warped_points(512, 4))


@pytest.mark.slow
def test_a_fixed_total_budget_has_a_best_number_of_steps(fine: FineSDE) -> None:
    costs = [dp_grid(fine, n, LinearStudent(budget=40 / n)).cost for n in (2, 4, 8, 16)]
    np.testing.assert_allclose(costs, [0.0325, 0.0048, 0.0003, 0.0016], rtol=0.05)


MIXTURE = GaussianMixture1D()


@pytest.fixture(scope="module")
def mixture_teacher() -> Exponential:
    denoiser = GaussianMixtureDenoiser(MIXTURE.means, MIXTURE.stds, MIXTURE.weights, SCHEDULE)
    return Exponential(denoiser)


@pytest.fixture(scope="module")
def mixture_cost(mixture_teacher: Exponential) -> MeasuredCost:
    candidates = coarse_grid(SCHEDULE, 18)
    return measured_cost(mixture_teacher, candidates, (1,), features="cubic", refinement=12)


def w1_of_least_squares_student(teacher: Exponential, grid: Tensor, paths: int) -> float:
    """Distance to the data of the most flexible student of cubic noise features."""
    rows = list(refine(SCHEDULE, grid, 24))
    batch = TeacherPaths(teacher, rows, (1,), 2).draw(paths, torch.Generator().manual_seed(1))
    rng = np.random.default_rng(1)
    z = SCHEDULE.prior_std * rng.standard_normal((2 * paths, 1))
    # The mixture is symmetric: with every path its mirror image, the modes stay balanced.
    states, signatures, z = (
        np.concatenate([v, -v])
        for v in (batch.states.double().numpy(), batch.coefficients.double().numpy(), z)
    )
    for k in range(len(rows)):
        step = StepRegression.fit(
            states[:, k], signatures[:, k], states[:, k + 1], "cubic", knots=16
        )
        noise = rng.standard_normal((len(z) // 2, 2, 1))
        z = step(z, np.concatenate([noise, -noise]))
    return w1_exact(z, MIXTURE)


@pytest.mark.parametrize(
    ("steps", "paths"),
    [
        (3, 8000),
        pytest.param(5, 20_000, marks=pytest.mark.slow),
        pytest.param(8, 20_000, marks=pytest.mark.slow),
    ],
)
def test_a_nonlinear_teacher_needs_a_measured_plan(
    mixture_teacher: Exponential, mixture_cost: MeasuredCost, steps: int, paths: int
) -> None:
    gaussian = dp_grid(FineSDE([MIXTURE.variance], 256), steps)
    found = mixture_cost.compare(gaussian)
    assert found.ratio > 3
    assert not found.agree
    uniform, from_spectrum, planned = (
        w1_of_least_squares_student(mixture_teacher, grid, paths)
        for grid in (
            coarse_grid(SCHEDULE, steps, "uniform"),
            gaussian.times,
            found.measured.times,
        )
    )
    assert from_spectrum > uniform > 2 * planned
