"""What goes before a distillation: everything is checked, the folder claimed, the teacher run."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import sys
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from sigdeg.costs import check_room, costs_line
from sigdeg.distillation import DistillConfig
from sigdeg.distillation.checks import check_fit
from sigdeg.distillation.levels import Levels
from sigdeg.errors import SigdegError, check_whole, reason
from sigdeg.grids import refine
from sigdeg.pipelines.checks import check_scheduler
from sigdeg.pipelines.guidance import Guidance, GuidanceWay, find_guidance, most_guided
from sigdeg.pipelines.guiders import guiders
from sigdeg.pipelines.inputs import check_calls
from sigdeg.pipelines.parts import remembered
from sigdeg.pipelines.paths import PipelinePaths
from sigdeg.pipelines.scheduler import SigDEGScheduler
from sigdeg.pipelines.student import PipelineStudent
from sigdeg.pipelines.teacher import PipelineTeacher
from sigdeg.pipelines.told import check_told
from sigdeg.pipelines.trace import unguided
from sigdeg.runs import fingerprint
from sigdeg.student import ResidualNoise
from sigdeg.training import claim, make_accelerator
from sigdeg.training.memory import check_networks

__all__ = [
    "PipelineRecipe",
    "Ready",
    "identify",
    "make_teacher",
    "moved",
    "open_runs",
    "pipeline_config",
    "prepare",
    "written",
]

LEAST = 4  # samples that a student is judged by
JUDGED = 500  # and by default, at most
MOST = 10**6  # runs, each a file
WIDEST = 10**4  # rank of adapters: hardly a layer is wider
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
            the untrained student is the teacher's ancestral sampler. It is 0 where the network says
            means that its pipeline turns into what its scheduler takes.
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
        if self.rank > WIDEST:
            raise SigdegError(f"the rank of a LoRA is at most {WIDEST:,}, got {self.rank:,}")
        for count in self.steps:
            check_whole(count, 1, "a step count")

    @property
    def added(self) -> dict[str, Any]:
        """What of it is not the step's, where it is asked for."""
        told = {"rank": self.rank, "guidance": self.guidance, "dropout": self.dropout}
        return {name: value for name, value in told.items() if value not in (0, "baked")}


@dataclass(frozen=True)
class Ready:
    """A distillation that can begin: its folder is claimed, and no run is made yet.

    Arguments:
        teacher: The teacher.
        calls: Its calls.
        sizes: The samples of each of them.
        out: The folder.
        recipe: What student.
        config: How to train.
        levels: What each of the student's step counts learns from.
        accelerator: The processes.
        identity: JSON values that tell this run from any other.
        shown: Whether this process says how it goes.
    """

    teacher: PipelineTeacher
    calls: Sequence[Mapping[str, Any]]
    sizes: Sequence[int]
    out: Path
    recipe: PipelineRecipe
    config: DistillConfig
    levels: Levels
    accelerator: Accelerator
    identity: dict[str, Any]
    shown: bool

    @property
    def student_id(self) -> str:
        """By which the student's network and its scheduler know one another."""
        told = json.dumps(self.identity, sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def runs(self) -> PipelinePaths:
        """The teacher's runs: those that there are, and those that are missing."""
        given = self.teacher, self.out, self.calls, self.sizes, self.config, self.identity
        return open_runs(*given, self.shown)


def prepare(
    pipe: Any,
    calls: Sequence[Mapping[str, Any]],
    out: str | Path,
    recipe: PipelineRecipe | None = None,
    config: DistillConfig | None = None,
    *,
    device: str | None = None,
    progress: bool = True,
) -> Ready:
    """Check that a pipeline can be distilled by its calls, and claim the folder for it.

    Arguments and errors are those of `distill_pipeline`.
    """
    recipe, out = recipe or PipelineRecipe(), Path(out)
    config = config or pipeline_config(recipe.steps)
    check_scheduler(pipe)
    check_calls(pipe, calls)
    step = first_step(pipe, recipe)
    accelerator = make_accelerator(config, out, device)
    pipe = moved(pipe, accelerator.device)
    given = config.refinement, config.fine_power
    teacher = make_teacher(pipe, calls, step, *given, recipe.guidance, recipe.dropout)
    step, trace = teacher.student, teacher.trace
    levels = Levels.of(step, config.q or max(step.steps), late=config.late)
    check_whole(config.paths, 1, "the number of paths of a pipeline, whose runs are kept,")
    check_fit(step, config, levels, None, None, accelerator.num_processes)
    check_networks(nn.ModuleList(pipe.components[name] for name in trace.networks), config)
    sizes = teacher.rehearse(calls)
    count_runs(sizes, config)
    identity = {
        "pipeline": identify(pipe),
        "calls": [written(call) for call in calls],
        "step": step.written,
        **recipe.added,
        **config.identity(),
    }
    claim(accelerator, out, identity)
    shown = progress and accelerator.is_main_process
    return Ready(teacher, calls, sizes, out, recipe, config, levels, accelerator, identity, shown)


def moved(pipe: Any, device: Any) -> Any:
    """A pipeline on a device."""
    try:
        return pipe.to(device)
    except Exception as error:  # weights that are not there, or are kept elsewhere
        raise SigdegError(f"{type(pipe).__name__} cannot be moved: {reason(error)}") from error


def make_teacher(
    pipe: Any,
    calls: Sequence[Mapping[str, Any]],
    step: PipelineStudent,
    refinement: int,
    fine_power: float,
    way: GuidanceWay = "baked",
    dropout: float = 0.0,
    guidance: Guidance | None = None,
) -> PipelineTeacher:
    """A pipeline as the teacher of a student's step, by its calls.

    What becomes of its guidance is found out, if it is not given.
    """
    first = most_guided(pipe, calls)
    off, trace = unguided(pipe, first)
    check_told(pipe, off, trace)
    turned = {name: off[name] for name in off if off[name] is not first.get(name)}
    if guidance is None:
        guidance = find_guidance(pipe, calls, turned, trace.networks, way, dropout)
        guidance = dataclasses.replace(guidance, single=trace.single)
    if trace.relation == "mean" and step.lookahead:  # the pipeline joins it with the state itself
        step = PipelineStudent.read({**step.written, "lookahead": 0.0})
    step.timesteps = trace.timesteps
    rows = list(refine(step.schedule, step.grid(), refinement, fine_power))
    return PipelineTeacher(pipe, turned, trace, step, rows, guidance)


def pipeline_config(steps: Sequence[int], **options: Any) -> DistillConfig:
    """How pipelines are distilled: as images are, whatever their states are.

    More runs are held out, an eighth, up to `JUDGED` samples: they are all that judges the student.
    """
    made = DistillConfig.for_samples((1, 1, 1), max(steps, default=1), **options)
    if "held_out" in options:
        return made
    return dataclasses.replace(made, held_out=min(JUDGED, made.paths // 8 + 8))


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


def count_runs(sizes: Sequence[int], config: DistillConfig) -> tuple[int, int]:
    """How many runs there are to be, and how many of them, the last ones, held out.

    Arguments:
        sizes: Samples of each call: runs go through the calls again and again.
        config: How many samples there are to be, at least, and how many of them held out.

    Raises:
        SigdegError: If they are more files than a folder should hold.
    """
    count, held_out = runs_for(sizes, config.paths), 0
    while True:
        last = [sizes[(count - 1 - i) % len(sizes)] for i in range(len(sizes))]
        held_out = runs_for(last, max(LEAST, config.held_out))
        if held_out < count:
            break
        count = held_out + 1
    if count > MOST:
        raise SigdegError(f"{count:,} runs of a pipeline are too many: at most {MOST:,}")
    return count, held_out


def runs_for(sizes: Sequence[int], samples: int) -> int:
    """How many runs, of such sizes in turn, make so many samples at least."""
    rounds, rest = divmod(samples, sum(sizes))
    return rounds * len(sizes) + bisect_left([0, *itertools.accumulate(sizes)], rest)


def open_runs(
    teacher: PipelineTeacher,
    out: Path,
    calls: Sequence[Mapping[str, Any]],
    sizes: Sequence[int],
    config: DistillConfig,
    identity: Mapping[str, Any],
    progress: bool = False,
) -> PipelinePaths:
    """The teacher's runs in `out`: those that there are, and those that are missing."""

    def tell(seconds: float, size: int, runs: int) -> None:
        """Say what the runs will take, by the first one; refuse them where there is no room."""
        check_room(out, runs * size, runs * size)
        what = f"{runs:,} runs of {teacher.trace.samples:,} samples, {teacher.fine_steps:,} steps"
        if progress:
            line = costs_line(f"{what} each", runs * size, runs * size, runs * seconds)
            tqdm.write(line, file=sys.stderr)

    count, held_out = count_runs(sizes, config)
    names = "pipeline", "step", "guidance", "dropout"
    told = {name: value for name, value in identity.items() if name in names}
    told |= {"fine": [row.tolist() for row in teacher.rows], "seed": config.seed}
    told["calls"] = hashlib.sha256(json.dumps(identity["calls"]).encode()).hexdigest()
    with remembered(teacher.pipe):
        given = calls, count, told, config.seed, held_out, tell, progress
        return PipelinePaths(teacher, out / "runs", *given)


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
        **{name: dict(guider.config) for name, guider in guiders(pipe).items()},
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
        if isinstance(value, float) and not math.isfinite(value):
            raise SigdegError(f"a call holds {value}: give a finite number")
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if hasattr(value, "tobytes"):  # an image, an array
            return hashlib.sha256(value.tobytes()).hexdigest()[:16]
        raise SigdegError(f"a call holds a {type(value).__name__}, which cannot be told apart")

    return {name: one(value) for name, value in call.items()}
