"""What cannot be distilled, told before anything is written."""

from __future__ import annotations

import re

import torch
from torch import Generator, Tensor

from sigdeg.distillation.config import HELD_OUT, DistillConfig
from sigdeg.distillation.levels import Levels
from sigdeg.errors import SigdegError
from sigdeg.paths import CachedPaths, TeacherPaths
from sigdeg.steps import GaussianStep
from sigdeg.student import SignatureStudent
from sigdeg.training import check_data

__all__ = ["check_fit", "check_schedules", "check_teacher"]


def check_schedules(student: SignatureStudent, teacher: GaussianStep) -> None:
    """Refuse a teacher whose states are not those that the student steps between."""
    if not teacher.schedule.equals(student.schedule):
        raise SigdegError(
            f"the teacher has other noise levels ({type(teacher.schedule).__name__}) than the "
            f"student ({type(student.schedule).__name__}): give the student the teacher's schedule"
        )


def check_fit(
    student: SignatureStudent,
    config: DistillConfig,
    levels: Levels,
    data: Tensor | None,
    cache: CachedPaths | None,
    processes: int,
) -> None:
    """Refuse combinations that cannot be trained, before anything is written."""
    q, longest = config.q or max(student.steps), max(student.steps)
    if q > longest:
        raise SigdegError(f"q must lie between 1 and {longest} steps, got {q}")
    if config.matching and q != longest:
        raise SigdegError(f"distribution matching judges samples: it needs q=0, got q={config.q}")
    held_out = max(1, min(config.held_out, config.paths // 2 if config.paths else HELD_OUT))
    # The energy score borrows noise from others.
    each = config.draws + 1 if student.residual_noise == "energy" else 1
    for n, needed in ((config.batch_size, max(each, processes)), (held_out, each)):
        if min(levels.sizes(n)) < needed:
            raise SigdegError(
                f"this student needs at least {levels.least(needed)} segments in a batch and "
                "held out"
            )
    if (config.states == "data") != (data is not None):
        raise SigdegError('states="data" needs data, and states="teacher" takes none')
    if data is not None and student.elastic:
        raise SigdegError('an elastic student is trained on whole paths: use states="teacher"')
    if data is not None and tuple(data.shape[1:]) != student.sample_shape:
        raise SigdegError(
            f"data has samples of shape {tuple(data.shape[1:])}, the student {student.sample_shape}"
        )
    if data is not None and cache is not None:
        raise SigdegError("a cache holds the teacher's paths: leave the data out")
    if data is not None:
        check_data(data)


@torch.no_grad()
def check_teacher(paths: TeacherPaths, student: SignatureStudent) -> None:
    """Try the teacher's first step: it may be made for data of another shape."""
    teacher, row, device = paths.teacher, paths.rows[0], paths.device
    found = ""
    for n in (0, 2):  # no samples cost no calls, but some networks cannot take an empty batch
        x = torch.zeros(n, *student.sample_shape, device=device)
        fine = teacher.noise(row[0], row[1], x.shape, Generator(), dtype=x.dtype, device=device)
        first = torch.zeros(n, dtype=torch.long)
        given = {name: value[first].to(device) for name, value in paths.condition.items()}
        try:
            shape = tuple(teacher(x, row[0], row[1], fine, **given).shape)
        except (RuntimeError, ValueError, TypeError) as error:
            if missing := re.search("missing .* arguments?: (.*)", str(error)):
                raise SigdegError(
                    f"the teacher is told {missing[1]} too: give condition= the rows to draw from"
                ) from None
            found = str(error).splitlines()[0]
        else:
            found = "" if shape == tuple(x.shape) else f"it gives {shape[1:]}"
            break
    if found:
        raise SigdegError(
            f"the teacher takes no samples of the student's shape {student.sample_shape}: {found}"
        )
