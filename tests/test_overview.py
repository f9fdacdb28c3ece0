"""The figures of the method, of one path and both marches along it, and of the architecture."""

from __future__ import annotations

import tomllib
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Generator

from benchmarks import architecture
from benchmarks.overview import REFINEMENT, SCHEDULE, STEPS, draw, summarised, walk
from sigdeg.networks import ResidualMLP
from sigdeg.signature import PartialSignature
from sigdeg.student import SignatureStudent


def test_the_parabola_has_the_end_and_the_area_of_its_path() -> None:
    signature = PartialSignature.sample(0.3, (5, 1), 2, Generator().manual_seed(0), torch.float64)
    share = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    known = summarised(signature, share)
    torch.testing.assert_close(known[:, 0], torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(known[:, -1], signature.W[:, 0])
    area = torch.trapezoid(known, 0.3 * share, dim=1)
    torch.testing.assert_close(area, signature.time_integral[:, 0], rtol=0, atol=1e-8)


def test_both_walk_one_path(tmp_path: Path) -> None:
    network = ResidualMLP(SignatureStudent.in_channels(1, 2), 1, width=8, blocks=1)
    student = SignatureStudent(
        network, SCHEDULE, 1, 2, steps=(STEPS,), power=1.0, data_std=4.25**0.5
    )
    found = walk(student, 50, Generator().manual_seed(1))
    torch.testing.assert_close(found.fine[::REFINEMENT], found.coarse)
    for k, signature in enumerate(found.signatures):
        ends = found.brownian[:, [k * REFINEMENT, (k + 1) * REFINEMENT]]
        torch.testing.assert_close(signature.W[:, 0], ends[:, 1] - ends[:, 0], rtol=0, atol=1e-5)
    # Untrained, the student's network says 0; the teacher's noise moves it all the same.
    correlation = torch.corrcoef(
        torch.stack([found.teacher[:, 3 * REFINEMENT], found.student[:, 3]])
    )
    assert correlation[0, 1] > 0.9
    draw(found, (found.teacher[:, -1], found.student[:, -1]), tmp_path / "overview.png")
    with Image.open(tmp_path / "overview.png") as image:
        assert image.size[0] > 1000


def test_the_drawing_of_the_architecture_shows_what_there_is(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    for room in architecture.ROOMS:
        for file in room.files.split():
            assert (root / "src/sigdeg" / file).exists(), file
    rules = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = rules["contracts"][0]["layers"]
    floors = [
        [
            next(i for i, layer in enumerate(layers) if name in layer.split())
            for name in names.split()
        ]
        for names, _ in architecture.FLOORS
    ]
    for above, below in pairwise(floors):
        assert max(above) < min(below)
    architecture.draw(tmp_path / "architecture.png")
    with Image.open(tmp_path / "architecture.png") as image:
        assert image.size[0] > 1000
