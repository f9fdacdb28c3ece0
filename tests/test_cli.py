"""The command line: what it prints, what it writes, and how it says no."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from sigdeg import ResidualMLP, SignatureStudent, VPLinear, planning
from sigdeg.cli import main
from sigdeg.codec import Decoder, Standardise, find_codec, save_codec
from sigdeg.distillation import DistillConfig
from sigdeg.experiments import mixture1d
from sigdeg.integrations import load_teacher, save_latent_pipeline
from sigdeg.model import Model, as_model
from sigdeg.networks import Autoencoder, set_null_class
from sigdeg.report import write_report
from sigdeg.sampling import sample
from sigdeg.workflows.distill import configure
from sigdeg.workflows.recipe import Recipe
from tests.tiny import tiny_unet


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
    network = tiny_unet()
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


@pytest.mark.parametrize("command", ["run", "distill", "sample", "export", "evaluate", "report"])
def test_help_is_complete(command: str, capsys) -> None:
    """Every command has help, with its defaults."""
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert not stop.value.code
    assert command == "report" or "(default: " in capsys.readouterr().out


def test_as_a_program() -> None:
    """The installed entry point: exit code 2 and one line on stderr."""
    run = subprocess.run(
        [sys.executable, "-m", "sigdeg", "run", "nothing"], capture_output=True, text=True
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
        (("run", "nothing"), "unknown experiment 'nothing': choose from digits, discrete"),
        (("run", "mixture1d", "--preset", "huge"), "unknown preset 'huge': choose from quick"),
        (("sample", "nowhere"), "nor a hub id such as user/name"),
        (("sample", "mnist-teacher"), "is a diffusers pipeline, a teacher: sigdeg distill it"),
        (("distill", "nowhere"), "nor a hub id such as user/name"),
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
    for option in ("-n", "--steps", "--batch-size"):
        line = refused(capsys, "sample", saved, option, 0, *out)
        assert f"{option} must be a whole number from 1 to" in line.replace("-n/--n", "-n")
    assert "from 0 to 4,294,967,295, got '-1'" in refused(
        capsys, "sample", saved, "--seed", -1, *out
    )
    assert "unknown device" in refused(capsys, "sample", saved, "--device", "tpu", *out)
    assert "for 10 steps, got 7" in refused(capsys, "sample", saved, "--steps", 7, *out)
    assert not (tmp_path / "out").exists()


def test_bad_numbers_for_distilling(teacher: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    for option, value, words in [
        ("--steps", 0, "--steps must be a whole number from 1 to 1,000, got '0'"),
        ("--steps", "", "at least one step count"),
        ("--order", 0, "--order must be a whole number from 1 to 64, got '0'"),
        ("--iterations", 0, "--iterations must be a whole number from 1 to"),
        ("--refinement", 1, "--refinement must be a whole number from 2 to 1,000, got '1'"),
        ("--samples", 1, "--samples must be a whole number from 2 to"),
        ("--steps", "10 4", "step counts must divide the largest"),
        ("--seed", -1, "--seed must be a whole number from 0 to 4,294,967,295, got '-1'"),
        ("--device", "foo", "unknown device 'foo': choose cpu or cuda"),
        ("--tracker", "foo", "tracker 'foo'"),
        ("--lookahead", 1.5, "--lookahead must be a number from 0 to 1, got '1.5'"),
        ("--lookahead", 1, "must lie in [0, 1), got 1.0"),
        ("--learning-rate", "nan", "--learning-rate must be a number from 1e-12 to"),
        ("--guidance", "inf", "--guidance must be a number from -1,000 to 1,000, got 'inf'"),
        ("--plan", "best", "unknown plan 'best': choose from vanilla, progressive"),
        ("--plan", "hybrid-99", "m must lie in 1..12, got 99"),
        ("--matching", -1, "--matching must be a number from 0 to 1e+06, got '-1'"),
        ("--matching", "1 --q 1", "it needs q=0, got q=1"),
        ("--start", "nowhere", "nor a hub id such as user/name"),
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
    assert "--refinement must be a whole number from 2 to" in line
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
    told = capsys.readouterr().out.splitlines()
    assert "network calls instead of 12" in told[0]
    assert told[-1] == str(out / "report.html")
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


def save_teacher(folder: Path, latent: bool, classes: int | None, told: bool = True) -> None:
    """A tiny pipeline of 8 x 8 images, of pixels or of latents of 32 x 32 images.

    With classes there is one more that means none; the folder says so unless it is not told.
    """
    torch.manual_seed(0)
    channels = 2 if latent else 1
    network = tiny_unet(channels, num_class_embeds=None if classes is None else classes + 1)
    if classes is not None and told:
        set_null_class(network, classes)
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction")
    if latent:
        decoder = Decoder(Autoencoder(latent_channels=2, width=8, size=32))
        save_latent_pipeline(network, scheduler, decoder, folder)
    else:
        diffusers.DDPMPipeline(network, scheduler).save_pretrained(folder)


@pytest.fixture(params=[False, True], ids=["pixels", "latents"])
def conditional(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An untrained student of a conditional teacher that knows three classes."""
    save_teacher(tmp_path / "t", request.param, 3)
    teacher = load_teacher(tmp_path / "t")
    torch.nn.init.normal_(teacher.denoiser.network.class_embedding.weight, std=20.0)
    shape = teacher.shape
    student = SignatureStudent.from_denoiser(
        teacher.denoiser, shape[0], 1, steps=(2,), sample_shape=shape, data_std=1.0
    )
    student.save_pretrained(tmp_path / "student")
    save_codec(teacher.codec, tmp_path / "student")
    return tmp_path / "student"


def test_samples_of_a_class_and_their_images(conditional: Path, tmp_path: Path) -> None:
    """All classes in turn or one of them; latents come out as the images they stand for."""
    student = SignatureStudent.from_pretrained(conditional)
    codec = find_codec(conditional)
    drawn = {}
    for name, options, labels in [
        ("all", ["--batch-size", "3"], [0, 1, 2, 0, 1]),
        ("one", ["--label", "2"], [2, 2, 2, 2, 2]),
    ]:
        out = tmp_path / name
        command = ["sample", str(conditional), "-n", "5", "--seed", "4", "--no-progress"]
        assert main([*command, *options, "--device", "cpu", "--out", str(out)]) == 0
        drawn[name] = load_file(out / "samples.safetensors")["samples"]
        assert (out / "samples.png").read_bytes().startswith(b"\x89PNG")
        told = torch.tensor(labels)
        shape = (5, *student.sample_shape)
        expected = sample(student, student.grid(), shape, seeds=range(4, 9), class_labels=told)
        expected = codec.decode(expected)
        if isinstance(codec, Decoder):
            assert expected.shape == (5, 1, 32, 32)
        torch.testing.assert_close(drawn[name], expected, rtol=1e-4, atol=1e-4)
    different = (drawn["all"] - drawn["one"]).abs().amax((1, 2, 3)) > 1e-2
    assert different.tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("conditional", [False], indirect=True)
def test_labels_that_are_none(conditional: Path, tmp_path: Path, capsys) -> None:
    out = ("--out", tmp_path / "out")
    line = refused(capsys, "sample", conditional, "--label", 3, *out)
    assert "label must be one of the 3 classes, got 3" in line
    assert "--label must be a whole" in refused(capsys, "sample", conditional, "--label", -1, *out)
    student().save_pretrained(tmp_path / "plain")
    line = refused(capsys, "sample", tmp_path / "plain", "--label", 0, *out)
    assert "this student knows no classes: leave --label out" in line
    assert not (tmp_path / "out").exists()


def test_a_student_is_sampled_from_within_its_folder(saved: Path, monkeypatch) -> None:
    monkeypatch.chdir(saved)
    assert main(["sample", ".", "-n", "2", "--no-progress"]) == 0
    assert load_file(saved / "samples" / "samples.safetensors")["samples"].shape == (2, 1)


@pytest.mark.usefixtures("timed_once")
def test_guided_latents_from_end_to_end(tmp_path: Path, capsys) -> None:
    """Distilled with guidance from a conditional `LDMPipeline`: sampled, compared, decoded."""
    teacher, out, compared = (tmp_path / name for name in ("teacher", "out", "compared"))
    save_teacher(teacher, True, 2, told=False)
    options = ["--refinement", "2", "--samples", "4", "--device", "cpu", "--no-progress"]
    command = ["distill", str(teacher), "--steps", "2", "--order", "1", "--iterations", "2"]
    command += ["--batch-size", "4", "--paths", "8", "--tracker", "none", *options]
    command += ["--lookahead", "0.5"]
    command += ["--guidance", "2.0", "--out", str(out)]
    assert "if it was trained with the last for that" in refused(capsys, *command)
    command[2:2] = ["--null-class", "2"]
    assert main(command) == 0
    weights = out / "paths" / "paths-00000.safetensors"
    assert set(load_file(weights)["row"].tolist()) <= {0, 1}
    assert (out / "student" / "decoder" / "config.json").exists()
    student = SignatureStudent.from_pretrained(out / "student")
    assert student.class_labels == [0, 1]
    made = {"teacher": "teacher", "guidance": 2.0, "guidance_until": 1.0, "null_class": 2}
    assert {**student.origin, **made, "seed": 0} == student.origin
    card = Model.from_pretrained(out).card
    assert card.teacher_calls == 8 * 2 * 2 * 2  # paths, steps, refinement, guidance
    assert (card.configuration["iterations"], card.fingerprint) == (
        2,
        student.origin["fingerprint"],
    )
    assert card.verdict.startswith("2 calls instead of 8: ")
    student.save_pretrained(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["origin"]["guidance"] == 2.0
    other = [*command[:-4], "--guidance", "1.0", "--out", str(out)]
    assert "holds another run (it differs in teacher)" in refused(capsys, *other)
    pair = ["evaluate", str(out / "student"), str(teacher), *options, "--out", str(compared)]
    pair += ["--null-class", "2"]
    assert main([*pair, "--guidance", "2.0"]) == 0
    assert "holds another run (it differs in guidance)" in refused(capsys, *pair, "--guidance", 1)
    capsys.readouterr()
    assert main(pair) == 0  # as the card says
    assert capsys.readouterr().err == "note: guidance 2, as the student's card says\n"
    results = json.loads((compared / "results.json").read_text())
    assert results["guidance"] == 2.0
    assert results["rows"][0]["metrics"]["path"]["mean"] == 0
    assert main(["sample", str(out / "student"), "-n", "3", "--out", str(tmp_path / "s")]) == 0
    decoded = load_file(tmp_path / "s" / "samples.safetensors")["samples"]
    assert decoded.shape == (3, 1, 32, 32)
    matched = [*command[:-2], "--start", str(out / "student"), "--matching", "2"]
    assert main([*matched, "--out", str(tmp_path / "matched")]) == 0
    assert json.loads((tmp_path / "matched" / "config.json").read_text())["q"] == 0
    assert SignatureStudent.from_pretrained(tmp_path / "matched" / "student").lookahead == 0.5


@pytest.mark.usefixtures("timed_once")
def test_a_weaker_version_from_end_to_end(tmp_path: Path, capsys) -> None:
    """A teacher that another guides is distilled, and compared with what came of it."""
    teacher, weak = tmp_path / "teacher", tmp_path / "weak"
    save_teacher(teacher, True, None)
    save_teacher(weak, True, None)
    out, compared = tmp_path / "out", tmp_path / "compared"
    options = ["--refinement", "2", "--samples", "4", "--device", "cpu", "--no-progress"]
    options += ["--weak", str(weak)]
    command = ["distill", str(teacher), "--steps", "2", "--order", "1", "--iterations", "2"]
    command += ["--batch-size", "4", "--paths", "8", "--tracker", "none", *options]
    assert "give guidance, such as 2" in refused(capsys, *command, "--out", str(out))
    early = [part for part in command if part not in ("--weak", str(weak))]
    line = refused(capsys, *early, "--guidance-until", "0.6", "--out", str(out))
    assert "there is no guidance to end at 0.6: give guidance, such as 2" in line
    assert not out.exists()
    options += ["--guidance", "1.5", "--guidance-until", "0.6"]
    never = [*command, "--guidance", "1.5", "--guidance-until", "0", "--out", str(out)]
    assert "guidance must end at a time in (0, 1], got 0.0" in refused(capsys, *never)
    assert not out.exists()
    assert main([*command, *options, "--out", str(out)]) == 0
    origin = SignatureStudent.from_pretrained(out).origin
    assert (origin["weak"], origin["guidance"], origin["guidance_until"]) == (weak.name, 1.5, 0.6)
    pair = ["evaluate", str(out / "student"), str(teacher), *options, "--out", str(compared)]
    assert main(pair) == 0
    results = json.loads((compared / "results.json").read_text())
    assert (results["weak"], results["guidance_until"]) == (str(weak), 0.6)
    assert results["rows"][0]["metrics"]["path"]["mean"] == 0
    assert results["rows"][0]["nfe"] == 6  # four steps, of which two begin below 0.6
    other = [*pair, "--guidance-until", "0.7"]
    assert "holds another run (it differs in guidance_until)" in refused(capsys, *other)


@pytest.mark.slow
def test_a_plan_on_a_planned_grid(teacher: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "out"
    few = functools.partial(planning.plan_grid, paths=300, refinement=2)
    monkeypatch.setattr(sys.modules["sigdeg.distillation.distill"], "plan_grid", few)
    command = ["distill", str(teacher), "--steps", "2", "--order", "1", "--iterations", "2"]
    command += ["--batch-size", "4", "--paths", "8", "--tracker", "none", "--samples", "4"]
    command += ["--device", "cpu", "--no-progress", "--refinement", "4", "--grid", "planned"]
    command += ["--out", str(out)]
    assert main([*command, "--plan", "progressive"]) == 0
    assert sorted(path.name for path in (out / "rounds").iterdir()) == ["01", "02"]
    assert SignatureStudent.from_pretrained(out / "student").times is not None
    assert "holds another run (it differs in plan)" in refused(capsys, *command, "--plan", "boot")


@pytest.mark.slow
def test_both_commands_plan_the_same_times(tmp_path: Path, monkeypatch, capsys) -> None:
    """Of the same teacher, guidance, seed, order and steps: there is one measurement."""
    teacher, out = tmp_path / "teacher", tmp_path / "out"
    save_teacher(teacher, False, 2, told=False)
    few = functools.partial(planning.plan_grid, paths=300, refinement=2)
    monkeypatch.setattr(sys.modules["sigdeg.distillation.distill"], "plan_grid", few)
    shared = [str(teacher), "--steps", "3", "--order", "1", "--seed", "3", "--null-class", "2"]
    shared += ["--device", "cpu", "--no-progress"]
    guided = ["--guidance", "4", "--guidance-until", "0.7"]
    command = ["distill", *shared, *guided, "--iterations", "2", "--batch-size", "4", "--paths"]
    command += ["8", "--tracker", "none", "--samples", "4", "--refinement", "4"]
    assert main([*command, "--grid", "planned", "--out", str(out)]) == 0
    measured = []
    for more in (guided, []):
        capsys.readouterr()
        options = [*more, "--paths", "300", "--refinement", "2", "--json"]
        assert main(["plan", "grid", *shared, *options]) == 0
        measured.append(json.loads(capsys.readouterr().out))
    assert SignatureStudent.from_pretrained(out / "student").grid().tolist() == measured[0]["times"]
    losses = [found["grids"]["uniform"]["measured_loss"] for found in measured]
    assert losses[0] != losses[1]  # guidance is seen
    assert "to be guided: leave --guidance" in refused(capsys, "plan", "grid", "mixture1d", *guided)


def test_guidance_needs_classes(teacher: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    denoiser = load_teacher(teacher).denoiser
    own = SignatureStudent.from_denoiser(denoiser, 1, sample_shape=(1, 8, 8))
    own.save_pretrained(tmp_path / "image")
    for command in (("distill", teacher), ("evaluate", tmp_path / "image", teacher)):
        line = refused(capsys, *command, "--guidance", "1.5", "--out", out)
        assert "knows no classes: guidance needs a conditional teacher" in line
        assert not out.exists()


@pytest.mark.slow
def test_mixture1d_runs_from_end_to_end(tmp_path: Path, monkeypatch, capsys) -> None:
    """The whole benchmark at toy size: every row, finite metrics, figures, and the student."""
    quick = mixture1d.PRESETS["quick"]
    config = DistillConfig(iterations=5, batch_size=32, paths=64, tracker="none")
    tiny = dataclasses.replace(
        quick, config=config, teacher_iterations=5, fine_steps=20, exact_n=20_000
    )
    monkeypatch.setattr(mixture1d.Mixture1D, "timing_n", 50)
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


def test_the_batch_size_leaves_the_paths_alone(teacher: Path) -> None:
    """It is an option of the training: what is simulated, and how it is filed, does not follow."""
    own, recipe = load_teacher(teacher), Recipe()
    few, many = (configure(own, recipe, batch_size=size) for size in (4, 200))
    assert (few.batch_size, many.batch_size) == (4, 200)
    for name in ("paths", "shard_size", "refinement", "fine_power", "seed"):
        assert getattr(few, name) == getattr(many, name), name
    assert (few.iterations, few.learning_rate, few.paths) == (3000, 2e-4, 5000)
    assert (few.q, configure(own, recipe, matching=1.0).q) == (1, 0)


def test_what_is_for_real_images_needs_them(
    saved: Path, teacher: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"
    for option in (("--features", "pixels"), ("--resize",)):
        line = refused(capsys, "evaluate", saved, teacher, *option, "--out", out)
        assert "--features and --resize are for real images: give --data, too" in line
    assert not out.exists()


def test_a_step_count_that_was_not_trained_for_is_told(tmp_path: Path, capsys) -> None:
    student(steps=(4, 2), data_std=1.0).save_pretrained(tmp_path / "s")
    command = ["sample", str(tmp_path / "s"), "-n", "2", "--no-progress", "--steps"]
    for steps, said in ((3, "note: this student was trained for 4, 2 steps, not for 3\n"), (2, "")):
        capsys.readouterr()
        assert main([*command, str(steps), "--out", str(tmp_path / str(steps))]) == 0
        assert capsys.readouterr().err == said


def test_samples_are_in_the_users_own_units(tmp_path: Path) -> None:
    own = student((6,), data_std=1.0)
    codec = Standardise(torch.full((2, 3), 100.0), torch.full((2, 3), 4.0))
    dataclasses.replace(as_model(own), codec=codec).save_pretrained(tmp_path / "s")
    command = ["sample", str(tmp_path / "s"), "-n", "3", "--no-progress", "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    drawn = load_file(tmp_path / "out" / "samples.safetensors")["samples"]
    states = sample(own, own.grid(), (3, 6), seeds=range(3))
    torch.testing.assert_close(drawn, 100 + 4 * states.reshape(3, 2, 3))


@pytest.mark.usefixtures("timed_once")
def test_guidance_by_a_weaker_version_is_asked_for(teacher: Path, tmp_path: Path, capsys) -> None:
    """The card has its name only: what is compared without it is told so."""
    own = SignatureStudent.from_denoiser(
        load_teacher(teacher).denoiser, 1, 1, steps=(2,), sample_shape=(1, 8, 8), lookahead=0.0
    )
    own.origin = {"guidance": 1.5, "guidance_until": 0.6, "weak": "small"}
    own.save_pretrained(tmp_path / "s")
    pair = ["evaluate", str(tmp_path / "s"), str(teacher), "--samples", "4", "--refinement", "2"]
    assert main([*pair, "--no-progress", "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().err
    assert "was distilled with guidance 1.5 below t = 0.6 by small, and is compared without" in told
    assert "give --guidance 1.5 --weak small" in told
