"""The benchmark of text at toy size: every part runs, resumes, and what it writes can be used."""

import json
import math

import pytest
import torch

from sigdeg.cli import main
from sigdeg.datasets import windows
from sigdeg.discrete import Characters, Latent, TokenModel
from sigdeg.experiments import bench, text
from sigdeg.experiments.scorer import Scorer, train_scorer
from sigdeg.experiments.text import Settings
from sigdeg.metrics import text_metrics
from sigdeg.rng import seeded
from sigdeg.training import TrainConfig

TINY = TrainConfig(iterations=3, batch_size=8, tracker="none")
SETTINGS = Settings(
    network={"width": 16, "depth": 1, "heads": 2},
    teacher=TINY,
    students={"with data": {"iterations": 2, "batch_size": 2, "latents": 2, "tracker": "none"}},
    recognised={"latents recognised": TINY},
    latent=Latent("weighted", 2),
    heard=Latent("gaussian", 2),
    seeds=2,
    counts=(4, 2),
    n=6,
    length=8,
    scorer=TINY,
    width=8,
    unseen=8,
    shown=(2,),
)
KINDS = (*SETTINGS.students, *SETTINGS.recognised)
VERSES = "".join(f"{i} o brave new world that has such people in it!\n" for i in range(40))


@pytest.fixture
def toy(monkeypatch):
    """Forty lines for the text, and samplers that are timed once."""
    monkeypatch.setattr(text, "load_text", lambda data_dir: VERSES)
    monkeypatch.setattr(
        bench, "paired_seconds", lambda jobs: {k: 1.0 + len(jobs[k]()) for k in jobs}
    )
    monkeypatch.setitem(text.PRESETS, "quick", SETTINGS)


@pytest.mark.usefixtures("toy")
def test_runs_from_end_to_end(tmp_path, monkeypatch):
    out = tmp_path / "run"
    command = ["run", "text", "--preset", "quick", "--out", str(out), "--no-progress"]
    assert main(command) == 0
    results = json.loads((out / "results.json").read_text())
    told = [
        (row["method"], row.get("variant"), row["nfe"], row["seeds"]) for row in results["rows"]
    ]
    assert told == [
        ("teacher", None, 4, 1),
        ("teacher", None, 2, 1),
        *(("di4c", kind, k, 2) for kind in KINDS for k in (4, 2)),
    ]
    beside = {"perplexity", "entropy", "entropy_4", "distinct_4", "self_bleu"}
    assert results["floor"].keys() == beside
    for row in results["rows"]:
        assert row["metrics"].keys() - {"bound"} == beside
        assert all(row["metrics"][key]["n"] == 2 * row["seeds"] for key in beside)

    model = TokenModel.from_pretrained(out / "student")
    assert model.codec == Characters("".join(sorted(set(VERSES))))
    drawn = model.sample(text.SHOWN, 2, seed=0)
    assert results["texts"]["with data, 2 calls"] == model.codec.text(drawn)
    assert results["texts"]["the test text"][0] in VERSES
    assert "with data, 2 calls" in (out / "report.html").read_text()

    for part in ("measure", "bound"):  # what is found is found: nothing is judged again
        monkeypatch.setattr(text.Text, part, lambda *_: 1 / 0)
    monkeypatch.setattr(text.Text, "floor", lambda _: {})
    assert main(command) == 0
    again = json.loads((out / "results.json").read_text())["rows"]
    assert [row["metrics"] for row in again] == [row["metrics"] for row in results["rows"]]


def test_a_scorer_is_a_law_of_what_comes_next(tmp_path):
    """Its probabilities sum to 1 over all texts; it learns a text that says the same for ever."""
    scorer = seeded(0, lambda: Scorer(3, 8))
    every = torch.cartesian_prod(*[torch.arange(3)] * 4)
    assert scorer(every).sum(1).exp().sum().item() == pytest.approx(1, abs=1e-5)

    song = torch.tensor([0, 1, 2, 1]).repeat(100)
    config = TrainConfig(iterations=150, batch_size=16, learning_rate=2e-2, ema=0.9, tracker="none")
    found, curve = train_scorer(
        scorer, song, song[:80], 8, tmp_path / "scorer", config, device="cpu", progress=False
    )
    # The first of 8 is a matter of chance, and so is what comes after it where that is a 1.
    pieces, best = windows(song, 8, 1)[:4], 2 * math.log(2) / 8
    with torch.no_grad():
        perplexity = text_metrics(pieces, found)["perplexity"]
    assert math.log(perplexity) == pytest.approx(best, abs=0.05)
    assert curve[-1, 2] < curve[0, 2]
