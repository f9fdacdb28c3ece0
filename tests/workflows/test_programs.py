"""The programs that people want to write: each in a few lines, from any teacher to samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import sigdeg
from sigdeg import (
    Exponential,
    GaussianMixtureDenoiser,
    Model,
    SigdegError,
    SignatureStudent,
    VPLinear,
)
from sigdeg.cli import main
from sigdeg.codec import Standardise
from sigdeg.integrations import Solver
from sigdeg.results import read_results
from sigdeg.schedule import expand
from sigdeg.steps import DenoiserStep
from tests.tiny import tiny_unet

SMALL: dict[str, Any] = {
    "iterations": 2,
    "batch_size": 8,
    "paths": 24,
    "held_out": 8,
    "refinement": 2,
    "tracker": "none",
    "samples": 4,
    "device": "cpu",
    "progress": False,
}

pytestmark = pytest.mark.usefixtures("timed_once")


def unet() -> Any:
    torch.manual_seed(0)
    return tiny_unet()


def test_a_user_of_diffusers(tmp_path: Path) -> None:
    """A pipeline in memory, two lines: a student in a folder that everything reads."""
    pipe = diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler())
    student = sigdeg.distill(pipe, steps=(2, 1), order=1, out=tmp_path / "run", **SMALL)
    images = student.sample(3, steps=1, seed=0)
    assert images.shape == (3, 1, 8, 8)
    assert (tmp_path / "run" / "report.html").exists()
    for folder in (tmp_path / "run", tmp_path / "run" / "student"):
        again = Model.from_pretrained(folder)
        assert torch.equal(again.sample(3, steps=1, seed=0), images)
    card = again.card
    assert (card.teacher, card.seed, card.teacher_calls) == ("DDPMPipeline", 0, 24 * 4)
    assert card.configuration is not None
    assert card.configuration["iterations"] == 2
    assert card.verdict is not None
    assert "instead of 4" in card.verdict
    assert SignatureStudent.from_pretrained(tmp_path / "run").steps == (2, 1)
    # Once more: what was judged is not judged again.
    assert (
        sigdeg.distill(pipe, steps=(2, 1), order=1, out=tmp_path / "run", **SMALL).card.verdict
        == card.verdict
    )


def prices() -> Any:
    """Random walks about 100, in steps of 3, beside their squares."""
    walk = 100 + 3 * np.random.default_rng(0).normal(size=(400, 1, 5)).cumsum(2)
    return np.concatenate([walk, walk**2], axis=1)


def test_a_quant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Series in, series of the same units out, from Python and from the command line."""
    monkeypatch.chdir(tmp_path)
    paths = prices()
    few = {"device": "cpu", "progress": False, "tracker": "none"}
    teacher = sigdeg.train_teacher(paths, out="runs/teacher", iterations=20, batch_size=64, **few)
    student = sigdeg.distill(teacher, steps=2, out="runs/student", **SMALL)
    new = student.sample(200, seed=1)
    assert new.shape == (200, 2, 5)
    mean, std = torch.from_numpy(paths.mean(0)), torch.from_numpy(paths.std(0))
    # Untrained or not: off by a few standard deviations at most, where the unit is thousands.
    assert bool(((new.mean(0) - mean).abs() < 3 * std).all())
    response: Any = getattr(student.step, "response", None)
    states = Standardise.of(torch.from_numpy(paths)).encode(torch.from_numpy(paths)).double()
    found = response.directions @ torch.diag(response.stds**2) @ response.directions.T
    torch.testing.assert_close(found, torch.cov(states.T))
    command = [
        "sample",
        "runs/student",
        "-n",
        "3",
        "--seed",
        "1",
        "--no-progress",
        "--device",
        "cpu",
    ]
    assert main(command) == 0
    written = load_file("samples/samples.safetensors")["samples"]
    torch.testing.assert_close(written, new[:3], rtol=1e-4, atol=0)
    again = sigdeg.train_teacher(paths, out="runs/teacher", iterations=20, batch_size=64, **few)
    assert torch.equal(again.sample(2, 4, seed=0), teacher.sample(2, 4, seed=0))
    distil = "distill runs/teacher --steps 2 --iterations 2 --batch-size 8 --paths 24 --samples 4"
    distil += " --refinement 2 --tracker none --device cpu --no-progress --out runs/other"
    assert main(distil.split()) == 0
    assert Model.from_pretrained("runs/other").sample(1, seed=0).shape == (1, 2, 5)
    assert main(["evaluate", "runs/other", "runs/teacher", "--samples", "4", "--no-progress"]) == 0


class SEA(DenoiserStep):
    r"""Shifted Euler: $x_s = x_t + h\,\mu(x_t + g (W/2 + H), t) + g W$."""

    order = 2

    def advance(self, x: Tensor, t: Tensor, s: Tensor, signature: Any, **condition: Any) -> Tensor:
        h, g = expand(t - s, x), expand(self.schedule.diffusion(t), x)
        shifted = x + g * (signature.W / 2 + signature.levy_area)
        return x + h * self.drift(shifted, t, **condition) + g * signature.W


def test_a_researcher(tmp_path: Path) -> None:
    """A step of one's own beside others: rows with roles, and a page."""
    denoiser = GaussianMixtureDenoiser([-2.0, 2.0], [0.5, 0.5], [0.5, 0.5], VPLinear())
    teacher = sigdeg.as_teacher(denoiser, shape=(1,))
    mine = sigdeg.distill(teacher, steps=(2,), out=tmp_path / "run", **SMALL)
    rows = sigdeg.compare(
        {"sea": SEA(denoiser), "untrained": Exponential(denoiser), "mine": mine},
        grids=[2, [1.0, 0.3, 0.0]],
        metrics={"mean": lambda x: float(x.mean().abs())},
        seeds=2,
        n=50,
    )
    told = [
        (row["method"], row["role"], row["nfe"], row["metrics"]["mean"]["n"]) for row in rows.rows
    ]
    assert told[::2] == told[1::2]
    assert told[::2] == [
        ("sea", "peer", 2, 2),
        ("untrained", "untrained", 2, 2),
        ("mine", "student", 2, 2),
    ]
    peer = {"ddim": lambda steps: Solver(denoiser, "ddim", "trailing", steps)}
    options: dict[str, Any] = {"metrics": {"m": lambda x: 1.0}, "seeds": 1, "n": 2, "shape": (1,)}
    assert [row["nfe"] for row in sigdeg.compare(peer, grids=[4, 2], **options).rows] == [4, 2]
    assert rows.report(tmp_path / "compare").exists()
    assert len(read_results(tmp_path / "compare" / "results.json")["rows"]) == 6
    with pytest.raises(SigdegError, match="no model tells the shape of a state"):
        sigdeg.compare({"sea": SEA(denoiser)}, grids=[2], metrics={"m": lambda x: 0.0})


class Table(nn.Module):
    """A network that looks whole timesteps up."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(1000, 3)
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        out: Tensor = self.layer(x) + self.rows(timestep)
        return out


def test_a_network_that_takes_whole_timesteps(tmp_path: Path) -> None:
    """A bare network and a scheduler: a teacher in one line, its student by the same call."""
    teacher = sigdeg.as_teacher(
        Table(), diffusers.DDPMScheduler(clip_sample=False), shape=(3,), timesteps="integer"
    )
    student = sigdeg.distill(teacher, steps=2, out=tmp_path, **SMALL)
    assert student.sample(4, seed=0).shape == (4, 3)
    assert student.card.teacher == "Table"


def test_a_student_teaches_one_of_fewer_steps(tmp_path: Path) -> None:
    denoiser = GaussianMixtureDenoiser([-2.0, 2.0], [0.5, 0.5], [0.5, 0.5], VPLinear())
    teacher = sigdeg.as_teacher(denoiser, shape=(1,), name="law")
    first = sigdeg.distill(teacher, steps=4, out=tmp_path / "four", **SMALL)
    guided = dataclasses.replace(first, card=dataclasses.replace(first.card, guidance=2.0))
    second = sigdeg.distill(guided, steps=2, out=tmp_path / "two", **SMALL)
    assert (second.card.teacher, second.card.guidance) == ("four", None)
    assert sigdeg.load_teacher(str(tmp_path / "four")).grid == first.grid
    assert second.grid.times == first.grid.times[::2]
    results = read_results(tmp_path / "two" / "results.json")
    assert [row["nfe"] for row in results["rows"]] == [4, 2, 2]


def test_options_that_nobody_knows(tmp_path: Path) -> None:
    denoiser = GaussianMixtureDenoiser([0.0], [1.0], [1.0], VPLinear())
    teacher = sigdeg.as_teacher(denoiser, shape=(1,))
    with pytest.raises(SigdegError, match="unknown option 'step': a Recipe's are grid"):
        sigdeg.distill(teacher, step=2, out=tmp_path / "out")
    with pytest.raises(SigdegError, match="followed by named options"):
        sigdeg.distill(teacher, 2)
    student = SignatureStudent.from_denoiser(denoiser, 1, steps=(2,))
    for call in ((student, teacher.step), ()):
        named = {} if call else {"student": student, "teacher": teacher.step}
        with pytest.raises(SigdegError, match="q must lie between 1 and 2"):
            sigdeg.distill(*call, **named, out_dir=tmp_path / "out", q=3)
    with pytest.raises(SigdegError, match="unknown option 'steps': choose from batch_size"):
        sigdeg.train_teacher(torch.randn(50, 3), tmp_path / "out", steps=3)
    with pytest.raises(SigdegError, match=r"\(n, features, dates\)"):
        sigdeg.train_teacher(torch.randn(50, 3, 8, 8), tmp_path / "out")
    with pytest.raises(SigdegError, match="1 of 50 samples hold NaN"):
        sigdeg.train_teacher(torch.randn(50, 3).index_fill(0, torch.tensor([3]), torch.nan))
    with pytest.raises(SigdegError, match="told the schedule it was trained with"):
        sigdeg.as_teacher(Table(), shape=(3,))
    assert not (tmp_path / "out").exists()


def test_an_exact_law_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Its student's network is drawn: the same again, whatever was drawn in between."""
    law = GaussianMixtureDenoiser([-2.0, 2.0], [0.5, 0.5], [0.5, 0.5], VPLinear())
    teacher = sigdeg.as_teacher(law, shape=(1,))
    first = sigdeg.distill(teacher, steps=2, out=tmp_path / "run", **SMALL)
    torch.randn(3)
    again = sigdeg.distill(teacher, steps=2, out=tmp_path / "run", **SMALL)
    assert torch.equal(again.sample(3, seed=0), first.sample(3, seed=0))
    table = sigdeg.compare({"mine": first}, [2], {"mean": lambda x: float(x.mean())}, 1, n=10)
    with pytest.raises(SigdegError, match="holds another run"):
        table.report(tmp_path / "run")
    with pytest.raises(SigdegError, match=r"learns from a step: give teacher\.step"):
        sigdeg.distill(first.step, teacher, tmp_path / "other")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labels": [1]}, r"student\.sample\(n, label="),
        ({"guidance": 2.0}, r"distill\(teacher\.guided"),
        ({"out_dir": "runs"}, "the folder of a new student is out"),
        ({"steps": "2"}, "steps are whole numbers"),
        ({"steps": (2.0, 1)}, "steps are whole numbers"),
        ({"mixed_precision": "fp8"}, "unknown mixed_precision 'fp8'"),
    ],
)
def test_options_that_are_none(options: dict[str, Any], said: str) -> None:
    law = GaussianMixtureDenoiser([0.0], [1.0], [1.0], VPLinear())
    with pytest.raises(SigdegError, match=said):
        sigdeg.distill(sigdeg.as_teacher(law, shape=(1,)), **options)
    with pytest.raises(SigdegError, match="as_teacher makes a Model of"):
        sigdeg.distill(law, steps=2)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ("paths.npy", "no array of numbers"),
        (None, "no array of numbers"),
        ([[1.0, 2.0], [3.0]], "no array of numbers"),
        (np.zeros((30, 0)), "samples have shape"),
        (np.zeros((1, 3)), "at least 20 samples"),
        (np.zeros((0, 3)), "no samples to train on"),
    ],
)
def test_samples_that_are_none(samples: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(SigdegError, match=said):
        sigdeg.train_teacher(samples, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("sampler", "n", "said"), [(3, 10, "a int is no step"), (lambda _: None, 10, "no step")]
)
def test_samplers_that_are_none(sampler: Any, n: int, said: str) -> None:
    mean = {"mean": lambda x: float(x.mean())}
    with pytest.raises(SigdegError, match=said):
        sigdeg.compare({"own": sampler}, [2], mean, n=n, shape=(1,))
    with pytest.raises(SigdegError, match="n must be at least 1"):
        sigdeg.compare({"own": sampler}, [2], mean, n=0, shape=(1,))
