"""Runs of a teacher's pipeline on disk: made by many workers, read as segments of paths."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from tqdm.auto import tqdm

from sigdeg.errors import SigdegError
from sigdeg.files import read_identified, save_tensors
from sigdeg.paths import Batch
from sigdeg.paths.claims import arrived, work
from sigdeg.pipelines.calls import Calls, Kept, keep_calls, read_calls
from sigdeg.pipelines.teacher import PipelineTeacher
from sigdeg.rng import Stream, derive_generator

__all__ = ["PipelinePaths"]


class PipelinePaths:
    """Segments from runs of a pipeline, kept in one safetensors file a run; see `FreshPaths`.

    The last runs are held out. A run depends on the seed, its number and its call alone: any number
    of workers that see the folder share the work, and one that is interrupted is gone on with.

    Arguments:
        teacher: The teacher.
        folder: Where the runs go.
        calls: Calls of the pipeline: run i makes the i-th, and begins again at the end.
        count: The number of runs.
        identity: JSON values that tell these runs from any others.
        seed: Seed of their noise.
        held_out: Runs that are held out, below count.
        tell: Called once, after the first run that is made here, with its seconds, its bytes, and
            the number of runs that are missing.
        progress: Show a progress bar.

    Attributes:
        asked: The call and the seed of each run.
        rows: The run of each row, and its place in it, shape (rows, 2).

    Raises:
        SigdegError: If a call fails, or the folder holds other runs or a damaged one.
    """

    unseen = True  # training never draws the held-out ones

    def __init__(
        self,
        teacher: PipelineTeacher,
        folder: Path,
        calls: Sequence[Mapping[str, Any]],
        count: int,
        identity: Mapping[str, Any],
        seed: int = 0,
        held_out: int = 1,
        tell: Callable[[float, int, int], None] | None = None,
        progress: bool = False,
    ) -> None:
        if not 0 < held_out < count:
            raise SigdegError(f"held_out must lie between 1 and the {count} runs, got {held_out}")
        self.teacher = teacher
        names = {f"run-{number:05d}.safetensors": number for number in range(count)}
        self.asked = [
            (calls[i % len(calls)], derive_generator(seed, Stream.CACHED_PATHS, i).initial_seed())
            for i in range(count)
        ]
        told = {name: json.dumps({**identity, "run": number}) for name, number in names.items()}
        missing, first = count - len(arrived(folder, names)), True
        with tqdm(
            total=count,
            initial=count - missing,
            desc="teacher runs",
            unit="run",
            disable=not progress,
        ) as bar:

            def make(name: str) -> None:
                nonlocal first
                number, began = names[name], time.perf_counter()
                # What is held out judges the student as it is asked: by its conditions.
                own = derive_generator(seed, Stream.DROPOUT, number)
                chance = float(torch.rand((), generator=own))
                dropped = number < count - held_out and chance < teacher.guidance.dropout
                run = teacher.run(*self.asked[number], dropped)
                kept, written = keep_calls(run.calls)
                kept |= {"states": run.states, "coefficients": run.coefficients}
                kept |= {"start": torch.tensor(run.start), "calls": as_bytes(written)}
                save_tensors(folder / name, kept, {"identity": told[name]})
                bar.update()
                if first and tell is not None:
                    size = (folder / name).stat().st_size
                    tell(time.perf_counter() - began, size, missing)
                first = False

            work(folder, names, make)
            bar.update(count - bar.n)  # what others have made
        runs = [read_run(folder / name, told[name]) for name in names]
        if len({tuple(run["states"].shape[1:]) for run, _ in runs}) > 1:
            raise SigdegError("the calls make states of several shapes: give them one resolution")
        sizes = [len(run["states"]) for run, _ in runs]
        self.rows = torch.tensor([(i, j) for i, n in enumerate(sizes) for j in range(n)])
        self.train = sum(sizes[: count - held_out])
        self.runs = [run for run, _ in runs]
        self.recorded = Calls(teacher.trace, [calls for _, calls in runs], self.rows)

    @property
    def ends(self) -> Tensor:
        """See `FreshPaths`."""
        return torch.cat([run["states"][:, -1] for run in self.runs])

    def gather(self, index: Tensor) -> Batch:
        """Segments by number of their row."""
        places = self.rows[index].tolist()
        start = torch.stack([self.runs[run]["start"] for run, _ in places])
        states, coefficients = (
            torch.stack([self.runs[run][name][row] for run, row in places])
            for name in ("states", "coefficients")
        )
        return Batch(start, states, coefficients, {"row": index})

    def batch(self, n: int, generator: Generator) -> Batch:
        """Draw n training segments, with replacement."""
        return self.gather(torch.randint(self.train, (n,), generator=generator))

    def held_out(self, n: int) -> Batch:
        """The first n of the segments that training never sees."""
        return self.gather(torch.arange(self.train, min(len(self.rows), self.train + n)))

    def calls(self, segments: int) -> float:
        """Steps of the teacher that the runs took, over samples."""
        return float(len(self.rows) * self.teacher.fine_steps)


def as_bytes(text: str) -> Tensor:
    """A text as a tensor: it can be longer than a file's header."""
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def read_run(file: Path, identity: str) -> tuple[dict[str, Tensor], dict[str, Kept]]:
    """A run from its file: tensors of its path by name, and its calls by place."""
    tensors = read_identified(file, identity)
    return tensors, read_calls(tensors, tensors["calls"].numpy().tobytes().decode())
