"""Distil a pipeline: from its own calls to the same pipeline with a student inside."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Generator, Tensor, nn
from tqdm.auto import tqdm

from sigdeg.costs import check_room, costs_line, tell_job, tell_memory
from sigdeg.distillation import DistillConfig, Verdict
from sigdeg.distillation.checks import check_fit
from sigdeg.distillation.judgement import advice, compare
from sigdeg.distillation.levels import Levels
from sigdeg.distillation.objective import Objective, Segments
from sigdeg.errors import SigdegError, check_whole, reason
from sigdeg.grids import refine
from sigdeg.model import Card
from sigdeg.paths import Batch
from sigdeg.pipelines.checks import check_scheduler
from sigdeg.pipelines.files import save_student
from sigdeg.pipelines.guidance import Guidance, GuidanceWay, find_guidance, most_guided
from sigdeg.pipelines.inputs import check_calls
from sigdeg.pipelines.lora import add_adapter, sharing
from sigdeg.pipelines.network import add_signature
from sigdeg.pipelines.parts import remembered, set_aside
from sigdeg.pipelines.paths import PipelinePaths
from sigdeg.pipelines.scheduler import SigDEGScheduler
from sigdeg.pipelines.student import PipelineStudent
from sigdeg.pipelines.teacher import PipelineTeacher
from sigdeg.pipelines.told import check_told
from sigdeg.pipelines.trace import unguided
from sigdeg.rng import Stream, derive_generator
from sigdeg.runs import fingerprint
from sigdeg.student import ResidualNoise
from sigdeg.training import Job, claim, make_accelerator, train
from sigdeg.training.memory import check_networks

__all__ = ["DistilledPipeline", "Judged", "PipelineRecipe", "distill_pipeline", "pipeline_config"]

LEAST = 4  # samples that a student is judged by
LOOKAHEAD = 0.5  # of each step's way, as for images


@dataclass(frozen=True)
class PipelineRecipe:
    """What student a pipeline gets.

    Arguments:
        steps: Step counts of the student; several, each dividing the largest, make it elastic.
        order: Signature coefficients that the network sees.
        residual_noise: What to do about what the coefficients leave open: learn its law (`energy`,
            at twice the cost of training) or its mean (None).
        lookahead: Fraction of a step after which the network looks, see `SignatureStudent`. With 0
            the untrained student is the teacher's ancestral sampler.
        times: The largest step count's times (default: power spacing).
        rank: Rank of the adapters of a frozen network, for large ones, see `sigdeg.pipelines.lora`;
            0 trains all of its weights.
        guidance: Whether the teacher's is `baked` into the student, or an `input` of it, which
            calls of several scales teach, see `sigdeg.pipelines.guidance`.
        dropout: Share of the runs whose calls are without the condition: the student can then be
            guided again.
    """

    steps: tuple[int, ...] = (10,)
    order: int = 4
    residual_noise: ResidualNoise | None = "energy"
    lookahead: float = LOOKAHEAD
    times: tuple[float, ...] | None = None
    rank: int = 0
    guidance: GuidanceWay = "baked"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_whole(self.rank, 0, "the rank of a LoRA")
        for count in self.steps:
            check_whole(count, 1, "a step count")

    @property
    def added(self) -> dict[str, Any]:
        """What of it is not the step's, where it is asked for."""
        told = {"rank": self.rank, "guidance": self.guidance, "dropout": self.dropout}
        return {name: value for name, value in told.items() if value not in (0, "baked")}


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
    recipe, out = recipe or PipelineRecipe(), Path(out)
    config = config or pipeline_config(recipe.steps)
    check_scheduler(pipe)
    check_calls(pipe, calls)
    step = first_step(pipe, recipe)
    accelerator = make_accelerator(config, out, device)
    try:
        pipe = pipe.to(accelerator.device)
    except Exception as error:  # weights that are not there, or are kept elsewhere
        raise SigdegError(f"{type(pipe).__name__} cannot be moved: {reason(error)}") from error
    first = most_guided(pipe, calls)
    off, trace = unguided(pipe, first)
    check_told(pipe, off, trace)
    turned = {name: off[name] for name in off if off[name] is not first.get(name)}
    guidance = find_guidance(pipe, calls, turned, trace.networks, recipe.guidance, recipe.dropout)
    levels = Levels.of(step, config.q or max(step.steps), late=config.late)
    check_whole(config.paths, 1, "the number of paths of a pipeline, whose runs are kept,")
    check_fit(step, config, levels, None, None, accelerator.num_processes)
    check_networks(nn.ModuleList(pipe.components[name] for name in trace.networks), config)
    rows = list(refine(step.schedule, step.grid(), config.refinement, config.fine_power))
    teacher = PipelineTeacher(pipe, turned, trace, step, rows, guidance)
    teacher.rehearse(calls)
    identity = {
        "pipeline": identify(pipe),
        "calls": [written(call) for call in calls],
        "step": step.written,
        **recipe.added,
        **config.identity(),
    }
    claim(accelerator, out, identity)
    student_id = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    shown = progress and accelerator.is_main_process
    began = time.perf_counter()

    def tell(seconds: float, size: int, runs: int) -> None:
        """Say what the runs will take, by the first one; refuse them where there is no room."""
        check_room(out, runs * size, runs * size)
        each, steps = trace.samples, teacher.fine_steps
        what = f"{runs:,} runs of {each:,} samples, {steps:,} steps each"
        if shown:
            line = costs_line(what, runs * size, runs * size, runs * seconds)
            tqdm.write(line, file=sys.stderr)

    source = open_runs(teacher, out / "runs", calls, config, identity, tell, shown)
    step.set_scale(source.ends)
    student = new_student(teacher, student_id, source, recipe.rank)
    whole = source.held_out(len(source.rows))  # whole runs

    def draw(generator: Generator) -> Segments:
        return Segments(levels.cut(source.batch(config.batch_size, generator), generator))

    job = Job(
        Objective(student, levels.grids, draws=config.draws),
        draw,
        Segments(levels.cut(whole, derive_generator(config.seed, Stream.HELD_OUT))),
        identity,
        (lambda o: o.normalise(whole.to(accelerator.device))) if config.normalise else None,
        Segments.share,
    )
    if shown:
        tell_job(job, len(whole), config, accelerator.device, accelerator.num_processes)
    spent = time.perf_counter() - began
    with set_aside(pipe, trace.networks if recipe.rank else ()):  # adapters share their weights
        trained = train(
            job, out, config, device=device, progress=shown, label="distil", spent=spent
        )
    if shown:
        tell_memory(trained.memory)
    found = trained.objective.student
    assert isinstance(found, PipelineStudent)
    made = student_pipeline(pipe, found, student_id, guidance)
    turned = guidance.without({}, turned)
    spent, calls_made = trained.seconds, source.calls(0)
    done = DistilledPipeline(made, turned, trained.history, spent, calls_made, teacher)
    if not PartialState().is_main_process:
        return done
    untrained = new_student(teacher, student_id, source, recipe.rank)
    judged = judge_pipeline(found, untrained, source, whole, teacher, accelerator.device)
    judged.verdict.save(out / "verdict.json")
    card = card_of(pipe, done, judged, config)
    save_student(made, out / "student", turned, card, guidance)
    made.to(accelerator.device)
    return dataclasses.replace(done, judged=judged)


def card_of(pipe: Any, done: DistilledPipeline, judged: Judged, config: DistillConfig) -> Card:
    """What made a student."""
    return Card(
        teacher=str(getattr(pipe, "name_or_path", None) or type(pipe).__name__),
        seed=config.seed,
        configuration=config.identity(),
        teacher_calls=done.teacher_calls,
        verdict=judged.verdict.headline(),
    )


def pipeline_config(steps: Sequence[int], **options: Any) -> DistillConfig:
    """How pipelines are distilled: as images are, whatever their states are."""
    return DistillConfig.for_samples((1, 1, 1), max(steps, default=1), **options)


def first_step(pipe: Any, recipe: PipelineRecipe) -> PipelineStudent:
    """The step of a student, without its network."""
    asked = {
        "steps": list(recipe.steps),
        "order": recipe.order,
        "residual_noise": recipe.residual_noise,
        "lookahead": recipe.lookahead,
        "times": None if recipe.times is None else list(recipe.times),
    }
    scheduler = SigDEGScheduler.like(pipe.scheduler)
    if scheduler.student:
        raise SigdegError("this pipeline is a student already: distil its teacher")
    return PipelineStudent.read({**scheduler.core.written, **asked})


def open_runs(
    teacher: PipelineTeacher,
    folder: Path,
    calls: Sequence[Mapping[str, Any]],
    config: DistillConfig,
    identity: Mapping[str, Any],
    tell: Callable[[float, int, int], None],
    progress: bool,
) -> PipelinePaths:
    """The teacher's runs: those that there are, and those that are missing."""
    each = teacher.trace.samples
    held_out = math.ceil(max(LEAST, config.held_out) / each)
    count = max(held_out + 1, math.ceil(config.paths / each))
    names = "pipeline", "step", "guidance", "dropout"
    told = {name: value for name, value in identity.items() if name in names}
    told |= {"fine": [row.tolist() for row in teacher.rows], "seed": config.seed}
    told["calls"] = hashlib.sha256(json.dumps(identity["calls"]).encode()).hexdigest()
    with remembered(teacher.pipe):
        given = teacher, folder, calls, count, told, config.seed, held_out, tell, progress
        return PipelinePaths(*given)


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
        # What is trained is so in single precision: half of it would lose small steps.
        copied = sharing(own) if rank else copy.deepcopy(own).float().requires_grad_(True)
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
    scheduler = SigDEGScheduler.like(pipe.scheduler, **step, student=student_id)
    networks = dict(student.network.eval().named_children())
    for name, network in networks.items():
        if pipe.components[name].dtype != next(network.parameters()).dtype:
            network.to(pipe.components[name].dtype)
    made.register_modules(scheduler=scheduler, **networks)
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


def identify(pipe: Any) -> dict[str, Any]:
    """What tells a pipeline from others: its class, its scheduler, and all of its weights."""
    networks = {
        name: fingerprint(part)
        for name, part in pipe.components.items()
        if isinstance(part, nn.Module)
    }
    scheduler = {k: v for k, v in dict(pipe.scheduler.config).items() if not k.startswith("_")}
    return {
        "class": type(pipe).__name__,
        "scheduler": json.loads(json.dumps(scheduler, default=str)),
        "networks": networks,
    }


def written(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call as JSON: of tensors and images their fingerprints."""

    def one(value: Any) -> Any:
        if isinstance(value, Tensor):
            return fingerprint(value)
        if isinstance(value, Mapping):
            return {str(k): one(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [one(v) for v in value]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if hasattr(value, "tobytes"):  # an image, an array
            return hashlib.sha256(value.tobytes()).hexdigest()[:16]
        raise SigdegError(f"a call holds a {type(value).__name__}, which cannot be told apart")

    return {name: one(value) for name, value in call.items()}
