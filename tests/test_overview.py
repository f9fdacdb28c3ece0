"""The figure of the method: the noise of one path, its signatures, and both marches along it."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Generator

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
