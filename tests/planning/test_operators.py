"""DDIM operators of Gaussian data, the shrinkage law, and the windows of the two theorems."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sigdeg.errors import SigdegError
from sigdeg.planning import seq_boot, vanilla
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
from sigdeg.planning.theory.programmes import dp_scalar, hybrid_operators
from sigdeg.schedule import RectifiedFlow

every_kind = pytest.mark.parametrize("kind", ["cosine", "vp"])


# --- the teacher ----------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("steps", [2, 7, 32])
def test_an_operator_projects_one_state_on_the_next(kind: str, steps: int) -> None:
    schedule = discretise(kind, steps)  # type: ignore[arg-type]  # a literal
    lam = np.geomspace(0.01, 100, 9)
    a, n2 = teacher_ops(schedule, lam)
    v = np.stack([schedule.alpha[:, None] * np.sqrt(lam), schedule.sigma[:, None] + 0 * lam])
    norm = np.linalg.norm(v, axis=0)
    np.testing.assert_allclose(n2, norm[1:] ** 2, rtol=1e-14)
    np.testing.assert_allclose(a, (v[:, 1:] * v[:, :-1]).sum(0) / n2, rtol=1e-13)
    assert (a <= norm[:-1] / norm[1:] * (1 + 1e-14)).all()
    assert (a.prod(0) < data_target(lam, n2)).all()  # the teacher itself shrinks the data


def test_ddim_is_what_the_operator_says() -> None:
    schedule, lam, z, t = discretise("vp", 9), 0.3, 1.7, 5
    a, n2 = teacher_ops(schedule, lam)
    alpha, sigma = schedule.alpha, schedule.sigma
    denoised = alpha[t] * lam / n2[t - 1] * z
    noise = (z - alpha[t] * denoised) / sigma[t]
    step = alpha[t - 1] * denoised + sigma[t - 1] * noise
    assert a[t - 1] * z == pytest.approx(step, rel=1e-13)


def test_cosine_operators_have_a_closed_form() -> None:
    steps, lam = 16, np.array([0.1, 1.0, 7.0])
    a, n2 = teacher_ops(discretise("cosine", steps), lam)
    theta, delta = np.pi / 2 * np.arange(1, steps + 1)[:, None] / steps, np.pi / (2 * steps)
    expected = np.cos(delta) + np.sin(delta) * (lam - 1) * np.sin(theta) * np.cos(theta) / n2
    np.testing.assert_allclose(a, expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("lam", "operators", "gammas", "target"),
    [
        (
            0.25,
            [0.641877, 0.694269, 0.809885, 0.923880],
            [0.805815, 0.687289, 0.586197, 0.548812],
            0.333441,
        ),
        (4.0, [1.037874, 1.153490, 1.205882, 0.923880], None, 1.333763),
    ],
)
def test_recorded_operators(
    lam: float, operators: list[float], gammas: list[float] | None, target: float
) -> None:
    a, n2 = teacher_ops(discretise("cosine", 4), lam)
    np.testing.assert_allclose(a, operators, atol=6e-7)
    if gammas is not None:
        np.testing.assert_allclose(gamma(n2, 0.3), gammas, atol=6e-7)
    assert composites(a)[0, -1] == pytest.approx(target, abs=6e-7)


def test_the_teacher_converges_to_the_flow() -> None:
    # First order in the step, and the shrinkage recorded for 32 steps.
    lam = np.array([0.01, 1.0, 100.0])

    def lost(steps: int) -> np.ndarray:
        a, n2 = teacher_ops(discretise("cosine", steps), lam)
        return np.asarray(data_target(lam, n2) - a.prod(0))

    np.testing.assert_allclose(lost(32), [0.018, 0.038, 1.8], rtol=0.02)
    np.testing.assert_allclose(lost(2048) / lost(4096), 2, rtol=0.02)


def test_composites_are_products_of_what_lies_between() -> None:
    a = np.random.default_rng(0).uniform(0.5, 1.5, (5, 2))
    c = composites(a)
    for left in range(6):
        for r in range(6):
            np.testing.assert_allclose(c[left, r], a[left:r].prod(0), rtol=1e-14)


def test_any_schedule_with_a_clean_end_will_do() -> None:
    schedule = discretise(RectifiedFlow(), 4)
    np.testing.assert_allclose(schedule.alpha, [1, 0.75, 0.5, 0.25, 0])
    a, _ = teacher_ops(schedule, 1.0)
    assert a[1] == pytest.approx((0.75 * 0.5 + 0.25 * 0.5) / 0.5)


def test_w2_of_gaussians_in_principal_axes() -> None:
    # The standard deviations of the outputs are n_T |X|.
    x, y, variance = np.array([0.5, -1.0]), np.array([1.0, 1.5]), np.array([4.0, 9.0])
    assert w2(x, y, variance) == pytest.approx(np.hypot(2 * 0.5, 3 * 0.5))
    assert w2(0.3, 0.7) == pytest.approx(0.4)


# --- the shrinkage law ----------------------------------------------------------------------------


def test_gradient_descent_shrinks_towards_the_initialisation() -> None:
    # The loss summed over directions: a step multiplies the error by 1 - 2 lr n^2.
    n2, s, lr = np.array([0.2, 1.0, 3.0]), 0.7, 1e-5
    np.testing.assert_allclose((1 - 2 * lr * n2) ** round(s / lr), gamma(n2, s), rtol=2e-4)


# --- windows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [8, 16, 32])
def test_cosine_windows_have_closed_forms(steps: int) -> None:
    low, high = windows(discretise("cosine", steps))
    delta = np.pi / (2 * steps)
    x = np.tan(delta / 2)
    continuum = (x + np.sqrt(1 + x**2)) ** 2
    assert high == pytest.approx(1 + 1 / np.cos(delta), rel=1e-9)
    assert continuum <= low < continuum + 10 * delta**3


@pytest.mark.parametrize(
    ("kind", "steps", "low", "high"),
    [
        ("cosine", 8, 1.219, 2.020),
        ("cosine", 16, 1.103, 2.005),
        ("cosine", 32, 1.050, 2.001),
        ("vp", 8, 1.387, 2.088),
        ("vp", 16, 1.173, 2.023),
        ("vp", 32, 1.082, 2.006),
    ],
)
def test_recorded_windows(kind: str, steps: int, low: float, high: float) -> None:
    assert windows(discretise(kind, steps)) == pytest.approx((low, high), abs=6e-4)  # type: ignore[arg-type]


def bisect(holds: Callable[[float], bool], yes: float, no: float) -> float:
    """Where a condition that holds at one end and not at the other changes."""
    while abs(no - yes) > 1e-4:
        middle = (yes + no) / 2
        yes, no = (middle, no) if holds(middle) else (yes, middle)
    return (yes + no) / 2


@every_kind
@pytest.mark.parametrize(("steps", "s"), [(8, 0.05), (8, 0.5), (8, 2.0), (16, 0.5)])
def test_windows_are_where_the_best_plan_changes(kind: str, steps: int, s: float) -> None:
    schedule = discretise(kind, steps)  # type: ignore[arg-type]  # a literal

    def best(lam: float, largest: bool) -> bool:
        a, n2 = teacher_ops(schedule, lam)
        g = gamma(n2, s)
        if largest:
            return final_operator(vanilla(steps), a, g) >= dp_scalar(a, g, "max")[0] * (1 - 1e-13)
        return final_operator(seq_boot(steps), a, g) <= dp_scalar(a, g, "min")[0] * (1 + 1e-13)

    low, high = windows(schedule)
    assert bisect(lambda lam: best(lam, largest=False), 1.0, 1.6) == pytest.approx(low, abs=1e-3)
    assert bisect(lambda lam: best(lam, largest=True), 2.6, 1.4) == pytest.approx(high, abs=1e-3)


def boot_wins(steps: int, lam: np.ndarray, s: float, data: bool = False) -> np.ndarray:
    """Whether BOOT comes nearer to the teacher, or to the data, than vanilla."""
    a, n2 = teacher_ops(discretise("cosine", steps), lam)
    family = hybrid_operators(a, gamma(n2[-1], s))
    target = data_target(lam, n2) if data else a.prod(0)
    return np.asarray(abs(family[0] - target) < abs(family[-1] - target))


@pytest.mark.parametrize(("steps", "lam"), [(8, 1.374), (32, 1.085), (128, 1.019)])
@pytest.mark.parametrize("s", [0.05, 1.0])
def test_recorded_crossover_of_boot_and_vanilla(steps: int, lam: float, s: float) -> None:
    # From a little above 1 to lam both pass the target, one after the other, and take turns.
    grid = np.arange(0.5, 3, 5e-4)
    assert grid[boot_wins(steps, grid, s)].max() == pytest.approx(lam, abs=2e-3)
    assert boot_wins(steps, grid[grid <= 1], s).all()


@pytest.mark.parametrize(("s", "lam"), [(0.05, 0.998), (1.0, 0.886)])
def test_near_the_data_boot_stops_winning_earlier(s: float, lam: float) -> None:
    # What a student overshoots makes up for what the teacher itself shrinks.
    grid = np.arange(0.5, 1.01, 5e-4)
    assert grid[~boot_wins(128, grid, s, data=True)].min() == pytest.approx(lam, abs=1e-3)


# --- what is refused ------------------------------------------------------------------------------


def test_bad_input_is_refused() -> None:
    with pytest.raises(SigdegError, match="steps must be at least 1, got 0"):
        discretise("cosine", 0)
    with pytest.raises(SigdegError, match="unknown schedule 'linear': choose from cosine, vp"):
        discretise("linear", 4)  # type: ignore[arg-type]  # the point
    for lam in (0.0, [1.0, -1.0], [[1.0]], [], float("nan")):
        with pytest.raises(SigdegError, match="row of positive, finite variances"):
            teacher_ops(discretise("cosine", 4), lam)
    with pytest.raises(SigdegError, match="training time s must not be negative"):
        gamma(1.0, -1.0)
    one = np.array([1.0, 0.5])
    for alpha, sigma, line in (
        (one, np.zeros(3), r"two rows of T \+ 1 values"),
        (np.array([1.0, 1.0]), 1 - one, "alpha must fall from 1"),
        (one, np.array([0.1, 1.0]), "sigma must rise from 0"),
        (np.array([1.0, -0.5]), np.array([0.0, 1.0]), "must not be negative"),
    ):
        with pytest.raises(SigdegError, match=line):
            StepSchedule(alpha, sigma)
