"""A sampler as a file draws what its student draws, anywhere, and is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import sigdeg
from sigdeg.cli import main
from sigdeg.codec import Decoder, Standardise
from sigdeg.conditions import Classes
from sigdeg.denoiser import GaussianMixtureDenoiser
from sigdeg.discrete import Absorbing, NetworkTokenDenoiser, as_token_model
from sigdeg.errors import SigdegError
from sigdeg.model import Model, as_model
from sigdeg.networks import Autoencoder, ResidualMLP, TokenMLP
from sigdeg.rng import seed_generators
from sigdeg.schedule import VPLinear
from sigdeg.student import PlainStudent, SignatureStudent
from sigdeg.timing import paired_seconds
from sigdeg.workflows.export import export

ROOT = Path(__file__).parents[2]
LATENT, LATENT_SIZE = (4, 8, 8), 256


@pytest.fixture(autouse=True)
def timed_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be timed runs once: its times matter elsewhere."""
    brief = partial(paired_seconds, rounds=1, least=0.0)
    monkeypatch.setattr("sigdeg.workflows.export.paired_seconds", brief)


class Labelled(nn.Module):
    """A network of images of classes, with a matrix product that outweighs its convolutions."""

    def __init__(self, inputs: int, channels: int, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.classes, self.time = nn.Embedding(10, width), nn.Linear(1, width)
        self.mix = nn.Sequential(
            nn.Linear(width, 32 * width), nn.SiLU(), nn.Linear(32 * width, width)
        )
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        told = self.classes(class_labels) + self.time(timestep[:, None] / 1000)
        h = self.first(x) + told[:, :, None, None]
        out: Tensor = self.last(h + self.mix(h.movedim(1, -1)).movedim(-1, 1))
        return out


def digits() -> Model:
    """A latent student of classes that has everything: covariance, look-ahead, energy noise."""
    generator = torch.Generator().manual_seed(0)
    square = LATENT_SIZE, LATENT_SIZE
    root = torch.randn(square, generator=generator, dtype=torch.float64) / LATENT_SIZE**0.5
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Labelled(SignatureStudent.in_channels(4, 2, "energy"), 4)
        codec = Decoder(Autoencoder(latent_channels=4, width=8, size=32))
    options: dict[str, Any] = {"covariance": root @ root.T, "lookahead": 0.5, "clip": 4.0}
    student = SignatureStudent(
        network,
        VPLinear(),
        4,
        2,
        steps=(2,),
        sample_shape=LATENT,
        residual_noise="energy",
        **options,
    )
    made = as_model(student.eval(), name="digits")
    return dataclasses.replace(made, codec=codec.eval(), conditions=Classes(tuple(range(10))))


def points(kind: type[SignatureStudent] = SignatureStudent, **options: Any) -> SignatureStudent:
    """A student of points in the plane, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ResidualMLP(kind.in_channels(2, 2), 2, 16, 1)
        nn.init.normal_(network.head.weight, std=0.3)
    return kind(network, VPLinear(), 2, 2, steps=(2,), **options)


def numbers(model: Model, steps: int, seeds: range) -> dict[str, np.ndarray]:
    """The inputs of a file, by the rule of the page: each sample from its own generator."""
    made: dict[str, list[Tensor]] = {"noise": [], "coefficients": []}
    for generator in seed_generators(seeds):
        made["noise"].append(torch.randn(model.shape, generator=generator))
        one = (model.gaussian.order, *model.shape)
        path = [torch.randn(one, generator=generator) for _ in range(steps)]
        made["coefficients"].append(torch.stack(path))
    return {name: torch.stack(rows).numpy() for name, rows in made.items()}


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail with exit code 2 and one line; returns the line."""
    capsys.readouterr()
    assert main(["export", *(str(a) for a in arguments), "--no-progress"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path, dict[str, Any]]:
    """The digits as files, in both precisions."""
    model, path = digits(), tmp_path_factory.mktemp("digits") / "digits.onnx"
    with pytest.MonkeyPatch.context() as patch:
        brief = partial(paired_seconds, rounds=1, least=0.0)
        patch.setattr("sigdeg.workflows.export.paired_seconds", brief)
        model.sample(1)  # what it keeps for the next batch is not what a graph of it keeps
        return model, path, export(model, path, int8=True)


def run(path: Path, feed: dict[str, np.ndarray]) -> np.ndarray:
    found: np.ndarray = onnxruntime.InferenceSession(path).run(["sample"], feed)[0]
    return found


def test_a_file_draws_what_the_student_draws_in_any_batch(exported) -> None:
    model, path, _ = exported
    for seeds in (range(7, 8), range(5, 10)):
        feed = numbers(model, 2, seeds)
        feed["class_labels"] = np.arange(len(seeds)) % 10
        expected = model.sample(len(seeds), seeds=seeds)
        assert expected.shape == (len(seeds), 1, 32, 32)
        np.testing.assert_allclose(run(path, feed), expected, atol=2e-5)
        other = {**feed, "class_labels": (feed["class_labels"] + 1) % 10}
        assert np.abs(run(path, other) - expected.numpy()).max() > 1e-3  # labels are listened to


def test_the_report_says_what_is_there(exported) -> None:
    _, path, report = exported
    assert json.loads(path.with_suffix(".json").read_text()) == report
    assert report["inputs"] == {
        "noise": {"type": "float32", "shape": [None, *LATENT]},
        "coefficients": {"type": "float32", "shape": [None, 2, 3, *LATENT]},
        "class_labels": {"type": "int64", "shape": [None]},
    }
    assert report["sample"] == {"type": "float32", "shape": [None, 1, 32, 32]}
    assert report["student"] == "digits"
    assert report["batch"] == [1, 250]  # so many does the decoder take at a time
    assert report["files"].keys() == {"digits.onnx", "digits.int8.onnx"}
    for name, found in report["files"].items():
        assert found["bytes"] == path.with_name(name).stat().st_size
        assert min(found["seconds"], found["eager_seconds"]) > 0
        assert found["largest_error"] < (1e-4 if name == path.name else 0.1)


def test_steps_share_the_weights_and_the_directions(exported) -> None:
    model, path, _ = exported
    loaded = onnx.load(path)
    onnx.checker.check_model(loaded, full_check=True)
    held = [len(value.raw_data) for value in loaded.graph.initializer]
    network = sum(p.nbytes for p in model.step.parameters())
    decoder = sum(p.nbytes for p in model.codec.autoencoder.decoder.parameters())
    once = network + decoder + 4 * LATENT_SIZE**2
    assert (
        once <= sum(held) < 1.05 * once
    )  # a matrix of the response a step would be several times that
    graph = loaded.graph
    assert not graph.value_info
    assert not any(part.metadata_props or part.doc_string for part in (graph, *graph.node))
    assert {side.dim_param for side in graph.output[0].type.tensor_type.shape.dim} == {"batch", ""}


def test_eight_bits_are_for_the_network_s_products(exported) -> None:
    _, path, report = exported
    small = path.with_suffix(".int8.onnx")
    graph = onnx.load(small).graph
    whole = [tuple(value.dims) for value in graph.initializer if value.data_type == 1]
    assert whole.count((LATENT_SIZE, LATENT_SIZE)) == whole.count((16, 32, 3, 3)) == 1
    held = {tuple(value.dims) for value in graph.initializer if value.data_type == 3}
    assert {(16, 512), (512, 16)} <= held
    assert LATENT_SIZE not in {side for sides in held for side in sides}
    assert small.stat().st_size < path.stat().st_size
    assert 1e-5 < report["files"][small.name]["relative_error"] < 0.05


def test_a_file_runs_without_torch(exported, tmp_path: Path) -> None:
    """The page's own lines, in a process that never sees torch."""
    model, path, _ = exported
    page = (ROOT / "docs/export.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (asked,) = re.findall(r"`(feed\[.class_labels.\] = .*?)`", page)
    draw = "(samples,) = "
    code = code.replace("sampler.onnx", str(path)).replace(draw, f"{asked}\n{draw}")
    code += """
import sys
assert not {"torch", "sigdeg"} & set(sys.modules)
np.savez("drawn.npz", samples=samples, **feed)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    drawn = {
        name: torch.from_numpy(value) for name, value in np.load(tmp_path / "drawn.npz").items()
    }
    x, grid = model.schedule.prior_std * drawn["noise"], model.grid.at(2)
    with torch.no_grad():
        for k in range(2):
            path = sigdeg.PartialSignature(grid[k] - grid[k + 1], drawn["coefficients"][:, k])
            x = model.step(x, grid[k], grid[k + 1], path, class_labels=drawn["class_labels"])
    torch.testing.assert_close(drawn["samples"], model.decode(x), rtol=0, atol=2e-5)


def test_a_program_of_torch_draws_the_same(tmp_path: Path) -> None:
    codec = Standardise(torch.full((2,), 2.0), torch.full((2,), 3.0))
    model = dataclasses.replace(as_model(points(PlainStudent).eval()), codec=codec)
    report = export(model, tmp_path / "sampler.pt2")
    assert report["batch"] == [1, None]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["sampler.json", "sampler.pt2"]
    program = torch.export.load(tmp_path / "sampler.pt2").module()
    for seeds in (range(1), range(3, 9)):
        feed = {name: torch.from_numpy(v) for name, v in numbers(model, 2, seeds).items()}
        drawn = program(feed["noise"], feed["coefficients"], {})
        torch.testing.assert_close(drawn, model.sample(len(seeds), seeds=seeds), rtol=0, atol=1e-5)


def test_a_fixed_batch_is_the_only_one(tmp_path: Path) -> None:
    report = export(points(), tmp_path / "two.pt2", batch=2)
    assert report["batch"] == [2, 2]
    assert report["inputs"]["noise"]["shape"] == [2, 2]
    program = torch.export.load(tmp_path / "two.pt2").module()
    with pytest.raises(AssertionError, match="noise"):
        program(torch.zeros(3, 2), torch.zeros(3, 2, 2, 2), {})


def test_the_student_stays_as_it_is(exported) -> None:
    model = exported[0]
    assert not model.step.response.factored
    assert model.step.response.directions.dtype == torch.float64
    assert all(p.requires_grad for p in model.step.network.parameters())


def test_nothing_is_left_of_an_export_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*given: Any) -> None:
        given[2][0].write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr("sigdeg.workflows.export.trace", lambda *_, **__: None)
    monkeypatch.setattr("sigdeg.workflows.export.write", stop)
    with pytest.raises(KeyboardInterrupt):
        export(points(), tmp_path / "sampler.pt2")
    assert not list(tmp_path.iterdir())


class Counting(nn.Module):
    """A network that no graph stands for: it asks what numbers it got."""

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return x[:, :2] * (1.0 if float(x.sum()) > 0 else 2.0)


def test_what_cannot_be_written_is_one_line(tmp_path: Path, capsys) -> None:
    points().save_pretrained(tmp_path / "student")
    tokens = as_token_model(NetworkTokenDenoiser(TokenMLP(4, 3, 8, 1), Absorbing(2), 4))
    tokens.save_pretrained(tmp_path / "tokens")
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.json").write_text("{}")
    (tmp_path / "also.int8.onnx").write_text("")
    before = sorted(tmp_path.rglob("*"))
    student, out = tmp_path / "student", ("--out", tmp_path / "out.onnx")
    for arguments, words in [
        ((tmp_path / "empty", *out), "holds no readable config.json"),
        (("mnist-teacher", *out), "is a diffusers pipeline, a teacher"),
        ((tmp_path / "tokens", *out), "is no student driven by paths"),
        ((student, *out, "--steps", 3), "distilled for 2 steps, got 3"),
        ((student, "--out", tmp_path / "out.h5"), "is written to a file in .onnx or .pt2"),
        ((student, "--out", tmp_path / "out.pt2", "--int8"), "eight bits are for ONNX"),
        ((student, "--out", tmp_path / "there.onnx"), "there.json exists: choose another"),
        ((student, "--out", tmp_path / "also.onnx", "--int8"), "also.int8.onnx exists"),
        ((student, "--out", tmp_path / "file/out.onnx"), "is no folder that can be written to"),
        ((student, *out, "--batch", 0), "--batch must be a whole number from 1 to"),
    ]:
        assert words in refused(capsys, *arguments), arguments
    assert sorted(tmp_path.rglob("*")) == before


def test_networks_that_cannot_be_traced_are_one_line(tmp_path: Path) -> None:
    student = SignatureStudent(Counting(), VPLinear(), 2, 2, steps=(2,))
    with pytest.raises(SigdegError, match="cannot be traced") as told:
        export(student, tmp_path / "sampler.pt2")
    assert "\n" not in str(told.value)
    with pytest.raises(SigdegError, match="a Linear is no student driven by paths"):
        export(nn.Linear(1, 1), tmp_path / "sampler.pt2")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_the_page_says_what_was_measured() -> None:
    page = (ROOT / "docs/export.md").read_text()
    rows = json.loads((ROOT / "results/benchmarks.json").read_text())["export"]
    for row in rows:
        size, kind = row["size"], row["name"].rpartition(", ")[2]
        times = [f"{1e3 * row[side]['seconds']['median']:.3g}" for side in ("first", "second")]
        errors = [f"{size[name]:.1e}" for name in ("largest_error", "relative_error")]
        ratio, large = f"{row['ratio']['median']:.2f}", f"{size['bytes'] / 1e6:.1f}"
        cells = [f"{kind}, {size['steps']} steps", *times, ratio, *errors, large]
        assert f"| {' | '.join(cells)} |\n" in page
    assert all(row["reached"] and row["size"]["largest_error"] < 1e-4 for row in rows[::2])


@pytest.mark.slow
def test_an_exact_law_inside(tmp_path: Path) -> None:
    """A student with a denoiser in it, beside a network of which each step finds its own times."""
    law = GaussianMixtureDenoiser([-1.0, 1.0], [0.3, 0.3], [1.0, 1.0], VPLinear())
    options: dict[str, Any] = {"steps": (2,), "data_std": 1.0, "inside": True}
    model = as_model(SignatureStudent.from_denoiser(law, 1, 2, **options).eval())
    export(model, tmp_path / "law.onnx")
    seeds = range(3, 9)
    expected = model.sample(len(seeds), seeds=seeds)
    drawn = run(tmp_path / "law.onnx", numbers(model, 2, seeds))
    np.testing.assert_allclose(drawn, expected, atol=1e-5)


@pytest.mark.slow
def test_the_shipped_student(tmp_path: Path, capsys) -> None:
    out = tmp_path / "mnist.onnx"
    assert main(["export", "mnist", "--steps", "5", "--out", str(out), "--no-progress"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out.with_suffix(".json"))
    model = sigdeg.load_model("mnist")
    seeds = range(20, 26)
    expected = model.sample(len(seeds), 5, seeds=seeds)
    np.testing.assert_allclose(run(out, numbers(model, 5, seeds)), expected, atol=1e-4)
    report = json.loads(out.with_suffix(".json").read_text())
    assert report["batch"] == [1, 63]  # diffusers' upsampling changes at 64
    found = report["files"]["mnist.onnx"]
    assert found["largest_error"] < 1e-4
    assert found["bytes"] < 8e6
