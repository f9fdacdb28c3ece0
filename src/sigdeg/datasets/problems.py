r"""Laws on few sequences of tokens, all of whose probabilities are known: what a few steps lose.

| name | length, tokens | law |
|---|---|---|
| `bits2`, `copy6` | 2, 2 and 6, 2 | one fair bit, in every position |
| `xor3` | 3, 2 | even parity: independent in pairs, not together |
| `checker8`, `checker32` | 2, 8 and 2, 32 | cells of the black squares of a 4 by 4 board |
| `moons16` | 2, 16 | two half circles with normal noise, on a grid of 16 by 16 cells |
| `words4` | 4, 4 | six words of unequal weight |
| `markov4` | 4, 5 | a sticky chain on a circle |
| `sudoku4` | 16, 4 | the 288 grids of the 4 by 4 Sudoku, equally likely |

Those with parameters of their own, `moons16`, `words4` and `markov4`, are chosen here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Generator, Tensor

from sigdeg.errors import check_choice

__all__ = ["PROBLEMS", "TokenLaw", "load_problem"]

NEGLIGIBLE = 1e-6  # cells of the moons below it are left out


@dataclass(frozen=True, eq=False)
class TokenLaw:
    """A law on finitely many sequences.

    Arguments:
        support: The sequences, each once, int64, shape (n, D).
        weights: Their probabilities, float64, shape (n,).
        tokens: How many tokens there are.
    """

    support: Tensor
    weights: Tensor
    tokens: int

    @property
    def length(self) -> int:
        """Positions D of a sequence."""
        return self.support.shape[1]

    def sample(self, n: int, generator: Generator) -> Tensor:
        """Draw n independent sequences, int64, shape (n, D)."""
        drawn = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        return self.support[drawn]


def equally(sequences: list[tuple[int, ...]], tokens: int) -> TokenLaw:
    """The uniform law on some sequences."""
    n = len(sequences)
    return TokenLaw(torch.tensor(sequences), torch.full((n,), 1 / n, dtype=torch.float64), tokens)


def positive(joint: Tensor, least: float = 0.0) -> TokenLaw:
    """The law that an array of probabilities (V, ..., V) holds, without what is all but none."""
    kept = joint > least
    return TokenLaw(kept.nonzero(), joint[kept] / joint[kept].sum(), joint.shape[0])


def copies(length: int) -> TokenLaw:
    """One fair bit in all positions."""
    return equally([(0,) * length, (1,) * length], 2)


def parity() -> TokenLaw:
    """Three bits of even sum."""
    return equally([bits for bits in product((0, 1), repeat=3) if sum(bits) % 2 == 0], 2)


def checkerboard(side: int) -> TokenLaw:
    """The cells of the black squares of a board of 4 by 4 squares."""
    square = side // 4
    cells = product(range(side), repeat=2)
    return equally([(i, j) for i, j in cells if (i // square + j // square) % 2 == 0], side)


def moons(cells: int = 16, noise: float = 0.08, angles: int = 400) -> TokenLaw:
    r"""Half circles about (0, 0) and (1, 1/2), blurred, over [-1.3, 2.3] x [-0.8, 1.3].

    Probabilities of cells are integrals of normal densities, averaged over equally spaced angles;
    what lies outside counts for the outermost cells.
    """
    angle = (torch.arange(angles, dtype=torch.float64) + 0.5) * math.pi / angles
    x = torch.cat([angle.cos(), 1 - angle.cos()])
    y = torch.cat([angle.sin(), 0.5 - angle.sin()])

    def inside(centre: Tensor, low: float, high: float) -> Tensor:
        edges = torch.linspace(low, high, cells + 1, dtype=torch.float64)
        edges[0], edges[-1] = -math.inf, math.inf
        below: Tensor = torch.special.ndtr((edges - centre[:, None]) / noise)
        return below.diff()

    return positive(inside(x, -1.3, 2.3).T @ inside(y, -0.8, 1.3) / len(x), NEGLIGIBLE)


def words() -> TokenLaw:
    """Six words of four letters out of four."""
    letters = ("aaaa", "abbb", "bbbc", "cccd", "cbba", "bddb")
    support = torch.tensor([["abcd".index(letter) for letter in word] for word in letters])
    return TokenLaw(support, torch.tensor([4, 4, 4, 3, 3, 2], dtype=torch.float64) / 20, 4)


def chain(length: int = 4) -> TokenLaw:
    """Five states in a circle: stay, go to a neighbour, or leap two on; it starts anywhere."""
    row = torch.tensor([0.71, 0.13, 0.03, 0.0, 0.13], dtype=torch.float64)
    moves = torch.stack([row.roll(i) for i in range(5)])
    joint = torch.full((5,), 0.2, dtype=torch.float64)
    for _ in range(length - 1):
        joint = joint[..., None] * moves
    return positive(joint)


def sudoku() -> TokenLaw:
    """All fillings in which rows, columns and quarters hold every digit once."""
    lines = [[4 * i + j for j in range(4)] for i in range(4)]
    columns = [list(column) for column in zip(*lines, strict=True)]
    quarters = [[8 * i + 2 * j + k for k in (0, 1, 4, 5)] for i in (0, 1) for j in (0, 1)]
    peers = [
        {k for group in [*lines, *columns, *quarters] if cell in group for k in group if k < cell}
        for cell in range(16)
    ]
    grids: list[tuple[int, ...]] = [()]
    for cell in range(16):
        grids = [
            (*grid, digit)
            for grid in grids
            for digit in range(4)
            if all(grid[k] != digit for k in peers[cell])
        ]
    return equally(grids, 4)


PROBLEMS: dict[str, Callable[[], TokenLaw]] = {
    "bits2": lambda: copies(2),
    "xor3": parity,
    "copy6": lambda: copies(6),
    "checker8": lambda: checkerboard(8),
    "moons16": moons,
    "words4": words,
    "markov4": chain,
    "sudoku4": sudoku,
    "checker32": lambda: checkerboard(32),
}


def load_problem(name: str) -> TokenLaw:
    """A law by its name.

    Raises:
        SigdegError: If there is none of this name.
    """
    check_choice(name, PROBLEMS, "problem")
    return PROBLEMS[name]()
