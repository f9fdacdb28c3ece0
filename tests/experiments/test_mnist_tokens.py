"""Pixels as tokens at toy size: the benchmark runs, resumes, and what it keeps draws pictures."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sigdeg.cli import main
from sigdeg.discrete import DiscreteConfig, TokenModel
from sigdeg.experiments import bench, mnist_judges, mnist_tokens
from sigdeg.experiments.mnist_tokens import DRAWN, HYBRID, PRESETS, RECOGNISED, Pixels, Settings
from sigdeg.training import TrainConfig

TINY = {"iterations": 2, "batch_size": 4, "tracker": "none"}
SETTINGS = Settings(
    (
        Pixels(
            2,
            "masked",
            TrainConfig(**TINY),
            TrainConfig(**TINY),
            DiscreteConfig(**TINY, latents=2),
        ),
        Pixels(16, "gaussian", TrainConfig(**TINY), TrainConfig(**TINY)),
    ),
    width=8,
    latent=3,
    counts=(2, 1),
    n=16,
    real=20,
    timing_n=2,
)


@pytest.fixture
def toy(monkeypatch):
    """Sixty digits of noise, a preset to match, and a clock that stands still."""
    rng = np.random.default_rng(0)
    digits = rng.integers(0, 256, (60, 28, 28), dtype=np.uint8), np.arange(60, dtype=np.uint8) % 10
    monkeypatch.setattr(mnist_judges, "load_mnist", lambda split, data_dir: digits)
    monkeypatch.setattr(mnist_tokens, "SHOWN", 4)
    monkeypatch.setattr(
        bench, "paired_seconds", lambda functions: {k: 1.0 + len(f()) for k, f in functions.items()}
    )
    monkeypatch.setitem(PRESETS, "quick", SETTINGS)


@pytest.mark.usefixtures("toy")
def test_runs_from_end_to_end(tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(
        mnist_tokens, "saturation", lambda size, latents, latent: f"one of {latents}"
    )
    command = ["run", "mnist-tokens", "--preset", "quick", "--no-progress", "--device", "cpu"]
    assert main([*command, "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    rows = results["rows"]
    names = ["teacher", RECOGNISED, DRAWN]
    own = [row for row in rows if not row.get("study")]
    beside = [row for row in rows if row.get("study")]
    assert [(row["role"], row["nfe"], row.get("variant")) for row in own] == [
        ("teacher" if name == "teacher" else "student", k, None if name == "teacher" else name)
        for name in names
        for k in (2, 1)
    ] + [("student", 2, HYBRID)]
    assert {row["study"] for row in beside} == {"16 grey levels, gaussian"}
    assert [row["variant"] for row in beside] == [
        f"{name}, {calls}" for name in names[:2] for calls in ("2 calls", "1 call")
    ]
    for row in rows:
        assert {"fid", "fid_2", "recall", "diversity", "tv"} <= row["metrics"].keys()
        assert all(math.isfinite(metric["mean"]) for metric in row["metrics"].values())
        assert row["metrics"]["fid"]["n"] == 2
    assert all(row["speedup"] == 1.0 for row in own)
    assert {"fid", "recall"} <= results["floor"].keys()
    assert [found["n"] for found in results["extractors"]] == [20, 20]
    assert results["warnings"] == [f"{DRAWN}: one of 2"]
    assert (out / "figures" / "digits.png").exists()

    whole = TokenModel.from_pretrained(out)
    shipped = TokenModel.from_pretrained(out / "pretrained" / "mnist-tokens")
    assert shipped.name == whole.name == "mnist-tokens"
    for one, other in zip(shipped.step.parameters(), whole.step.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    pictures = shipped.sample(3, 1, seed=0)
    assert pictures.shape == (3, 1, 28, 28)
    assert set(pictures.unique().tolist()) <= {-1.0, 1.0}

    monkeypatch.setattr(mnist_judges.Judges, "measure", lambda *_: 1 / 0)
    monkeypatch.setattr(mnist_judges.Judges, "floor", lambda *_: {})
    assert main([*command, "--out", str(out)]) == 0  # found finished, not measured again
    again = json.loads((out / "results.json").read_text())["rows"]
    assert [row["metrics"] for row in again] == [row["metrics"] for row in rows]


@pytest.mark.usefixtures("toy")
def test_another_run_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"experiment": "mnist"}))
    command = ["run", "mnist-tokens", "--preset", "quick", "--out", str(tmp_path / "run")]
    assert main([*command, "--no-progress"]) == 2
    assert "holds another run" in capsys.readouterr().err


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_fit_together(preset):
    settings = PRESETS[preset]
    assert max(settings.counts) == settings.counts[0]
    assert settings.real <= 10_000
    titles = [pixels.title for pixels in settings.pixels]
    assert len(set(titles)) == len(titles)
    for pixels in settings.pixels:
        images = torch.linspace(-1, 1, 784).reshape(1, 1, 28, 28)
        tokens = pixels.codec.encode(images)
        pixels.make_process().check_tokens(tokens)
        assert (pixels.codec.decode(tokens) - images).abs().max() <= 1 / (pixels.levels - 1)
        replace(pixels.teacher, seed=1)
