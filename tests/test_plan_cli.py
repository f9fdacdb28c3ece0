"""`sigdeg plan`: what it prints, what it writes, and how it says no."""

import json
import math
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sigdeg.cli import main
from sigdeg.discrete import (
    Absorbing,
    Latent,
    MixtureStudent,
    NetworkTokenDenoiser,
    as_token_model,
)
from sigdeg.integrations import load_teacher
from sigdeg.networks import TokenMLP
from sigdeg.planning import parse_plan, vanilla
from sigdeg.rng import seeded
from sigdeg.workflows.plan.commands import Answer
from sigdeg.workflows.plan.sources import sample_spectrum


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        sample_size=4,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    folder = tmp_path_factory.mktemp("teachers") / "tiny"
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture
def eigenvalues(tmp_path: Path) -> Path:
    file = tmp_path / "square.csv"
    file.write_text("\n".join(str(32 * k**-2.0 / 1.613) for k in range(1, 33)))
    return file


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a planning command that must fail with exit code 2 and one line; returns the line."""
    capsys.readouterr()
    assert main(["plan", *(str(a) for a in arguments)]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert err.startswith("sigdeg: ")
    assert not out
    return err


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    """What a planning command prints with --json."""
    capsys.readouterr()
    assert main(["plan", *(str(a) for a in arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("command", ["spectrum", "merge", "grid", "phase"])
def test_help_is_complete(command: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["plan", command, "--help"])
    assert not stop.value.code
    out = capsys.readouterr().out
    assert "(default: " in out
    assert "--json" in out
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "Plan a distillation" in capsys.readouterr().out


def test_a_spectrum_goes_from_samples_to_the_other_commands(tmp_path: Path, capsys) -> None:
    rng = np.random.default_rng(0)
    data = (rng.standard_normal((1500, 8)) * np.arange(1, 9) ** -1.0).reshape(1500, 2, 4)
    np.save(tmp_path / "data.npy", data.astype(np.float32))
    save_file({"x": torch.from_numpy(data)}, tmp_path / "data.safetensors")
    assert main(["plan", "spectrum", str(tmp_path / "data.npy"), "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "data.npy: 8 directions of 1,500 samples" in out
    assert "mixed: " in out or "every variance is at most" in out
    assert "warning" not in out
    assert (tmp_path / "spectrum.png").stat().st_size > 5000
    saved = json.loads((tmp_path / "spectrum.json").read_text())
    expected = np.linalg.eigvalsh(np.cov(data.reshape(1500, 8).T))[::-1]
    np.testing.assert_allclose(saved["eigenvalues"], expected, rtol=1e-5)
    again = answer(capsys, "spectrum", tmp_path / "data.safetensors")
    np.testing.assert_allclose(again["eigenvalues"], expected, rtol=1e-10)
    other = answer(capsys, "merge", tmp_path / "spectrum.json", "-T", 8)
    assert other["source"] == "data.npy"


def test_merging_is_planned(eigenvalues: Path, tmp_path: Path, capsys) -> None:
    found = answer(capsys, "merge", eigenvalues, "-T", 32, "-s", 0.5, "--schedule", "cosine")
    assert (found["recommended"], found["regime"]) == ("hybrid-22", "mixed")
    assert found["plans"]["equal-s"]["hybrid-22"]["w2"] == pytest.approx(1.585, abs=2e-3)
    assert found["gain"] == pytest.approx(1.868 / 1.585, rel=1e-3)
    assert found["windows"] == pytest.approx([1.0503, 2.0012], abs=1e-4)
    assert parse_plan(found["plan"], 32) == parse_plan("hybrid-22", 32)
    assert len(found["merges"]) == 11
    assert main(["plan", "merge", str(eigenvalues), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "Recommended under equal-s: hybrid-22, 1.18 times as near as one-shot" in out
    assert "merge steps 11 to 32 at once, then add one step at a time to the data" in out
    assert "equal-compute" in out
    assert (tmp_path / "out" / "plan.png").stat().st_size > 5000
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["recommended"] == "hybrid-22"
    fair = answer(capsys, "merge", eigenvalues, "--accounting", "equal-steps", "-T", 16)
    assert fair["recommended"] == "vanilla"
    assert parse_plan(fair["plan"], 16) == vanilla(16)
    assert answer(capsys, "merge", "mixture1d", "--schedule", "vp")["regime"] == "vanilla"


def test_a_grid_is_planned(eigenvalues: Path, tmp_path: Path, capsys) -> None:
    options = ("--steps", 4, "--fine-steps", 64, "--out", tmp_path / "out")
    found = answer(capsys, "grid", eigenvalues, *options)
    assert found["recommended"] == "planned"
    assert found["times"] == found["grids"]["planned"]["times"]
    assert found["grids"]["planned"]["w2"] < 0.6 * found["grids"]["uniform"]["w2"]
    assert (tmp_path / "out" / "grid.png").stat().st_size > 5000
    assert main(["plan", "grid", *map(str, (eigenvalues, *options[:-2]))]) == 0
    times = capsys.readouterr().out.strip().rpartition("--times ")[2].split()
    np.testing.assert_allclose([float(t) for t in times], found["times"], rtol=1e-5)
    exact = answer(capsys, "grid", eigenvalues, "--steps", 2, "--residual-noise", *options[2:4])
    assert exact["lossless"]
    slow = ("--budget", 1.0, "--start", "zero", "--order", 1, "--schedule", "cosine")
    assert answer(capsys, "grid", eigenvalues, *options[:4], *slow)["times"][0] == 0.995


def test_a_teacher_is_measured(teacher: Path, tmp_path: Path, capsys) -> None:
    few = ("--samples", 40, "--paths", 60, "--candidates", 6, "--refinement", 2, "--axes", 3)
    options = ("--steps", 3, "--fine-steps", 48, *few, "--no-progress")
    found = answer(capsys, "grid", teacher, *options, "--out", tmp_path)
    assert found["source"] == "tiny, its own samples, 10 steps each"
    assert set(found["grids"]) >= {"planned", "measured", "uniform"}
    losses = {name: grid["measured_loss"] for name, grid in found["grids"].items()}
    assert losses["measured"] == pytest.approx(min(losses.values()))
    assert found["ratio"] == pytest.approx(losses["planned"] / losses["measured"])
    assert found["recommended"] == ("measured" if found["ratio"] > 2 else "planned")
    assert any("only 60 samples" in text for text in found["warnings"])
    assert answer(capsys, "grid", teacher, *options)["times"] == found["times"]  # same seed
    without = answer(capsys, "grid", teacher, *options, "--no-measure")
    assert "measured" not in without["grids"]
    assert any("only 40 samples" in text for text in without["warnings"])
    assert main(["plan", "grid", *map(str, (teacher, *options))]) == 0
    out = capsys.readouterr().out
    assert "times what the measured one loses" in out
    assert "warning: only 60 samples" in out


def test_a_teacher_gives_a_spectrum_and_a_plan(teacher: Path, capsys) -> None:
    options = ("--samples", 20, "--sampling-steps", 4, "--no-progress")
    found = answer(capsys, "spectrum", teacher, *options)
    assert found["samples"] == 20
    assert sum(found["multiplicity"]) == 16
    original = load_teacher(teacher)
    drawn = sample_spectrum(original, 20, 4, progress=False)
    np.testing.assert_array_equal(drawn.eigenvalues, found["eigenvalues"])


def test_the_phase_diagram(tmp_path: Path, capsys) -> None:
    found = answer(capsys, "phase", "-T", 6, "--out", tmp_path / "out")
    kind = np.array(found["kind"])
    inside = (np.array(found["eigenvalues"]) > found["windows"][0]) & (
        np.array(found["eigenvalues"]) < found["windows"][1]
    )
    assert (kind[inside] == 1).mean() > 0.9
    assert set(kind[~inside].ravel()) == {0, 2}
    assert sum(found["share"].values()) == pytest.approx(1)
    assert (tmp_path / "out" / "phase.png").stat().st_size > 5000
    assert main(["plan", "phase", "-T", "6", "--accounting", "equal-steps"]) == 0
    assert "vanilla on 100% of the diagram" in capsys.readouterr().out


def test_unreadable_data_are_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "broken.npy").write_text("no array")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "words.csv").write_text("one,two")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "negative.csv").write_text("1,-0.5")
    (tmp_path / "nan.json").write_text("[1.0, NaN]")
    (tmp_path / "broken.safetensors").write_text("no tensors")
    save_file({"a": torch.ones(2, 1), "b": torch.ones(2, 1)}, tmp_path / "two.safetensors")
    np.save(tmp_path / "one.npy", np.ones((1, 3)))
    np.save(tmp_path / "gap.npy", np.array([[1.0], [math.nan]]))
    for file, words in (
        ("none.npy", "cannot read"),
        ("broken.npy", "cannot read"),
        ("broken.json", "cannot read"),
        ("broken.safetensors", "is not a whole safetensors file"),
        ("words.csv", "something else than numbers"),
        ("empty.csv", "holds no eigenvalues"),
        ("negative.csv", "finite and not negative, got -0.5"),
        ("nan.json", "finite and not negative, got nan"),
        ("two.safetensors", "must hold one tensor of samples, it holds 2"),
        ("one.npy", "at least two samples"),
        ("gap.npy", "must be finite"),
        ("folder", "nor a hub id"),
    ):
        for command in ("spectrum", "merge", "grid"):
            out = tmp_path / "out"
            assert words in refused(capsys, command, tmp_path / file, "--out", out)
            assert not out.exists()


def test_numbers_out_of_range_are_refused(eigenvalues: Path, teacher: Path, capsys) -> None:
    for arguments, words in (
        (
            ("merge", eigenvalues, "-T", 1),
            "-T/--teacher-steps must be a whole number from 2 to 1,0",
        ),
        (("merge", eigenvalues, "-T", 1001), "from 2 to 1,000, got '1001'"),
        (("merge", eigenvalues, "-s", 0), "s must be positive and finite, got 0"),
        (("merge", eigenvalues, "-s", "nan"), "must be a number from 0 to 1e+06, got 'nan'"),
        (("grid", eigenvalues, "--steps", 0), "--steps must be a whole number from 1 to 1,000"),
        (("grid", eigenvalues, "--steps", 300), "1 to 256 steps, got 300"),
        (("grid", eigenvalues, "--order", 0), "--order must be a whole number from 1 to 64, got"),
        (
            ("grid", eigenvalues, "--budget", -1),
            "--budget must be a number from 0 to inf, got '-1'",
        ),
        (("grid", eigenvalues, "--fine-steps", 0), "from 2 to 1,000, got '0'"),
        (("phase", "-T", 129), "takes 2 to 128 steps, got 129"),
        (("phase", "--variances", 2, 1), "variances must be two positive numbers that rise"),
        (("phase", "--training-times", 0, 1), "--training-times must be a number from 1e-09 to"),
        (("spectrum", teacher, "--samples", 1), "from 2 to 10,000,000, got '1'"),
        (("spectrum", teacher, "--sampling-steps", 0), "from 1 to 1,000, got '0'"),
    ):
        assert words in refused(capsys, *arguments)


def test_a_teacher_that_cannot_be_measured_is_refused(teacher: Path, tmp_path, capsys) -> None:
    few = ("--samples", 8, "--steps", 2, "--fine-steps", 24, "--no-progress")
    for arguments, words in (
        (("--candidates", 2), "2 steps need more than 2 candidates"),
        (("--paths", 5, "--candidates", 4), "features need more than 5 paths: simulate more"),
        (("--refinement", 1, "--candidates", 4), "--refinement must be a whole number from 2 to"),
        (("--axes", 0), "--axes must be a whole number from 1 to 4,096, got '0'"),
        (("--schedule", "vp"), "a teacher brings its own schedule: leave --schedule out"),
    ):
        out = tmp_path / "out"
        assert words in refused(capsys, "grid", teacher, *few, *arguments, "--out", out)
        assert not out.exists()


def test_json_is_json(tmp_path: Path) -> None:
    """Numbers that JSON does not know are null, on paper and on disk."""
    result = {"w2": math.nan, "gains": [math.inf, {"of": -math.inf}], "s": 0.5}
    answer = Answer("plan", result, [], {})
    answer.save(tmp_path, {})
    known = {"w2": None, "gains": [None, {"of": None}], "s": 0.5}
    for text in (answer.json, (tmp_path / "plan.json").read_text()):
        found = json.loads(text, parse_constant=pytest.fail)
        assert known.items() <= found.items()


def test_tokens_of_a_known_law_are_planned_exactly(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Two bits: nothing is better than even steps, and N of them err by 1 / (2 N)."""
    arguments = ["bits2", "--distance", 0.13, "--candidates", 16, "--out", tmp_path]
    found = answer(capsys, "tokens", *arguments)
    assert (found["exact"], found["steps"], found["warnings"]) == (True, 4, [])
    assert found["times"] == [1, 0.75, 0.5, 0.25, 0]
    for row in found["rows"]:
        assert row["distance"] == pytest.approx(0.5 / row["steps"], abs=1e-9)
        assert row["nats"] == pytest.approx(math.log(2) / row["steps"], abs=1e-7)
    assert {file.name for file in tmp_path.iterdir()} == {"tokens.json", "tokens.png"}
    assert main(["plan", "tokens", *map(str, arguments)]) == 0
    out = capsys.readouterr().out
    assert "Recommended: 4 steps, the fewest for 0.13\ntimes 1 0.75 0.5 0.25 0\n" in out
    assert "total variation" in out


def test_tokens_of_a_network_are_planned_by_what_it_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A network that says the same whatever it sees loses nothing: its tokens are independent."""
    network = seeded(0, lambda: TokenMLP(3, 4, 8, 1, timed=False))
    torch.nn.init.zeros_(network.head.weight)
    model = as_token_model(NetworkTokenDenoiser(network, Absorbing(3), 3), name="blind")
    model.save_pretrained(tmp_path / "blind")
    small = ["--samples", 8, "--candidates", 4, "--no-progress", "--steps", 2]
    found = answer(capsys, "tokens", tmp_path / "blind", *small)
    assert not found["exact"]
    assert "upper bounds" in found["warnings"][0]
    assert [row["steps"] for row in found["rows"]] == [1, 2, 4]
    for row in found["rows"]:
        assert row["nats"] == pytest.approx(0, abs=1e-6)
        assert row["distance"] == pytest.approx(0, abs=1e-3)
    long = answer(capsys, "tokens", "sudoku4", *small)
    one, two, four = (row["nats"] for row in long["rows"])
    assert one > two > four == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["bits2", "--steps", 2, "--distance", 0.1], "either steps or a distance, not both"),
        (["bits2", "--distance", 0.01], "32 steps come within 0.0156, not 0.01: allow more"),
        (["bits2", "--steps", 5, "--candidates", 4], "at most 4 steps, got 5"),
        (["bits2", "--distance", 0], "distance must"),
        (["nothing/here"], "nothing/here"),
        (["student"], "a mixture: plan for the teacher of it"),
    ],
)
def test_plans_of_tokens_that_cannot_be_are_refused(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[object],
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    latent = {"kind": "uniform", "size": 1}
    network = TokenMLP(3, 4, 8, 1, latent=latent)
    as_token_model(MixtureStudent(network, Absorbing(3), 3, Latent())).save_pretrained("student")
    assert line in refused(capsys, "tokens", *arguments)
