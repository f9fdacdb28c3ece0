r"""Teacher paths: the teacher's fine march seen at the coarse times, with its noise summarised.

For every coarse step the fine signatures are folded on the way into one coarse signature (Chen), so
that student and teacher are driven by the same Brownian path. A *segment* is a run of consecutive
coarse steps: a whole path from pure noise (`states="teacher"`, data-free), or a short run that
starts from noised data (`states="data"`, the paper).
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from tqdm.auto import tqdm

from sigdeg.errors import SigdegError
from sigdeg.files import read_tensors, save_tensors
from sigdeg.rng import Stream, derive_generator, randn
from sigdeg.runs import fingerprint
from sigdeg.sampling import march
from sigdeg.schedule import expand
from sigdeg.signature import PartialSignature, restriction
from sigdeg.steps import Step, network_calls

__all__ = ["Batch", "CachedPaths", "FreshPaths", "SharedPaths", "TeacherPaths", "simulate"]

CHUNK = 2**18  # numbers that the teacher is given at a time, and at least eight samples
Streams = Generator | Sequence[Generator]  # one for all samples, or one a sample


@dataclass(frozen=True)
class Batch:
    r"""Segments of teacher paths.

    Arguments:
        start: Index of the coarse step each begins with, shape (batch,).
        states: States at the coarse times, shape (batch, q + 1, \*).
        coefficients: Signatures of the coarse steps, shape (batch, q, order, \*).
        labels: Class of each sample, shape (batch,), for a conditional model.
    """

    start: Tensor
    states: Tensor
    coefficients: Tensor
    labels: Tensor | None = None

    @property
    def condition(self) -> dict[str, Any]:
        """What a step is called with beside the signature."""
        return {} if self.labels is None else {"class_labels": self.labels}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors there are, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def to(self, device: torch.device | str) -> Batch:
        """The same segments on a device; their starts stay where they are."""
        moved = {name: value.to(device) for name, value in self.tensors.items()}
        return Batch(**moved | {"start": self.start})

    def take(self, rows: slice | Tensor) -> Batch:
        """Some of the segments."""
        return Batch(**{name: value[rows] for name, value in self.tensors.items()})

    @staticmethod
    def join(batches: Sequence[Batch]) -> Batch:
        """All the segments of several batches."""
        names = batches[0].tensors
        return Batch(**{name: torch.cat([vars(b)[name] for b in batches]) for name in names})

    def with_noise_of(self, shift: int) -> Batch:
        """The same segments, their last coefficient that of others: noise independent of them."""
        seen, last = self.coefficients[:, :, :-1], self.coefficients[:, :, -1:]
        coefficients = torch.cat([seen, last.roll(shift, dims=0)], dim=2)
        return replace(self, coefficients=coefficients)

    def window(self, q: int, generator: Generator, starts: Sequence[int] | None = None) -> Batch:
        """A random run of q consecutive steps out of each segment, from one of the starts."""
        n, length = self.coefficients.shape[:2]
        if q == length:
            return self
        offset = draw_starts(n, length, q, generator, starts)
        rows = torch.arange(n)[:, None]
        steps = offset[:, None] + torch.arange(q + 1)
        return Batch(
            self.start + offset,
            self.states[rows, steps],
            self.coefficients[rows, steps[:, :-1]],
            self.labels,
        )

    def coarsen(self, grid: Tensor, stride: int) -> Batch:
        """Whole paths seen at every stride-th time of their grid: signatures concatenate."""
        if stride == 1:
            return self
        n, steps, order = self.coefficients.shape[:3]
        start, end = (v.repeat_interleave(stride) for v in (grid[:-1:stride], grid[stride::stride]))
        left, right = ((start - v) / (start - end) for v in (grid[:-1], grid[1:]))
        parts = self.coefficients.reshape(n, steps // stride, stride, order, -1)
        matrices = restriction(order, left, right.clamp(max=1)).to(parts)
        matrices = matrices.reshape(steps // stride, stride, order, order)
        joined = torch.einsum("gjkl,ngjlf->ngkf", matrices, parts)
        shape = (n, steps // stride, *self.coefficients.shape[2:])
        states = self.states[:, ::stride]
        return Batch(self.start // stride, states, joined.reshape(shape), self.labels)

    def replay(self, step: Step, grid: Tensor) -> Tensor:
        """Where another step ends that starts where whole paths do and is driven by their noise."""
        lengths = (-grid.diff()).to(self.states)
        signatures = map(PartialSignature, lengths, self.coefficients.unbind(1))
        return march(step, self.states[:, 0], grid, signatures, **self.condition)


@torch.no_grad()
def simulate(
    teacher: Step,
    rows: Sequence[Tensor],
    x: Tensor,
    order: int,
    generator: Streams,
    **condition: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""March the teacher over fine rows, keeping the coarse states and signatures.

    Each fine signature is drawn at the full order and folded exactly, so the coarse coefficients
    are independent N(0, 1) whatever the refinement.

    Arguments:
        teacher: Any step; its order may be lower than `order`.
        rows: Fine times of each coarse step, as from `sigdeg.grids.refine`.
        x: States at the first time, shape (batch, \*).
        order: Order of the signatures.
        generator: The stream of the noise, or one a sample.
        condition: Passed on to the teacher.

    Returns:
        States (batch, q + 1, \*) and coefficients (batch, q, order, \*).

    Raises:
        SigdegError: If the teacher gives a value that is not finite.
    """
    kept, order = order, max(order, teacher.order)
    states, coefficients = [x], []
    for row in rows:
        fractions = (row[0] - row) / (row[0] - row[-1])
        total: Tensor | float = 0.0
        matrices = restriction(order, fractions[:-1], fractions[1:])
        signatures = draw_signatures(row, x, order, generator)
        for (t, s), matrix, fine in zip(pairwise(row), matrices, signatures, strict=True):
            x = teacher(x, t, s, fine, **condition)
            c = fine.coefficients
            total = total + (matrix.to(c) @ c.flatten(2)).reshape(c.shape)
        if not bool(torch.isfinite(x).all()):
            raise SigdegError(
                f"the teacher gave NaN or infinite values between times {float(row[0]):.4g} and "
                f"{float(row[-1]):.4g}: check its weights, schedule and prediction type"
            )
        assert isinstance(total, Tensor)
        states.append(x)
        coefficients.append(total[:, :kept])  # no lower coefficient needs a higher one
    return torch.stack(states, dim=1), torch.stack(coefficients, dim=1)


def draw_signatures(
    row: Tensor, x: Tensor, order: int, generator: Streams
) -> Iterator[PartialSignature]:
    """The signatures of fine steps, drawn one by one, or from streams of samples all at once."""
    if isinstance(generator, Generator):
        for dt in row[:-1] - row[1:]:
            yield PartialSignature.sample(dt, x.shape, order, generator, x.dtype, x.device)
        return
    drawn = randn((len(x), len(row) - 1, order, *x.shape[1:]), generator, x.dtype)
    for dt, coefficients in zip(row[:-1] - row[1:], drawn.unbind(1), strict=True):
        yield PartialSignature(dt, coefficients.to(x.device))


@dataclass(frozen=True)
class TeacherPaths:
    r"""What to simulate: a teacher on a fine grid, started from noise or from noised data.

    Arguments:
        teacher: The teacher's step.
        rows: Fine times of each of the K coarse steps.
        shape: Shape of one sample.
        order: Order of the signatures.
        data: Clean data (n, \*) to start segments from; None starts whole paths from pure noise.
        steps: Length q of the segments that start from data.
        device: Where the teacher lives.
        labels: Classes to draw from for a conditional teacher, or those of the data, shape (n,).
        starts: Coarse steps that a segment from data may begin with; by default all that leave room
            for its length.
    """

    teacher: Step
    rows: Sequence[Tensor]
    shape: tuple[int, ...]
    order: int
    data: Tensor | None = None
    steps: int = 1
    device: torch.device | str = "cpu"
    labels: Tensor | None = None
    starts: Sequence[int] | None = None

    @property
    def teacher_nfe(self) -> float:
        """Mean number of teacher calls a segment costs."""
        calls = [
            sum(network_calls(self.teacher, t, s) for t, s in pairwise(row.tolist()))
            for row in self.rows
        ]
        if self.data is None:
            return float(sum(calls))
        starts = self.starts or range(len(calls) - self.steps + 1)
        return statistics.fmean(sum(calls[k : k + self.steps]) for k in starts)

    def draw(self, n: int, generator: Streams) -> Batch:
        """Simulate n segments, from one stream or from one a segment."""
        if self.data is None:
            std = self.teacher.schedule.prior_std
            x = std * randn((n, *self.shape), generator, device=self.device)
            chosen = None if self.labels is None else integers(len(self.labels), n, generator)
            return self.march(0, self.rows, x, chosen, generator)
        # One group of samples a starting step: times stay scalars, rows may differ in length.
        starts = draw_starts(n, len(self.rows), self.steps, generator, self.starts)
        parts, places = [], []
        for k in starts.unique().tolist():
            place = (starts == k).nonzero()[:, 0]
            own = generator if isinstance(generator, Generator) else [generator[i] for i in place]
            chosen = integers(len(self.data), len(place), own)
            clean = self.data[chosen].to(self.device)
            noise = randn((len(place), *self.shape), own, device=self.device)
            alpha, sigma = (
                expand(f(self.rows[k][0]), clean)
                for f in (self.teacher.schedule.alpha, self.teacher.schedule.sigma)
            )
            rows = self.rows[k : k + self.steps]
            parts.append(self.march(k, rows, alpha * clean + sigma * noise, chosen, own))
            places.append(place)
        # Back in the order drawn: the held-out segments, the last ones, have to cover every step.
        return Batch.join(parts).take(torch.cat(places).argsort())

    def march(
        self,
        start: int,
        rows: Sequence[Tensor],
        x: Tensor,
        chosen: Tensor | None,
        generator: Streams,
    ) -> Batch:
        """Simulate segments that begin with one coarse step."""
        labels = None
        if self.labels is not None and chosen is not None:
            labels = self.labels[chosen].to(self.device)
        condition = {} if labels is None else {"class_labels": labels}
        found = simulate(self.teacher, rows, x, self.order, generator, **condition)
        return Batch(torch.full((len(x),), start), *found, labels)


def draw_starts(
    n: int, length: int, q: int, generator: Streams, starts: Sequence[int] | None
) -> Tensor:
    """Where n segments of q steps begin, of `length`: anywhere, or at one of the starts."""
    if starts is None:
        return integers(length - q + 1, n, generator)
    return torch.tensor(starts)[integers(len(starts), n, generator)]


def integers(end: int, n: int, generator: Streams) -> Tensor:
    """Whole numbers below an end, shape (n,)."""
    if isinstance(generator, Generator):
        return torch.randint(end, (n,), generator=generator)
    return torch.cat([torch.randint(end, (1,), generator=own) for own in generator])


class FreshPaths:
    """Segments simulated anew for every batch.

    From data (`states="data"`) that is r teacher calls a pair; whole paths cost K times as many, of
    which a batch sees a window: cache those.

    Arguments:
        paths: What to simulate.
        seed: Seed of the held-out segments.
    """

    def __init__(self, paths: TeacherPaths, seed: int = 0) -> None:
        self.paths, self.seed = paths, seed

    def batch(self, n: int, generator: Generator) -> Batch:
        """Draw n training segments."""
        return self.paths.draw(n, generator)

    def held_out(self, n: int) -> Batch:
        """Segments of a stream that training never sees."""
        return self.paths.draw(n, derive_generator(self.seed, Stream.FRESH_HELD_OUT))


class CachedPaths:
    """Segments simulated once into memory-mapped safetensors shards, and reused over epochs.

    The last ones are held out. The noise of a segment depends on the seed and its number alone.
    Shards are written atomically: an interrupted simulation goes on where it stopped.

    Arguments:
        paths: What to simulate.
        folder: Where the shards go.
        count: The number of segments.
        seed: Seed of the simulation.
        held_out: The number of segments held out, below count.
        shard_size: Segments a shard, at most: a shard is what the teacher simulates at a time, so
            large samples make small ones.
        progress: Show a progress bar.

    Raises:
        SigdegError: If the folder holds shards of another simulation, or a damaged one.
    """

    def __init__(
        self,
        paths: TeacherPaths,
        folder: Path,
        count: int,
        seed: int = 0,
        held_out: int = 0,
        shard_size: int = 65536,
        progress: bool = False,
    ) -> None:
        if not 0 <= held_out < count:
            raise SigdegError(f"held_out must lie between 0 and the {count} paths, got {held_out}")
        self.paths, self.seed = paths, seed
        shard_size = min(shard_size, max(8, CHUNK // math.prod(paths.shape)))
        self.train, self.count, self.shard_size = count - held_out, count, shard_size
        identity = {
            "seed": seed,
            "count": count,
            "shard_size": shard_size,
            "teacher": fingerprint(paths.teacher),
            **{
                name: None if value is None else fingerprint(value)
                for name, value in (("data", paths.data), ("labels", paths.labels))
            },
            "order": paths.order,
            "rows": [row.tolist() for row in paths.rows],
            "shape": paths.shape,
            "steps": paths.steps,
            "starts": paths.starts,
        }
        # Seeds side by side: no two segments of a simulation have one stream.
        first_seed = derive_generator(seed, Stream.CACHED_PATHS).initial_seed()
        self.shards: list[dict[str, Tensor]] = []
        with tqdm(total=count, desc="teacher paths", unit="path", disable=not progress) as bar:
            for index, first in enumerate(range(0, count, shard_size)):
                numbers = range(first, min(first + shard_size, count))
                file = folder / f"paths-{index:05d}.safetensors"
                told = json.dumps({**identity, "first": first})
                if not file.exists():
                    seeds = ((first_seed + number) % 2**32 for number in numbers)
                    streams = [Generator().manual_seed(own) for own in seeds]
                    batch = paths.draw(len(streams), streams)
                    save_tensors(file, batch.tensors, {"identity": told})
                self.shards.append(read_shard(file, told))
                bar.update(len(numbers))

    @property
    def ends(self) -> Tensor:
        r"""Where all the segments end, shape (count, \*): samples, where they are whole paths."""
        return torch.cat([shard["states"][:, -1] for shard in self.shards])

    def _gather(self, index: Tensor) -> Batch:
        shard, row = index // self.shard_size, index % self.shard_size
        if len(self.shards) == 1:
            return Batch(**{key: value[row] for key, value in self.shards[0].items()})
        out: dict[str, Tensor] = {}
        for key, first in self.shards[0].items():
            out[key] = torch.empty(len(index), *first.shape[1:], dtype=first.dtype)
            for s in shard.unique().tolist():
                here = shard == s
                out[key][here] = self.shards[s][key][row[here]]
        return Batch(**out)

    def batch(self, n: int, generator: Generator) -> Batch:
        """Draw n training segments, with replacement."""
        return self._gather(torch.randint(self.train, (n,), generator=generator))

    def held_out(self, n: int) -> Batch:
        """The first n of the segments that training never sees (or of all, if none is held out)."""
        if self.train == self.count:
            return self._gather(torch.arange(min(self.count, n)))
        return self._gather(torch.arange(self.train, min(self.count, self.train + n)))


class SharedPaths:
    """Cached whole paths as a student of fewer steps or a lower order sees them.

    Arguments:
        cache: The paths.
        grid: The student's grid, every so many times of theirs.
        order: The order of its steps, at most theirs.

    Raises:
        SigdegError: If the paths do not tell what the student needs.
    """

    def __init__(self, cache: CachedPaths, grid: Tensor, order: int) -> None:
        rows, known = cache.paths.rows, cache.paths.order
        self.cache, self.order = cache, order
        self.grid = torch.stack([*(row[0] for row in rows), rows[-1][-1]])
        self.stride, rest = divmod(len(rows), len(grid) - 1)
        if rest or not torch.allclose(self.grid[:: self.stride], grid, atol=1e-9):
            raise SigdegError(
                f"the cached paths of {len(rows)} steps do not pass through the times of "
                f"{len(grid) - 1}: simulate them on a multiple of the student's steps"
            )
        if known < order or cache.paths.data is not None:
            kind = "whole paths" if cache.paths.data is None else "segments that start from data"
            raise SigdegError(
                f"the cache must hold whole paths of order {order} or more, it holds {kind} of "
                f"order {known}"
            )

    def see(self, batch: Batch) -> Batch:
        """Paths at the student's times, with as many coefficients as it takes."""
        seen = batch.coarsen(self.grid, self.stride)
        # No lower coefficient of a joint step needs a higher one of its parts.
        return replace(seen, coefficients=seen.coefficients[:, :, : self.order])

    def batch(self, n: int, generator: Generator) -> Batch:
        """Draw n training paths, with replacement."""
        return self.see(self.cache.batch(n, generator))

    def held_out(self, n: int) -> Batch:
        """The first n of the paths that training never sees."""
        return self.see(self.cache.held_out(n))


def read_shard(file: Path, identity: str) -> dict[str, Tensor]:
    """Tensors of a shard, memory-mapped: only the rows that are read take memory."""
    try:
        tensors, metadata = read_tensors(file)
    except SigdegError as error:
        raise SigdegError(f"{error}; delete it") from None
    if metadata.get("identity") != identity or "digest" not in metadata:
        raise SigdegError(f"{file} belongs to another simulation: choose another folder")
    return tensors
