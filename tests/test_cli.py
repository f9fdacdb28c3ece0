"""The command line: what it prints, what it writes, and how it says no."""

import json
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sigdeg import ResidualMLP, SignatureStudent, VPLinear
from sigdeg.cli import main
from sigdeg.distillation import DistillConfig
from sigdeg.experiments import mixture1d, mnist
from sigdeg.report import write_report
from sigdeg.training import TrainConfig


def student(shape: tuple[int, ...] = (1,), **options) -> SignatureStudent:
    torch.manual_seed(0)
    channels = shape[0]
    network = ResidualMLP(SignatureStudent.in_channels(channels, 2), channels, 16, 1)
    return SignatureStudent(network, VPLinear(), channels, 2, sample_shape=shape, **options)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    student().save_pretrained(tmp_path / "student")
    return tmp_path / "student"


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction")
    diffusers.DDPMPipeline(network, scheduler).save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail with exit code 2 and one line; returns the line."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("sigdeg: ")
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("command", ["run", "distill", "sample", "evaluate", "report"])
def test_help_is_complete(command: str, capsys) -> None:
    """Every command has help, with its defaults."""
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert not stop.value.code
    assert command == "report" or "(default: " in capsys.readouterr().out


def test_as_a_program() -> None:
    """The installed entry point: exit code 2 and one line on stderr."""
    run = subprocess.run(
        [sys.executable, "-m", "sigdeg.cli", "run", "nothing"], capture_output=True, text=True
    )
    assert run.returncode == 2
    assert run.stderr.startswith("sigdeg: unknown experiment")
    assert run.stderr.count("\n") == 1


def test_sample_writes_what_the_seeds_say(saved: Path, tmp_path: Path) -> None:
    assert main(["sample", str(saved), "-n", "5", "--seed", "3", "--out", str(tmp_path / "a")]) == 0
    five = load_file(tmp_path / "a" / "samples.safetensors")["samples"]
    assert five.shape == (5, 1)
    assert (tmp_path / "a" / "samples.png").stat().st_size > 1000
    one = ["sample", str(saved), "-n", "1", "--seed", "7", "--steps", "10"]
    assert main([*one, "--out", str(tmp_path / "b")]) == 0
    torch.testing.assert_close(
        load_file(tmp_path / "b" / "samples.safetensors")["samples"], five[4:]
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "nothing"), "unknown experiment 'nothing': choose from mixture1d"),
        (("run", "mixture1d", "--preset", "huge"), "unknown preset 'huge': choose from quick"),
        (("sample", "nowhere"), "neither a folder nor a hub id"),
        (("distill", "nowhere"), "neither a folder nor a hub id"),
        (("report", "nowhere"), "results.json"),
    ],
)
def test_unknown_names(arguments: tuple[str, ...], words: str, tmp_path: Path, capsys) -> None:
    if arguments[0] == "run":
        arguments = (*arguments, "--out", str(tmp_path / "out"))
    assert words in refused(capsys, *arguments)
    assert not (tmp_path / "out").exists()


def test_bad_numbers_for_sampling(saved: Path, tmp_path: Path, capsys) -> None:
    out = ("--out", tmp_path / "out")
    assert "n must be at least 1" in refused(capsys, "sample", saved, "-n", 0, *out)
    assert "for 10 steps, got 0" in refused(capsys, "sample", saved, "--steps", 0, *out)
    assert "seeds must lie between" in refused(capsys, "sample", saved, "--seed", -1, *out)
    assert "unknown device" in refused(capsys, "sample", saved, "--device", "tpu", *out)
    assert "for 10 steps, got 7" in refused(capsys, "sample", saved, "--steps", 7, *out)
    assert "batch_size must be at least 1" in refused(
        capsys, "sample", saved, "--batch-size", 0, *out
    )
    assert not (tmp_path / "out").exists()


def test_bad_numbers_for_distilling(teacher: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    for option, value, words in [
        ("--steps", 0, "step count"),
        ("--order", 0, "order must be at least 1"),
        ("--iterations", 0, "iterations must be at least 1"),
        ("--refinement", 1, "refinement must be at least 2"),
        ("--samples", 1, "samples must be at least 2"),
        ("--steps", "10 4", "step counts must divide the largest"),
        ("--seed", -1, "seed must be at least 0"),
        ("--device", "foo", "unknown device 'foo': choose cpu or cuda"),
        ("--tracker", "foo", "tracker 'foo'"),
    ]:
        values = str(value).split()
        assert words in refused(capsys, "distill", teacher, option, *values, "--out", out)
        assert not out.exists()


def test_damaged_student(saved: Path, tmp_path: Path, capsys) -> None:
    weights = saved / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "not a whole safetensors file" in refused(capsys, "sample", saved)
    weights.unlink()
    assert "is missing" in refused(capsys, "sample", saved)
    (saved / "model.bin").write_bytes(b"\x80\x04.")
    assert "never opened" in refused(capsys, "sample", saved)
    student((2,)).save_pretrained(tmp_path / "other")
    weights.write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    assert "has shape" in refused(capsys, "sample", saved)


def test_teacher_without_scheduler(teacher: Path, tmp_path: Path, capsys) -> None:
    (teacher / "scheduler" / "scheduler_config.json").unlink()
    assert "holds no scheduler" in refused(capsys, "distill", teacher, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_student_of_another_teacher(saved: Path, teacher: Path, tmp_path: Path, capsys) -> None:
    line = refused(capsys, "evaluate", saved, teacher, "--out", tmp_path / "out")
    assert "it is not its teacher" in line
    student((1, 8, 8)).save_pretrained(tmp_path / "image")
    line = refused(
        capsys,
        "evaluate",
        tmp_path / "image",
        teacher,
        "--refinement",
        1,
        "--out",
        tmp_path / "out",
    )
    assert "refinement must be at least 2" in line
    assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_written(saved: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "cannot write" in refused(
        capsys, "sample", saved, "--no-progress", "--out", tmp_path / "file" / "out"
    )


def test_distil_resume_evaluate_report(teacher: Path, tmp_path: Path, capsys) -> None:
    """A folder of diffusers' becomes a run folder; the command resumes; another one is refused."""
    out = tmp_path / "out"
    command = ["distill", str(teacher), "--steps", "4", "2", "--order", "2", "--iterations", "6"]
    command += ["--batch-size", "8", "--paths", "16", "--refinement", "3", "--samples", "6"]
    command += ["--device", "cpu", "--no-progress", "--out", str(out)]
    assert main(command) == 0
    assert capsys.readouterr().out.strip() == str(out / "report.html")
    results = json.loads((out / "results.json").read_text())
    assert {(row["method"], row["nfe"]) for row in results["rows"]} == {
        ("teacher", 12),
        ("sig-deg", 4),
        ("sig-deg", 2),
        ("untrained", 4),
        ("untrained", 2),
    }
    weights = (out / "student" / "model.safetensors").read_bytes()
    assert main(command) == 0
    assert (out / "student" / "model.safetensors").read_bytes() == weights
    assert "holds another run (it differs in order" in refused(capsys, *command, "--order", "3")
    compared = tmp_path / "compared"
    options = ["--samples", "4", "--refinement", "3", "--no-progress", "--out", str(compared)]
    assert main(["evaluate", str(out / "student"), str(teacher), *options]) == 0
    for folder in (out, compared):
        page = (folder / "report.html").read_bytes()
        assert main(["report", str(folder)]) == 0
        assert (folder / "report.html").read_bytes() == page


def test_mixture1d_runs_from_end_to_end(tmp_path: Path, monkeypatch, capsys) -> None:
    """The whole benchmark at toy size: every row, finite metrics, figures, and the student."""
    quick = mixture1d.PRESETS["quick"]
    config = DistillConfig(iterations=5, batch_size=32, paths=64, tracker="none")
    tiny = mixture1d.dataclasses.replace(
        quick, config=config, teacher_iterations=5, fine_steps=20, exact_n=20_000, timing_n=50
    )
    monkeypatch.setattr(mixture1d, "TEACHER_STEPS", 12)
    monkeypatch.setitem(mixture1d.PRESETS, "quick", tiny)
    out = tmp_path / "run"
    arguments = ["run", "mixture1d", "--preset", "quick", "--no-progress", "--out", str(out)]
    assert main(arguments) == 0
    results = json.loads((out / "results.json").read_text())
    methods = [(row["method"], row["nfe"]) for row in results["rows"]]
    assert methods.count(("teacher", 13)) == 2
    assert {m for m in methods if m[0] == "sig-deg"} == {("sig-deg", k) for k in (10, 5, 1)}
    for row in results["rows"]:
        assert {"w1_exact", "w1_2000", "variance_2000"} == set(row["metrics"])
    assert all((out / figure["file"]).exists() for figure in results["figures"])
    assert SignatureStudent.from_pretrained(out / "student").steps == (5,)
    assert write_report(out) == out / "report.html"
    assert "holds another run" in refused(capsys, *arguments, "--seed", 1)


def test_mnist_runs_from_end_to_end(tmp_path: Path, monkeypatch, capsys) -> None:
    """The image benchmark at toy size: teacher saved as a pipeline, distilled, compared, shown."""
    rng = np.random.default_rng(0)
    digits = rng.integers(0, 256, (40, 28, 28), dtype=np.uint8), np.zeros(40, np.uint8)
    monkeypatch.setattr(mnist, "load_mnist", lambda split, data_dir: digits)
    options = {"iterations": 3, "batch_size": 8, "tracker": "none"}
    tiny = mnist.Settings(
        widths=(8, 8),
        teacher=TrainConfig(**options),
        student=DistillConfig(**options, paths=12, held_out=4, refinement=2),
        steps=(3,),
        order=2,
        evaluation_n=4,
    )
    monkeypatch.setitem(mnist.PRESETS, "quick", tiny)
    out = tmp_path / "run"
    arguments = ["run", "mnist", "--preset", "quick", "--no-progress", "--device", "cpu"]
    assert main([*arguments, "--out", str(out)]) == 0
    diffusers.DDPMPipeline.from_pretrained(out / "teacher")
    results = json.loads((out / "results.json").read_text())
    assert results["experiment"] == "mnist"
    assert [row["nfe"] for row in results["rows"]] == [6, 3, 3]
    assert results["rows"][0]["metrics"]["path"]["mean"] == 0
    assert (out / "figures" / "samples.png").exists()
    assert SignatureStudent.from_pretrained(out / "student").sample_shape == (1, 28, 28)
    assert main([*arguments, "--out", str(out)]) == 0  # finished: found finished
    assert "unknown preset" in refused(capsys, "run", "mnist", "--preset", "paper", "--out", out)


def test_data_that_is_not_there(tmp_path: Path, capsys) -> None:
    (tmp_path / "data").mkdir()
    line = refused(
        capsys,
        "run",
        "mnist",
        "--preset",
        "quick",
        "--data-dir",
        tmp_path / "data",
        "--out",
        tmp_path / "o",
    )
    assert "train-images-idx3-ubyte.gz" in line
    assert not (tmp_path / "o").exists()
