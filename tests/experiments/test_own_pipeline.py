"""A pipeline class that diffusers does not know is distilled like any other."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator

from sigdeg.distillation import DistillConfig
from sigdeg.experiments import bench, own_pipeline
from sigdeg.experiments.own_pipeline import DATES, METRICS, PRESETS, Settings
from sigdeg.experiments.pipeline_bench import Student
from sigdeg.experiments.series_pipeline import SeriesPipeline
from sigdeg.pipelines import PipelineRecipe, SigDEGScheduler
from sigdeg.training import TrainConfig

TINY: dict[str, Any] = {"iterations": 2, "batch_size": 8, "tracker": "none"}
SETTINGS = Settings(
    widths=(16, 16),
    teacher=TrainConfig(**TINY),
    student=Student(
        PipelineRecipe(steps=(2,), order=2),
        DistillConfig(**TINY, paths=40, held_out=10, refinement=2),
        run=20,
    ),
    n=60,
    own=3,
    peers=(2,),
    draws=1,
    peer_draws=1,
    timing_n=2,
)


def test_runs_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "paired_seconds", lambda functions: dict.fromkeys(functions, 1.0))
    monkeypatch.setitem(PRESETS, "tiny", SETTINGS)
    own_pipeline.run(tmp_path, "tiny", device="cpu", progress=False)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(row["method"], row["nfe"]) for row in results["rows"]] == [
        ("teacher", 4),  # nothing is guided
        ("sig-deg", 2),
        ("ddim", 3),
        ("untrained", 2),
        ("dpm-solver++", 2),
        ("ddim", 2),
    ]
    for row in results["rows"]:
        assert row["metrics"].keys() == METRICS.keys()
        assert all(math.isfinite(metric["mean"]) for metric in row["metrics"].values())
    assert results["floor"].keys() == METRICS.keys()
    student = SeriesPipeline.from_pretrained(tmp_path / "student")
    assert isinstance(student.scheduler, SigDEGScheduler)
    drawn = student(5, num_inference_steps=2, generator=Generator().manual_seed(0)).series
    assert drawn.shape == (5, 2, DATES)
    # In their own units: log-variances of about log 0.235^2, not of mean 0.
    assert torch.isfinite(drawn).all()
    assert float(drawn[:, 1].mean()) < -1
