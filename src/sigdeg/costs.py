"""What work will cost: said, and refused where there is no room for it, before it begins."""

from __future__ import annotations

import copy
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from torch import Tensor

from sigdeg.errors import SigdegError

if TYPE_CHECKING:
    from sigdeg.distillation import TeacherPaths
    from sigdeg.student import SignatureStudent

__all__ = ["Costs", "check_room", "path_bytes", "size"]


def size(count: float) -> str:
    """A number of bytes in words."""
    unit = next(
        (u for u in ("kB", "MB", "GB", "TB") if count < 1000 ** ("kMGT".index(u[0]) + 2)), "PB"
    )
    return f"{count / 1000 ** ('kMGTP'.index(unit[0]) + 1):.3g} {unit}"


def check_room(folder: Path, disk: float = 0, memory: float = 0) -> None:
    """Refuse work that needs more bytes than are free, or a folder that cannot be written to.

    Raises:
        SigdegError: If it is so. Nothing is made or written.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise SigdegError(f"cannot write to {folder}: {place} is no folder that can be written to")
    for need, free, where in (
        (disk, shutil.disk_usage(place).free, f"on the disk of {folder}"),
        (memory, psutil.virtual_memory().available, "of memory"),
    ):
        if need > free:
            raise SigdegError(
                f"this takes {size(need)} {where}, where {size(free)} are free: ask for fewer or "
                "smaller samples, paths or batches, or make room"
            )


def path_bytes(steps: int, order: int, shape: tuple[int, ...]) -> int:
    """Bytes of a path of some coarse steps: its states and coefficients in single precision."""
    return 4 * (steps * (1 + order) + 1) * math.prod(shape) + 16


@dataclass(frozen=True)
class Costs:
    """What a distillation takes.

    Arguments:
        paths: What it learns from.
        student: What it trains.
        count: Paths to simulate.
        batch_size: Segments a training step.
        iterations: Training steps.
        cached: Whether the paths go to disk.
    """

    paths: TeacherPaths
    student: SignatureStudent
    count: int
    batch_size: int
    iterations: int
    cached: bool

    @property
    def bytes_each(self) -> int:
        """Bytes of a segment."""
        steps = len(self.paths.rows) if self.paths.data is None else self.paths.steps
        return path_bytes(steps, self.paths.order, self.paths.shape)

    @property
    def disk(self) -> int:
        """Bytes of the paths and of a checkpoint: weights, their average, Adam's two moments."""
        return self.cached * self.count * self.bytes_each + 4 * self.weights

    @property
    def memory(self) -> int:
        """Bytes of a batch and its gradient, and of the weights in training."""
        return 2 * self.batch_size * self.bytes_each + 6 * self.weights

    @property
    def weights(self) -> int:
        """Bytes of the student's weights."""
        return sum(p.numel() * p.element_size() for p in self.student.parameters())

    def check(self, folder: Path) -> None:
        """Refuse what there is no room for; paths that are there already need no more."""
        there = sum(file.stat().st_size for file in folder.glob("paths/*.safetensors"))
        check_room(folder, self.disk - there, self.memory)

    def line(self, labels: Tensor | None) -> str:
        """The costs in words; what one call and one training step take is measured."""
        teacher, student = self.measure(labels)
        calls = self.count * self.paths.teacher_nfe
        minutes = (calls * teacher + self.iterations * self.batch_size * student) / 60
        return (
            f"{self.count:,} paths, {calls:,.0f} teacher calls, {self.iterations:,} training "
            f"steps: {size(self.disk)} on disk, {size(self.memory)} of memory, about "
            f"{'a minute' if minutes < 1.5 else f'{minutes:,.0f} minutes'}"
        )

    def measure(self, labels: Tensor | None) -> tuple[float, float]:
        """Seconds of a teacher call and of a training step, for one sample of a batch."""
        from sigdeg.signature import PartialSignature

        row, n = self.paths.rows[0], min(self.batch_size, 64)
        x = torch.zeros(n, *self.paths.shape, device=self.paths.device)
        given = {} if labels is None else {"class_labels": labels[:1].expand(n).to(x.device)}
        probe = copy.deepcopy(self.student).to(x.device).eval().requires_grad_(True)
        probe.lookahead = 0.0  # which costs no calls, and would ask for a covariance
        seconds = []
        for step, end in ((self.paths.teacher, row[1]), (probe, row[-1])):
            order = max(step.order, self.paths.order)
            noise = PartialSignature(row[0] - end, x[:, None].repeat_interleave(order, dim=1))
            for _ in range(1 if x.device.type == "cpu" else 2):  # a GPU has to warm up
                began = time.perf_counter()
                with torch.set_grad_enabled(step is probe):
                    total = step(x, row[0], end, noise, **given).square().mean()
                if step is probe:
                    total.backward()
                float(total.detach())  # on a GPU the work is done only now
            seconds.append((time.perf_counter() - began) / n)
        return seconds[0], seconds[1] * self.paths.steps
