"""Judge a student's pipeline anew: by calls that it may not have met, on noise of their own."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sigdeg.errors import SigdegError, check_whole
from sigdeg.pipelines.checks import check_scheduler
from sigdeg.pipelines.distill import DistilledPipeline, judge_pipeline, new_student
from sigdeg.pipelines.files import attach, find_student, read_guidance
from sigdeg.pipelines.inputs import check_calls
from sigdeg.pipelines.lora import sharing
from sigdeg.pipelines.prepare import (
    LEAST,
    identify,
    make_teacher,
    moved,
    open_runs,
    pipeline_config,
    written,
)
from sigdeg.pipelines.scheduler import SigDEGScheduler
from sigdeg.pipelines.student import PipelineStudent
from sigdeg.pipelines.teacher import PipelineTeacher, answered
from sigdeg.runs import claim_folder
from sigdeg.training import resolve_device

__all__ = ["evaluate_pipeline"]


def evaluate_pipeline(
    student: str | Path,
    pipe: Any,
    calls: Sequence[Mapping[str, Any]],
    out: str | Path,
    samples: int = 256,
    *,
    refinement: int | None = None,
    look: Callable[[Any], Mapping[str, Any]] | None = None,
    seed: int = 1,
    device: str | None = None,
    progress: bool = True,
) -> DistilledPipeline:
    """Compare a student with its teacher on the same noise; the same call resumes it.

    Arguments:
        student: Folder or hub id of the student, whole or of adapters.
        pipe: The pipeline that it learned from; it is left as it is.
        calls: Arguments of `pipe(...)`, with the guidance that is to be compared with: of one
            sample or of several each. Runs go through them again and again, with other noise.
        out: Folder for `runs/`.
        samples: Samples in each of the two sets that are compared, at least.
        refinement: Fine teacher steps a coarse step (default: 120 in all).
        look: Shown, before the folder is claimed, what the pipeline gives where its network says
            anything; the JSON values that it returns join those that tell this run from others.
        seed: Seed of the noise.
        device: Where to compute (default: what there is).
        progress: Show a progress bar.

    Returns:
        The student, judged, without a history.

    Raises:
        SigdegError: If they do not fit together, or the folder holds another run.
    """
    out, began, where = Path(out), time.perf_counter(), resolve_device(device)
    check_whole(samples, LEAST // 2, "the number of samples in a set")
    check_scheduler(pipe)
    if getattr(pipe.scheduler, "student", ""):
        raise SigdegError(
            "this pipeline is a student: evaluate compares a student with its teacher"
        )
    check_calls(pipe, calls)
    folder = find_student(student)
    made = attach(shared(moved(pipe, where)), folder)
    step, told = made.scheduler.core, read_guidance(folder)
    told = told and dataclasses.replace(told, dropout=0.0)  # it is judged by its conditions
    config = pipeline_config(step.steps, paths=2 * samples, held_out=samples, seed=seed)
    fine = refinement or config.refinement
    teacher = make_teacher(pipe, calls, step, fine, config.fine_power, guidance=told)
    sizes = teacher.rehearse(calls)
    check_pair(made, teacher)
    shown = {} if look is None else look(rehearsed(teacher, calls[0]))
    identity = {
        "experiment": "evaluate",
        "pipeline": identify(pipe),
        "student": identify(made)["networks"],
        "step": step.written,
        "calls": [written(call) for call in calls],
        "fine": [row.tolist() for row in teacher.rows],
        "samples": samples,
        "seed": seed,
        **shown,
    }
    claim_folder(out, "config.json", identity)
    source = open_runs(teacher, out, calls, sizes, config, identity, progress)
    networks = {name: made.components[name] for name in teacher.trace.networks}
    shape = tuple(source.ends.shape[1:])
    own = PipelineStudent.read(
        step.written, nn.ModuleDict(networks), sample_shape=shape, recorded=source.recorded
    )
    untrained = new_student(teacher, "untrained", source)
    whole = source.gather(torch.arange(len(source.rows)))
    judged = judge_pipeline(own, untrained, source, whole, teacher, torch.device(where))
    judged.verdict.save(out / "verdict.json")
    seconds = time.perf_counter() - began
    spent, history = source.calls(0), torch.zeros(0, 3)
    return DistilledPipeline(made, teacher.plain, history, seconds, spent, teacher, judged)


def check_pair(made: Any, teacher: PipelineTeacher) -> None:
    """Refuse a student of another teacher: of other noise levels, predictions or networks."""
    name = type(teacher.pipe).__name__
    own, other = made.scheduler.core, SigDEGScheduler.like(teacher.pipe.scheduler).core
    for what, same in (
        ("noise levels", own.schedule.equals(other.schedule)),
        ("predictions", own.prediction_type == other.prediction_type),
    ):
        if not same:
            raise SigdegError(
                f"the student has other {what} than this {name}: it is not its teacher"
            )
    for network in teacher.trace.networks:
        if not hasattr(made.components[network], "signature"):
            raise SigdegError(f"this {name} calls its {network}, which the student leaves alone")
        known, told = made.components[network].config.sigdeg, teacher.guidance
        if (known.get("guided", False), known.get("condition")) != (told.beside, told.width):
            raise SigdegError(f"the student's {network} is not told its guidance as its card says")


def rehearsed(teacher: PipelineTeacher, call: Mapping[str, Any]) -> Any:
    """What a pipeline makes of a run whose network answers at once."""
    call = {name: value for name, value in call.items() if name != "output_type"}
    with answered(teacher.pipe, teacher.trace.networks):
        return teacher.decode(call, 0, teacher.run(call, 0).states[:, -1])


def shared(pipe: Any) -> Any:
    """A copy of a pipeline whose networks share its weights: what is attached is not on its own."""
    made = copy.copy(pipe)
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    made.register_modules(**{name: sharing(part) for name, part in parts.items()})
    return made
