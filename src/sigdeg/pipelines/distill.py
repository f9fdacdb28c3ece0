"""Distil a pipeline: from its own calls to the same pipeline with a student inside."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Generator, Tensor, nn

from sigdeg.costs import tell_job, tell_memory
from sigdeg.distillation import DistillConfig, Verdict
from sigdeg.distillation.judgement import advice, compare
from sigdeg.distillation.objective import Objective, Segments
from sigdeg.errors import SigdegError
from sigdeg.model import Card
from sigdeg.paths import Batch
from sigdeg.pipelines.files import save_student
from sigdeg.pipelines.guidance import Guidance
from sigdeg.pipelines.guiders import disabled
from sigdeg.pipelines.lora import add_adapter, sharing
from sigdeg.pipelines.network import add_signature
from sigdeg.pipelines.parts import set_aside
from sigdeg.pipelines.paths import PipelinePaths
from sigdeg.pipelines.prepare import PipelineRecipe, Ready, prepare
from sigdeg.pipelines.scheduler import SigDEGScheduler
from sigdeg.pipelines.student import PipelineStudent
from sigdeg.pipelines.teacher import PipelineTeacher
from sigdeg.rng import Stream, derive_generator
from sigdeg.training import Job, train

__all__ = ["DistilledPipeline", "Judged", "distill_pipeline", "judge_pipeline", "new_student"]


@dataclass(frozen=True)
class Judged:
    r"""A verdict, and the states that it rests on: of the same noise, shape (n, \*).

    Arguments:
        verdict: The verdict.
        asked: Call, seed and samples of each run that they are of.
        teacher: Where the teacher's runs end.
        student: Where the student ends, by step count.
        untrained: Where the untrained step ends, by step count.
    """

    verdict: Verdict
    asked: list[tuple[Mapping[str, Any], int, int]]
    teacher: Tensor
    student: dict[int, Tensor]
    untrained: dict[int, Tensor]


@dataclass(frozen=True)
class DistilledPipeline:
    """What distilling a pipeline gives back.

    Arguments:
        pipe: The teacher's pipeline with student and scheduler in it.
        off: Arguments of a call that belong to it: without guidance, which is baked in.
        history: Columns step, training loss, held-out loss; shape (points, 3).
        seconds: Time spent on runs and training, that before interruptions included.
        teacher_calls: Steps of the teacher, over samples.
        teacher: What it learned from.
        judged: On the main process, whether it worked, and what that rests on.
    """

    pipe: Any
    off: dict[str, Any]
    history: Tensor
    seconds: float
    teacher_calls: float
    teacher: PipelineTeacher
    judged: Judged | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether it worked.

        Raises:
            SigdegError: On another process than the main one.
        """
        if self.judged is None:
            raise SigdegError("the verdict is the main process's")
        return self.judged.verdict


def distill_pipeline(
    pipe: Any,
    calls: Sequence[Mapping[str, Any]],
    out: str | Path,
    recipe: PipelineRecipe | None = None,
    config: DistillConfig | None = None,
    *,
    device: str | None = None,
    progress: bool = True,
) -> DistilledPipeline:
    """Distil a pipeline by its own calls.

    Whatever `pipe(**call)` does is the teacher, guidance included; the student is called without.

    Arguments:
        pipe: The pipeline; it is left as it is.
        calls: Arguments of `pipe(...)`, of one sample or of several each. Runs go through them
            again and again, with other noise.
        out: Folder for `student/`, `checkpoints/`, `runs/` and `events/`.
        recipe: What student.
        config: How to train; `paths` are samples of the teacher.
        device: Where to compute (default: what accelerate finds).
        progress: Show progress bars.

    Raises:
        SigdegError: If pipeline, calls and recipe do not fit, or the folder holds another run.
        TrainingError: If the loss stops being finite; the last good checkpoint is kept.
    """
    ready = prepare(pipe, calls, out, recipe, config, device=device, progress=progress)
    began = time.perf_counter()
    source = ready.runs()
    pipe, out, config, teacher = ready.teacher.pipe, ready.out, ready.config, ready.teacher
    accelerator, shown = ready.accelerator, ready.shown
    rank, student_id = ready.recipe.rank, ready.student_id
    teacher.student.set_scale(source.ends)
    whole = source.held_out(len(source.rows))  # whole runs
    job = make_job(ready, new_student(teacher, student_id, source, rank), source, whole)
    if shown:
        place, parts = accelerator.device, min(map(len, job.held_out.levels))  # a row for each
        tell_job(job, len(whole), config, place, accelerator.num_processes, parts)
    spent = time.perf_counter() - began
    with set_aside(pipe, teacher.trace.networks if rank else ()):  # adapters share their weights
        trained = train(
            job, out, config, device=device, progress=shown, label="distil", spent=spent
        )
    if shown:
        tell_memory(trained.memory)
    found: Any = trained.objective.student
    made = student_pipeline(pipe, found, student_id, teacher.guidance)
    turned, calls_made = teacher.plain, source.calls(0)
    done = DistilledPipeline(made, turned, trained.history, trained.seconds, calls_made, teacher)
    if not PartialState().is_main_process:
        return done
    untrained = new_student(teacher, student_id, source, rank)
    judged = judge_pipeline(found, untrained, source, whole, teacher, accelerator.device)
    judged.verdict.save(out / "verdict.json")
    card = card_of(pipe, done, judged, config)
    save_student(made, out / "student", turned, card, teacher.guidance)
    made.to(accelerator.device)
    return dataclasses.replace(done, judged=judged)


def make_job(
    ready: Ready, student: PipelineStudent, source: PipelinePaths, whole: Batch
) -> Job[Objective]:
    """What is trained: a student on segments of the teacher's runs, beside those held out."""
    config, levels, place = ready.config, ready.levels, ready.accelerator.device

    def draw(generator: Generator) -> Segments:
        return Segments(levels.cut(source.batch(config.batch_size, generator), generator))

    return Job(
        Objective(student, levels.grids, draws=config.draws),
        draw,
        Segments(levels.cut(whole, derive_generator(config.seed, Stream.HELD_OUT))),
        ready.identity,
        (lambda objective: objective.normalise(whole.to(place))) if config.normalise else None,
        Segments.share,
    )


def card_of(pipe: Any, done: DistilledPipeline, judged: Judged, config: DistillConfig) -> Card:
    """What made a student."""
    return Card(
        teacher=str(getattr(pipe, "name_or_path", None) or type(pipe).__name__),
        seed=config.seed,
        configuration=config.identity(),
        teacher_calls=done.teacher_calls,
        verdict=judged.verdict.headline(),
    )


def new_student(
    teacher: PipelineTeacher, student_id: str, source: PipelinePaths, rank: int = 0
) -> PipelineStudent:
    """The student to train: copies of the pipeline's networks, with the path beside them.

    With adapters of a rank they share the networks' weights, which are frozen.
    """
    networks = {}
    trace, step, told = teacher.trace, teacher.student, teacher.guidance
    for name in trace.networks:
        own = teacher.pipe.components[name]
        copied = sharing(own) if rank else copy.deepcopy(own).requires_grad_(True)
        if not rank and own.dtype != torch.float64:
            copied.float()  # half of single precision would lose small steps
        networks[name] = add_signature(
            copied, trace, step.order, student_id, told.beside, told.width
        )
        if rank:
            add_adapter(networks[name], rank)
    shape = tuple(source.ends.shape[1:])
    student = PipelineStudent.read(
        step.written, nn.ModuleDict(networks), sample_shape=shape, recorded=source.recorded
    )
    return student.train()


def student_pipeline(
    pipe: Any, student: PipelineStudent, student_id: str, guidance: Guidance
) -> Any:
    """The pipeline with a student in the place of its network, and its scheduler."""
    made = copy.copy(pipe)
    step = {**student.written, **({"guidance": guidance.usual} if guidance.beside else {})}
    step |= {"once": True} if guidance.once else {}
    networks: dict[str, Any] = dict(student.network.eval().named_children())
    rows = next(iter(networks.values())).signature.trace.rows
    step |= {"rows": rows} if rows > 1 else {}
    scheduler = SigDEGScheduler.like(pipe.scheduler, **step, student=student_id)
    for name, network in networks.items():
        if pipe.components[name].dtype != next(network.parameters()).dtype:
            network.to(pipe.components[name].dtype)
    off = disabled(pipe, guidance.guiders)
    made.register_modules(scheduler=scheduler, **networks, **off)
    return made


@torch.no_grad()
def judge_pipeline(
    student: PipelineStudent,
    untrained: PipelineStudent,
    source: PipelinePaths,
    held_out: Batch,
    teacher: PipelineTeacher,
    device: torch.device,
) -> Judged:
    """Judge a student by the teacher's runs that training has not seen, at each step count."""
    finest = student.grid()
    models = [model.to(device).eval() for model in (student, untrained)]
    levels = []
    found: tuple[dict[int, Tensor], dict[int, Tensor]] = ({}, {})
    for count in sorted(student.steps, reverse=True):
        seen = held_out.coarsen(finest, (len(finest) - 1) // count).to(device)
        grid = student.grid(count)[int(seen.start[0]) :]
        for model, ends in zip(models, found, strict=True):
            ends[count] = seen.replay(model, grid).cpu()
        levels.append(compare(count, held_out.states[:, -1], *(ends[count] for ends in found)))
    verdict = Verdict(len(held_out) // 2, teacher.fine_steps, 0.0, advice(student), levels)
    runs, sizes = source.rows[held_out.condition["row"], 0].unique(return_counts=True)
    asked = [(*source.asked[run], n) for run, n in zip(runs.tolist(), sizes.tolist(), strict=True)]
    return Judged(verdict, asked, held_out.states[:, -1], *found)
