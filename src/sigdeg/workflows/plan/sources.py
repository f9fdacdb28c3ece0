"""Where a spectrum comes from: a file, a benchmark of the package, or a teacher's own samples."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Generator

from sigdeg.costs import check_memory, tell_calls
from sigdeg.datasets import GaussianMixture1D, rough_bergomi_split
from sigdeg.errors import SigdegError, check_least, reason
from sigdeg.files import read_tensors
from sigdeg.grids import fine_grid
from sigdeg.integrations import load_teacher
from sigdeg.model import Model
from sigdeg.planning import Spectrum
from sigdeg.planning.advice import own_samples
from sigdeg.sampling import sample
from sigdeg.training import resolve_device

__all__ = ["find_source", "sample_spectrum"]

SUFFIXES = (".npy", ".safetensors", ".json", ".csv", ".txt")
BENCHMARKS = ("mixture1d", "rbergomi")


def find_source(
    name: str, samples: int = 1024, seed: int = 0, load: Callable[[str], Model] = load_teacher
) -> Spectrum | Model:
    r"""What a name stands for: a spectrum, or a teacher whose samples have one.

    | name | spectrum of |
    |---|---|
    | `*.npy`, `*.safetensors` (one tensor) | its samples, shape (n, \*) |
    | `*.json`, `*.csv`, `*.txt` | the eigenvalues in it, or a saved spectrum |
    | `mixture1d`, `rbergomi` | the data of the benchmark, exact or simulated |
    | a folder, a hub id, `mnist-teacher` | a saved diffusers pipeline: see `sample_spectrum` |

    Arguments:
        name: One of these.
        samples: Samples to draw of a benchmark.
        seed: Seed of what is drawn.
        load: How a teacher is loaded, guided perhaps.

    Raises:
        SigdegError: If it is none of them, or cannot be read.
    """
    path = Path(name)
    if path.suffix in SUFFIXES and not path.is_dir():
        try:
            return read_spectrum(path)
        except SigdegError:
            raise
        except Exception as error:  # a damaged file may break anything inside its reader
            raise SigdegError(f"cannot read {path}: {reason(error)}") from None
    if name in BENCHMARKS and not path.exists():
        return benchmark_spectrum(name, samples, seed)
    return load(name)


def read_spectrum(path: Path) -> Spectrum:
    """The spectrum of samples in a file, or of eigenvalues; nothing is unpickled."""
    if path.suffix == ".npy":
        return Spectrum.of_samples(np.load(path, allow_pickle=False), path.name)
    if path.suffix == ".safetensors":
        tensors = read_tensors(path)[0]
        if len(tensors) != 1:
            raise SigdegError(f"{path} must hold one tensor of samples, it holds {len(tensors)}")
        return Spectrum.of_samples(next(iter(tensors.values())).double().numpy(), path.name)
    if path.suffix == ".json":
        return Spectrum.from_json(json.loads(path.read_text()), path.name)
    numbers = path.read_text().replace(",", " ").split()
    if not numbers:
        raise SigdegError(f"{path} holds no eigenvalues")
    return Spectrum.of_eigenvalues(numbers, source=path.name)


def benchmark_spectrum(name: str, samples: int, seed: int) -> Spectrum:
    """The exact variance of 1DN, or standardised paths of rough Bergomi."""
    if name == "mixture1d":
        return Spectrum.of_eigenvalues([GaussianMixture1D().variance], source="mixture1d, exact")
    check_memory(25_000 * samples)  # 500 steps a path, of a few numbers each
    split = rough_bergomi_split(seed, max(samples, 10) * 5 // 3)
    return Spectrum.of_samples(split.standardise(split.train), "rbergomi, standardised paths")


def sample_spectrum(
    teacher: Model,
    count: int = 1024,
    steps: int = 30,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> Spectrum:
    """The spectrum of a teacher's own samples.

    Arguments:
        teacher: The teacher.
        count: Samples to draw.
        steps: Steps to draw them with.
        seed: Seed of the samples.
        device: Where to draw them (default: what is found).
        progress: Say what it takes, and show a bar.

    Raises:
        SigdegError: If there are fewer than two samples, or no room for them.
    """
    check_least(count, 2, "samples")
    device = resolve_device(device)
    condition, step = teacher.to(device).condition(count), teacher.step
    memory = 12 * count * math.prod(teacher.shape)  # as they are, and in double precision
    check_memory(memory)
    grid = fine_grid(teacher.schedule, steps, "power")
    if progress:
        where = grid, teacher.shape, min(count, 128), device, condition
        what = f"{count:,} samples of the teacher"
        tell_calls(what, count * steps, step, *where, memory=memory)
    drawn = sample(
        step,
        grid,
        (count, *teacher.shape),
        generator=Generator().manual_seed(seed),
        batch_size=128,
        progress=progress,
        **condition,
    ).cpu()
    return Spectrum.of_samples(drawn.numpy(), own_samples(teacher.name, steps))
