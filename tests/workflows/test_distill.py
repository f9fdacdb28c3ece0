"""Distilling an image teacher: it is judged, nothing is lost, and what the report shows runs."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from sigdeg.cli import main
from sigdeg.codec import Decoder
from sigdeg.denoiser import NetworkDenoiser
from sigdeg.distillation import DistillConfig, Verdict
from sigdeg.errors import SigdegError
from sigdeg.integrations import load_teacher
from sigdeg.model import Model, as_model
from sigdeg.networks import Autoencoder
from sigdeg.report import write_report
from sigdeg.schedule import VPLinear
from sigdeg.workflows import evaluate
from sigdeg.workflows.distill import distill_teacher
from sigdeg.workflows.recipe import Recipe
from tests.tiny import tiny_unet

CONFIG = DistillConfig(
    iterations=2, batch_size=8, paths=16, held_out=8, refinement=2, tracker="none"
)

pytestmark = pytest.mark.usefixtures("timed_once")


def teacher(channels: int, classes: int | None = None, latent: bool = False) -> Model:
    torch.manual_seed(0)
    network = tiny_unet(channels, num_class_embeds=None if classes is None else classes + 1)
    denoiser = NetworkDenoiser(network.eval(), VPLinear(), "v_prediction")
    made = as_model(denoiser, (channels, 8, 8), "tiny")
    if not latent:
        return made
    codec = Decoder(Autoencoder(latent_channels=channels, width=8, size=32))
    return dataclasses.replace(made, codec=codec)


def run(out: Path, own: Model, n: int = 6, steps: tuple[int, ...] = (2,)) -> dict[str, Any]:
    recipe = Recipe(steps=steps, order=1, lookahead=0.5)
    distill_teacher(own, out, recipe, CONFIG, n, "cpu", progress=False)
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_any_number_of_channels(tmp_path: Path, channels: int) -> None:
    results = run(tmp_path, teacher(channels))
    assert results["figures"][0]["file"] == "figures/samples.png"
    shown = evaluate.planes(torch.rand(3, channels, 8, 8))
    assert shown.shape == (3, 1, 8, 8 * channels)
    assert (tmp_path / "report.html").exists()


def test_a_picture_that_fails_takes_nothing_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise SigdegError("no ink")

    monkeypatch.setattr(evaluate, "image_grid", fail)
    results = run(tmp_path, teacher(1))
    assert results["figures"] == []
    assert results["warnings"][-1] == "there is no picture of samples: no ink"
    assert "there is no picture of samples: no ink" in (tmp_path / "report.html").read_text()


def test_an_untrained_student_is_told_so(tmp_path: Path) -> None:
    """Two optimiser steps: nothing was learnt, and verdict, results and page say it."""
    results = run(tmp_path, teacher(1), n=16, steps=(2, 1))
    students = [row for row in results["rows"] if row["method"] == "sig-deg"]
    assert [row["verdict"]["failed"] for row in students] == [True, True]
    assert results["warnings"] == Verdict.load(tmp_path / "verdict.json").warnings
    assert "at 2 calls: no better than the untrained step; at 1 call: " in results["warnings"][0]
    page = html.unescape((tmp_path / "report.html").read_text())
    assert f'<p class="warning" role="alert">{results["warnings"][0]}</p>' in page
    assert re.search("<h1>.*no better than the untrained step</h1>", page)
    assert "quality kept" not in page
    # The reference is called what it is: there is no real data here.
    assert "real data" not in page
    assert "other samples of the teacher" in page


def test_like_is_shown_with_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, Any] = {}

    def keep(sets: Any, path: Path, titles: Any) -> None:
        shown.update(zip(titles, sets, strict=True))
        path.parent.mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(evaluate, "image_grid", keep)
    monkeypatch.setattr(evaluate, "write_report", lambda out: out)
    run(tmp_path, teacher(1), n=3, steps=(2, 1))
    assert list(shown) == ["teacher, 4 calls", "student, 2 calls", "student, 1 call"]
    assert {len(sets) for sets in shown.values()} == {6}


def test_what_is_judged_is_not_judged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tmp_path, teacher(1))
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "measure", None)
        assert run(tmp_path, teacher(1)) == first
    assert len(run(tmp_path, teacher(1), n=7)["rows"]) == 3
    assert Verdict.load(tmp_path / "verdict.json").n == 7


@pytest.mark.parametrize(
    ("classes", "latent"), [(None, False), (3, False), (None, True), (3, True)]
)
def test_the_lines_of_python_run_as_printed(
    tmp_path: Path, classes: int | None, latent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, teacher(2, classes, latent))
    page = html.unescape(write_report(tmp_path).read_text())
    match = re.search(r'<code class="python">(.*?)</code>', page, re.DOTALL)
    assert match
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(match[1], names)
    assert names["x"].shape == ((16, 1, 32, 32) if latent else (16, 2, 8, 8))


def test_real_images_beside_all_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`sigdeg evaluate --data`: metrics against data, and both references called what they are."""
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction", clip_sample=False)
    network = teacher(1).denoiser.network
    diffusers.DDPMPipeline(network, scheduler).save_pretrained(tmp_path / "t")
    run(tmp_path / "run", load_teacher(tmp_path / "t"))
    command = ["evaluate", str(tmp_path / "run" / "student"), str(tmp_path / "t"), "--samples"]
    command += ["6", "--refinement", "2", "--no-progress", "--device", "cpu", "--out"]
    out = tmp_path / "out"

    def refused(*options: str) -> str:
        assert main([*command, str(out), *options]) == 2
        assert not out.exists()
        return capsys.readouterr().err

    np.save(tmp_path / "wrong.npy", np.zeros((20, 3, 8, 8), np.uint8))
    line = refused("--data", str(tmp_path / "wrong.npy"), "--features", "pixels")
    assert "holds samples of shape (3, 8, 8), the model's images have (1, 8, 8)" in line
    assert "is neither a folder nor a file of images" in refused("--data", str(tmp_path / "none"))
    rng = np.random.default_rng(0)
    np.save(tmp_path / "data.npy", rng.integers(0, 256, (30, 8, 8), dtype=np.uint8))
    asked = ["--data", str(tmp_path / "data.npy"), "--features", "pixels"]
    assert main([*command, str(out), *asked]) == 0
    results = json.loads((out / "results.json").read_text())
    names = {"fid", "kid", "precision", "recall", "diversity"}
    assert [names <= row["metrics"].keys() for row in results["rows"]] == [True] * 3
    assert results["floor"].keys() == names
    assert results["quality"]["label"].endswith("distance to other samples of the teacher")
    page = html.unescape((out / "report.html").read_text())
    assert "real data against real data" in page
    assert "12 samples beside 18 real images, by pixels as they are" in page
    assert main([*command, str(out)]) == 2
    assert "holds another run (it differs in data, features)" in capsys.readouterr().err
