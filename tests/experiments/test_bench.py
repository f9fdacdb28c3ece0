"""The engine of benchmarks: what a new one has to say, and that all else happens by itself."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from sigdeg import Model
from sigdeg.denoiser import GaussianDenoiser
from sigdeg.distillation import DistillConfig, Distilled
from sigdeg.errors import SigdegError
from sigdeg.experiments import bench
from sigdeg.experiments.bench import Benchmark, Draw, Spec
from sigdeg.grids import fine_grid
from sigdeg.results import Summary, summarise
from sigdeg.schedule import VPLinear
from sigdeg.steps import EulerMaruyama


@dataclass(frozen=True)
class Settings:
    specs: tuple[Spec, ...]
    config: DistillConfig
    n: int = 200


class Bell(Benchmark[Settings]):
    """Students of an exact teacher of one Gaussian."""

    name = "bell"
    title = "A bell"
    summary = "Whether it is as wide as it should be."
    presets = {  # noqa: RUF012
        "default": Settings(
            specs=(
                Spec((2,), 1, pretrained=False),
                Spec((2, 1), pretrained=False, study="Elastic"),
            ),
            config=DistillConfig(
                iterations=2, batch_size=16, paths=40, held_out=16, refinement=2, tracker="none"
            ),
        )
    }
    quality = ("width", "Error of the width")
    rivals = ("width",)
    shape = (1,)
    timing_n = 4
    network = (8, 1)
    shown_steps = 2

    def prepare(self) -> None:
        self.teachers = {"": EulerMaruyama(GaussianDenoiser(0.0, 0.5, VPLinear()))}

    def distill(self, spec: Spec, seed: int) -> Distilled:
        student = self.make_student(spec, seed, data_std=0.5)
        return self.train(spec, seed, student, config=self.settings.config)

    def width(self, draw: Draw, seed: int) -> float:
        drawn = draw(self.settings.n, torch.Generator().manual_seed(seed))
        return abs(float(drawn.std()) - 0.5)

    def judge(self, name: str, draw: Draw) -> dict[str, Summary]:
        return summarise(self.recall(name, lambda i: {"width": self.width(draw, i)}, 3))

    def score(self, draw: Draw) -> float:
        return self.width(draw, 100)

    def fill(self) -> None:
        teacher, fine = self.teachers[""], fine_grid(VPLinear(), 20)
        metrics = self.judge("teacher", self.march(teacher, fine))
        self.reference = self.add_step("teacher", teacher, fine, metrics, steps=20)
        for spec, results in self.distill_all(self.settings.specs).items():
            student = results[0].student
            for steps in spec.steps:
                draw = self.march(student, student.grid(steps))
                metrics = self.judge(f"{spec.slug} at {steps}", draw)
                self.add(self.student_row(spec, steps, results, metrics), draw)
        self.add_solver("ddim", 2)
        self.student = student


def test_a_benchmark_is_data_teachers_and_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows with roles, speed, rivals and grids that were chosen; a student; a report."""
    monkeypatch.setattr(bench, "paired_seconds", lambda jobs: {k: 1.0 + k for k in jobs})
    page = Bell.run(tmp_path / "run", progress=False)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    rows = results["rows"]
    assert [(row["role"], row["nfe"], row["steps"]) for row in rows] == [
        ("teacher", 21, 20),
        *(("student", k, k) for k in (2, 2, 1)),
        ("peer", 2, 2),
    ]
    assert [row["speedup"] for row in rows] == [1.0, 0.5, None, None, 0.2]  # no side tables
    assert rows[1]["rival"]["width"]["method"] == "ddim"
    assert ["rival" in row for row in rows] == [False, True, False, False, False]
    assert rows[4]["tried"] > 1
    assert rows[4]["grid"] in {"karras", "linspace", "trailing", "log-snr", "beta", "leading"} | {
        f"{name}-sigma-min" for name in ("linspace", "trailing", "leading")
    }
    assert set(results["training"]) == {"student, 2 steps, order 1"}
    assert Model.from_pretrained(tmp_path / "run" / "student").sample(3, 2, seed=0).shape == (3, 1)
    assert "<h2>Elastic</h2>" in page.read_text()

    monkeypatch.setattr(Bell, "width", lambda *_: 1 / 0)  # found finished, not judged again
    Bell.run(tmp_path / "run", progress=False)
    again = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert [row["metrics"] for row in again] == [row["metrics"] for row in rows]
    with pytest.raises(SigdegError, match="holds another run"):
        Bell.run(tmp_path / "run", seed=1, progress=False)


def test_a_folder_is_named_by_what_is_trained() -> None:
    """What differs from the defaults is named; where a student is shown makes no difference."""
    first = Spec((2, 1), residual_noise="energy", study="a", variant="b")
    assert first.slug == Spec((2, 1), residual_noise="energy").slug == "2-1-residual-noise-energy"
    assert Spec((2,), start=first, paths=0).slug == "2-paths-0-start-2-1-residual-noise-energy"
