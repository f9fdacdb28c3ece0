"""The benchmark of known laws at toy size: every part runs, and its numbers are exact."""

import json

import pytest

from sigdeg.cli import main
from sigdeg.datasets import load_problem
from sigdeg.discrete import Ancestral, TokenModel, uniform_grid
from sigdeg.discrete.exact import joint_law, sampler_law, total_variation
from sigdeg.experiments import discrete
from sigdeg.experiments.discrete import KINDS, RECIPE, Settings

TINY = Settings(
    (("xor3", 4), ("sudoku4", 4)),
    {kind: KINDS[kind] for kind in ("with data", "no teacher")},
    {**RECIPE, "iterations": 2, "latents": 2, "batch_size": 2},
    network=(8, 1),
    seeds=2,
    counts=(2, 1),
    data=200,
    states=16,
)


def test_runs_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setitem(discrete.PRESETS, "quick", TINY)
    out = tmp_path / "run"
    command = ["run", "discrete", "--preset", "quick", "--out", str(out), "--no-progress"]
    assert main(command) == 0
    results = json.loads((out / "results.json").read_text())
    rows = results["rows"]
    assert [row.get("study") for row in rows] == [None] * 6 + ["sudoku4"] * 6
    assert [row.get("variant") for row in rows[:6:2]] == [None, *TINY.kinds]
    assert [row["variant"] for row in rows[8:10]] == ["with data, 2 calls", "with data, 1 call"]
    assert [row["metrics"]["tv"]["mean"] for row in rows[:2]] == pytest.approx([0.3125, 0.5])
    sudoku = rows[6:]
    assert all(("tv" in row["metrics"]) == (row["nfe"] == 1) for row in sudoku)
    assert sudoku[1]["metrics"]["invalid"]["mean"] == pytest.approx(1 - 288 / 4**16, abs=1e-12)
    assert all(
        row["metrics"]["invalid"]["n"] == (2 if "with data" in str(row.get("variant")) else 1)
        for row in rows
    )

    model = TokenModel.from_pretrained(out / "student")
    law = load_problem("xor3")
    exact = joint_law(law.support, law.weights, 3)
    found = total_variation(sampler_law(Ancestral(model.denoiser), uniform_grid(1)), exact)
    first = json.loads((out / "judged" / "xor3-with-data-at-1-0.json").read_text())
    assert found == pytest.approx(first["tv"], abs=1e-6)
    assert (out / "figures" / "variation.png").exists()
    assert "sudoku4" in (out / "report.html").read_text()
