"""The step counts of a student, each with a grid of its own and a part of every batch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from sigdeg.errors import SigdegError
from sigdeg.paths import Batch
from sigdeg.student import SignatureStudent

__all__ = ["Levels", "neyman_split"]


@dataclass(frozen=True)
class Levels:
    """What each step count of a student learns from, the finest first.

    Arguments:
        grids: Its grid, each a part of the finest.
        lengths: Steps in a loss term.
        starts: Coarse steps that a loss term may begin with; by default all that leave room for it.
        late: How much rather it begins with a late one, see `sigdeg.paths.batch.draw_starts`.
    """

    grids: list[Tensor]
    lengths: list[int]
    starts: Sequence[int] | None = None
    late: int = 0

    @classmethod
    def of(
        cls,
        student: SignatureStudent,
        q: int,
        starts: Sequence[int] | None = None,
        late: int = 0,
    ) -> Levels:
        """The levels of a student, for losses over q steps or as many as there are."""
        grids = nested_grids(student)
        return cls(grids, [min(q, len(grid) - 1) for grid in grids], starts, late)

    def sizes(self, n: int) -> list[int]:
        """Segments of each level, out of n: those of fewer steps are cheaper, and so get more."""
        return neyman_split(n, self.lengths)

    def least(self, each: int) -> int:
        """The smallest batch that has so many segments for each level."""
        return next(n for n in itertools.count(1) if min(self.sizes(n)) >= each)

    def cut(self, batch: Batch, generator: Generator) -> list[Batch]:
        """A part of the batch for each level, seen at its times, cut to windows of its length."""
        finest = self.grids[0]
        rows = torch.arange(len(batch)).split(self.sizes(len(batch)))
        return [
            batch.take(own)
            .coarsen(finest, (len(finest) - 1) // (len(grid) - 1))
            .window(length, generator, self.starts, self.late)
            for own, grid, length in zip(rows, self.grids, self.lengths, strict=True)
        ]


def nested_grids(student: SignatureStudent) -> list[Tensor]:
    """The student's grids, finest first, each a part of the finest."""
    longest = max(student.steps)
    finest = student.grid(longest)
    grids = []
    for count in sorted(student.steps, reverse=True):
        grid = finest[:: longest // count]
        if longest % count or not torch.allclose(grid, student.grid(count), atol=1e-9):
            raise SigdegError(
                f"the grid of {count} steps is no part of that of {longest}: step counts must "
                "divide the largest"
            )
        grids.append(grid)
    return grids


def neyman_split(n: int, costs: Sequence[int]) -> list[int]:
    r"""Segments of each level, out of n: in proportion to $1 / \sqrt{cost}$ of a segment there.

    Of all splits at one cost this one leaves the least noise in the mean of the levels' losses, if
    one segment is as noisy everywhere (Neyman, 1934).
    """
    parts = np.cumsum(np.asarray(costs) ** -0.5)
    ends = np.rint(n * parts / parts[-1]).astype(int)
    sizes: list[int] = np.diff(ends, prepend=0).tolist()
    return sizes
