"""One distillation: all coarse steps of a student from one teacher, in one folder."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from sigdeg.codec import covariance_of
from sigdeg.costs import check_training, tell_memory, tell_training
from sigdeg.distillation.checks import check_fit, check_schedules, check_teacher
from sigdeg.distillation.config import HELD_OUT, DistillConfig
from sigdeg.distillation.judgement import Verdict
from sigdeg.distillation.levels import Levels
from sigdeg.distillation.matching import Matching
from sigdeg.distillation.objective import Objective, Segments
from sigdeg.errors import SigdegError
from sigdeg.grids import check_grid, refine
from sigdeg.paths import (
    Batch,
    CachedPaths,
    FreshPaths,
    PathSource,
    SharedPaths,
    TeacherPaths,
)
from sigdeg.prediction import OF_DATA_STD
from sigdeg.rng import Stream, derive_generator
from sigdeg.runs import fingerprint
from sigdeg.steps import GaussianStep
from sigdeg.student import SignatureStudent
from sigdeg.training import Job, claim, make_accelerator, train
from sigdeg.training.weights import copied

__all__ = ["Distilled", "Task", "distill_steps", "fine_rows", "on_device"]


@dataclass(frozen=True)
class Task:
    """What `distill` is asked for, in one round or in many: see there."""

    config: DistillConfig
    data: Tensor | None = None
    condition: Mapping[str, Tensor] = field(default_factory=dict)
    resume: bool = True
    device: str | None = None
    progress: bool = True


@dataclass(frozen=True)
class Distilled:
    """What a distillation gives back.

    Arguments:
        student: The student with averaged weights.
        history: Columns step, training loss, held-out loss; shape (points, 3).
        seconds: Time spent on paths and training, that before interruptions included.
        teacher_nfe: Teacher calls spent in all, over samples (not batches), but for judging.
        held_out: Whole teacher paths that training has not seen, where there are any.
        verdict: Whether it worked, where that was asked, on the main process.
        memory: Bytes in use at most while training, see `sigdeg.training.Trained`.
    """

    student: SignatureStudent
    history: Tensor
    seconds: float
    teacher_nfe: float
    held_out: Batch | None = None
    verdict: Verdict | None = None
    memory: int = 0


def distill_steps(
    student: SignatureStudent,
    teacher: GaussianStep,
    out_dir: Path,
    task: Task,
    *,
    fine: Tensor | None = None,
    cache: CachedPaths | None = None,
    rows: list[Tensor] | None = None,
    starts: Sequence[int] | None = None,
) -> Distilled:
    """Distil all coarse steps from one teacher; those of `starts` only, if given."""
    config, data, q = task.config, task.data, task.config.q or max(student.steps)
    accelerator = make_accelerator(config, out_dir, task.device)
    levels = Levels.of(student, q, starts, config.late)
    check_fit(student, config, levels, data, cache, accelerator.num_processes)
    if not (out_dir / "config.json").exists():  # another run there is told by its teacher anyway
        check_schedules(student, teacher)
    shared = None if cache is None else share_cache(cache, teacher, levels, student.order)
    teacher, place = on_device(teacher, accelerator.device), accelerator.device
    if shared is not None:
        paths = dataclasses.replace(shared.cache.paths, teacher=teacher, q=q, device=place)
    else:
        rows = rows or fine_rows(student, levels.grids[0], config, fine)
        shape, order, told = student.sample_shape, student.order, task.condition
        where = place, told, starts, config.late if data is not None else 0
        paths = TeacherPaths(teacher, rows, shape, order, data, q, *where)
    check_teacher(paths, student)
    identity = {
        **(shared or paths).identity(),
        **config.identity(),  # its q as it was asked for
        "student": fingerprint(student),
        "grids": [grid.tolist() for grid in levels.grids],
    }
    # Segments from data that call no teacher are drawn anew: there is nothing to save.
    cached = shared is None and config.paths > 0 and (data is None or paths.teacher_nfe > 0)
    drawn = config.iterations * config.batch_size
    count = 0 if shared is not None else config.paths if cached else drawn
    processes = accelerator.num_processes
    need = check_training(out_dir, paths, student, cached * count, config, processes)
    claim(accelerator, out_dir, identity, task.resume)
    progress = task.progress and accelerator.is_main_process
    if progress:
        tell_training(paths, student, count, config, need, processes)
    began = time.perf_counter()
    source = shared or open_source(paths, out_dir / "paths", config, cached, progress)
    # It may come from a training.
    student = copied(student, student.frozen()).train().requires_grad_(True)
    whole = source.held_out(min(HELD_OUT, max(1, config.held_out)))
    scale_student(student, source.ends if data is None else data)
    matching = None
    if config.matching:
        matching = Matching(teacher, student.channels, len(student.steps), student.network)

    def draw(generator: Generator) -> Segments:
        """Segments of each level, and the seed of further noise."""
        segments = levels.cut(source.batch(config.batch_size, generator), generator)
        return Segments(segments, int(torch.randint(2**62, (), generator=generator)))

    job = Job(
        Objective(student, levels.grids, matching, config.matching, config.draws),
        draw,
        Segments(levels.cut(whole, derive_generator(config.seed, Stream.HELD_OUT))),
        identity,
        (lambda objective: objective.normalise(whole.to(place))) if config.normalise else None,
        Segments.share,
    )
    spent = time.perf_counter() - began
    trained = train(
        job, out_dir, config, device=task.device, progress=progress, label="distil", spent=spent
    )
    found = trained.objective.student
    if accelerator.is_main_process:
        found.save_pretrained(out_dir / "student")
    unseen = whole if source.unseen and data is None else None
    if progress:
        tell_memory(trained.memory)
    return Distilled(
        found,
        trained.history,
        trained.seconds,
        source.calls(drawn),
        unseen,
        memory=trained.memory,
    )


def share_cache(
    cache: CachedPaths, teacher: GaussianStep, levels: Levels, order: int
) -> SharedPaths:
    """A cache as a student sees it, or a refusal of another teacher's."""
    shared = SharedPaths(cache, levels.grids[0], order)
    if fingerprint(teacher) != fingerprint(cache.paths.teacher):
        raise SigdegError("the cache holds the paths of another teacher")
    return shared


def open_source(
    paths: TeacherPaths, folder: Path, config: DistillConfig, cached: bool, progress: bool
) -> PathSource:
    """Paths that are simulated once, or anew for every batch."""
    if not cached:
        return FreshPaths(paths, config.seed)
    held_out = min(config.held_out, config.paths // 2)
    return CachedPaths(
        paths, folder, config.paths, config.seed, held_out, config.shard_size, progress
    )


def on_device(teacher: GaussianStep, device: torch.device) -> GaussianStep:
    """The teacher where it is to compute, in evaluation mode; the caller's stays where it is."""
    if isinstance(teacher, nn.Module):
        if any(value.device != device for value in teacher.state_dict().values()):
            teacher = copy.deepcopy(teacher).to(device)
        teacher.eval()
    return teacher


def fine_rows(
    student: SignatureStudent, grid: Tensor, config: DistillConfig, fine: Tensor | None
) -> list[Tensor]:
    """The teacher's times in each coarse step."""
    if fine is not None:
        return split(check_grid(fine), grid)
    return list(refine(student.schedule, grid, config.refinement, config.fine_power))


def split(fine: Tensor, coarse: Tensor) -> list[Tensor]:
    """Cut a fine grid at the coarse times, which it must hold."""
    at = [int((fine - time).abs().argmin()) for time in coarse]
    if not torch.allclose(fine[at], coarse, atol=1e-9):
        raise SigdegError("the teacher's grid must contain every time of the student's")
    return [fine[i : j + 1] for i, j in itertools.pairwise(at)]


def scale_student(student: SignatureStudent, samples: Tensor) -> None:
    """Tell a student the scale of its data, where it needs one that nobody has given.

    To look ahead it takes the covariance; a standard deviation where that is too large a matrix, or
    there are too few samples for it.
    """
    if student.response.stds is not None or student.data_std:
        return
    covariance = covariance_of(samples) if student.lookahead else None
    if student.prediction_type in OF_DATA_STD or (student.lookahead and covariance is None):
        student.set_data_std(float(samples.std()))
    if covariance is not None:
        student.response.set_covariance(covariance)
