"""Digits by name and by class at toy size: the benchmark runs, resumes, and what it saves draws."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Generator

from sigdeg.cli import main
from sigdeg.distillation import DistillConfig
from sigdeg.experiments import bench, digits, mnist_judges, mnist_networks
from sigdeg.experiments.digits import CLASSES, PRESETS, Settings
from sigdeg.experiments.pipeline_bench import Student
from sigdeg.pipelines import PipelineRecipe, SigDEGScheduler
from sigdeg.training import TrainConfig
from tests.experiments.test_digit_pipelines import SIZES

TINY: dict[str, Any] = {"iterations": 2, "batch_size": 4, "tracker": "none"}
SETTINGS = Settings(
    kind="names",
    network=SIZES["names"],
    autoencoder=TrainConfig(**TINY),
    teacher=TrainConfig(**TINY),
    student=Student(
        PipelineRecipe(steps=(2,), order=2, times=(1.0, 0.5, 0.0)),
        DistillConfig(**TINY, paths=40, held_out=10, refinement=2),
        run=20,
    ),
    n=20,
    own=3,
    peers=(1,),
    timing_n=2,
)
METRICS = {"accuracy", "accuracy_2", "recall", "diversity", "class_diversity", "fid", "fid_2"}


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty digits of noise, presets to match, and a clock that stands still."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (60, 28, 28), dtype=np.uint8), np.arange(60, dtype=np.uint8) % 10
    monkeypatch.setattr(mnist_judges, "load_mnist", lambda split, data_dir: noise)
    monkeypatch.setattr(mnist_networks, "HELD_OUT", 12)
    monkeypatch.setattr(
        bench, "paired_seconds", lambda functions: {k: 1.0 + len(f()) for k, f in functions.items()}
    )
    monkeypatch.setitem(PRESETS, "quick", SETTINGS)
    monkeypatch.setitem(
        PRESETS,
        "classes",
        replace(
            SETTINGS, kind="classes", network=SIZES["classes"], draws=1, peer_draws=1, peers=()
        ),
    )


def run(preset: str, out: Path) -> dict[str, Any]:
    command = ["run", "digits", "--preset", preset, "--no-progress", "--device", "cpu"]
    assert main([*command, "--out", str(out)]) == 0
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


@pytest.mark.slow
def test_runs_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    results = run("quick", out)
    assert [(row["method"], row["steps"], row["nfe"]) for row in results["rows"]] == [
        ("teacher", 4, 8),  # each step of what is guided is two calls
        ("sig-deg", 2, 2),
        ("ddim", 3, 6),
        ("untrained", 2, 4),
        ("dpm-solver++", 1, 2),
        ("ddim", 1, 2),
    ]
    for row in results["rows"]:
        assert row["metrics"].keys() >= METRICS
        assert all(math.isfinite(metric["mean"]) for metric in row["metrics"].values())
        assert row["metrics"]["accuracy"]["n"] == 2
    student = results["rows"][1]
    assert student["teacher_nfe"] == 40 * 2 * 4  # paths of two steps, two fine ones each, guided
    assert {figure["file"] for figure in results["figures"]} == {"figures/digits.png"}
    assert "Accuracy" in (out / "report.html").read_text()
    check_saved(out, "names")

    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("judged again")

    monkeypatch.setattr(digits.Digits, "measure", never)
    again = run("quick", out)
    assert [row["metrics"] for row in again["rows"]] == [row["metrics"] for row in results["rows"]]


def test_classes_run_too(tmp_path: Path) -> None:
    results = run("classes", tmp_path)
    assert [row["method"] for row in results["rows"]] == ["teacher", "sig-deg", "ddim", "untrained"]
    check_saved(tmp_path, "classes")


def check_saved(out: Path, kind: str) -> None:
    """Teacher and student are of one class of diffusers, and load as such."""
    teacher = DiffusionPipeline.from_pretrained(out / "teacher")
    student = DiffusionPipeline.from_pretrained(out / "student")
    assert type(student) is type(teacher)
    assert isinstance(student.scheduler, SigDEGScheduler)
    asked = {**digits.KINDS[kind](0).ask([7]), "guidance_scale": 1.0, "output_type": "pt"}
    images = student(**asked, num_inference_steps=2, generator=Generator().manual_seed(3)).images
    assert images.shape == (1, 1, 32, 32)


def test_accuracy_is_of_what_was_asked_for(tmp_path: Path) -> None:
    """Judged by what says the number of a digit, shuffled classes are right by chance."""

    class Teller:
        def __init__(self, order: torch.Tensor) -> None:
            self.order = order

        def extract(self, samples: torch.Tensor) -> Any:
            said = torch.eye(CLASSES, dtype=torch.float64)[self.order]
            return samples.flatten(1).double(), said

    labels = torch.arange(40) % CLASSES
    wrong = labels.clone()
    wrong[:10] = (wrong[:10] + 1) % CLASSES
    made = digits.Digits(SETTINGS, tmp_path)
    made.judges = type(
        "J",
        (),
        {"extractors": [Teller(labels), Teller(wrong)], "measure": lambda self, x: {"metrics": {}}},
    )()
    # Two digits of a class are at 0 and two at 3: of six pairs four are 3 apart.
    samples = torch.zeros(40, 1, 2, 2)
    samples[20:, 0, 0, 0] = 3.0
    found = made.measure(samples)
    assert found["accuracy"] == 1
    assert found["accuracy_2"] == 0.75
    assert found["class_diversity"] == pytest.approx(3 * 4 / 6)
