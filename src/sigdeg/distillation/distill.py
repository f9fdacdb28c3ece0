"""Distil: from a teacher and an untrained student to a trained one."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from accelerate import PartialState
from torch import Generator, Tensor, nn
from tqdm.auto import tqdm

from sigdeg.costs import Costs, check_memory, check_room, judging_bytes
from sigdeg.distillation.judgement import Verdict, judge_run
from sigdeg.distillation.matching import Matching
from sigdeg.distillation.merging import Blocks, rounds
from sigdeg.distillation.objective import Objective, Segments
from sigdeg.errors import SigdegError, check_choice
from sigdeg.grids import check_grid, refine
from sigdeg.networks import Widened
from sigdeg.paths import (
    Batch,
    CachedPaths,
    FreshPaths,
    PathSource,
    SharedPaths,
    TeacherPaths,
)
from sigdeg.planning import LinearStudent, Plan, format_plan, parse_plan, plan_grid
from sigdeg.rng import Stream, derive_generator
from sigdeg.runs import fingerprint
from sigdeg.signature import PartialSignature
from sigdeg.steps import GaussianStep
from sigdeg.student import SignatureStudent, kind_of_data
from sigdeg.training import (
    Job,
    TrainConfig,
    check_data,
    claim,
    make_accelerator,
    resolve_device,
    train,
)

__all__ = ["DistillConfig", "Distilled", "distill"]

States = Literal["teacher", "data"]
LARGEST = 1024  # elements of a sample whose covariance is taken: a matrix a coefficient and step
FINE = 120  # teacher steps a path: fewer are felt, more are not (docs/recipe.md)
# What is not said here is as in `DistillConfig`: that is how series are distilled.
KINDS: dict[str, dict[str, Any]] = {
    "points": {"paths": 100_000, "learning_rate": 4e-3, "ema": 0.99, "optimizer": "muon"},
    "series": {},
    "images": {"iterations": 3000, "batch_size": 64, "learning_rate": 2e-4, "paths": 5000},
}
HELD_OUT = 2048  # segments behind the second loss curve and the normalisation


@dataclass(frozen=True)
class DistillConfig(TrainConfig):
    """How to distil: how to train, and on what.

    Arguments:
        q: Consecutive coarse steps in a loss term (Eq. 11); 0 for all of them (Eq. 10). An elastic
            student has no more than all of them at each of its step counts.
        matching: Weight of distribution matching beside the loss on paths, see
            `sigdeg.distillation.matching`; it judges samples, and so needs q = 0.
        states: Start segments from the teacher's own paths (data-free) or from noised data.
        paths: Teacher paths to cache and reuse; 0 simulates fresh ones for every batch.
        held_out: Cached paths kept out of training, for the second loss curve.
        refinement: Fine teacher steps a coarse step.
        fine_power: Spacing exponent of the fine steps, see `sigdeg.grids.refine`.
        normalise: Divide the loss of each coarse step by the untrained student's error there.
        shard_size: Paths a cache file, at most, see `CachedPaths`.
    """

    q: int = 1
    matching: float = 0.0
    states: States = "teacher"
    paths: int = 20_000
    held_out: int = 1000
    refinement: int = 30
    fine_power: float = 2.0
    normalise: bool = True
    shard_size: int = 65536

    @classmethod
    def for_samples(cls, shape: Sequence[int], steps: int = 10, **options: Any) -> DistillConfig:
        """The defaults for a kind of data, as `distill` and the command line take them.

        Points train on many cheap paths, series on fewer, images with small batches and a small
        rate, as their networks want it (see `kind_of_data`). The teacher takes 120 steps a path,
        however few the student is to take.

        Arguments:
            shape: Shape of one sample.
            steps: The student's steps, on its finest grid.
            options: Fields that are to have another value.
        """
        kind = kind_of_data(shape)
        refinement = max(2, math.ceil(FINE / max(1, steps)))
        defaults: dict[str, Any] = {"refinement": refinement} | KINDS[kind]
        if kind == "images":
            paths = options.get("paths", defaults["paths"])
            defaults["held_out"] = min(2 * options.get("batch_size", 64), paths // 20 + 8)
        return cls(**defaults | options)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(0, "q", "matching", "paths", "held_out")
        self.at_least(1, "refinement", "shard_size")
        check_choice(self.states, get_args(States), "states")


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
    """

    student: SignatureStudent
    history: Tensor
    seconds: float
    teacher_nfe: float
    held_out: Batch | None = None
    verdict: Verdict | None = None


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
    given: dict[str, Any] = {"data": data, "condition": condition or {}, "resume": resume}
    given |= {"device": device, "progress": progress}
    out_dir, spent = Path(out_dir), 0.0
    check_memory(judging_bytes(judge or 0, student.sample_shape, len(student.steps)))
    if grid is not None:
        if grid != "planned" or fine is not None or cache is not None:
            raise SigdegError(f"grid must be planned, without fine times or a cache, got {grid!r}")
        nested_grids(student)
        count = make_accelerator(config, out_dir, device).num_processes
        check_fit(student, config, config.q or max(student.steps), data, cache, count)
        check_room(out_dir)
        student, spent = plan_student(student, teacher, config, condition, device, progress)
    if plan is None:
        found = distil_steps(student, teacher, out_dir, config, fine=fine, cache=cache, **given)
    else:
        if cache is not None:
            raise SigdegError("a plan simulates paths of its own: leave the cache out")
        found = distil_rounds(student, teacher, out_dir, config, plan, fine, **given)
    found = dataclasses.replace(found, teacher_nfe=found.teacher_nfe + spent)
    if judge == 0 or not PartialState().is_main_process:
        return found
    if cache is not None:
        first, *others = cache.paths.rows
        fine = torch.cat([first, *(row[1:] for row in others)])
        condition = cache.paths.condition
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


def on_device(teacher: GaussianStep, device: torch.device) -> GaussianStep:
    """The teacher where it is to compute, in evaluation mode; the caller's stays where it is."""
    if isinstance(teacher, nn.Module):
        if any(value.device != device for value in teacher.state_dict().values()):
            teacher = copy.deepcopy(teacher).to(device)
        teacher.eval()
    return teacher


def plan_student(
    student: SignatureStudent,
    teacher: GaussianStep,
    config: DistillConfig,
    condition: Mapping[str, Tensor] | None,
    device: str | None,
    progress: bool,
) -> tuple[SignatureStudent, float]:
    """The student at planned times, and the teacher calls that measuring took."""
    place = torch.device(resolve_device(device))
    advice = plan_grid(
        on_device(teacher, place),
        max(student.steps),
        student.sample_shape,
        LinearStudent(student.seen),
        seed=config.seed,
        condition=condition,
        device=place,
        progress=progress and PartialState().is_main_process,
    )
    return student.at_times(advice.best.times, student.steps), advice.teacher_nfe


def distil_rounds(
    student: SignatureStudent,
    teacher: GaussianStep,
    out_dir: Path,
    config: DistillConfig,
    plan: Plan | str,
    fine: Tensor | None,
    **given: Any,
) -> Distilled:
    """Distil in the rounds of a plan, each in a folder of its own that resumes."""
    if student.elastic or config.q != 1:
        raise SigdegError("a plan is for a student of one step count, with q=1")
    coarse = fine_rows(student, student.grid(), config, fine)
    if isinstance(plan, str):
        plan = parse_plan(plan, len(coarse[0]) - 1)
    todo = rounds(plan, coarse)
    identity = {
        **dataclasses.asdict(config),
        "teacher": fingerprint(teacher),
        "student": fingerprint(student),
        "plan": format_plan(plan),
        "fine": [row.tolist() for row in coarse],
    }
    claim(make_accelerator(config, out_dir, given["device"]), out_dir, identity, given["resume"])
    made: list[SignatureStudent] = []
    found: list[Distilled] = []
    for number, part in enumerate(todo):
        times = torch.stack([*(row[0] for row in part.rows), part.rows[-1][-1]])
        stage = (made[-1] if made else student).at_times(times)
        blocks = Blocks(teacher, made, part.starts, part.made)
        folder = out_dir / "rounds" / f"{number + 1:02d}"
        found.append(
            distil_steps(stage, blocks, folder, config, rows=part.rows, starts=part.merged, **given)
        )
        made.append(found[-1].student)
    final = copy.deepcopy(made[-1])
    final.times, final.steps = student.times, student.steps
    final.save_pretrained(out_dir / "student")
    clock = torch.tensor([[i * config.iterations, 0, 0] for i in range(len(found))])
    return Distilled(
        final.eval(),
        torch.cat([result.history + start for result, start in zip(found, clock, strict=True)]),
        sum(result.seconds for result in found),
        sum(result.teacher_nfe for result in found),
    )


def fine_rows(
    student: SignatureStudent, grid: Tensor, config: DistillConfig, fine: Tensor | None
) -> list[Tensor]:
    """The teacher's times in each coarse step."""
    if fine is not None:
        return split(check_grid(fine), grid)
    return list(refine(student.schedule, grid, config.refinement, config.fine_power))


def distil_steps(
    student: SignatureStudent,
    teacher: GaussianStep,
    out_dir: Path,
    config: DistillConfig,
    *,
    data: Tensor | None,
    condition: Mapping[str, Tensor],
    resume: bool,
    device: str | None,
    progress: bool,
    fine: Tensor | None = None,
    cache: CachedPaths | None = None,
    rows: list[Tensor] | None = None,
    starts: Sequence[int] | None = None,
) -> Distilled:
    """Distil all coarse steps from one teacher; those of `starts` only, if given."""
    grids, q = nested_grids(student), config.q or max(student.steps)
    accelerator = make_accelerator(config, out_dir, device)
    check_fit(student, config, q, data, cache, accelerator.num_processes)
    if not (out_dir / "config.json").exists():  # another run there is told by its teacher anyway
        check_schedules(student, teacher)
    shared = None
    if cache is not None:
        shared = SharedPaths(cache, grids[0], student.order)
        if fingerprint(teacher) != fingerprint(cache.paths.teacher):
            raise SigdegError("the cache holds the paths of another teacher")
    teacher = on_device(teacher, accelerator.device)
    if shared is not None:
        paths = dataclasses.replace(
            shared.cache.paths, teacher=teacher, q=q, device=accelerator.device
        )
    else:
        paths = TeacherPaths(
            teacher,
            rows or fine_rows(student, grids[0], config, fine),
            student.sample_shape,
            student.order,
            data,
            q,
            accelerator.device,
            condition,
            starts,
        )
    check_teacher(paths, student)
    identity = {
        **(shared or paths).identity(),
        **dataclasses.asdict(config),  # its q as it was asked for
        "student": fingerprint(student),
        "grids": [grid.tolist() for grid in grids],
    }
    # Segments from data that call no teacher are drawn anew: there is nothing to save.
    free = data is not None and not paths.teacher_nfe
    cached = bool(config.paths and not free and shared is None)
    fresh = 0 if shared is not None else config.iterations * config.batch_size
    count = config.paths if cached else fresh
    costs = Costs(paths, student, count, config.batch_size, config.iterations, cached)
    costs.check(out_dir)
    claim(accelerator, out_dir, identity, resume)
    progress = progress and accelerator.is_main_process
    if progress:
        tqdm.write(costs.line(), file=sys.stderr)
    began = time.perf_counter()
    held_out = min(HELD_OUT, max(1, config.held_out))
    source: PathSource
    if shared is not None:
        source = shared
    elif cached:
        with accelerator.main_process_first():
            source = CachedPaths(
                paths,
                out_dir / "paths",
                config.paths,
                config.seed,
                min(config.held_out, config.paths // 2),
                config.shard_size,
                progress,
            )
    else:
        source = FreshPaths(paths, config.seed, held_out)

    lengths = windows(student, q)

    def levels(batch: Batch, generator: Generator) -> list[Batch]:
        """A share of the batch for each grid, seen at its times, cut to windows of q steps."""
        rows = torch.arange(len(batch.start)).split(shares(len(batch.start), lengths))
        return [
            batch.take(own)
            .coarsen(grids[0], (len(grids[0]) - 1) // (len(grid) - 1))
            .window(length, generator, starts)
            for own, grid, length in zip(rows, grids, lengths, strict=True)
        ]

    student = copy.deepcopy(student).train().requires_grad_(True)  # it may come from a training
    whole = source.held_out(held_out)
    scale_student(student, source.ends if data is None else data)
    simulated = time.perf_counter() - began
    matching = Matching(teacher, student.channels, len(grids)) if config.matching else None

    def draw(generator: Generator) -> Segments:
        """Segments of each level, and the seed of further noise."""
        segments = levels(source.batch(config.batch_size, generator), generator)
        return Segments(segments, int(torch.randint(2**62, (), generator=generator)))

    job = Job(
        Objective(student, grids, matching, config.matching),
        draw,
        Segments(levels(whole, derive_generator(config.seed, Stream.HELD_OUT))),
        identity,
        (lambda o: o.normalise(whole.to(accelerator.device))) if config.normalise else None,
        Segments.share,
    )
    trained = train(
        job,
        out_dir,
        config,
        device=device,
        progress=progress,
        label="distil",
        spent=simulated,
    )
    if accelerator.is_main_process:
        trained.objective.student.save_pretrained(out_dir / "student")
    return Distilled(
        trained.objective.student,
        trained.history,
        trained.seconds,
        source.calls(config.iterations * config.batch_size),
        whole if source.unseen and data is None else None,
    )


def windows(student: SignatureStudent, q: int) -> list[int]:
    """Steps in a loss term of each level, the finest first."""
    return [min(q, count) for count in sorted(student.steps, reverse=True)]


def shares(n: int, costs: Sequence[int]) -> list[int]:
    r"""Segments of each level, out of n: in proportion to $1 / \sqrt{cost}$ of a segment there.

    Of all splits at one cost this one leaves the least noise in the mean of the levels' losses, if
    one segment is as noisy everywhere (Neyman, 1934).
    """
    parts = np.cumsum(np.asarray(costs) ** -0.5)
    ends = np.rint(n * parts / parts[-1]).astype(int)
    sizes: list[int] = np.diff(ends, prepend=0).tolist()
    return sizes


def scale_student(student: SignatureStudent, samples: Tensor) -> None:
    """Tell a student the scale of its data, where it needs one that nobody has given.

    To look ahead it takes the covariance; a standard deviation where that is too large a matrix, or
    there are too few samples for it.
    """
    if student.response.stds is not None or student.data_std:
        return
    size = math.prod(student.sample_shape)
    if student.prediction_type == "edm":
        student.set_data_std(float(samples.std()))
    if not student.lookahead:
        return
    if size <= LARGEST and len(samples) > 2 * size:
        student.response.set_covariance(
            torch.cov(samples.flatten(1).double().T).reshape(size, size)
        )
    else:
        student.set_data_std(float(samples.std()))


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
    q: int,
    data: Tensor | None,
    cache: CachedPaths | None,
    processes: int,
) -> None:
    """Refuse combinations that cannot be trained, before anything is written."""
    longest = max(student.steps)
    if q > longest:
        raise SigdegError(f"q must lie between 1 and {longest} steps, got {q}")
    if config.matching and isinstance(student.network, Widened):
        raise SigdegError(
            "distribution matching needs a critic like the teacher, which only diffusers U-Nets "
            "and a ResidualMLP can be widened to: leave matching out"
        )
    if config.matching and q != longest:
        raise SigdegError(f"distribution matching judges samples: it needs q=0, got q={config.q}")
    held_out = max(1, min(config.held_out, config.paths // 2 if config.paths else HELD_OUT))
    # Each step count has its share; the energy score borrows noise from two other segments.
    lengths, each = windows(student, q), 3 if student.residual_noise == "energy" else 1
    for n, needed in ((config.batch_size, max(each, processes)), (held_out, each)):
        if min(shares(n, lengths)) < needed:
            least = next(n for n in itertools.count(1) if min(shares(n, lengths)) >= needed)
            raise SigdegError(
                f"this student needs at least {least} segments in a batch and held out"
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
    order, found = max(teacher.order, student.order), ""
    for n in (0, 2):  # no samples cost no calls, but some networks cannot take an empty batch
        x = torch.zeros(n, *student.sample_shape, device=device)
        fine = PartialSignature(row[0] - row[1], x[:, None].repeat_interleave(order, dim=1))
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


def nested_grids(student: SignatureStudent) -> list[Tensor]:
    """The student's grids, finest first, each a part of the finest."""
    longest = max(student.steps)
    finest = student.grid(longest)
    grids = []
    for count in sorted(student.steps, reverse=True):
        grid = finest[:: longest // count]
        if longest % count or not torch.allclose(grid, student.grid(count), atol=1e-9):
            raise SigdegError(
                f"the grid of {count} steps is no part of that of {longest}: step counts must "
                "divide the largest"
            )
        grids.append(grid)
    return grids


def split(fine: Tensor, coarse: Tensor) -> list[Tensor]:
    """Cut a fine grid at the coarse times.

    Raises:
        SigdegError: If a coarse time is not on the fine grid.
    """
    at = [int((fine - time).abs().argmin()) for time in coarse]
    if not torch.allclose(fine[at], coarse, atol=1e-9):
        raise SigdegError("the teacher's grid must contain every time of the student's")
    return [fine[i : j + 1] for i, j in itertools.pairwise(at)]
