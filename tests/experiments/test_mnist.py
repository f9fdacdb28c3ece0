"""The image benchmark at toy size: every part runs, resumes, and what it writes can be used."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sigdeg import SignatureStudent
from sigdeg.cli import main
from sigdeg.distillation import DistillConfig
from sigdeg.experiments import mnist, mnist_networks
from sigdeg.experiments.mnist_presets import PRESETS, Guided, Settings, Spec, Weak
from sigdeg.integrations import find_decoder, load_teacher
from sigdeg.metrics import images as image_metrics_module
from sigdeg.training import TrainConfig

TINY = {"iterations": 3, "batch_size": 8, "tracker": "none"}
CONFIG = DistillConfig(**TINY, paths=36, held_out=8, refinement=2, shard_size=8)
PAIRED = Spec((2, 1), order=2)
MATCHED = replace(PAIRED, start=PAIRED)
SETTINGS = Settings(
    widths=(16, 16, 16),
    autoencoder=TrainConfig(**TINY),
    classifier=TrainConfig(**TINY),
    teacher=TrainConfig(**TINY),
    specs=(
        replace(MATCHED, start=MATCHED, guided=True),
        Spec((1,), order=1, residual_noise=None, study="Side table", variant="regression"),
    ),
    config=CONFIG,
    matching=replace(CONFIG, q=0, matching=1.0),
    train_steps=4,
    times=(1.0, 0.4, 0.0),
    peers=(2,),
    guided=Guided(TrainConfig(**TINY), 2.0, Spec((2,), order=1), CONFIG),
    weak=Weak(
        (16, 16, 16), TrainConfig(**TINY, seed=1), 2.0, 0.6, replace(CONFIG, q=0, matching=1.0)
    ),
    draws=2,
    n=16,
    tried=16,
    timing_n=2,
)


@pytest.fixture
def toy(monkeypatch):
    """Sixty digits of noise, a benchmark to match, and metrics that take so few."""
    rng = np.random.default_rng(0)
    digits = rng.integers(0, 256, (60, 28, 28), dtype=np.uint8), np.arange(60, dtype=np.uint8) % 10
    monkeypatch.setattr(mnist, "load_mnist", lambda split, data_dir: digits)
    monkeypatch.setattr(mnist_networks, "HELD_OUT", 10)
    monkeypatch.setattr(image_metrics_module, "MINIMUM", 16)
    monkeypatch.setattr(mnist, "SHOWN", 4)
    monkeypatch.setattr(
        mnist, "paired_seconds", lambda functions: {k: 1.0 + len(f()) for k, f in functions.items()}
    )
    monkeypatch.setitem(mnist.PRESETS, "quick", SETTINGS)


@pytest.mark.usefixtures("toy")
def test_runs_from_end_to_end(tmp_path, capsys):
    out = tmp_path / "run"
    command = ["run", "mnist", "--preset", "quick", "--no-progress", "--device", "cpu"]
    assert main([*command, "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    rows = results["rows"]
    main_rows = [row for row in rows if not row.get("study")]
    assert [(row["method"], row["nfe"]) for row in main_rows] == [
        ("teacher", 5),
        ("teacher", 4),
        ("teacher", 6),
        ("sig-deg", 2),
        ("sig-deg", 1),
        ("untrained", 2),
        *2 * [(m, 2) for m in ("ddim", "dpm-solver++", "sde-dpm-solver++", "unipc")],
    ]
    assert [row["nfe"] for row in main_rows if row.get("teacher")] == [6, 2, 1, 2, 2, 2, 2]
    assert main_rows[0]["metrics"] == {}  # timed only: what speed is compared with
    for row in main_rows[1:5]:
        assert {"fid", "inception_score", "kid", "precision", "recall", "diversity"} <= set(
            row["metrics"]
        )
        assert all(math.isfinite(metric["mean"]) for metric in row["metrics"].values())
        assert 0 <= row["metrics"]["tv"]["mean"] <= 1
        assert row["speedup"] == 1.0  # the clock was stopped
    assert main_rows[3]["elastic"]
    assert main_rows[3]["teacher_nfe"] == 36 * (4 + 6)
    guided = [row for row in rows if "guidance 2" in (row.get("study") or "")]
    assert [(row["method"], row["nfe"]) for row in guided] == [("teacher", 8), ("sig-deg", 2)]
    assert all(0 <= row["metrics"]["accuracy"]["mean"] <= 1 for row in guided)
    assert results["extractor"]["n"] == 60
    assert len(results["extractor"]["digest"]) == 64
    assert {"test", "teacher, 6 calls", "student, 2 calls"} <= set(results["nearest"])
    assert all((out / figure["file"]).exists() for figure in results["figures"])

    assert main([*command, "--out", str(out)]) == 0  # finished: found finished
    again = json.loads((out / "results.json").read_text())["rows"]
    assert [row["metrics"] for row in again] == [row["metrics"] for row in rows]

    # What is shipped is what was trained, in half precision, and draws digits.
    shipped = out / "pretrained"
    student = SignatureStudent.from_pretrained(shipped / "mnist")
    whole = SignatureStudent.from_pretrained(out / "student")
    for own, other in zip(student.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-6)
    teacher = load_teacher(shipped / "mnist-teacher", shipped / "mnist-weak")
    assert teacher.sample_shape == student.sample_shape
    assert mnist_networks.load_classifier(shipped / "mnist-classifier").config["features"] == 64
    assert find_decoder(shipped / "mnist") is not None
    assert main(["sample", str(shipped / "mnist"), "-n", "2", "--out", str(tmp_path / "s")]) == 0
    assert (tmp_path / "s" / "samples.png").exists()
    capsys.readouterr()
    assert main([*command, "--seed", "1", "--out", str(out)]) == 2
    assert "holds another run" in capsys.readouterr().err


@pytest.mark.usefixtures("toy")
def test_a_run_that_is_killed_goes_on(tmp_path, monkeypatch):
    """Interrupted after its teacher paths, the run ends as one that never stopped."""
    single = replace(SETTINGS, peers=(), guided=None, specs=SETTINGS.specs[:1], draws=1)
    monkeypatch.setitem(mnist.PRESETS, "quick", single)
    whole = mnist.run(tmp_path / "whole", "quick", device="cpu", progress=False).parent
    real = mnist.distill

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(mnist, "distill", killed)
    with pytest.raises(KeyboardInterrupt):
        mnist.run(tmp_path / "killed", "quick", device="cpu", progress=False)
    monkeypatch.setattr(mnist, "distill", real)
    again = mnist.run(tmp_path / "killed", "quick", device="cpu", progress=False).parent
    rows = [json.loads((folder / "results.json").read_text())["rows"] for folder in (whole, again)]
    for one, other in zip(*rows, strict=True):
        assert one["metrics"] == other["metrics"]


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_fit_together(preset):
    """Every student's steps divide the finest grid, and its coefficients are in the cache."""
    settings = PRESETS[preset]
    finest = len(settings.times) - 1
    for spec in settings.specs:
        assert finest % max(spec.steps) == 0
        assert spec.q <= min(spec.steps)
        assert all(max(spec.steps) % steps == 0 for steps in spec.steps)
    assert settings.n >= image_metrics_module.MINIMUM
    assert any(not spec.study for spec in settings.specs)
    assert settings.config.paths >= settings.n  # their ends are the teacher's samples
    assert len({spec.slug for spec in settings.specs}) == len(settings.specs)
