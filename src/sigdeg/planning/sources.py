"""Where a spectrum comes from: a file, a benchmark of the package, or a teacher's own samples."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator

from sigdeg.costs import check_memory, tell_calls
from sigdeg.errors import SigdegError, check_least, reason
from sigdeg.files import read_tensors
from sigdeg.grids import fine_grid
from sigdeg.planning.measured import MeasuredCost, candidate_times, measured_cost
from sigdeg.planning.spectrum import Spectrum
from sigdeg.sampling import sample

if TYPE_CHECKING:
    from sigdeg.integrations import Teacher

__all__ = ["Source", "find_source", "measure_teacher"]


@dataclass(frozen=True)
class Source:
    """A spectrum, and what it was taken of.

    Arguments:
        spectrum: The spectrum.
        teacher: The teacher whose samples it was taken of; None for other data.
    """

    spectrum: Spectrum
    teacher: Teacher | None = None


def find_source(
    name: str,
    samples: int = 1024,
    steps: int = 30,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> Source:
    r"""The spectrum that a name stands for.

    | name | spectrum of |
    |---|---|
    | `*.npy`, `*.safetensors` (one tensor) | its samples, shape (n, \*) |
    | `*.json`, `*.csv`, `*.txt` | the eigenvalues in it, or a saved spectrum |
    | `mixture1d`, `rbergomi` | the data of the benchmark, exact or simulated |
    | a folder, a hub id, `mnist-teacher` | what a saved diffusers pipeline draws |

    Arguments:
        name: One of these.
        samples: Samples to draw from a teacher.
        steps: Steps to draw them with.
        seed: Seed of what is drawn.
        device: Where to draw them.
        progress: Show a progress bar.

    Raises:
        SigdegError: If it is none of them, or cannot be read.
    """
    path = Path(name)
    if path.suffix in READERS and not path.is_dir():
        try:
            return Source(READERS[path.suffix](path))
        except SigdegError:
            raise
        except Exception as error:  # a damaged file may break anything inside its reader
            raise SigdegError(f"cannot read {path}: {reason(error)}") from None
    if name in BENCHMARKS and not path.exists():
        return Source(BENCHMARKS[name](samples, seed))
    from sigdeg.integrations import load_teacher

    return sample_teacher(load_teacher(name), samples, steps, seed, device, progress)


def read_array(path: Path) -> Spectrum:
    """Samples in a .npy file; nothing is unpickled."""
    return Spectrum.of_samples(np.load(path, allow_pickle=False), path.name)


def read_safetensors(path: Path) -> Spectrum:
    """Samples in a .safetensors file of one tensor."""
    tensors = read_tensors(path)[0]
    if len(tensors) != 1:
        raise SigdegError(f"{path} must hold one tensor of samples, it holds {len(tensors)}")
    return Spectrum.of_samples(next(iter(tensors.values())).double().numpy(), path.name)


def read_json_spectrum(path: Path) -> Spectrum:
    """Eigenvalues or a spectrum in a .json file."""
    return Spectrum.from_json(json.loads(path.read_text()), path.name)


def read_text(path: Path) -> Spectrum:
    """Eigenvalues in a text file, separated by commas or line ends."""
    numbers = path.read_text().replace(",", " ").split()
    if not numbers:
        raise SigdegError(f"{path} holds no eigenvalues")
    return Spectrum.of_eigenvalues(numbers, source=path.name)


READERS: dict[str, Callable[[Path], Spectrum]] = {
    ".npy": read_array,
    ".safetensors": read_safetensors,
    ".json": read_json_spectrum,
    ".csv": read_text,
    ".txt": read_text,
}


def mixture(samples: int, seed: int) -> Spectrum:
    """The exact variance of 1DN."""
    from sigdeg.datasets import GaussianMixture1D

    return Spectrum.of_eigenvalues([GaussianMixture1D().variance], source="mixture1d, exact")


def rough_bergomi(samples: int, seed: int) -> Spectrum:
    """Standardised paths of the rough Bergomi benchmark."""
    from sigdeg.datasets import rough_bergomi_split

    check_memory(25_000 * samples)  # 500 steps a path, of a few numbers each
    split = rough_bergomi_split(seed, max(samples, 10) * 5 // 3)
    return Spectrum.of_samples(split.standardise(split.train), "rbergomi, standardised paths")


BENCHMARKS: dict[str, Callable[[int, int], Spectrum]] = {
    "mixture1d": mixture,
    "rbergomi": rough_bergomi,
}


def sample_teacher(
    teacher: Teacher, count: int, steps: int, seed: int, device: str | None, progress: bool
) -> Source:
    """The spectrum of a teacher's own samples."""
    from sigdeg.training import resolve_device

    check_least(count, 2, "samples")
    device = resolve_device(device)
    teacher = teacher.to(device)
    labels, condition = None, dict[str, Any]()
    memory = 12 * count * math.prod(teacher.sample_shape)  # as they are, and in double precision
    check_memory(memory)
    if teacher.labels is not None:
        labels = torch.tensor(teacher.labels)[torch.arange(count) % len(teacher.labels)]
        condition["class_labels"] = labels.to(device)
    step, grid = teacher.step(), fine_grid(teacher.denoiser.schedule, steps, "power")
    if progress:
        tell_calls(
            f"{count:,} samples of the teacher",
            count * steps,
            step,
            (grid[0], grid[1]),
            teacher.sample_shape,
            min(count, 128),
            device,
            labels,
            memory=memory,
        )
    drawn = sample(
        step,
        grid,
        (count, *teacher.sample_shape),
        generator=Generator().manual_seed(seed),
        batch_size=128,
        progress=progress,
        **condition,
    ).cpu()
    text = f"{teacher.name}, its own samples, {steps} steps each"
    return Source(Spectrum.of_samples(drawn.numpy(), text), teacher)


def measure_teacher(
    teacher: Teacher,
    steps: int,
    order: int = 2,
    candidates: int = 19,
    paths: int = 1024,
    refinement: int = 6,
    axes: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> MeasuredCost:
    """What coarse steps between candidate times lose of a teacher, along its principal axes.

    Arguments:
        teacher: The teacher.
        steps: Steps of the student, which the candidates must allow.
        order: Order of the student's signatures.
        candidates: The number of candidate times, see `candidate_times`.
        paths: Simulated paths.
        refinement: Fine steps between neighbouring candidates.
        axes: The most principal axes to measure along.
        seed: Seed of the paths.
        progress: Say what it takes, and show bars.

    Raises:
        SigdegError: If there are too few candidates, or the teacher cannot be run at them.
    """
    if candidates <= steps:
        raise SigdegError(f"{steps} steps need more than {candidates} candidates to choose from")
    size = math.prod(teacher.sample_shape)
    check_least(axes, 1, "axes")
    return measured_cost(
        teacher.step(),
        candidate_times(teacher.denoiser.schedule, candidates - 1),
        teacher.sample_shape,
        order,
        paths,
        refinement,
        directions=min(size, axes),
        labels=None if teacher.labels is None else torch.tensor(teacher.labels),
        generator=Generator().manual_seed(seed),
        device=next(teacher.denoiser.parameters()).device,
        batch_size=256,
        progress=progress,
    )
