"""Models of tokens through the commands: distilled, judged, sampled from, compared, refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sigdeg import distill, load_model
from sigdeg.cli import main
from sigdeg.discrete import (
    Absorbing,
    Characters,
    DiscreteConfig,
    ExactDenoiser,
    GreyLevels,
    Latent,
    NetworkTokenDenoiser,
    TokenModel,
    as_token_model,
)
from sigdeg.discrete.recipe import configure
from sigdeg.errors import SigdegError
from sigdeg.networks import TokenMLP
from sigdeg.rng import seeded
from sigdeg.workflows.tokens import as_numbers, distill_tokens, load_tokens

pytestmark = pytest.mark.usefixtures("timed_once")

SUPPORT = torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0], [1, 0, 1, 1]])
EXACT = as_token_model(ExactDenoiser(SUPPORT, torch.ones(3), Absorbing(2)), name="three")
QUICK: dict[str, Any] = {"iterations": 2, "batch_size": 8, "latents": 4, "tracker": "none"}
PLACE: dict[str, Any] = {"device": "cpu", "progress": False}


@pytest.fixture
def timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be timed runs once: its times matter elsewhere."""
    monkeypatch.setattr(
        "sigdeg.workflows.tokens.paired_seconds",
        lambda functions: {k: 1.0 + len(f()) for k, f in functions.items()},
    )


def network(**options: Any) -> TokenMLP:
    return seeded(0, lambda: TokenMLP(4, 3, 32, 1, timed=False, **options))


def teacher(codec: Any = None) -> TokenModel:
    """An untrained one."""
    made = as_token_model(NetworkTokenDenoiser(network(), Absorbing(2), 4), name="tiny")
    return made if codec is None else dataclasses.replace(made, codec=codec)


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_a_student_that_learnt_is_told_from_one_that_did_not(tmp_path: Path) -> None:
    """Three sequences of four tokens: the product draws others, at every count of steps."""
    latent = Latent("weighted", 6)
    options = {"iterations": 300, "learning_rate": 1e-2, "ema": 0.98, "warmup": 10}
    config = configure(EXACT, tracker="none", **options)
    own = network(latent=dataclasses.asdict(latent))
    data = SUPPORT.repeat(100, 1)
    out = tmp_path / "run"
    more = {"steps": (2, 1), "latent": latent, "data": data, "network": own, "samples": 600}
    made = distill_tokens(EXACT, out, config, **more, **PLACE)
    found = read(out)
    assert [(row["method"], row["role"], row["steps"]) for row in found["rows"]] == [
        ("teacher", "teacher", 64),
        ("di4c", "student", 2),
        ("product", "untrained", 2),
        ("di4c", "student", 1),
        ("product", "untrained", 1),
    ]
    far = {(r["method"], r["steps"]): r["metrics"]["sliced_w1"]["mean"] for r in found["rows"]}
    assert far["di4c", 1] < far["product", 1] / 2
    assert found["rows"][3]["verdict"]["equal"]
    assert found["warnings"] == []
    assert "path" not in found["rows"][0]["metrics"]
    assert made.card.verdict is not None
    assert load_model(out).card.verdict == made.card.verdict
    page = (out / "report.html").read_text()
    assert "load_model" in page
    assert "Di4C" in page

    bad = tmp_path / "bad"
    few = dataclasses.replace(config, iterations=1, learning_rate=1e-9)
    distill_tokens(EXACT, bad, few, **more, **PLACE)
    said = " ".join(read(bad)["warnings"])
    assert "than the untrained step" in said
    assert "try more iterations, more latents" in said


def test_saturated_latents_are_a_warning_of_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sigdeg.discrete.objective.NEAR_ONE", 100.0)
    config = DiscreteConfig(**QUICK)
    more = {"steps": (1,), "latent": Latent(), "data": SUPPORT.repeat(9, 1)}
    distill_tokens(teacher(), tmp_path, config, **more, **PLACE)
    assert any("try more latents" in said for said in read(tmp_path)["warnings"])


def test_the_commands_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codec = GreyLevels(2, 2, 2)
    teacher(codec).save_pretrained(tmp_path / "teacher")
    np.save(tmp_path / "data.npy", SUPPORT.repeat(9, 1).numpy().astype(np.uint8))
    run, place = tmp_path / "run", ["--device", "cpu", "--no-progress"]
    quick = ["--iterations", "2", "--batch-size", "8", "--latents", "4", "--alpha", "0.5"]
    told = ["--steps", "2", "1", "--samples", "8", "--tracker", "none", *quick, *place]
    given = [str(tmp_path / "teacher"), "--data", str(tmp_path / "data.npy"), "--out", str(run)]
    np.save(tmp_path / "data.npy", codec.decode(SUPPORT.repeat(9, 1)).numpy())
    assert main(["distill", *given, *told]) == 0
    with monkeypatch.context() as changed:  # again: it is there, and so is what judging found
        changed.setattr("sigdeg.workflows.tokens.measure", None)
        assert main(["distill", *given, *told]) == 0
    assert str(run / "report.html") in capsys.readouterr().out
    assert read(run)["figures"]
    drawn = tmp_path / "drawn"
    assert main(["sample", str(run), "-n", "5", "--steps", "1", "--out", str(drawn), *place]) == 0
    samples = load_file(drawn / "samples.safetensors")["samples"]
    assert samples.shape == (5, 1, 2, 2)
    assert set(samples.unique().tolist()) <= {-1.0, 1.0}
    assert (drawn / "samples.png").exists()
    compared = ["--samples", "8", "--out", str(tmp_path / "compared"), *place]
    assert main(["evaluate", str(run), str(tmp_path / "teacher"), *compared]) == 0
    rows = read(tmp_path / "compared")["rows"]
    assert [row["steps"] for row in rows] == [64, 2, 2, 1, 1]
    assert load_model(run).card.command.split()[0] == "sigdeg"


def test_texts_are_written_as_texts(tmp_path: Path) -> None:
    teacher(Characters("a\n")).save_pretrained(tmp_path / "model")
    out = tmp_path / "drawn"
    told = ["-n", "3", "--steps", "2", "--out", str(out), "--device", "cpu", "--no-progress"]
    assert main(["sample", str(tmp_path / "model"), *told]) == 0
    lines = [json.loads(line) for line in (out / "samples.txt").read_text().splitlines()]
    tokens = load_file(out / "samples.safetensors")["samples"]
    assert lines == Characters("a\n").text(tokens)
    assert len(lines) == 3


def test_in_python_options_are_those_of_tokens(tmp_path: Path) -> None:
    made = distill(
        teacher(),
        steps=1,
        out=tmp_path / "run",
        data=SUPPORT.repeat(9, 1),
        samples=8,
        latent=Latent("gaussian", 2),
        **QUICK,
        **PLACE,
    )
    assert isinstance(made, TokenModel)
    assert made.denoiser.latent == Latent("gaussian", 2)
    assert made.grid.steps == (1,)
    with pytest.raises(SigdegError, match="unknown option 'order' of a teacher of tokens"):
        distill(teacher(), order=4)


def test_data_are_read_as_the_model_knows_them(tmp_path: Path) -> None:
    text = tmp_path / "some.txt"
    text.write_text("abbaab" + "ab")
    found = load_tokens(text, teacher(Characters("ab")))
    assert found.tolist() == [[0, 1, 1, 0], [0, 1, 0, 1]]
    file = tmp_path / "some.npy"
    np.save(file, SUPPORT.numpy())
    assert torch.equal(load_tokens(file, teacher()), SUPPORT)


def test_rare_symbols_are_told_apart_by_random_vectors() -> None:
    """Of few symbols by one-hots: then the squared distance is twice the positions that differ."""
    numbers = as_numbers(SUPPORT, EXACT)
    assert numbers.shape == (3, 3, 4)
    apart = torch.cdist(numbers.flatten(1), numbers.flatten(1)).square() / 2
    unequal = (SUPPORT[:, None] != SUPPORT).sum(2)
    torch.testing.assert_close(apart, unequal.float(), rtol=0, atol=1e-5)
    wide = as_token_model(ExactDenoiser(torch.tensor([[0], [999]]), torch.ones(2), Absorbing(1000)))
    vectors = as_numbers(torch.arange(1000)[:, None], wide)
    assert vectors.shape == (1000, 32, 1)
    assert float(torch.pdist(vectors.flatten(1)).min()) > 0.3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--order", "3"], "--order is for teachers that paths drive, not for one of tokens"),
        (["--plan", "boot"], "--plan is for teachers that paths drive"),
        (["--latents", "1"], "latents must be at least 2"),
        (["--alpha", "4"], "the correlation loss alone has no lower bound"),
        (["--guidance", "2"], "knows no classes"),
        (["--data", "nowhere.npy"], "there is no file nowhere.npy"),
        (["--data", "bad.npy"], "must hold whole numbers (n, 4), got float64 of (3, 4)"),
        (["--data", "mask.npy"], "hold the mask symbol 2"),
        (["--data", "some.txt"], "tiny has no characters"),
    ],
)
def test_what_does_not_apply_is_refused_in_one_line(
    options: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    teacher().save_pretrained("tiny")
    np.save("bad.npy", SUPPORT.double().numpy())
    np.save("mask.npy", SUPPORT.numpy() + 1)
    Path("some.txt").write_text("abcd")
    assert main(["distill", "./tiny", "--out", "run", *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not Path("run").exists()


def test_options_of_tokens_are_refused_by_other_teachers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["--latents", "8", "--out", str(tmp_path / "run")]
    assert main(["distill", "mnist-teacher", *told]) == 2
    assert "--latents is for teachers of tokens: leave it out" in capsys.readouterr().err


def test_a_student_of_another_teacher_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher().save_pretrained(tmp_path / "one")
    other = as_token_model(NetworkTokenDenoiser(network(), Absorbing(2, schedule="cosine"), 4))
    other.save_pretrained(tmp_path / "two")
    told = [str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "out")]
    assert main(["evaluate", *told]) == 2
    assert "it is not its student" in capsys.readouterr().err
    assert main(["evaluate", told[0], told[0], *told[2:]]) == 2
    assert "tiny is a teacher: evaluate compares a student with it" in capsys.readouterr().err


def test_a_guided_teacher_teaches(tmp_path: Path) -> None:
    """By a weaker version of itself: the student starts with its own network."""
    guided = teacher().guided(2.0, weak=teacher())
    config = DiscreteConfig(**QUICK)
    data = SUPPORT.repeat(9, 1)
    made = distill_tokens(guided, tmp_path, config, steps=(1,), data=data, samples=8, **PLACE)
    assert made.card.guidance == 2.0
    rows = read(tmp_path)["rows"]
    assert [row["nfe"] for row in rows] == [128, 1, 2]
    with pytest.raises(SigdegError, match="at all times"):
        teacher().guided(2.0, 0.5, teacher())
