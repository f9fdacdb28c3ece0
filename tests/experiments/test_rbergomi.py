"""The rough Bergomi benchmark at toy size."""

from __future__ import annotations

import dataclasses
import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sigdeg import Model
from sigdeg.cli import main
from sigdeg.datasets import rough_bergomi_split
from sigdeg.denoiser import GaussianDenoiser
from sigdeg.distillation import DistillConfig
from sigdeg.experiments import bench, rbergomi
from sigdeg.experiments.bench import Spec
from sigdeg.experiments.rbergomi_presets import PLAIN, PRESETS, ladder
from sigdeg.steps import EulerMaruyama
from sigdeg.training import TrainConfig

KEYS = {*rbergomi.METRICS}


def tiny(**options: Any) -> rbergomi.Settings:
    training: dict[str, Any] = {"iterations": 4, "batch_size": 16, "tracker": "none"}
    study = dataclasses.replace(PLAIN, paths=8, study="factors", variant="plain")
    return rbergomi.Settings(
        network=(8, 1),
        teacher=TrainConfig(**training),
        specs=(Spec((5,), order=2, paths=20), Spec((2, 1), paths=20), study),
        config=DistillConfig(**training, held_out=8),
        fine_steps=10,
        teachers=((8, 1.0, 1), (4, 2.0, 2)),
        peers=(2,),
        seeds=2,
        draws=2,
        n=500,
        timing_n=4,
        **options,
    )


def test_runs_from_end_to_end(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """Every row with every metric, figures, student; the same command finds all of it done."""
    monkeypatch.setitem(rbergomi.PRESETS, "quick", tiny())
    monkeypatch.setattr(rbergomi, "PATHS", 20)
    monkeypatch.setattr(bench, "paired_seconds", lambda jobs: {k: 1.0 + k for k in jobs})
    out = tmp_path / "run"
    arguments = ["run", "rbergomi", "--preset", "quick", "--no-progress", "--out", str(out)]
    assert main(arguments) == 0
    results = json.loads((out / "results.json").read_text())
    rows = results["rows"]
    main_rows = [(row["method"], row["nfe"]) for row in rows if not row.get("study")]
    assert main_rows == [
        ("teacher", 9),
        ("teacher", 5),
        *(("sig-deg", k) for k in (5, 2, 1)),
        ("untrained", 2),
        *((peer, 2) for peer in ("ddim", "dpm-solver++", "sde-dpm-solver++", "unipc")),
    ]
    for row in rows:
        paths = {"path", "path_median"} if row["method"] == "sig-deg" else set()
        assert set(row["metrics"]) == KEYS | paths
    # Solvers and the untrained step have as many draws as students over both training seeds.
    drawn = {row["metrics"]["w1"]["n"] for row in rows if row["method"] != "teacher"}
    assert drawn == {4, rbergomi.STUDY_DRAWS}
    # A row is i + 1 seconds: the second teacher, at 2, is the one that was learned from.
    assert [row["speedup"] for row in rows[:3]] == [2 / 1, 1, 2 / 3]
    assert [row["over"] for row in rows[:3]] == [{"9 calls": 1 / k} for k in (1, 2, 3)]
    assert set(rows[3]["rival"]) == set(rbergomi.QUALITY)
    assert set(results["floor"]) == KEYS
    assert results["floor"]["w1"]["n"] == 10
    assert [row["variant"] for row in rows if row.get("study")] == ["plain"]
    assert all((out / figure["file"]).exists() for figure in results["figures"])
    assert len(results["figures"]) == 4
    student = Model.from_pretrained(out / "student")  # in units of its own, though it learned none
    assert student.step.sample_shape == (50,)
    assert student.sample(3, seed=0).shape == (3, 2, 25)
    page = (out / "report.html").read_text()
    assert "<h2>factors</h2>" in page

    def unwanted(*_: Any) -> dict[str, float]:
        raise AssertionError("judged twice")

    monkeypatch.setattr(rbergomi.Series, "measure", unwanted)
    assert main(arguments) == 0
    again = json.loads((out / "results.json").read_text())["rows"]
    assert [row["metrics"] for row in again] == [row["metrics"] for row in rows]
    capsys.readouterr()
    assert main([*arguments, "--seed", "1"]) == 2
    assert "holds another run" in capsys.readouterr().err


def test_damaged_data_are_refused(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setitem(rbergomi.PRESETS, "quick", tiny())
    out = tmp_path / "run"
    arguments = ["run", "rbergomi", "--preset", "quick", "--no-progress", "--out", str(out)]
    monkeypatch.setattr(rbergomi, "train_teacher", lambda *_, **__: 1 / 0)
    assert main(arguments) == 1  # the data are there, the rest is not
    file = out / "data.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    assert main(arguments) == 2
    assert "its digest does not match" in capsys.readouterr().err


class NamedStep(EulerMaruyama):
    """A step that is known by a name."""

    def __init__(self, name: str) -> None:
        super().__init__(GaussianDenoiser(0.0, 1.0, rbergomi.SCHEDULE))
        self.name = name


def test_what_is_chosen_is_chosen_by_validation_paths(tmp_path: Path) -> None:
    """A grid that is perfect on test paths is not taken before one perfect on validation paths."""
    series = rbergomi.Series(tiny(), tmp_path, progress=False)
    series.split = split = rough_bergomi_split(0, 500)
    samples = {"karras": split.validation, "linspace": split.test, "beta": split.train[:100] + 1}

    def draw(n: int, generator: Any, grid: str) -> torch.Tensor:
        return split.standardise(samples[grid])

    draws = {grid: partial(draw, grid=grid) for grid in samples}
    series.march = lambda step, grid: draws[step.name]  # type: ignore[method-assign]
    times = torch.tensor([1.0, 0.0])
    tried = {name: (NamedStep(name), times) for name in samples}
    row = series.add_best("ddim", tried)
    assert (row["grid"], row["tried"]) == ("karras", 3)
    for study, perfect in ((True, "karras"), (False, "linspace")):
        for grid in ("karras", "linspace"):
            found = series.judge(grid, draws[grid], 0, study=study)
            assert (found["w1"]["mean"] < 1e-4) == (grid == perfect)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_folder_belongs_to_one_student(preset: str) -> None:
    """Two students that are trained alike share a folder; two that differ do not."""

    def trained(spec: Spec) -> Spec:
        return dataclasses.replace(spec, study="", variant="")

    specs = PRESETS[preset].specs
    assert len({spec.slug for spec in specs}) == len({trained(spec) for spec in specs})


def test_the_ladder_changes_one_thing_at_a_time() -> None:
    """And ends at the default, beside which stands its noise."""

    def fields(spec: Spec) -> dict[str, Any]:
        shown = {"study", "variant", "paths"}
        return {k: v for k, v in dataclasses.asdict(spec).items() if k not in shown}

    *rungs, energy = map(fields, ladder())
    for before, after in itertools.pairwise(rungs):
        assert sum(before[key] != after[key] for key in before) <= 1
    assert rungs[-1] == fields(Spec((5,)))
    assert energy["residual_noise"] == "energy"
