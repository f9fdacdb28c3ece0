"""What work will cost: said, and refused where there is no room for it, before it begins."""

from __future__ import annotations

import copy
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor
from tqdm.auto import tqdm

from sigdeg.errors import SigdegError

if TYPE_CHECKING:
    from sigdeg.paths import TeacherPaths
    from sigdeg.protocols import Step
    from sigdeg.student import SignatureStudent

__all__ = [
    "check_memory",
    "check_room",
    "check_training",
    "judging_bytes",
    "path_bytes",
    "size",
    "tell_calls",
    "tell_training",
]


def size(count: float) -> str:
    """A number of bytes in words."""
    power = next((k for k in range(1, 5) if count < 1000 ** (k + 1)), 5)
    return f"{count / 1000**power:.3g} {'kMGTP'[power - 1]}B"


def check_room(folder: Path, disk: float = 0, memory: float = 0) -> None:
    """Refuse work that needs more bytes than are free, or a folder that cannot be written to."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    held, there = place.is_dir() and os.access(place, os.W_OK | os.X_OK), shutil.disk_usage(place)
    if not held or not there.total:  # /proc has no disk at all
        raise SigdegError(f"cannot write to {folder}: {place} is no folder that can be written to")
    compare(disk, there.free, f"on the disk of {folder}")
    check_memory(memory)


def check_memory(need: float) -> None:
    """Refuse work that needs more bytes of memory than are free."""
    compare(need, psutil.virtual_memory().available, "of memory")


def compare(need: float, free: float, where: str) -> None:
    """Refuse what is more than is free."""
    if need > free:
        raise SigdegError(
            f"this takes {size(need)} {where}, where {size(free)} are free: ask for fewer or "
            "smaller samples, paths or batches, or make room"
        )


def path_bytes(steps: int, order: int, shape: tuple[int, ...]) -> int:
    """Bytes of a path of some coarse steps: its states and coefficients in single precision."""
    return 4 * (steps * (1 + order) + 1) * math.prod(shape) + 16


def judging_bytes(n: int, shape: tuple[int, ...], levels: int) -> int:
    """Bytes of judging two sets of n samples at some step counts: sets, and distances within one.

    Every set is kept as it is drawn and joined; three are compared at once, in double precision
    where samples are small, each half with each.
    """
    values = math.prod(shape)
    digits = 8 if values <= 64 else 4
    return 2 * n * values * (8 * (1 + 2 * levels) + 3 * digits) + 2 * n * n * digits


def costs_line(what: str, disk: float, memory: float, seconds: float) -> str:
    """What work takes, in words."""
    minutes = seconds / 60
    return (
        f"{what}: {size(disk)} on disk, {size(memory)} of memory, about "
        f"{'a minute' if minutes < 1.5 else f'{minutes:,.0f} minutes'}"
    )


def tell_calls(
    what: str,
    calls: float,
    step: Step[Any],
    grid: Tensor,
    shape: tuple[int, ...],
    batch_size: int,
    device: torch.device | str,
    condition: Mapping[str, Tensor] | None = None,
    *,
    disk: float = 0,
    memory: float = 0,
) -> None:
    """Say on stderr what network calls will take, by those of a grid's first step, measured."""
    seconds = calls * call_seconds(step, grid, shape, batch_size, device, condition)
    tqdm.write(
        costs_line(f"{what}, {calls:,.0f} network calls", disk, memory, seconds), file=sys.stderr
    )


def call_seconds(
    step: Step[Any],
    grid: Tensor,
    shape: tuple[int, ...],
    batch_size: int,
    device: torch.device | str,
    condition: Mapping[str, Tensor] | None = None,
    train: bool = False,
) -> float:
    """Seconds of a call in a grid's first step, or of a step in training, for one sample."""
    n = min(batch_size, 64)
    x = torch.zeros(n, *shape, device=device)
    first = torch.zeros(n, dtype=torch.long)
    given = {name: value[first].to(x.device) for name, value in (condition or {}).items()}
    t, s = grid[0], grid[1]
    noise = step.noise(t, s, x.shape, torch.Generator(), dtype=x.dtype, device=x.device)
    for _ in range(1 if x.device.type == "cpu" else 2):  # a GPU has to warm up
        began = time.perf_counter()
        with torch.set_grad_enabled(train):
            total = step(x, t, s, noise, **given).square().mean()
        if train:
            total.backward()
        float(total.detach())  # on a GPU the work is done only now
    parts = n if train else n * max(1, step.calls(float(t), float(s)))
    return (time.perf_counter() - began) / parts


def check_training(
    folder: Path, paths: TeacherPaths, student: SignatureStudent, count: int, batch_size: int
) -> tuple[int, int]:
    """Refuse training a student on so many saved paths where there is no room for it.

    Returns:
        Bytes on disk, of the paths and of a checkpoint: weights, their average, Adam's two moments;
        and in memory, of a batch and its gradient, and of the weights in training.
    """
    steps = len(paths.rows) if paths.data is None else paths.q
    each = path_bytes(steps, paths.order, paths.shape)
    weights = sum(p.numel() * p.element_size() for p in student.parameters())
    disk, memory = count * each + 4 * weights, 2 * batch_size * each + 6 * weights
    there = sum(file.stat().st_size for file in folder.glob("paths/*.safetensors"))
    check_room(folder, disk - there, memory)
    return disk, memory


def tell_training(
    paths: TeacherPaths,
    student: SignatureStudent,
    count: int,
    iterations: int,
    batch_size: int,
    room: tuple[int, int],
) -> None:
    """Say on stderr what simulating and training will take, by a call and a step, measured."""
    row, shared = paths.rows[0], (paths.shape, batch_size, paths.device, paths.condition)
    probe = copy.deepcopy(student).to(paths.device).eval().requires_grad_(True)
    probe.lookahead = 0.0  # which costs no calls, and would ask for a covariance
    calls = count * paths.teacher_nfe
    seconds = calls * call_seconds(paths.teacher, row, *shared)
    step = call_seconds(probe, row[[0, -1]], *shared, train=True) * paths.q
    what = f"{count:,} paths, {calls:,.0f} teacher calls, {iterations:,} training steps"
    line = costs_line(what, *room, seconds + iterations * batch_size * step)
    tqdm.write(line, file=sys.stderr)
