"""The experiment on planning at toy size: every row, every figure, and a teacher taken over."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sigdeg import SignatureStudent
from sigdeg.cli import main
from sigdeg.distillation import DistillConfig
from sigdeg.experiments import planning, planning_mixture, planning_series, rbergomi
from sigdeg.experiments.planning_gaussian import SPECTRA, gaussian_rows
from sigdeg.experiments.planning_grids import CHOSEN, GRIDS, PLANS
from sigdeg.experiments.planning_presets import (
    MixtureSettings,
    SeriesSettings,
    Settings,
    plan,
)
from sigdeg.training import TrainConfig

TRAINING: dict[str, Any] = {"iterations": 3, "batch_size": 16, "tracker": "none"}

STEPS: dict[str, Any] = {"steps": (2,), "order": 1}


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run of all parts, as small as can be."""
    config = DistillConfig(**TRAINING, paths=20, held_out=8)
    tiny = Settings(
        mixture=MixtureSettings(
            steps=(2,), config=config, seeds=2, fine_steps=8, regression_paths=200, exact_n=200
        ),
        series=SeriesSettings(
            teacher="quick",
            steps=(2,),
            config=config,
            seeds=2,
            fine_steps=8,
            order=1,
            measured_paths=200,
            n=500,
            plans=(
                plan("one shot", None, 20, data=False, **STEPS),
                plan("progressive", "((1 2) (3 4))", 20, iterations=2, **STEPS),
            ),
        ),
        merged=4,
        times=(0.02,),
        gaussian_seeds=2,
    )
    monkeypatch.setitem(planning.PRESETS, "quick", tiny)
    teacher = dataclasses.replace(
        rbergomi.PRESETS["quick"], network=(8, 1), teacher=TrainConfig(**TRAINING)
    )
    monkeypatch.setitem(rbergomi.PRESETS, "quick", teacher)
    monkeypatch.setattr(planning_mixture, "CANDIDATES", 4)
    monkeypatch.setattr(planning_mixture, "MEASURED_PATHS", 300)
    monkeypatch.setattr(planning_series, "CANDIDATES", 4)
    monkeypatch.setattr(rbergomi, "PATHS", 20)
    out = str(tmp_path / "planning-quick")
    return ["run", "planning", "--preset", "quick", "--no-progress", "--out", out]


@pytest.mark.slow
def test_runs_from_end_to_end(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(arguments[-1])
    assert main(arguments) == 0
    results = json.loads((out / "results.json").read_text())
    rows = results["rows"]
    studies = list(dict.fromkeys(row.get("study") for row in rows))
    assert len(studies) == 2 + len(SPECTRA) + 3  # main, least squares, spectra, series
    grids = [row["grid"] for row in rows if not row.get("study")]
    assert grids == ["power 2", "planned", "uniform"]
    series = [row for row in rows if row.get("study") == GRIDS]
    powers = ("uniform", "power 1.5", "power 2", "power 3")
    names = (*powers, "planned", "measured", "measured, relative cost", "measured, plain cost")
    assert [row.get("grid") for row in series] == [None, *names]
    for row in series[1:]:
        assert set(row["metrics"]) == {*planning_series.METRICS, "path", "path_median"}
        assert row["metrics"]["w1"]["n"] == 4  # two seeds, two draws
    one_shot, progressive = (row for row in rows if row.get("study") == PLANS)
    assert one_shot["teacher_nfe"] == 20 * 8
    assert progressive["teacher_nfe"] == 20 * 2  # a pair of leaves of a fine step each
    chosen = [row for row in rows if row.get("study") == CHOSEN]
    assert chosen[0]["role"] == "teacher"
    assert chosen[1]["plan"] == "one shot"
    found = {row["grid"] for row in chosen[1:] if not row.get("plan")}
    assert "planned" in found
    assert len(found) == 2
    assert found - {"planned"} < set(powers)
    # A power is chosen by validation paths, and told by others.
    scores = {
        row["grid"]: sum(row["metrics"][key]["mean"] for key in ("w1", "iw1"))
        for row in series[1:5]
    }
    assert min(scores, key=scores.__getitem__) in found
    validated = {row["grid"]: row["metrics"]["w1"]["mean"] for row in series[1:]}
    for row in chosen[1:]:
        if not row.get("plan"):
            assert row["metrics"]["w1"]["mean"] != validated[row["grid"]]
    planned = [row for row in rows if row.get("grid") == "planned"]
    measured = [row["planning_nfe"] for row in planned]
    assert measured == [300 * 64, 300 * 64, 200 * 32, 200 * 32]
    assert all(row["times"][0] == 1 and row["times"][-1] == 0 for row in planned)
    assert set(results["floor"]) == {"w1_exact", *planning_series.METRICS}
    assert all((out / figure["file"]).exists() for figure in results["figures"])
    assert SignatureStudent.from_pretrained(out / "student").times == tuple(planned[0]["times"])

    def unwanted(*_: Any) -> None:
        raise AssertionError("computed twice")

    monkeypatch.setattr(planning_series.SeriesGrids, "measure", unwanted)
    monkeypatch.setattr(planning_mixture.MixtureGrids, "regression", unwanted)
    monkeypatch.setattr(planning_series, "measured_cost", unwanted)
    monkeypatch.setattr(planning.Planning, "draw_figures", lambda _: {})
    assert main(arguments) == 0
    again = json.loads((out / "results.json").read_text())["rows"]
    assert [row["metrics"] for row in again] == [row["metrics"] for row in rows]
    capsys.readouterr()
    assert main([*arguments, "--seed", "1"]) == 2
    assert "holds another run" in capsys.readouterr().err


def test_the_teacher_of_the_benchmark_is_taken_over(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(arguments[-1])
    trained = out.parent / "rbergomi-quick" / "teacher"
    trained.mkdir(parents=True)
    (trained / "config.json").write_text("{}")
    # What it holds is checked where it is taken: another teacher would be refused.
    monkeypatch.setattr(planning_mixture.MixtureGrids, "fill", lambda _: None)
    assert main(arguments) == 2
    assert (out / "rbergomi" / "teacher" / "config.json").read_text() == "{}"


def test_predictions_come_true() -> None:
    """On both spectra, for every plan: within 3% of the distance that theory predicts."""
    rows = gaussian_rows(steps=8, times=(0.1, 0.4), seeds=2, seed=0)
    assert len(rows) == len(SPECTRA) * 2 * 5
    for row in rows:
        found = row["metrics"]
        assert found["w2"]["mean"] == pytest.approx(found["w2_predicted"]["mean"], rel=0.03)
