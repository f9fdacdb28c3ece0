r"""The path of a run: a function of its starting noise.

Pipelines hand a generator to their scheduler or do not, and none before the first network call. So
the path comes from what every run has: 63 signs of the starting noise are 63 fair bits, a seed that
is independent of the noise's sizes, the same in every float type, at every scale of the noise and
in any batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from sigdeg.errors import SigdegError
from sigdeg.signature import PartialSignature

__all__ = ["PathNoise", "path_seed", "tiled"]

BITS = 63


def path_seed(row: Tensor) -> int:
    """A seed below 2^63 from the signs of 63 evenly spaced numbers of one sample's noise.

    Of fewer numbers all their digits count, in single precision.
    """
    flat = row.detach().flatten()
    if len(flat) < BITS:
        digest = hashlib.sha256(flat.float().cpu().numpy().tobytes()).digest()
        return int.from_bytes(digest[:8], "little") >> 1
    places = torch.linspace(0, len(flat) - 1, BITS).long().to(flat.device)
    return int("".join("1" if sign else "0" for sign in (flat[places] > 0).tolist()), 2)


class PathNoise:
    r"""Signatures of the paths of a run, one path a sample, drawn step by step.

    The coefficients of step k depend on the sample's seed and on k alone: they can be asked for in
    any order, again, and in any batch.

    Arguments:
        grid: The times of the run, shape (K + 1,).
        order: The number of coefficients.
        finest: A grid that holds those times, whose steps are what is drawn: the path is then the
            same whatever part of the grid is marched over (default: the grid itself).
        generators: Where the seeds come from: one for all samples or one a sample (default: from
            the starting noise, see `path_seed`).
    """

    def __init__(
        self,
        grid: Tensor,
        order: int,
        finest: Tensor | None = None,
        generators: Generator | Sequence[Generator] | None = None,
    ) -> None:
        self.order, self.generators, self.steps = order, generators, len(grid) - 1
        self.stride, self.finest = 1, grid
        if finest is not None and (len(finest) - 1) % (len(grid) - 1) == 0:
            stride = (len(finest) - 1) // (len(grid) - 1)
            if torch.allclose(finest[::stride], grid, atol=1e-9):
                self.stride, self.finest = stride, finest
        self.seeds: list[int] | None = None
        self.drawn: dict[int, Tensor] = {}

    def start(self, x: Tensor) -> None:
        r"""Take the seeds of a run from the first state that it shows, shape (rows, \*).

        Rows may be copies of the samples, which guidance makes as `torch.cat([x] * copies)`.

        Raises:
            SigdegError: If there is not one generator a sample.
        """
        own = [path_seed(row) for row in x]
        samples = next(n for n in range(1, len(x) + 1) if len(x) % n == 0 and repeats(own, n))
        if isinstance(self.generators, Generator):
            self.seeds = [draw_seed(self.generators) for _ in range(samples)]
        elif self.generators is not None:
            if not self.generators or len(x) % len(self.generators):
                count = len(self.generators)
                raise SigdegError(f"{count} generators were set for the noise of {len(x)} samples")
            self.seeds = [draw_seed(generator) for generator in self.generators]
        else:
            self.seeds = own[:samples]

    def step(self, k: int, x: Tensor) -> Tensor:
        r"""Coefficients of step k for a state or its copies, (rows, order, \*), float32.

        Raises:
            SigdegError: If the state has another shape than the step was drawn for.
        """
        if self.seeds is None:
            self.start(x)
        assert self.seeds is not None
        drawn = self.drawn[k] if k in self.drawn else self.draw(k, x.shape[1:])
        if drawn.shape[2:] != x.shape[1:]:
            shapes = f"{tuple(drawn.shape[2:])}, and a state of it is {tuple(x.shape[1:])}"
            raise SigdegError(f"the path of this run is of shape {shapes}")
        self.drawn = {k: drawn.to(x.device)}  # of a video they are large: one step's
        return tiled(self.drawn[k], len(x))

    def exceeded(self, rows: int, x: Tensor) -> bool:
        r"""Whether so many rows are more than the samples of a state, shape (samples, \*).

        It may hold copies of them, and several may begin with the same noise.
        """
        fewer = [n for n in range(len(self.seeds or x), len(x)) if len(x) % n == 0]
        return rows > len(x) or any(torch.equal(x, tiled(x[:n], len(x))) for n in fewer)

    def prepare(self, k: int, shape: torch.Size) -> None:
        r"""Draw step k, if there is one, for states of shape (samples, \*).

        The processor is free while an accelerator is still at work on the step before.
        """
        if self.seeds is not None and k < self.steps:
            self.drawn[k] = self.draw(k, shape)

    def draw(self, k: int, shape: torch.Size) -> Tensor:
        """Draw steps of the finest grid and join them, by Chen's identity."""
        assert self.seeds is not None
        first, parts = k * self.stride, []
        for j in range(first, first + self.stride):
            drawn = [normals(seed, j, (self.order, *shape)) for seed in self.seeds]
            dt = (self.finest[j] - self.finest[j + 1]).float()
            parts.append(PartialSignature(dt, torch.stack(drawn)))
        return (
            PartialSignature.fold(parts).coefficients if self.stride > 1 else parts[0].coefficients
        )


def tiled(values: Tensor, rows: int) -> Tensor:
    """Copies of samples, as many rows as are asked for, one copy of all after another."""
    return values.repeat(rows // values.shape[0], *(1,) * (values.ndim - 1))


def repeats(values: Sequence[int], period: int) -> bool:
    """Whether a list is copies of its beginning."""
    return list(values) == list(values[:period]) * (len(values) // period)


def draw_seed(generator: Generator) -> int:
    """The next seed of a generator."""
    drawn = torch.randint(2**BITS - 1, (), generator=generator, device=generator.device)
    return int(drawn)


def normals(seed: int, step: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normals of a seed and a step: all of the seed's bits count, unlike in torch."""
    stream = np.random.Generator(np.random.Philox(key=[seed, step]))
    return torch.from_numpy(stream.standard_normal(shape, dtype=np.float32))
