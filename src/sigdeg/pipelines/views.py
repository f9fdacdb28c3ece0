"""Where the numbers of a state stand in what a network is called with, or in what it says.

Pipelines pack states, cut windows out of them, or hand their scheduler films picture by picture.
All of these are strided views: one number of the state is so many numbers of the whole after the
one before it, along each of a few axes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from sigdeg.errors import SigdegError

__all__ = ["View"]


@dataclass(frozen=True)
class View:
    r"""A part of a whole, of each sample: `whole.as_strided(sizes, strides, begin)`, of its shape.

    Arguments:
        part: Shape of the part, of one sample.
        whole: Shape of the whole, of one sample.
        sizes: Of the view; their product is the size of the part.
        strides: Of the view, in numbers of the whole.
        begin: The first of its numbers.

    Raises:
        SigdegError: If the view is no part of the whole.
    """

    part: tuple[int, ...]
    whole: tuple[int, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    begin: int

    def __post_init__(self) -> None:
        fits, reach = len(self.sizes) == len(self.strides), 0
        for stride, size in sorted(zip(self.strides, self.sizes, strict=False)):
            fits &= stride > reach  # no number is shown twice
            reach += (size - 1) * stride
        fits &= math.prod(self.sizes) == math.prod(self.part)
        if not fits or not 0 <= self.begin < math.prod(self.whole) - reach:
            raise SigdegError(
                f"numbers {self.sizes} at strides {self.strides} from {self.begin} on are no part "
                f"{self.part} of a whole {self.whole}"
            )

    @property
    def written(self) -> dict[str, Any]:
        """It as JSON."""
        told = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in told.items()}

    @classmethod
    def read(cls, written: Mapping[str, Any]) -> Self:
        """What `written` gave."""
        lists: dict[str, Any] = {k: tuple(v) for k, v in written.items() if k != "begin"}
        return cls(**lists, begin=written["begin"])

    @classmethod
    def fit(cls, places: Tensor, part: tuple[int, ...], whole: tuple[int, ...]) -> Self | None:
        r"""The view of which the numbers stand at given places, if there is one.

        Arguments:
            places: Of the numbers of some samples of the part, shape (samples, size), where they
                stand in as many samples of the whole.
            part: Shape of the part, of one sample.
            whole: Shape of the whole, of one sample.
        """
        starts = torch.arange(len(places))[:, None] * math.prod(whole)
        if not torch.equal(places, places[:1] + starts):
            return None
        rest = places[0]
        sizes: list[int] = []
        strides: list[int] = []
        while len(rest) > 1:  # from the axis that runs fastest on
            steps = rest.diff()
            stride, other = int(steps[0]), (steps != steps[0]).nonzero()
            size = int(other[0]) + 1 if len(other) else len(rest)
            if stride <= 0 or len(rest) % size:
                return None
            runs = rest.reshape(-1, size)
            if not torch.equal(runs, runs[:, :1] + stride * torch.arange(size)):
                return None
            rest, sizes, strides = runs[:, 0], [size, *sizes], [stride, *strides]
        return cls(part, whole, tuple(sizes), tuple(strides), int(rest[0]))

    def seen(self, whole: Tensor) -> Tensor:
        """The view of a whole that is contiguous, shape (rows, *sizes)."""
        if tuple(whole.shape[1:]) != self.whole:
            raise SigdegError(
                f"the network is called with states of shape {tuple(whole.shape[1:])} where this "
                f"student knows {self.whole}: keep the size and the length that it was distilled at"
            )
        begin = whole.storage_offset() + self.begin
        shape, strides = (len(whole), *self.sizes), (math.prod(self.whole), *self.strides)
        return whole.as_strided(shape, strides, begin)

    def take(self, whole: Tensor) -> Tensor:
        r"""The part, shape (rows, \*part)."""
        return self.seen(whole.contiguous()).reshape(-1, *self.part)

    def put(self, whole: Tensor, part: Tensor) -> Tensor:
        """The whole with another part in it."""
        made = whole.clone(memory_format=torch.contiguous_format)
        self.seen(made).copy_(part.reshape(-1, *self.sizes))
        return made
