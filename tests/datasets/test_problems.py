"""Laws of tokens: against their definitions."""

import math
from itertools import product

import pytest
import torch

from sigdeg.datasets import PROBLEMS, load_problem
from sigdeg.errors import SigdegError


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_is_a_law_on_different_sequences(name: str) -> None:
    law = load_problem(name)
    assert law.support.dtype == torch.int64
    assert law.support.shape == (len(law.weights), law.length)
    assert len(law.support.unique(dim=0)) == len(law.support)
    assert set(law.support.unique().tolist()) == set(range(law.tokens))
    assert bool((law.weights > 0).all())
    assert float(law.weights.sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "length", "tokens", "count"),
    [
        ("bits2", 2, 2, 2),
        ("xor3", 3, 2, 4),
        ("copy6", 6, 2, 2),
        ("checker8", 2, 8, 32),
        ("checker32", 2, 32, 512),
        ("words4", 4, 4, 6),
        ("sudoku4", 16, 4, 288),
    ],
)
def test_how_many_sequences_there_are(name: str, length: int, tokens: int, count: int) -> None:
    law = load_problem(name)
    assert (law.length, law.tokens, len(law.support)) == (length, tokens, count)


def test_parity_is_even_and_independent_in_pairs() -> None:
    law = load_problem("xor3")
    assert bool((law.support.sum(1) % 2 == 0).all())
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert sorted(law.support[:, [i, j]].tolist()) == [list(p) for p in product((0, 1), (0, 1))]


def test_a_board_of_squares() -> None:
    black = {tuple(cell) for cell in load_problem("checker8").support.tolist()}
    assert {(0, 0), (1, 1), (2, 2), (0, 4), (7, 7)} <= black
    assert not {(0, 2), (1, 3), (2, 0), (7, 5)} & black


def test_every_row_column_and_quarter_of_a_sudoku_holds_all_digits() -> None:
    grids = load_problem("sudoku4").support.reshape(-1, 4, 4)
    quarters = grids.reshape(-1, 2, 2, 2, 2).transpose(2, 3).reshape(-1, 4, 4)
    for groups in (grids, grids.mT, quarters):
        assert bool((groups.sort(-1).values == torch.arange(4)).all())


def test_the_chain_has_its_transitions() -> None:
    law = load_problem("markov4")
    first, second = law.support[:, 0], law.support[:, 1]
    for start, leap, chance in ((0, 0, 0.71), (2, 1, 0.13), (4, 2, 0.03), (3, 4, 0.13)):
        both = law.weights[(first == start) & ((second - first) % 5 == leap)].sum()
        assert float(both) == pytest.approx(chance / 5, abs=1e-12)
    last = law.support[:, -1]  # the start's law stays
    for state in range(5):
        assert float(law.weights[last == state].sum()) == pytest.approx(0.2, abs=1e-12)


def test_moons_are_where_samples_of_them_fall() -> None:
    generator, n = torch.Generator().manual_seed(0), 100_000
    angle = torch.rand(n, generator=generator) * math.pi
    up = torch.rand(n, generator=generator) < 0.5
    noise = 0.08 * torch.randn(n, 2, generator=generator)
    x = torch.where(up, angle.cos(), 1 - angle.cos()) + noise[:, 0]
    y = torch.where(up, angle.sin(), 0.5 - angle.sin()) + noise[:, 1]
    i = ((x + 1.3) / 3.6 * 16).floor().clamp(0, 15).long()
    j = ((y + 0.8) / 2.1 * 16).floor().clamp(0, 15).long()
    counted = torch.bincount(16 * i + j, minlength=256).double() / n
    law = load_problem("moons16")
    exact = torch.zeros(256, dtype=torch.float64)
    exact[16 * law.support[:, 0] + law.support[:, 1]] = law.weights
    noise_floor = (exact * (1 - exact) / n).sqrt()
    assert bool(((counted - exact).abs() < 5 * noise_floor + 2e-5).all())


def test_samples_come_as_often_as_they_should() -> None:
    law, n = load_problem("words4"), 20_000
    drawn = law.sample(n, torch.Generator().manual_seed(0))
    counts = (drawn[:, None] == law.support).all(2).double().mean(0)
    assert float(counts.sum()) == pytest.approx(1)
    assert bool(((counts - law.weights).abs() < 4 * (law.weights / n).sqrt()).all())


def test_an_unknown_problem_is_named() -> None:
    with pytest.raises(SigdegError, match="unknown problem 'bits3': choose from bits2, xor3"):
        load_problem("bits3")
