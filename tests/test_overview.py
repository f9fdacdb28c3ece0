"""The figures of the methods, of one path and both marches along it, and of the architecture."""

from __future__ import annotations

import tomllib
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Generator

from benchmarks import architecture, mixtures
from benchmarks.overview import REFINEMENT, SCHEDULE, STEPS, draw, summarised, walk
from sigdeg.datasets.problems import load_problem
from sigdeg.discrete import Absorbing, Ancestral, ExactDenoiser, Latent, MixtureStudent
from sigdeg.discrete.exact import total_variation
from sigdeg.networks import ResidualMLP, TokenMLP
from sigdeg.rng import seeded
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


def test_a_mixture_is_drawn_as_what_it_is_made_of(tmp_path: Path) -> None:
    """With all components shown, their weighted sum is the student's law in one call."""
    law, latent = load_problem("bits2"), Latent("weighted", mixtures.COMPONENTS)
    process, told = Absorbing(2), {"kind": latent.kind, "size": latent.size}
    network = seeded(0, lambda: TokenMLP(2, 3, width=8, blocks=1, latent=told))
    student = Ancestral(MixtureStudent(network, process, 2, latent))
    found = mixtures.shown(
        law, Ancestral(ExactDenoiser(law.support, law.weights, process)), student
    )
    x = process.prior((1, 2))
    weights = student.denoiser.log_weights(x, torch.tensor(1.0))[0].double().exp()
    heaviest_first = weights.sort(descending=True).values
    whole = (heaviest_first[:, None, None] * found.parts).sum(0)
    torch.testing.assert_close(whole, found.student)
    for part in found.parts:  # products
        torch.testing.assert_close(part, part.sum(1, keepdim=True) * part.sum(0, keepdim=True))
    assert {k: round(total_variation(v, found.law), 12) for k, v in found.teacher.items()} == {
        1: 0.5,
        4: 0.125,
    }
    mixtures.draw(found, tmp_path / "discrete.png")
    with Image.open(tmp_path / "discrete.png") as image:
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
