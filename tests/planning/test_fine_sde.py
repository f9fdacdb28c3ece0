"""The linear reverse SDE: what coarse steps keep and lose, in closed form."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from sigdeg.denoiser import GaussianDenoiser
from sigdeg.errors import SigdegError
from sigdeg.planning import FineSDE, LinearStudent
from sigdeg.planning.gaussian import warped_points
from sigdeg.response import response
from sigdeg.schedule import EDM, Cosine, RectifiedFlow, Schedule, VPLinear
from sigdeg.signature import PartialSignature
from sigdeg.steps import Exponential


def spectrum(d: int = 64) -> np.ndarray:
    return np.arange(1, d + 1) ** -2.0


@pytest.fixture(scope="module")
def coarse() -> FineSDE:
    return FineSDE(spectrum(8), 48)


@pytest.fixture(scope="module")
def fine() -> FineSDE:
    return FineSDE(spectrum(), 512)


# --- statistics of a coarse step ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "A", "c0", "c1", "R", "Q"),
    [
        (0, 0.388558, 0.908353, -0.153749, 2.7773e-4, 0.849023),
        (7, 0.204146, 0.629857, -0.218422, 1.64224e-3, 0.446071),
    ],
)
def test_statistics_of_a_coarse_step(
    coarse: FineSDE, k: int, A: float, c0: float, c1: float, R: float, Q: float
) -> None:
    found = coarse.stats(12, 24)
    values = [found.A[k], found.c[0, k], found.c[1, k], found.R[k], found.Q[k]]
    np.testing.assert_allclose(values, [A, c0, c1, R, Q], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["exact", "euler"])
@pytest.mark.parametrize("order", [1, 2, 3, 6])
def test_projections_are_least_squares_on_the_kernel(kind: str, order: int) -> None:
    sde = FineSDE(spectrum(8), 48, kind=kind)  # type: ignore[arg-type]  # parametrised
    for left, right in [(0, 48), (12, 24), (3, 7), (0, 1), (40, 48)]:
        kernel = np.array(
            [
                sde.b[j - 1] * np.prod(sde.A[left : j - 1], axis=0)
                for j in range(left + 1, right + 1)
            ]
        )
        powers = np.vander(np.linspace(-1, 1, right - left), order)
        kept = powers @ np.linalg.lstsq(powers, kernel, rcond=None)[0]
        found = sde.stats(left, right, order)
        np.testing.assert_allclose(found.A, np.prod(sde.A[left:right], axis=0), rtol=1e-12)
        np.testing.assert_allclose(found.Q, (kernel**2).sum(axis=0), rtol=1e-12)
        lost = ((kernel - kept) ** 2).sum(axis=0)
        np.testing.assert_allclose(found.R, lost, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("schedule", [VPLinear(), Cosine(), EDM(), RectifiedFlow()])
def test_exact_steps_compose_to_the_exact_transition(schedule: Schedule) -> None:
    sde = FineSDE([4.0, 1.0, 0.01], 40, schedule)
    for left, right in [(0, 40), (0, 1), (7, 8), (5, 30)]:
        found = sde.stats(left, right)
        gain = sde.alpha[right] / sde.alpha[left] * sde.variance[left] / sde.variance[right]
        np.testing.assert_allclose(found.A, gain, rtol=1e-9)
        noise = sde.variance[left] - gain**2 * sde.variance[right]
        np.testing.assert_allclose(
            found.Q, noise, rtol=1e-7, atol=1e-12 * sde.variance[right].max()
        )


def test_projections_tend_to_the_linear_response_of_continuous_time() -> None:
    # The step's own polynomials run in t, the signature's in reverse time: odd signs differ.
    sde = FineSDE([0.25], 4096)
    found = sde.stats(512, 2048, order=3).c[:, 0] * np.array([1, -1, 1])
    t, s = (torch.tensor(float(sde.times[i]), dtype=torch.float64) for i in (2048, 512))
    weights = response(VPLinear(), t, s, 3, data_std=0.5).numpy()
    found = found / np.linalg.norm(found)
    np.testing.assert_allclose(found, weights / np.linalg.norm(weights), atol=2e-3)


def test_a_simulated_regression_leaves_the_lost_variance(coarse: FineSDE) -> None:
    left, right, k, n = 12, 24, 7, 40_000
    rng = np.random.default_rng(0)
    start = rng.standard_normal(n)
    z, xi = start, rng.standard_normal((right - left, n))
    for j in range(right, left, -1):
        z = coarse.A[j - 1, k] * z + coarse.b[j - 1, k] * xi[j - left - 1]
    time = np.arange(right - left)
    seen = np.stack([start, xi.sum(axis=0), time @ xi], axis=1)
    residual = z - seen @ np.linalg.lstsq(seen, z, rcond=None)[0]
    assert residual.var() == pytest.approx(
        coarse.stats(left, right).R[k], rel=0.03
    )  # 0.7% is one sigma


def test_euler_maruyama_is_of_first_order_in_law() -> None:
    def floor(steps: int, d: int = 4) -> float:
        sde = FineSDE(spectrum(d), steps, kind="euler")
        return float(sde.distance(sde.eigenvalues))

    assert floor(512) / floor(1024) == pytest.approx(2, rel=0.05)
    assert floor(512, 64) == pytest.approx(0.0188, abs=5e-5)


# --- students -------------------------------------------------------------------------------------


def test_lost_variances_add_up_along_a_grid(coarse: FineSDE) -> None:
    survives = np.cumprod(np.vstack([np.ones(8), coarse.A**2]), axis=0)
    for order, points in itertools.product((1, 2, 3), ([0, 48], [0, 2, 9, 28, 48], range(49))):
        lost = sum(
            survives[left] * coarse.stats(left, right, order).R
            for left, right in itertools.pairwise(points)
        )
        found = coarse.student_variance(list(points), LinearStudent(order))
        np.testing.assert_allclose(found, coarse.eigenvalues - lost, rtol=1e-10)


def test_the_untrained_warm_student_is_the_ancestral_sampler() -> None:
    variance, points = 0.3, [0, 40, 150, 256]
    sde = FineSDE([variance], 256)
    step = Exponential(GaussianDenoiser(0.0, variance**0.5, VPLinear()))
    one, none = torch.ones(1, 1, 1).double(), torch.zeros(1, 1, 1).double()
    expected = sde.variance[-1, 0]
    for left, right in [(150, 256), (40, 150), (0, 40)]:
        t, s = torch.from_numpy(sde.times[[right, left]])
        gain = step(one[0], t, s, PartialSignature(t - s, none))
        noise = step(none[0], t, s, PartialSignature(t - s, one))
        expected = float(gain) ** 2 * expected + float(noise) ** 2
    found = sde.student_variance(points, LinearStudent(budget=0))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_an_untrained_student_from_zero_leaves_the_noise_as_it_is(coarse: FineSDE) -> None:
    found = coarse.student_variance([0, 10, 48], LinearStudent(budget=0, start="zero"))
    np.testing.assert_allclose(found, coarse.variance[-1], rtol=1e-14)


def test_training_is_the_gradient_flow_of_the_regression(coarse: FineSDE) -> None:
    # Descent on E (a z + sum_k w_k c_k - z_l)^2, the z of variance n_r^2, the c_k of variance 1.
    s, rate, right = 0.4, 1e-4, 24
    target, variance = coarse.stats(0, right), coarse.variance[right]
    a, w = np.ones(8), np.zeros((2, 8))
    for _ in range(round(s / rate)):
        a = a - rate * 2 * variance * (a - target.A)
        w = w - rate * 2 * (w - target.c)
    last = LinearStudent(budget=s, start="zero")
    between = coarse.student_table(last)
    np.testing.assert_allclose(between[0][0, right], a**2, rtol=1e-3)
    np.testing.assert_allclose(between[1][0, right], (w**2).sum(axis=0), rtol=1e-3)


@pytest.mark.parametrize("start", ["warm", "zero"])
def test_a_long_training_converges(coarse: FineSDE, start: str) -> None:
    long = LinearStudent(budget=1e5, start=start)  # type: ignore[arg-type]  # parametrised
    for points in ([0, 48], [0, 2, 9, 28, 48]):
        converged = coarse.student_variance(points)
        np.testing.assert_allclose(coarse.student_variance(points, long), converged, rtol=1e-12)


@pytest.mark.parametrize("points", [[0, 512], [0, 1, 512], [0, 171, 341, 512]])
def test_residual_noise_makes_any_grid_exact(fine: FineSDE, points: list[int]) -> None:
    assert fine.w2(points, LinearStudent(residual_noise=True)) < 1e-6
    assert fine.w2(points) > 1e-2


def test_a_multiplicity_is_a_repeated_direction() -> None:
    once = FineSDE([1.0, 0.1], 48, multiplicity=[2, 3])
    repeated = FineSDE([1.0, 1.0, 0.1, 0.1, 0.1], 48)
    points = [0, 5, 20, 48]
    assert once.w2(points) == pytest.approx(repeated.w2(points), rel=1e-13)


@pytest.mark.parametrize(
    ("student", "distances"),
    [
        (LinearStudent(), [0.0560, 0.0300, 0.0237, 0.0136]),
        (LinearStudent(order=1), [0.136, 0.084, 0.071, 0.049]),
        (LinearStudent(budget=1.0), [0.152, 0.105, 0.092, 0.071]),
        (LinearStudent(budget=0.3), [0.492, 0.355, 0.317, 0.250]),
        (LinearStudent(budget=0), [0.730, 0.535, 0.481, 0.380]),
    ],
)
def test_uniform_grids_of_an_inverse_square_spectrum(
    fine: FineSDE, student: LinearStudent, distances: list[float]
) -> None:
    found = [fine.w2(warped_points(512, steps), student) for steps in (4, 8, 10, 16)]
    np.testing.assert_allclose(found, distances, rtol=0.01)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[], [[1.0]], [1.0, -0.1], [math.nan], [math.inf], 1.0])
def test_bad_eigenvalues_are_refused(values: object) -> None:
    with pytest.raises(SigdegError, match="eigenvalues must be a list of finite numbers, none bel"):
        FineSDE(values)  # type: ignore[arg-type]  # the point


def test_other_bad_input_is_refused(coarse: FineSDE) -> None:
    with pytest.raises(SigdegError, match="multiplicity must give one positive number"):
        FineSDE([1.0, 2.0], multiplicity=[1.0])
    with pytest.raises(SigdegError, match="steps must be at least 1, got 0"):
        FineSDE([1.0], 0)
    with pytest.raises(SigdegError, match="unknown kind 'heun': choose from exact, euler"):
        FineSDE([1.0], kind="heun")  # type: ignore[arg-type]  # the point
    for left, right in [(-1, 4), (4, 4), (4, 49)]:
        with pytest.raises(SigdegError, match="0 <= left < right <= 48"):
            coarse.stats(left, right)
    for points in ([0, 20], [1, 48], [0, 20, 20, 48], [0, 30, 20, 48], [0]):
        with pytest.raises(SigdegError, match="grid points must increase from 0 to 48"):
            coarse.w2(points)
    with pytest.raises(SigdegError, match="order must be at least 1, got 0"):
        coarse.stats(0, 4, order=0)
    with pytest.raises(SigdegError, match="order must be at least 1, got 0"):
        LinearStudent(order=0)
    for budget in (-1.0, math.nan):
        with pytest.raises(SigdegError, match="training budget must be at least 0"):
            LinearStudent(budget=budget)
    with pytest.raises(SigdegError, match="unknown start 'cold': choose from warm, zero"):
        LinearStudent(start="cold")  # type: ignore[arg-type]  # the point
