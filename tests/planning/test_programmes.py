"""Dynamic programmes against brute force over all plans, and the hybrid family."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from sigdeg.errors import SigdegError
from sigdeg.planning import Plan, canonical_plans, format_plan, hybrid, merges, seq_boot, vanilla
from sigdeg.planning.theory.budget import Outcome, best_hybrid
from sigdeg.planning.theory.operators import (
    data_target,
    discretise,
    final_operator,
    gamma,
    teacher_ops,
    w2,
)
from sigdeg.planning.theory.pareto import Found, dp_greedy, dp_pareto, local_search
from sigdeg.planning.theory.programmes import all_plans, dp_scalar, hybrid_operators

PLANS: dict[int, list[Plan]] = {steps: list(all_plans(steps)) for steps in range(1, 8)}
K = np.arange(1, 33.0)
SPECTRA = {
    "k^-2": K**-2,
    "k^-2, mean 1": K**-2 / np.mean(K**-2),
    "k^-1, mean 1": K**-1 / np.mean(K**-1),
}
each_spectrum = pytest.mark.parametrize("spectrum", SPECTRA)


def setting(steps: int, lam: np.ndarray, s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cosine operators, gammas and the teacher's composite; n_T = 1."""
    a, n2 = teacher_ops(discretise("cosine", steps), lam)
    return a, gamma(n2, s), a.prod(0)


def scan(steps: int, lam: np.ndarray, s: float) -> tuple[int, Outcome]:
    """The best hybrid of the same setting."""
    a, n2 = teacher_ops(discretise("cosine", steps), lam)
    return best_hybrid(a, n2, a.prod(0), s)


# --- one direction --------------------------------------------------------------------------------


def to_target(a: np.ndarray, g: np.ndarray, target: float, eps: float = 0.0) -> tuple[float, Plan]:
    """The plan nearest to a target in one direction."""
    found = dp_pareto(a[:, None], g[:, None], [target], signs=[0], eps=eps)
    return float(found.operator[0]), found.plan


@pytest.mark.parametrize("steps", range(1, 8))
def test_the_scalar_programme_is_brute_force(steps: int) -> None:
    rng = np.random.default_rng(steps)
    for low, high in ((0.3, 1.0), (1.0, 1.8), (0.5, 1.6)):
        a, g = rng.uniform(low, high, steps), rng.uniform(0, 1, steps)
        outcomes = np.array([final_operator(plan, a, g) for plan in PLANS[steps]])
        for mode, best in (("min", outcomes.min()), ("max", outcomes.max())):
            value, plan = dp_scalar(a, g, mode)  # type: ignore[arg-type]
            assert value == pytest.approx(best, rel=1e-12)
            assert value == pytest.approx(float(final_operator(plan, a, g)), rel=1e-12)
        for target in (float(np.median(outcomes)), 1.0):
            value, plan = to_target(a, g, target)
            # Two plans may be equally far.
            nearest = np.abs(outcomes - target).min()
            assert abs(value - target) == pytest.approx(nearest, abs=1e-12)
            assert value == pytest.approx(float(final_operator(plan, a, g)), rel=1e-12)


def test_the_scalar_programme_finds_the_theorems_at_length() -> None:
    for lam, mode, best in ((0.3, "min", seq_boot(60)), (5.0, "max", vanilla(60))):
        a, n2 = teacher_ops(discretise("vp", 60), lam)
        value, plan = dp_scalar(a, gamma(n2, 0.2), mode)  # type: ignore[arg-type]
        assert merges(plan) == merges(best)
        assert value == pytest.approx(float(final_operator(best, a, gamma(n2, 0.2))), rel=1e-12)


def test_cells_cost_what_they_promise() -> None:
    steps, eps = 7, 3e-3
    a, g, _ = setting(steps, np.array([1.5]), 0.3)
    target = float(data_target(1.5, np.ones(1)))
    exact, _ = to_target(a[:, 0], g[:, 0], target)
    value, plan = to_target(a[:, 0], g[:, 0], target, eps)
    assert value == pytest.approx(float(final_operator(plan, a, g)[0]), rel=1e-12)
    gain = abs(np.log(value / target)) - abs(np.log(exact / target))
    assert -1e-12 <= gain <= (steps - 1) * eps


def test_between_the_windows_the_best_plan_is_mixed() -> None:
    a, g, target = setting(8, np.array([1.5]), 0.3)
    value, plan = to_target(a[:, 0], g[:, 0], float(target[0]))
    assert format_plan(plan) == "((1 2) 3..6 (7 8))"
    best = min(abs(final_operator(p, a, g)[0] - target[0]) for p in canonical_plans(8).values())
    assert 0.9 * best < abs(value - target[0]) < best


# --- many directions ------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(2, 7))
def test_the_vector_programme_is_brute_force(steps: int) -> None:
    rng = np.random.default_rng(steps)
    for low, high in ((0.3, 1.0), (1.0, 1.8), (0.5, 1.6)):
        a, g = rng.uniform(low, high, (steps, 3)), rng.uniform(0, 1, (steps, 3))
        a[:, 0], variance = np.minimum(a[:, 0], 1), rng.uniform(0.5, 2, 3)
        outcomes = np.array([final_operator(plan, a, g) for plan in PLANS[steps]])
        for target in (a.prod(0), 1.1 * a.prod(0)):
            best = w2(outcomes, target, variance).min()
            for signs in (None, [0, 0, 0]):
                found = dp_pareto(a, g, target, signs, variance=variance)
                assert found.distance == pytest.approx(best, abs=1e-12)
                np.testing.assert_allclose(
                    found.operator, final_operator(found.plan, a, g), rtol=1e-12
                )


@each_spectrum
@pytest.mark.parametrize("s", [0.1, 0.5, 2.0])
def test_the_best_plan_of_seven_steps_is_a_hybrid(spectrum: str, s: float) -> None:
    a, g, target = setting(7, SPECTRA[spectrum], s)
    best = min(float(w2(final_operator(plan, a, g), target)) for plan in PLANS[7])
    _, found = scan(7, SPECTRA[spectrum], s)
    assert found.distance == pytest.approx(best, rel=1e-12)
    assert float(w2(final_operator(found.plan, a, g), target)) == pytest.approx(best, rel=1e-12)
    beam = dp_pareto(a, g, target, eps=1e-4, cap=8)
    assert local_search(beam.plan, a, g, target).distance == pytest.approx(best, rel=1e-9)


def test_the_best_plan_of_a_wide_spectrum_is_nearly_always_a_hybrid() -> None:
    """Not always: of 400 spectra of three axes a few have a better tree, by less than 1e-4."""
    rng = np.random.default_rng(0)
    lam, s = 10 ** rng.uniform(-4, 2, (400, 3)), rng.choice([0.1, 0.5, 2.0], 400)
    a, n2 = teacher_ops(discretise("cosine", 7), lam.ravel())
    g, target = np.exp(-2 * np.repeat(s, 3) * n2), a.prod(0)
    hybrids = {hybrid(7, m) for m in range(1, 8)}

    def nearest(plans: Iterable[Plan]) -> np.ndarray:
        """The distance of each spectrum's best plan."""
        off = (np.abs(final_operator(plan, a, g)) - target for plan in plans)
        return np.min([np.sqrt((n2[-1] * x**2).reshape(400, 3).sum(1)) for x in off], axis=0)

    gain = nearest(hybrids) / nearest(PLANS[7]) - 1
    assert (gain > 1e-9).sum() == 5
    assert 1e-5 < gain.max() < 1e-4


def test_local_search_comes_home_from_any_canonical_plan() -> None:
    a, g, target = setting(10, SPECTRA["k^-2, mean 1"], 0.5)
    best = scan(10, SPECTRA["k^-2, mean 1"], 0.5)[1].distance
    for plan in canonical_plans(10).values():
        found: Found = local_search(plan, a, g, target)
        assert found.distance == pytest.approx(best, rel=1e-9)
        assert found.distance == pytest.approx(float(w2(final_operator(found.plan, a, g), target)))


# --- the hybrid family ----------------------------------------------------------------------------


def test_the_family_is_its_plans() -> None:
    rng = np.random.default_rng(7)
    a, g = rng.uniform(0.5, 1.6, (9, 4)), rng.uniform(0, 1, (9, 4))
    expected = np.stack([final_operator(hybrid(9, m), a, g) for m in range(1, 10)])
    np.testing.assert_allclose(hybrid_operators(a, g[-1]), expected, rtol=1e-13)
    n2, target, weight = (rng.uniform(0.2, 2, shape) for shape in ((9, 4), 4, 4))
    g = gamma(n2, 0.7)
    distances = [
        float(w2(final_operator(hybrid(9, m), a, g), target, weight)) for m in range(1, 10)
    ]
    m, found = best_hybrid(a, n2, target, 0.7, weight=weight)
    assert found.distance == pytest.approx(min(distances), rel=1e-12)
    assert m == 1 + int(np.argmin(distances))
    assert found.plan == hybrid(9, m)


RECORDED = [
    # spectrum, s: vanilla, progressive, BOOT, best, m of the best
    ("k^-2", 0.1, 4.207, 4.997, 3.029, 3.029, 1),
    ("k^-2", 0.5, 1.890, 3.987, 0.6577, 0.6577, 1),
    ("k^-2", 2.0, 0.0941, 1.590, 0.0209, 0.0209, 1),
    ("k^-2, mean 1", 0.1, 4.156, 4.864, 3.988, 3.894, 19),
    ("k^-2, mean 1", 0.5, 1.868, 3.413, 1.890, 1.585, 22),
    ("k^-2, mean 1", 2.0, 0.0930, 0.957, 0.1091, 0.0756, 24),
    ("k^-1, mean 1", 0.1, 2.272, 2.661, 2.294, 2.257, 22),
    ("k^-1, mean 1", 0.5, 1.021, 1.760, 1.095, 1.002, 23),
    ("k^-1, mean 1", 2.0, 0.0508, 0.242, 0.0591, 0.0495, 24),
]


@pytest.mark.parametrize(("spectrum", "s", "one", "rounds", "boot", "best", "m"), RECORDED)
def test_recorded_distances_of_32_steps(
    spectrum: str, s: float, one: float, rounds: float, boot: float, best: float, m: int
) -> None:
    a, g, target = setting(32, SPECTRA[spectrum], s)
    plans = canonical_plans(32)
    for name, distance in (("vanilla", one), ("progressive", rounds), ("boot", boot)):
        digits = 4 if distance < 1 and distance != round(distance, 3) else 3
        found = float(w2(final_operator(plans[name], a, g), target))
        assert found == pytest.approx(distance, abs=0.51 * 10**-digits)
    found_m, hybrid_best = scan(32, SPECTRA[spectrum], s)
    near = hybrid_best.distance
    assert near == pytest.approx(best, abs=0.51 * 10 ** -(4 if best < 1 else 3))
    assert found_m == m
    # Greedy merging is not exact, but near.
    assert near <= dp_greedy(a, g, target).distance * (1 + 1e-12) < 1.05 * near


def test_recorded_gains_over_the_best_canonical_plan() -> None:
    for spectrum, steps, s, gain in (
        ("k^-2, mean 1", 32, 0.1, 1.02),
        ("k^-2, mean 1", 32, 0.5, 1.18),
        ("k^-2, mean 1", 32, 2.0, 1.23),
        ("k^-2, mean 1", 16, 2.0, 1.30),
        ("k^-1, mean 1", 32, 2.0, 1.03),
    ):
        a, g, target = setting(steps, SPECTRA[spectrum], s)
        best = min(
            float(w2(final_operator(p, a, g), target)) for p in canonical_plans(steps).values()
        )
        assert round(best / scan(steps, SPECTRA[spectrum], s)[1].distance, 2) == gain


# --- what is refused ------------------------------------------------------------------------------


def test_bad_input_is_refused() -> None:
    a, g = np.full((3, 2), 0.5), np.full((3, 2), 0.5)
    with pytest.raises(SigdegError, match=r"must have one direction, got shape \(3, 2\)"):
        dp_scalar(a, g, "min")
    with pytest.raises(SigdegError, match="unknown mode 'best': choose from min, max"):
        dp_scalar(a[:, 0], g[:, 0], "best")  # type: ignore[arg-type]  # the point
    with pytest.raises(SigdegError, match=r"the target \(d,\), got \(3, 2\) and \(3,\)"):
        dp_pareto(a, g, np.ones(3))
    with pytest.raises(SigdegError, match="operators must be positive to be compared"):
        dp_greedy(0 * a, g, np.ones(2))
    with pytest.raises(SigdegError, match="signs must be -1, 0 or 1, one a direction"):
        dp_pareto(a, g, np.ones(2), signs=[2, 0])
    for eps, cap in ((-1.0, None), (0.0, 0)):
        with pytest.raises(SigdegError, match="eps must not be negative and cap at least 1"):
            dp_pareto(a, g, np.ones(2), eps=eps, cap=cap)
