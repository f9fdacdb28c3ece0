"""The benchmark of grammars at toy size: every part runs, and a language may be missing."""

import json
import sys

import pytest

from sigdeg.cli import main
from sigdeg.discrete import Latent, TokenModel
from sigdeg.experiments import bench, grammar
from sigdeg.experiments.grammar import Settings
from sigdeg.training import TrainConfig

TINY = {"iterations": 2, "tracker": "none"}
SETTINGS = Settings(
    network={"width": 16, "depth": 1, "heads": 2},
    teacher=TrainConfig(**TINY, batch_size=8),
    students={"with data": {**TINY, "batch_size": 2, "latents": 2}},
    latent=Latent("weighted", 2),
    counts=(4, 2),
    n=8,
    draws=1,
    languages=(("brackets", 6), ("molecules", 10)),
    strings=60,
)
SHARES = {"invalid", "unique", "new"}


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(
        bench, "paired_seconds", lambda jobs: {k: 1.0 + len(jobs[k]()) for k in jobs}
    )
    monkeypatch.setitem(grammar.PRESETS, "quick", SETTINGS)


@pytest.mark.usefixtures("toy")
def test_runs_from_end_to_end(tmp_path):
    out = tmp_path / "run"
    command = ["run", "grammar", "--preset", "quick", "--out", str(out), "--no-progress"]
    assert main(command) == 0
    results = json.loads((out / "results.json").read_text())
    main_table = [("teacher", None), ("teacher", None), *[("di4c", "with data")] * 2]
    study = [("teacher", "4 calls"), ("teacher", "2 calls")]
    study += [("di4c", f"with data, {k} calls") for k in (4, 2)]
    assert [(row["method"], row.get("variant")) for row in results["rows"]] == main_table + study
    assert [row.get("study") for row in results["rows"]] == [None] * 4 + ["Molecules"] * 4
    assert all(row["metrics"].keys() == SHARES for row in results["rows"])
    assert all(0 <= row["metrics"][key]["mean"] <= 1 for row in results["rows"] for key in SHARES)

    model = TokenModel.from_pretrained(out / "student")
    drawn = model.codec.text(model.sample(grammar.SHOWN, 2, seed=0))
    assert results["texts"]["brackets, with data, 2 calls"] == drawn
    assert set("".join(drawn)) <= set("()[]")
    assert results["warnings"] == []
    assert "Molecules" in (out / "report.html").read_text()


@pytest.mark.usefixtures("toy")
def test_without_rdkit_brackets_stand_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    grammar.run(tmp_path / "run", "quick", progress=False)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {row.get("study") for row in results["rows"]} == {None}
    told = "There are no molecules here: rdkit is not installed: pip install 'sigdeg[chemistry]'"
    assert results["warnings"] == [told]
    assert "rdkit is not installed" in (tmp_path / "run" / "report.html").read_text()
