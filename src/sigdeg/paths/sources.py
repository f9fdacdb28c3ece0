"""Where training gets its segments from: simulated anew, kept on disk, or shared by students."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Generator, Tensor, distributed
from tqdm.auto import tqdm

from sigdeg.errors import SigdegError
from sigdeg.files import read_identified, save_tensors
from sigdeg.paths.batch import Batch, Part
from sigdeg.paths.claims import arrived, work
from sigdeg.paths.simulate import TeacherPaths
from sigdeg.rng import Stream, derive_generator

__all__ = ["CachedPaths", "FreshPaths", "PathSource", "SharedPaths"]

CHUNK = 2**18  # numbers that the teacher is given at a time, and at least eight samples


class FreshPaths:
    """Segments simulated anew for every batch: of several processes, each simulates its part.

    From data (`states="data"`) that is r teacher calls a pair; whole paths cost K times as many, of
    which a batch sees a window: cache those.

    Arguments:
        paths: What to simulate.
        seed: Seed of the held-out segments, of a stream that training never sees.
    """

    unseen = True  # training never draws the held-out ones

    def __init__(self, paths: TeacherPaths, seed: int = 0) -> None:
        self.paths, self.seed = paths, seed
        self.kept: Batch | None = None  # the segments that were held out

    @property
    def ends(self) -> Tensor:
        r"""Where the segments end that are there, shape (n, \*): samples, of whole paths."""
        kept = self.held_out(1) if self.kept is None else self.kept
        return kept.states[:, -1]

    def batch(self, n: int, generator: Generator) -> Batch:
        """Draw n training segments."""
        count = processes()
        if n % count or count == 1:
            return self.paths.draw(n, generator)
        rows = torch.arange(n).reshape(count, -1)[rank()]
        part = self.paths.segments(n, Part(generator, n, rows))
        return self.paths.batch({k: joined(v, self.paths.device) for k, v in part.items()})

    def held_out(self, n: int) -> Batch:
        """The first n of the segments that training never sees."""
        if self.kept is None or len(self.kept) != n:
            self.kept = self.paths.draw(n, derive_generator(self.seed, Stream.FRESH_HELD_OUT))
        return self.kept

    def calls(self, segments: int) -> float:
        """Teacher calls that drawing so many training segments takes, over samples."""
        held_out = 0 if self.kept is None else len(self.kept)
        return (processes() * held_out + segments) * self.paths.teacher_nfe  # all hold some out


class CachedPaths:
    """Segments simulated once into memory-mapped safetensors shards, and reused over epochs.

    The last ones are held out. The noise of a segment depends on the seed and its number alone, so
    that any number of processes share the work, see `sigdeg.paths.claims`.
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
        identity = {**paths.identity(), "seed": seed, "count": count, "shard_size": shard_size}
        # Seeds side by side: no two segments of a simulation have one stream.
        first_seed = derive_generator(seed, Stream.CACHED_PATHS).initial_seed()
        parts = {
            f"paths-{index:05d}.safetensors": range(first, min(first + shard_size, count))
            for index, first in enumerate(range(0, count, shard_size))
        }
        told = {name: json.dumps({**identity, "first": part.start}) for name, part in parts.items()}
        known = {
            name: read_identified(folder / name, told[name]) for name in arrived(folder, parts)
        }
        done = sum(len(parts[name]) for name in known)
        with tqdm(
            total=count, initial=done, desc="teacher paths", unit="path", disable=not progress
        ) as bar:

            def make(name: str) -> None:
                seeds = ((first_seed + number) % 2**32 for number in parts[name])
                streams = [Generator().manual_seed(own) for own in seeds]
                segments = paths.segments(len(streams), streams)
                save_tensors(folder / name, segments, {"identity": told[name]})
                bar.update(len(streams))

            work(folder, parts, make)
            bar.update(count - bar.n)  # what others have made
        self.shards = [
            known.get(name) or read_identified(folder / name, told[name]) for name in parts
        ]

    @property
    def unseen(self) -> bool:
        """Whether training never draws the held-out ones."""
        return self.train < self.count

    @property
    def ends(self) -> Tensor:
        """See `FreshPaths`."""
        return torch.cat([shard["states"][:, -1] for shard in self.shards])

    def gather(self, index: Tensor) -> Batch:
        """Segments by number."""
        shard, row = index // self.shard_size, index % self.shard_size
        if len(self.shards) == 1:
            return self.paths.batch({key: value[row] for key, value in self.shards[0].items()})
        out: dict[str, Tensor] = {}
        for key, first in self.shards[0].items():
            out[key] = torch.empty(len(index), *first.shape[1:], dtype=first.dtype)
            for s in shard.unique().tolist():
                here = shard == s
                out[key][here] = self.shards[s][key][row[here]]
        return self.paths.batch(out)

    def batch(self, n: int, generator: Generator) -> Batch:
        """Draw n training segments, with replacement."""
        return self.gather(torch.randint(self.train, (n,), generator=generator))

    def held_out(self, n: int) -> Batch:
        """The first n of the segments that training never sees (or of all, if none is held out)."""
        first = self.train if self.unseen else 0
        return self.gather(torch.arange(first, min(self.count, first + n)))

    def calls(self, segments: int) -> float:
        """See `FreshPaths`."""
        return self.count * self.paths.teacher_nfe


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

    @property
    def unseen(self) -> bool:
        """See `CachedPaths`."""
        return self.cache.unseen

    @property
    def ends(self) -> Tensor:
        """See `FreshPaths`."""
        return self.cache.ends

    def identity(self) -> dict[str, Any]:
        """JSON values that tell these paths from any others."""
        paths, cache = self.cache.paths, self.cache
        told = [cache.seed, cache.count, cache.train, paths.order]
        return {**paths.identity(), "order": self.order, "cache": told}

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

    def calls(self, segments: int) -> float:
        """See `FreshPaths`."""
        return self.cache.calls(segments)


PathSource: TypeAlias = FreshPaths | CachedPaths | SharedPaths


def processes() -> int:
    """The number of processes at work."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this one is."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def joined(value: Tensor, device: torch.device | str) -> Tensor:
    """The rows of all processes, in their order; each has as many. They travel by the device."""
    sent = value.to(device).contiguous()
    parts = [torch.empty_like(sent) for _ in range(processes())]
    distributed.all_gather(parts, sent)
    return torch.cat(parts).to(value.device)
