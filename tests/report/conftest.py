"""A synthetic run: what an experiment leaves behind, made of closed formulas."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sigdeg.report import histogram_plot, image_grid, trajectories_plot, write_report


def metrics(w1: float, n: int = 3) -> dict[str, dict[str, float]]:
    return {
        "w1_exact": {"mean": w1, "std": w1 / 20, "n": n},
        "w1_2000": {"mean": w1 + 0.044, "std": 0.0081, "n": 10},
        "variance_2000": {"mean": 0.05 + w1, "std": 0.03, "n": 10},
    }


def student(steps: int, w1: float, **more: Any) -> dict[str, Any]:
    row = {"method": "sig-deg", "steps": steps, "order": 2, "nfe": steps, "metrics": metrics(w1)}
    costs = {"seconds": 0.0041 * steps, "speedup": 295 / steps, "params": 808_000}
    return row | costs | {"train_seconds": 95.0, "teacher_nfe": 2_400_000} | more


@pytest.fixture(scope="session")
def results() -> dict[str, Any]:
    """Results of a run with every kind of row and every optional key."""
    teacher = {"method": "teacher", "steps": 300, "nfe": 301, "metrics": metrics(0.0068)}
    rows = [
        student(1, 0.041, order=10),
        student(10, 0.0069),
        student(5, 0.0071),
        *(student(k, w, order=4, elastic=True) for k, w in [(1, 0.3), (2, 0.06), (4, 0.007)]),
        teacher | {"seconds": 1.2, "speedup": 1.0, "params": 802_000, "train_seconds": 260.0},
        *(
            {"method": "untrained", "steps": k, "order": 2, "nfe": k, "metrics": metrics(2 / k)}
            for k in (1, 5, 10)
        ),
        *(
            {"method": "dpm-solver++", "steps": k, "nfe": k, "metrics": metrics(0.9 / k**1.5)}
            for k in (5, 10, 20)
        ),
    ]
    steps = np.arange(0, 1501, 25)
    loss = 0.02 + np.exp(-steps / 250) + 0.004 * np.sin(steps)
    curve = [
        [int(s), float(x), float(x * 1.1) if s % 100 == 0 else None]
        for s, x in zip(steps, loss, strict=True)
    ]
    return {
        "title": "1DN: a mixture of two normal laws",
        "summary": "Students of 1, 5 and 10 steps, distilled from a teacher of 300 steps.",
        "experiment": "mixture1d",
        "preset": "quick",
        "seed": 0,
        "quality": {
            "metric": "w1_exact",
            "label": "Wasserstein-1 to the exact law",
            "lower_is_better": True,
        },
        "rows": rows,
        "paper": [
            {"method": "teacher", "steps": 300, "metrics": {"w1_2000": 0.56}, "seconds": 20.0},
            {"method": "sig-deg", "steps": 5, "metrics": {"w1_2000": {"mean": 0.57}}, "speedup": 7},
        ],
        "floor": metrics(0.0065, 10),
        "figures": [
            {"file": "figures/trajectories.png", "caption": "Paths over diffusion time."},
            {"file": "figures/histograms.png", "caption": "Samples beside the true density."},
            {"file": "figures/samples.png", "caption": "The same seeds, teacher and student."},
        ],
        "training": {"teacher": curve, "student, 5 steps": curve, "student, 10 steps": curve},
        "student": "student",
        "example": {"steps": 5},
        "versions": {"sigdeg": "0.1.0", "torch": "2.6.0", "python": "3.11"},
        "hardware": {"cpu": "x86_64, 2 cores", "gpu": "none"},
    }


def density(x: np.ndarray) -> np.ndarray:
    peaks = np.exp(-2 * (x - 2) ** 2) + np.exp(-2 * (x + 2) ** 2)
    return peaks / np.sqrt(2 * np.pi)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, results: dict[str, Any]) -> Path:
    """The folder of that run, drawn once."""
    folder = tmp_path_factory.mktemp("finished")
    fill(folder, results)
    return folder


@pytest.fixture(scope="session")
def report(finished: Path) -> Path:
    """The report of that run, written once: to be read only."""
    return write_report(finished)


@pytest.fixture
def run(tmp_path: Path, finished: Path) -> Path:
    """A copy of that folder."""
    return shutil.copytree(finished, tmp_path / "run")


def fill(folder: Path, results: dict[str, Any]) -> None:
    draw = np.random.default_rng(0)
    ends = draw.choice([-2.0, 2.0], 800) + 0.5 * draw.normal(size=800)
    panels = {}
    for label, steps in (("teacher, 300 steps", 300), ("student, 5 steps", 5)):
        t = np.linspace(1, 0, steps + 1)
        noise = draw.normal(size=(800, steps + 1)).cumsum(1) * np.sqrt(t * (1 - t) / (steps + 1))
        panels[label] = (t, (1 - t) * ends[:, None] + t * draw.normal(size=(800, 1)) + noise)
    trajectories_plot(panels, folder / "figures/trajectories.png")
    samples = {"teacher, 300 steps": ends, "student, 5 steps": ends, "untrained, 5 steps": ends / 2}
    histogram_plot(samples, density, folder / "figures/histograms.png")
    digits = draw.random((20, 1, 28, 28)) * np.hanning(28) * np.hanning(28)[:, None]
    titles = ["teacher, 300 steps", "student, 5 steps"]
    image_grid([digits, digits], folder / "figures/samples.png", columns=5, titles=titles)
    config = {"experiment": "mixture1d", "preset": "quick", "seed": 0}
    for name, value in (("results", results), ("config", config)):
        (folder / f"{name}.json").write_text(json.dumps(value))
