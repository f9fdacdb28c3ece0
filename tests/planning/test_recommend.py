"""Spectra from data, and what is recommended for them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sigdeg.datasets import GaussianMixture1D
from sigdeg.denoiser import GaussianDenoiser, GaussianMixtureDenoiser
from sigdeg.errors import SigdegError
from sigdeg.planning import (
    LinearStudent,
    MeasuredCost,
    candidate_times,
    plan_grid,
    recommend_grid,
    vanilla,
)
from sigdeg.planning.spectrum import Spectrum, covariance_eigenvalues
from sigdeg.planning.theory.budget import one_shot_budget, plan_cost, training_time
from sigdeg.planning.theory.operators import (
    discretise,
    final_operator,
    gamma,
    teacher_ops,
    w2,
    windows,
)
from sigdeg.planning.theory.phase import phase_diagram
from sigdeg.planning.theory.programmes import all_plans
from sigdeg.planning.theory.recommend import recommend_plan, regime
from sigdeg.schedule import DiscreteVP, VPLinear
from sigdeg.steps import Exponential
from sigdeg.workflows.plan.sources import find_source

COSINE = discretise("cosine", 32)
SQUARE = np.arange(1, 33) ** -2.0


def spectrum(values: object, multiplicity: object = None) -> Spectrum:
    return Spectrum.of_eigenvalues(values, multiplicity)  # type: ignore[arg-type]


# --- spectra --------------------------------------------------------------------------------------


def test_the_eigenvalues_are_those_of_the_covariance() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 4, 2)) * np.array([3.0, 1.0]) + 7
    expected = np.linalg.eigvalsh(np.cov(x.reshape(50, 8).T))[::-1]
    np.testing.assert_allclose(covariance_eigenvalues(x), expected, rtol=1e-10)
    few = covariance_eigenvalues(x[:5])  # 5 centred samples span 4 directions
    np.testing.assert_allclose(few[:4], np.linalg.eigvalsh(np.cov(x[:5].reshape(5, 8).T))[:3:-1])
    np.testing.assert_array_equal(few[4:], 0)


def test_bins_keep_the_variance_the_tail_and_the_zeros() -> None:
    values = np.concatenate([np.arange(1, 2001) ** -2.0, np.zeros(30)])
    found = spectrum(values)
    assert len(found.eigenvalues) <= 64
    assert found.directions == 2030
    assert found.variance == pytest.approx(values.sum(), rel=1e-12)
    assert found.eigenvalues[0] == 1
    assert 0 < found.eigenvalues[-2] < 1.2 / 2000**2
    assert (found.eigenvalues[-1], found.multiplicity[-1]) == (0, 30)
    assert (np.diff(found.eigenvalues) < 0).all()
    few = spectrum([0.5, 2.0, 0.0], [3, 1, 2])
    np.testing.assert_array_equal(few.eigenvalues, [2, 0.5, 0])
    np.testing.assert_array_equal(few.multiplicity, [1, 3, 2])
    assert len(spectrum(np.full(100, 0.25)).eigenvalues) <= 2


def test_binning_hardly_changes_what_is_recommended() -> None:
    values = np.arange(1, 301) ** -2.0
    exact = Spectrum(values, np.ones(300))
    found = [recommend_plan(s, COSINE).plans["equal-s"] for s in (exact, spectrum(values))]
    for name in ("vanilla", "progressive", "boot"):
        assert found[1][name].distance == pytest.approx(found[0][name].distance, rel=2e-3)


def test_a_spectrum_survives_json() -> None:
    samples = np.random.default_rng(0).standard_normal((400, 3))
    found = Spectrum.of_samples(samples, "noise")
    again = Spectrum.from_json(json.loads(json.dumps(found.to_json())))
    np.testing.assert_array_equal(again.eigenvalues, found.eigenvalues)
    assert (again.source, again.samples) == ("noise", 400)
    assert again.warnings() == [
        "only 400 samples: small eigenvalues are too small, give 1,000 or more"
    ]
    assert spectrum([1.0]).warnings() == []


@pytest.mark.parametrize(
    ("values", "multiplicity", "line"),
    [
        ([1.0, -0.5], None, "finite and not negative, got -0.5"),
        ([1.0, math.nan], None, "finite and not negative, got nan"),
        ([0.0, 0.0], None, "all eigenvalues are zero"),
        ([], None, r"a row of eigenvalues, got shape \(0,\)"),
        ([[1.0]], None, r"a row of eigenvalues, got shape \(1, 1\)"),
        (["a"], None, "something else than numbers"),
        ([1.0, 2.0], [1, 0], "one positive number an eigenvalue"),
        ([1.0, 2.0], [1], "one positive number an eigenvalue"),
    ],
)
def test_what_is_no_spectrum_is_refused(values: list, multiplicity: object, line: str) -> None:
    with pytest.raises(SigdegError, match=line):
        spectrum(values, multiplicity)


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SigdegError, match=r"at least two samples, got shape \(1, 4\)"):
        Spectrum.of_samples(np.ones((1, 4)))
    with pytest.raises(SigdegError, match="must be finite"):
        Spectrum.of_samples(np.array([[1.0], [math.inf]]))
    with pytest.raises(SigdegError, match="all eigenvalues are zero"):
        Spectrum.of_samples(np.ones((5, 4)))
    with pytest.raises(SigdegError, match="neither a list of eigenvalues nor a spectrum"):
        Spectrum.from_json({"values": [1.0]})
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(SigdegError, match=r"cannot read .*objects\.npy"):
        find_source(str(tmp_path / "objects.npy"))


# --- plans ----------------------------------------------------------------------------------------


def test_one_sided_spectra_have_the_proven_plan() -> None:
    low, high = windows(COSINE)
    below, above = (
        recommend_plan(spectrum(SQUARE), COSINE),
        recommend_plan(spectrum([9, 4]), COSINE),
    )
    assert (below.regime, below.name) == ("boot", "boot")
    assert (above.regime, above.name) == ("vanilla", "vanilla")
    assert above.gain() == 1
    plans = below.plans["equal-s"]
    for name, distance in (("vanilla", 1.890), ("progressive", 3.987), ("boot", 0.6577)):
        assert plans[name].distance == pytest.approx(distance, abs=6e-4)
    assert below.gain() == pytest.approx(1.890 / 0.6577, rel=1e-3)
    assert regime(COSINE, spectrum([low, low / 2, 0.0])) == "boot"
    assert regime(COSINE, spectrum([high, high * 2])) == "vanilla"
    assert regime(COSINE, spectrum([low * 1.01])) == "mixed"


@pytest.mark.parametrize(
    ("s", "m", "distance"), [(0.1, 19, 3.894), (0.5, 22, 1.585), (2, 24, 0.0756)]
)
def test_a_mixed_spectrum_has_a_hybrid(s: float, m: int, distance: float) -> None:
    found = recommend_plan(spectrum(SQUARE * 32 / SQUARE.sum()), COSINE, s)
    assert (found.regime, found.name) == ("mixed", f"hybrid-{m}")
    assert found.best.distance == pytest.approx(distance, rel=1e-3)
    assert found.gain("vanilla") == 1


def test_multiplicities_are_repetitions() -> None:
    repeated = recommend_plan(spectrum([4.0, 0.5, 0.5, 0.5, 0.1, 0.1]), COSINE)
    shared = recommend_plan(spectrum([4.0, 0.5, 0.1], [1, 3, 2]), COSINE)
    assert shared.name == repeated.name
    for kind, plans in repeated.plans.items():
        for name, prediction in plans.items():
            own = shared.plans[kind][name]
            assert own.distance == pytest.approx(prediction.distance, rel=1e-12)


@pytest.mark.parametrize("values", [[0.9, 0.3], [3.0, 2.5], [3.0, 0.7, 0.1], [1.5], [1.25]])
def test_no_plan_is_better_than_the_recommended_one(values: list[float]) -> None:
    schedule = discretise("cosine", 7)
    a, n2 = teacher_ops(schedule, sorted(values, reverse=True))
    best = min(
        float(w2(final_operator(plan, a, gamma(n2, 0.5)), a.prod(axis=0), n2[-1]))
        for plan in all_plans(7)
    )
    # Proved for spectra on one side of the windows, seen on the others.
    found = recommend_plan(spectrum(values), schedule, 0.5)
    assert best * (1 - 1e-12) <= found.best.distance <= best * (1 + 1e-9)


def test_one_variance_between_the_windows_asks_for_a_tree_of_its_own() -> None:
    found = recommend_plan(spectrum([1.09]), COSINE)
    assert found.name == "searched"
    hybrids = [p.distance for name, p in found.plans["equal-s"].items() if "hybrid" in name]
    assert found.best.distance < 0.05 * min(hybrids)


def test_plans_share_what_the_one_shot_student_spends() -> None:
    found = recommend_plan(spectrum(SQUARE), COSINE, s=0.5, accounting="equal-compute")
    for kind, plans in found.plans.items():
        assert plans["vanilla"].s == pytest.approx(0.5)
        assert plans["vanilla"].distance == pytest.approx(1.890, abs=6e-4)
        for name in ("progressive", "boot"):
            plan, s = plans[name].plan, plans[name].s
            spent = {"equal-s": s, "equal-steps": 31 * s, "equal-compute": plan_cost(plan) * s}
            whole = plan_cost(vanilla(32)) * 0.5 if kind == "equal-compute" else 0.5
            assert spent[kind] == pytest.approx(whole)
            assert training_time(plan, one_shot_budget(32, 0.5, kind), kind) == s
    # BOOT trains 31 times: on equal terms one merge is worth more, or nearly all in one.
    assert found.winner("equal-s") == "boot"
    assert found.winner("equal-steps") == "vanilla"
    assert found.name in ("vanilla", "hybrid-30", "hybrid-29", "hybrid-31")


def test_equal_plans_are_settled_by_the_number_of_merges() -> None:
    found = recommend_plan(spectrum([1.5, 0.5]), COSINE, s=50)  # every gamma underflows
    assert found.best.distance < 1e-12
    assert found.name == "vanilla"


def test_directions_without_variance_are_planned_for() -> None:
    found = recommend_plan(spectrum([2.0, 0.5, 0.0], [1, 4, 3]), COSINE)
    nearly = recommend_plan(spectrum([2.0, 0.5, 1e-8], [1, 4, 3]), COSINE)
    assert found.best.distance == pytest.approx(nearly.best.distance, rel=1e-4)


def test_bad_requests_are_refused() -> None:
    for steps in (1, 1001):
        with pytest.raises(SigdegError, match=f"merges 2 to 1000 steps, got {steps}"):
            recommend_plan(spectrum([1.0]), discretise("cosine", steps))
    for s in (0, -1, math.inf, math.nan):
        with pytest.raises(SigdegError, match="s must be positive and finite"):
            recommend_plan(spectrum([1.0]), COSINE, s)
    with pytest.raises(SigdegError, match="unknown accounting 'fair'"):
        recommend_plan(spectrum([1.0]), COSINE, accounting="fair")  # type: ignore[arg-type]


# --- the phase diagram ----------------------------------------------------------------------------


@pytest.mark.parametrize(("schedule", "steps"), [("cosine", 8), ("cosine", 32), ("vp", 16)])
def test_the_phases_end_at_the_windows(schedule: str, steps: int) -> None:
    times = discretise(schedule, steps)  # type: ignore[arg-type]
    low, high = windows(times)
    sides = [0.1, low * 0.999, low * 1.001, high * 0.999, high * 1.001, 10.0]
    found = phase_diagram(times, sides, [0.05, 0.3, 1.0])
    np.testing.assert_array_equal(found.kind, np.repeat([[0, 0, 1, 1, 2, 2]], 3, 0).T)
    gain = found.gain("vanilla")
    assert (gain[:2] > 1).all()
    np.testing.assert_allclose(gain[-2:], 1, rtol=1e-6)
    assert (found.gain() >= gain * (1 - 1e-9)).all()


def test_the_diagram_holds_the_best_of_all_plans() -> None:
    schedule, values, times = discretise("cosine", 6), [0.5, 1.35, 1.5, 1.8, 4.0], [0.2, 1.0]
    found = phase_diagram(schedule, values, times)
    for i, j in np.ndindex(5, 2):
        a, n2 = teacher_ops(schedule, values[i])
        reached = [float(final_operator(plan, a, gamma(n2, times[j]))) for plan in all_plans(6)]
        target = a.prod()
        if min(reached) < target < max(reached):
            assert found.best[i, j] == 0
        else:
            best = min(abs(x - target) for x in reached)
            assert found.best[i, j] == pytest.approx(best, rel=1e-10)


def test_on_equal_terms_one_shot_wins_the_diagram() -> None:
    values, times = np.geomspace(0.1, 10, 12), [0.1, 0.5, 2.0]
    for accounting in ("equal-steps", "equal-compute"):
        found = phase_diagram(COSINE, values, times, accounting)  # type: ignore[arg-type]
        np.testing.assert_allclose(found.gain("vanilla"), 1, rtol=1e-6)


def test_a_diagram_out_of_range_is_refused() -> None:
    for steps in (1, 129):
        with pytest.raises(SigdegError, match=f"takes 2 to 128 steps, got {steps}"):
            phase_diagram(discretise("cosine", steps), [1.0], [1.0])
    with pytest.raises(SigdegError, match="training times must be positive"):
        phase_diagram(COSINE, [1.0], [0.0])
    with pytest.raises(SigdegError, match="positive, finite variances"):
        phase_diagram(COSINE, [-1.0], [1.0])


# --- grids ----------------------------------------------------------------------------------------


def test_the_planned_grid_is_set_against_uniform_and_power_ones() -> None:
    found = recommend_grid(spectrum(np.arange(1, 65) ** -2.0), VPLinear(), 4, fine=128)
    assert found.name == "planned"
    assert found.uniform.cost == pytest.approx(0.056, rel=0.05)
    assert found.planned.cost == pytest.approx(0.005, rel=0.2)
    assert found.planned.cost < found.power.cost < found.uniform.cost / 5
    assert 2 < found.exponent < 4
    assert found.best.times[0] == 1
    assert found.best.times[-1] == 0
    assert set(found.grids) == {"planned", "uniform", f"power-{found.exponent:g}"}
    assert found.warnings() == []


def test_no_time_lies_below_what_the_teacher_knows() -> None:
    schedule = DiscreteVP(tuple(np.linspace(6, -4, 20)))
    found = recommend_grid(spectrum(np.arange(1, 65) ** -3.0), schedule, 4)
    assert all(float(grid.times[-2]) > schedule.t_min for grid in found.grids.values())
    with pytest.raises(SigdegError, match="on 19 fine steps has 1 to 19 steps, got 20"):
        recommend_grid(spectrum([1.0]), schedule, 20)


def test_residual_noise_makes_any_grid_exact() -> None:
    data = spectrum([2.0, 0.5, 0.1, 0.0])
    noisy = LinearStudent(residual_noise=True)
    found = recommend_grid(data, VPLinear(), 3, noisy, 64)
    plain = recommend_grid(data, VPLinear(), 3, fine=64)
    assert found.lossless
    assert max(grid.cost for grid in found.grids.values()) < 1e-6
    assert found.planned.points == plain.planned.points
    trained = LinearStudent(budget=0.3, residual_noise=True)
    assert not recommend_grid(data, VPLinear(), 3, trained, 64).lossless


def measured(late: float) -> MeasuredCost:
    """Steps lose the square of their length, and `late` times that near the data."""
    times = candidate_times(VPLinear(), 12)
    t = times.numpy()
    weight = np.where(t < 0.3, late, 1.0)
    length = np.cumsum(-np.diff(t, prepend=1.0) * weight)
    residual = np.maximum(length[None] - length[:, None], 0)[..., None] ** 2
    return MeasuredCost(times, residual, np.full((13, 1), 0.5))


def test_a_measurement_that_disagrees_is_trusted_and_told() -> None:
    found = recommend_grid(spectrum(np.arange(1, 65) ** -2.0), VPLinear(), 4, fine=64)
    apart = found.with_measured(measured(0.01))
    assert apart.comparison is not None
    assert apart.comparison.ratio > 2
    assert apart.name == "measured"
    assert apart.best is apart.comparison.measured
    assert len(apart.warnings()) == 1
    assert "not Gaussian, use the measured grid" in apart.warnings()[0]
    assert apart.measured_cost(apart.best) == pytest.approx(apart.best.cost)
    assert apart.measured_cost(apart.planned) == pytest.approx(
        apart.comparison.ratio * apart.best.cost
    )
    near = found.with_measured(measured(8.0))
    assert near.comparison is not None
    assert near.comparison.ratio < 2
    assert (near.name, near.best, near.warnings()) == ("planned", found.planned, [])
    assert found.with_measured(measured(8.0), "relative").measured_cost(
        found.uniform
    ) == pytest.approx(2 * near.measured_cost(found.uniform))


def test_times_for_gaussian_data_come_from_their_spectrum() -> None:
    """Where measuring has nothing to object, the plan is not bound to the candidates."""
    stds = torch.tensor([1.0, 0.3, 0.1])
    teacher = Exponential(GaussianDenoiser(0.0, stds, VPLinear()))
    found = plan_grid(teacher, 4, (3,), paths=3000, refinement=2)
    exact = recommend_grid(spectrum(stds.double().numpy() ** 2), VPLinear(), 4).planned.times
    torch.testing.assert_close(found.best.times, exact, rtol=0, atol=0.03)
    assert found.teacher_nfe == 3000 * 18 * 2


def test_times_for_a_mixture_are_measured() -> None:
    law = GaussianMixture1D()
    teacher = Exponential(GaussianMixtureDenoiser(law.means, law.stds, law.weights, VPLinear()))
    times = plan_grid(teacher, 3, (1,), paths=1500, refinement=4).best.times
    candidates = candidate_times(VPLinear())
    assert all(float((candidates - t).abs().min()) < 1e-9 for t in times)
