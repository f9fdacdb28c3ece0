"""Segments of teacher paths: runs of consecutive coarse steps with the noise that drove them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Generator, Tensor

from sigdeg.rng import Generators, randn
from sigdeg.sampling import march
from sigdeg.signature import PartialSignature, restriction
from sigdeg.steps import GaussianStep

__all__ = ["Batch", "Part", "draw_starts", "integers", "normals"]


@dataclass(frozen=True)
class Part:
    """Some of the n samples that one stream is drawn from for: processes share them by it."""

    generator: Generator
    n: int
    rows: Tensor


@dataclass(frozen=True)
class Batch:
    r"""Segments of teacher paths.

    Arguments:
        start: Index of the coarse step each begins with, shape (batch,).
        states: States at the coarse times, shape (batch, q + 1, \*).
        coefficients: Signatures of the coarse steps, shape (batch, q, order, \*).
        condition: What a step is called with beside the signature: tensors by name, each with a
            row a segment, shape (batch, \*).
    """

    start: Tensor
    states: Tensor
    coefficients: Tensor
    condition: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.start)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """A function of each of the tensors."""
        return Batch(
            function(self.start),
            function(self.states),
            function(self.coefficients),
            {name: function(value) for name, value in self.condition.items()},
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same segments on a device; their starts stay where they are."""
        return replace(self.map(lambda value: value.to(device)), start=self.start)

    def take(self, rows: slice | Tensor) -> Batch:
        """Some of the segments."""
        return self.map(lambda value: value[rows])

    def with_noise_of(self, shift: int) -> Batch:
        """The same segments, their last coefficient that of others: noise independent of them."""
        seen, last = self.coefficients[:, :, :-1], self.coefficients[:, :, -1:]
        coefficients = torch.cat([seen, last.roll(shift, dims=0)], dim=2)
        return replace(self, coefficients=coefficients)

    def window(
        self, q: int, generator: Generator, starts: Sequence[int] | None = None, late: int = 0
    ) -> Batch:
        """A random run of q consecutive steps, or of all, of each segment, see `draw_starts`."""
        n, length = self.coefficients.shape[:2]
        if q >= length:
            return self
        offset = draw_starts(n, length, q, generator, starts, late)
        rows = torch.arange(n)[:, None]
        steps = offset[:, None] + torch.arange(q + 1)
        return Batch(
            self.start + offset,
            self.states[rows, steps],
            self.coefficients[rows, steps[:, :-1]],
            self.condition,
        )

    def coarsen(self, grid: Tensor, stride: int) -> Batch:
        """Whole paths seen at every stride-th time of their grid: signatures concatenate.

        Their starts then count the steps of that coarser grid. Paths that begin late, all alike,
        end with the grid.
        """
        if stride == 1:
            return self
        n, steps, order = self.coefficients.shape[:3]
        grid = grid[-1 - steps :]
        start, end = (v.repeat_interleave(stride) for v in (grid[:-1:stride], grid[stride::stride]))
        left, right = ((start - v) / (start - end) for v in (grid[:-1], grid[1:]))
        parts = self.coefficients.reshape(n, steps // stride, stride, order, -1)
        matrices = restriction(order, left, right.clamp(max=1)).to(parts)
        matrices = matrices.reshape(steps // stride, stride, order, order)
        joined = torch.einsum("gjkl,ngjlf->ngkf", matrices, parts)
        shape = (n, steps // stride, *self.coefficients.shape[2:])
        states = self.states[:, ::stride]
        return Batch(self.start // stride, states, joined.reshape(shape), self.condition)

    def replay(self, step: GaussianStep, grid: Tensor) -> Tensor:
        """Where another step ends that starts where whole paths do and is driven by their noise."""
        lengths = (-grid.diff()).to(self.states)
        signatures = map(PartialSignature, lengths, self.coefficients.unbind(1))
        return march(step, self.states[:, 0], grid, signatures, **self.condition)


def draw_starts(
    n: int,
    length: int,
    q: int,
    generator: Generators,
    starts: Sequence[int] | None,
    late: int = 0,
) -> Tensor:
    r"""Where n segments of q steps begin, of `length`: anywhere, or at one of the starts.

    At step k, counted from 0, in proportion to $(k + 1)^{late}$.
    """
    places = torch.arange(length - q + 1) if starts is None else torch.tensor(starts)
    ends = ((places + 1) ** late).cumsum(0)
    return places[torch.bucketize(integers(int(ends[-1]), n, generator), ends, right=True)]


def integers(end: int, n: int, generator: Generators | Part) -> Tensor:
    """Whole numbers below an end, shape (n,), or the part of them that is asked for."""
    if isinstance(generator, Part):
        return integers(end, generator.n, generator.generator)[generator.rows]
    if isinstance(generator, Generator):
        return torch.randint(end, (n,), generator=generator)
    return torch.cat([torch.randint(end, (1,), generator=own) for own in generator])


def normals(
    n: int, shape: Sequence[int], generator: Generators | Part, device: torch.device | str
) -> Tensor:
    r"""Standard normals (n, \*shape), or the part of them that is asked for."""
    if isinstance(generator, Part):
        return normals(generator.n, shape, generator.generator, device)[generator.rows]
    return randn((n, *shape), generator, device=device)
