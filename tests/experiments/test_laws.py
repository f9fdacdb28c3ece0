"""The laws that defaults are tried on: their measures are right, and a run shows all methods."""

import json
import math
from pathlib import Path

import pytest
import torch

from sigdeg.experiments import laws
from sigdeg.experiments.laws import LAWS, Settings, directions, measure


@pytest.mark.parametrize("name", LAWS)
def test_true_samples_have_the_law(name: str) -> None:
    law = LAWS[name]()
    found = measure(law, law.sample(20_000, torch.Generator().manual_seed(0)))
    size = law.means.shape[1]
    spread = float(law.sample(2000, torch.Generator().manual_seed(1)).std())
    assert found["w1"]["mean"] < 0.02 * spread
    # exp(-8) beyond the reach of one Gaussian; where modes overlap, less
    assert found["off"]["mean"] < math.exp(-8) + 4 * math.sqrt(math.exp(-8) / 20_000)
    assert found["least"]["mean"] == pytest.approx(1, abs=0.2)
    assert directions(size).norm(dim=1).tolist() == pytest.approx([1.0] * len(directions(size)))


def test_what_lies_between_the_modes_is_off() -> None:
    law = LAWS["Ring and needle"]()
    angles = math.pi / 8 + torch.arange(8) * math.pi / 4
    between = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    x = torch.cat([law.sample(72, torch.Generator().manual_seed(0)), between])
    assert measure(law, x)["off"]["mean"] == pytest.approx(0.1)
    lost = law.sample(2000, torch.Generator().manual_seed(0))
    lost = lost[law.squared_distances(lost).argmin(1) > 0]  # one mode of nine is missing
    assert measure(law, lost)["least"]["mean"] < 0.02


def test_a_small_run_has_every_method_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = {"iterations": 2, "paths": 300, "batch_size": 64, "refinement": 2, "tracker": "none"}
    tiny = Settings({"Ring and needle": ((2,),), "Narrow mode": ((2, 1),)}, work, seeds=2, n=200)
    monkeypatch.setitem(laws.PRESETS, "tiny", tiny)
    page = laws.run(tmp_path / "run", "tiny", progress=False)
    first = json.loads((tmp_path / "run" / "results.json").read_text())
    rows = [(row.get("study"), row["method"], row["nfe"]) for row in first["rows"]]
    assert rows == [
        (None, "teacher", 120),
        (None, "sig-deg", 2),
        (None, "dpm-solver++", 2),
        (None, "untrained", 2),
        ("Narrow mode", "teacher", 120),
        ("Narrow mode", "sig-deg", 2),
        ("Narrow mode", "sig-deg", 1),
        ("Narrow mode", "dpm-solver++", 2),
        ("Narrow mode", "untrained", 2),
        ("Narrow mode", "dpm-solver++", 1),
        ("Narrow mode", "untrained", 1),
    ]
    students = [row for row in first["rows"] if row["method"] == "sig-deg"]
    # Two training seeds, two draws each.
    assert {(row["seeds"], row["metrics"]["w1"]["n"]) for row in students} == {(2, 4)}
    assert [f["file"] for f in first["figures"]] == ["figures/ring-and-needle.png"]
    assert "Off the modes" in page.read_text()
    laws.run(tmp_path / "run", "tiny", progress=False)
    again = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [r["metrics"] for r in again["rows"]] == [r["metrics"] for r in first["rows"]]
