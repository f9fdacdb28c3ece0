"""Distil: from a teacher and an untrained student to a trained one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from torch import Tensor

from sigdeg.costs import check_memory, check_room, judging_bytes
from sigdeg.distillation.checks import check_fit
from sigdeg.distillation.config import DistillConfig
from sigdeg.distillation.judgement import judge_run
from sigdeg.distillation.levels import Levels
from sigdeg.distillation.merging import distill_rounds
from sigdeg.distillation.regression import Distilled, Task, distill_steps, fine_rows, on_device
from sigdeg.errors import SigdegError
from sigdeg.grids import join_rows
from sigdeg.paths import CachedPaths, TeacherPaths
from sigdeg.planning import LinearStudent, Plan, plan_grid
from sigdeg.steps import GaussianStep
from sigdeg.student import SignatureStudent
from sigdeg.training import make_accelerator, resolve_device
from sigdeg.training.memory import check_networks

__all__ = ["distill"]


def distill(
    student: SignatureStudent,
    teacher: GaussianStep,
    out_dir: str | Path,
    config: DistillConfig | None = None,
    *,
    data: Tensor | None = None,
    condition: Mapping[str, Tensor] | None = None,
    fine: Tensor | None = None,
    cache: CachedPaths | None = None,
    plan: Plan | str | None = None,
    grid: Literal["planned"] | None = None,
    judge: int | None = None,
    resume: bool = True,
    device: str | None = None,
    progress: bool = True,
    **options: Any,
) -> Distilled:
    r"""Distil a teacher into a student.

    The student's step counts set the coarse grids: with one, a student of that grid; with several,
    each dividing the largest, an elastic one, trained on all of them from the same paths.

    The teacher may be any step, a trained student of a finer grid included (give its grid as
    `fine`). A student that is trained already is trained on.

    Arguments:
        student: The student to train; it is left untouched.
        teacher: The teacher's step on its fine grid.
        out_dir: Folder for `student/`, `checkpoints/`, `paths/` and `events/`.
        config: How to distil (default: by the kind of data, `DistillConfig.for_samples`); single
            fields can be given as keywords instead.
        data: Clean data (n, \*), for `states="data"`.
        condition: What teacher and student are called with beside the path: tensors by name, whose
            rows belong together, such as `{"class_labels": labels}` with labels (n,), or prompt
            embeddings. Each path draws a row, so any shares can be had; with data, row i is that of
            sample i.
        fine: The teacher's grid, containing every coarse time (default: a refined coarse grid).
        cache: Whole paths of this teacher, simulated already: on a grid that contains the
            student's times, with at least its order. One simulation then serves many students, and
            `fine`, `condition` and what `config` says of paths are not used.
        plan: Distil in rounds of merges, see `sigdeg.distillation.merging`: a plan over leaves that
            divide the fine steps of each coarse step, or a line that `parse_plan` reads (a name
            means every fine step a leaf). Each round trains as `config` says, in `out_dir/rounds`;
            with `states="data"` what is merged costs no teacher calls any more, and rounds that
            merge nothing else draw their segments anew.
        grid: `planned` puts the student's times where a student loses least, see
            `sigdeg.planning.plan_grid`; the calls it takes are counted.
        judge: Samples in each of the two sets that the student is judged on at the end, see
            `sigdeg.distillation.judgement`; 0 for no verdict (default: 32 to 2,000, at most an
            eighth of the teacher calls of the training). Training does not depend on it.
        resume: Go on with what the folder holds of this very run.
        device: Where to compute (default: what accelerate finds).
        progress: Show progress bars with loss, rate and time left.
        options: Fields of `DistillConfig`.

    Returns:
        The student with averaged weights, what it took, and the verdict. The student is also saved
        in `out_dir/student`, the verdict in `out_dir/verdict.json`.

    Raises:
        SigdegError: If arguments do not fit together, or the folder holds another run.
        TrainingError: If the loss stops being finite; the last good checkpoint is kept.
    """
    if "labels" in options:
        raise SigdegError('labels= is given as condition={"class_labels": labels}')
    if config is None:
        config = DistillConfig.for_samples(student.sample_shape, max(student.steps), **options)
    else:
        config = dataclasses.replace(config, **options)
    task = Task(config, data, condition or {}, resume, device, progress)
    out_dir, spent = Path(out_dir), 0.0
    check_networks(student, config)
    check_memory(judging_bytes(judge or 0, student.sample_shape, len(student.steps)))
    if grid is not None:
        if grid != "planned" or fine is not None or cache is not None:
            raise SigdegError(f"grid must be planned, without fine times or a cache, got {grid!r}")
        count = make_accelerator(config, out_dir, device).num_processes
        levels = Levels.of(student, config.q or max(student.steps))
        check_fit(student, config, levels, data, cache, count)
        check_room(out_dir)
        student, spent = plan_student(student, teacher, task)
    if plan is None:
        found = distill_steps(student, teacher, out_dir, task, fine=fine, cache=cache)
    else:
        if cache is not None:
            raise SigdegError("a plan simulates paths of its own: leave the cache out")
        found = distill_rounds(student, teacher, out_dir, task, plan, fine)
    found = dataclasses.replace(found, teacher_nfe=found.teacher_nfe + spent)
    if judge == 0 or not PartialState().is_main_process:
        return found
    if cache is not None:
        fine, condition = join_rows(cache.paths.rows), cache.paths.condition
    rows, order = fine_rows(student, student.grid(), config, fine), student.order
    place = torch.device(resolve_device(device))
    paths = TeacherPaths(
        on_device(teacher, place),
        rows,
        student.sample_shape,
        order,
        device=place,
        condition=condition or {},
    )
    verdict = judge_run(found, paths, out_dir, config, judge, progress)
    return dataclasses.replace(found, verdict=verdict)


def plan_student(
    student: SignatureStudent, teacher: GaussianStep, task: Task
) -> tuple[SignatureStudent, float]:
    """The student at planned times, and the teacher calls that measuring took."""
    place = torch.device(resolve_device(task.device))
    advice = plan_grid(
        on_device(teacher, place),
        max(student.steps),
        student.sample_shape,
        LinearStudent(student.seen),
        seed=task.config.seed,
        condition=task.condition,
        device=place,
        progress=task.progress and PartialState().is_main_process,
    )
    return student.at_times(advice.best.times, student.steps), advice.teacher_nfe
