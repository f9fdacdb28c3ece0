"""The mixture regime: how a teacher stretches errors, and what one student cannot fit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sigdeg.errors import SigdegError
from sigdeg.planning.theory.mixture import MixtureTeacher
from sigdeg.planning.theory.operators import discretise, teacher_ops

TEACHER = MixtureTeacher(discretise("cosine", 32), (0.3, 0.7), (-2.0, 2.0), (0.5, 0.5))


def stretch(t: int) -> float:
    """The largest of one step, the supremum over z of |dz_{t-1} / dz_t|."""
    return float(np.abs(TEACHER.step(t, TEACHER.grid(t)[0])[1]).max())


def test_one_component_is_the_linear_regime() -> None:
    schedule, z = discretise("vp", 8), np.array([-1.0, 0.0, 2.5])
    a, _ = teacher_ops(schedule, 0.3)
    one = MixtureTeacher(schedule, (1.0,), (0.0,), (0.3**0.5,))
    for t in range(1, 9):
        moved, slope = one.step(t, z)
        np.testing.assert_allclose(moved, a[t - 1] * z, rtol=1e-12)
        np.testing.assert_allclose(slope, a[t - 1], rtol=1e-12)
    assert one.amplification(8) == pytest.approx((a.prod(), a.prod()), rel=1e-6)


def test_the_slope_is_the_derivative() -> None:
    z, h = np.linspace(-3, 3, 41), 1e-5
    for t in (1, 9, 32):
        numeric = (TEACHER.rollout(t, z + h)[0] - TEACHER.rollout(t, z - h)[0]) / (2 * h)
        np.testing.assert_allclose(TEACHER.rollout(t, z)[1], numeric, rtol=1e-4, atol=1e-7)


def test_a_fine_teacher_transports_the_marginals() -> None:
    # The flow's slope is the ratio of the densities at its two ends.
    fine = MixtureTeacher(discretise("cosine", 4000), (0.3, 0.7), (-2.0, 2.0), (0.5, 0.5))
    z = np.array([-1.5, -0.9, 0.3, 1.5])
    x, slope = fine.rollout(3000, z)
    ratio = np.exp(fine.log_joint(3000, z)).sum(1) / np.exp(fine.log_joint(0, x)).sum(1)
    np.testing.assert_allclose(slope, ratio, rtol=1e-2)


@pytest.mark.parametrize(("t", "largest"), [(4, 2.9), (8, 15), (16, 155), (32, 483)])
def test_recorded_amplification(t: int, largest: float) -> None:
    found, rms = TEACHER.amplification(t)
    assert found == pytest.approx(largest, rel=0.02)
    assert found <= np.prod([stretch(i) for i in range(1, t + 1)]) * (1 + 1e-6)
    # Evenly over the arrival: E slope^2 = int p_t(z) slope dx with x = z_0.
    z = np.linspace(-6, 6, 200_001)
    x, slope = TEACHER.rollout(t, z)
    density = np.exp(TEACHER.log_joint(t, z)).sum(1)
    assert rms == pytest.approx(np.sqrt(np.trapezoid(density * slope, x)), rel=1e-3)


def test_errors_add_up_to_at_most_their_stretched_sum() -> None:
    rng = np.random.default_rng(0)
    z = rng.uniform(-3, 3, 200)
    moved, bound = z.copy(), 0.0
    for t in range(12, 0, -1):
        error = float(rng.uniform(0, 1e-3))
        moved = TEACHER.step(t, moved)[0] + error * rng.choice([-1, 1], 200)
        bound = stretch(t) * bound + error
    off = np.abs(moved - TEACHER.rollout(12, z)[0]).max()
    assert 0.02 * bound < off <= bound


def test_one_step_is_exact_and_many_are_not() -> None:
    errors = [TEACHER.misfit(t, 2) for t in (1, 2, 4, 8, 16)]
    assert errors[0] < 1e-12
    assert all(later > 4 * sooner for sooner, later in itertools.pairwise(errors))
    assert errors[-1] == pytest.approx(0.016, rel=0.15)


def test_bad_input_is_refused() -> None:
    schedule = discretise("cosine", 4)
    for weights, stds, line in (
        ((0.5, 0.5), (1.0,), "as many weights as means and standard deviations"),
        ((0.5, 0.6), (1.0, 1.0), "weights must be positive with sum 1"),
        ((0.5, 0.5), (1.0, 0.0), "standard deviations positive"),
    ):
        with pytest.raises(SigdegError, match=line):
            MixtureTeacher(schedule, weights, (0.0, 1.0), stds)
    with pytest.raises(SigdegError, match=r"t must lie in 0..32, got 33"):
        stretch(33)
    with pytest.raises(SigdegError, match="a step starts at t = 1 or later"):
        stretch(0)
    with pytest.raises(SigdegError, match="at least 2 experts are needed, got 1"):
        TEACHER.misfit(4, 1)
