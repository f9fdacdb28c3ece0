"""What work will cost: said, and refused where there is no room for it, before it begins."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from tqdm.auto import tqdm

from sigdeg.errors import SigdegError
from sigdeg.training import Job, TrainConfig
from sigdeg.training.memory import checkpoint_gradients
from sigdeg.training.weights import copied

if TYPE_CHECKING:
    from sigdeg.paths import TeacherPaths
    from sigdeg.protocols import Step
    from sigdeg.student import SignatureStudent

__all__ = [
    "Activations",
    "Need",
    "check_memory",
    "check_room",
    "check_training",
    "costs_line",
    "judging_bytes",
    "path_bytes",
    "size",
    "tell_calls",
    "tell_job",
    "tell_memory",
    "tell_training",
]

SHORT, SEVERAL = 1.0, 16  # seconds of a row, and rows, in a trial of what training takes


PROBE = 64  # samples that are tried at most


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


def check_memory(need: float, place: torch.device | str = "cpu") -> None:
    """Refuse work that needs more bytes of memory than are free, of a GPU's where it runs there."""
    place = torch.device(place)
    if place.type == "cuda":
        compare(need, torch.cuda.mem_get_info(place)[0], "of the GPU's memory")
    else:
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
    n = min(batch_size, PROBE)
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


@dataclass(frozen=True)
class Need:
    """Bytes that a training takes.

    Arguments:
        disk: Of saved paths, and of a checkpoint: weights that learn, their average, Adam's two
            moments.
        memory: Of the device, for a process: of weights that learn five times as many, those and
            their gradient; frozen weights once; a batch and its gradient.
    """

    disk: int
    memory: int

    @classmethod
    def of(
        cls, module: nn.Module, frozen: Iterable[Tensor], config: TrainConfig, processes: int
    ) -> Need:
        """What weights take, some of them frozen."""
        still = nbytes(frozen)
        learnt = nbytes(module.parameters()) - still
        parts = processes if config.sharding == "fsdp" else 1
        return cls(4 * learnt, (5 * learnt + still) // parts)


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.nbytes for tensor in tensors)


def check_training(
    folder: Path,
    paths: TeacherPaths,
    student: SignatureStudent,
    count: int,
    config: TrainConfig,
    processes: int = 1,
) -> Need:
    """Refuse training a student on so many saved paths where there is no room for it."""
    steps = len(paths.rows) if paths.data is None else paths.q
    each = path_bytes(steps, paths.order, paths.shape)
    need = Need.of(student, student.frozen(), config, processes)
    rows = 2 * config.batch_size // processes
    need = Need(need.disk + count * each, need.memory + rows * each)
    saved = sum(file.stat().st_size for file in folder.glob("paths/*.safetensors"))
    check_room(folder, need.disk - saved)
    place = torch.device(paths.device)
    there = nbytes(p for p in student.frozen() if p.device == place)
    check_memory(need.memory - there, place)
    return need


def tell_training(
    paths: TeacherPaths,
    student: SignatureStudent,
    count: int,
    config: TrainConfig,
    need: Need,
    processes: int = 1,
) -> None:
    """Say on stderr what simulating and training will take, by a call and a step, measured."""
    batch_size, calls = config.batch_size, count * paths.teacher_nfe
    what = f"{count:,} paths, {calls:,.0f} teacher calls, {config.iterations:,} training steps"
    if sharded(config, processes):
        tell_weights(what, need)
        return
    row, shared = paths.rows[0], (paths.shape, batch_size, paths.device, paths.condition)
    probe = copied(student, student.frozen()).to(paths.device).eval().requires_grad_(True)
    probe.lookahead = 0.0  # which costs no calls, and would ask for a covariance
    if config.gradient_checkpointing:
        checkpoint_gradients(probe)
    seconds = calls * call_seconds(paths.teacher, row, *shared)
    with half(config, paths.device), (held := Activations(probe)):
        step = call_seconds(probe, row[[0, -1]], *shared, train=True) * paths.q
    seconds += config.iterations * batch_size * step
    memory = need.memory + held.most / min(batch_size, PROBE) * paths.q * batch_size / processes
    tqdm.write(costs_line(what, need.disk, memory, seconds / processes), file=sys.stderr)


def tell_job(
    job: Job[Any],
    rows: int,
    config: TrainConfig,
    place: torch.device,
    processes: int = 1,
    parts: int | None = None,
) -> None:
    """Say on stderr what a training will take, by its loss of some rows held out, measured.

    Arguments:
        job: The training.
        rows: Rows that it holds out.
        config: How to train.
        place: Where to.
        processes: On how many processes.
        parts: Parts that the rows can be cut into, of which one is tried (default: each by itself).

    Raises:
        SigdegError: If there is no room for it.
    """
    frozen = [p for p in job.objective.parameters() if not p.requires_grad]
    need, what = (
        Need.of(job.objective, frozen, config, processes),
        f"{config.iterations:,} training steps",
    )
    if sharded(config, processes):
        tell_weights(what, need)
        return
    probe = copied(job.objective).to(place)
    if config.gradient_checkpointing:
        checkpoint_gradients(probe)
    parts = parts or rows

    def seconds_of(parts: int) -> float:
        """Seconds of a row, by the loss of one of some parts."""
        few = send_to_device(job.share(job.held_out, 0, parts), place)
        with half(config, place):
            for _ in range(1 if place.type == "cpu" else 2):  # a GPU has to warm up
                began = time.perf_counter()
                loss = probe(few)["loss"]
                loss.backward()
                float(loss.detach())
        return (time.perf_counter() - began) * parts / rows

    with (held := Activations(probe)):
        seconds = seconds_of(parts)
    each = config.batch_size / processes  # rows in a step
    memory = need.memory + held.most * parts / rows * each
    check_memory(memory - nbytes(p for p in frozen if p.device == place), place)
    if seconds < SHORT:  # several rows cost less than as many times one
        seconds = seconds_of(max(1, parts // SEVERAL))
    seconds *= config.iterations * each
    tqdm.write(costs_line(what, need.disk, memory, seconds), file=sys.stderr)


def sharded(config: TrainConfig, processes: int) -> bool:
    """Whether a network may be too large to be tried on one device."""
    return config.sharding == "fsdp" and processes > 1


def tell_weights(what: str, need: Need) -> None:
    """Say on stderr what is known of a training without a trial."""
    line = f"{what}: {size(need.disk)} on disk, {size(need.memory)} of memory beside activations"
    tqdm.write(line, file=sys.stderr)


def half(config: TrainConfig, place: torch.device | str) -> torch.autocast:
    """The precision of a training."""
    on = config.mixed_precision == "bf16"
    return torch.autocast(torch.device(place).type, torch.bfloat16, enabled=on)


def tell_memory(used: float) -> None:
    """Say on stderr what a training took of memory."""
    tqdm.write(f"training took {size(used)} of memory", file=sys.stderr)


class Activations(saved_tensors_hooks):
    """Counts the bytes that autograd keeps for a gradient, beside weights.

    Attributes:
        most: The most that was kept at a time.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(self.keep, self.give)
        self.weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.kept: dict[int, int] = {}
        self.now = self.most = 0

    def keep(self, value: Tensor) -> Tensor:
        """Called with what a gradient will need."""
        storage, place = value.untyped_storage(), value.data_ptr()
        if storage.data_ptr() not in self.weights and place not in self.kept:
            self.kept[place] = min(value.nbytes, storage.nbytes())  # it may be a part, or expanded
            self.now += self.kept[place]
            self.most = max(self.most, self.now)
        return value

    def give(self, value: Tensor) -> Tensor:
        """Called when the gradient takes it."""
        self.now -= self.kept.pop(value.data_ptr(), 0)
        return value
