"""Distil any image teacher and show what came of it: the path `sigdeg distill` takes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate import PartialState
from torch import Tensor

from sigdeg.codec import Identity, save_codec
from sigdeg.conditions import Classes
from sigdeg.costs import check_memory, judging_bytes, tell_calls
from sigdeg.distillation import (
    Batch,
    DistillConfig,
    TeacherPaths,
    Verdict,
    distill,
    judge,
    replay,
)
from sigdeg.distillation.judgement import SPLITS, Level
from sigdeg.errors import SigdegError, check_least
from sigdeg.experiments.real import Real
from sigdeg.grids import refine
from sigdeg.model import Model
from sigdeg.report import image_grid, write_report
from sigdeg.results import Row, Summary, count_calls, make_row, save_results
from sigdeg.sampling import sample
from sigdeg.steps import Step
from sigdeg.student import ResidualNoise, SignatureStudent
from sigdeg.timing import paired_seconds
from sigdeg.training import resolve_device

__all__ = ["Comparison", "check_pair", "distil_images", "evaluate", "save_comparison"]

PICTURES = 32  # samples of each method in the figure
TIMED = 16  # samples behind the seconds
CAPTION = (
    "The same seeds: sample i of every set started from the same noise and was driven by the same "
    "Brownian path."
)


def distil_images(
    teacher: Model,
    out: Path,
    steps: tuple[int, ...] = (10,),
    order: int = 4,
    config: DistillConfig | None = None,
    evaluation_n: int = 256,
    device: str | None = None,
    progress: bool = True,
    residual_noise: ResidualNoise | None = "energy",
    times: Sequence[float] | None = None,
    lookahead: float = 0.5,
    start: str | Path | None = None,
    plan: str | None = None,
    grid: Literal["planned"] | None = None,
) -> Path:
    """Distil a teacher into a run folder, with results and a report.

    Arguments:
        teacher: The teacher.
        out: The run folder.
        steps: Step counts of the student; several make it elastic.
        order: Order of the signatures.
        config: How to distil.
        evaluation_n: Samples in each of the two sets that are compared.
        device: Where to compute.
        progress: Show progress bars.
        residual_noise: What the student does about what the coefficients leave open.
        times: The student's finest grid (default: power spacing).
        lookahead: Fraction of a step after which the student's network looks.
        start: Folder or hub id of a student to go on from: its order, noise, look-ahead and times
            stay.
        plan: Rounds of merges to distil in, see `distill`.
        grid: `planned` measures the teacher for the student's times, see `distill`.

    Returns:
        The report.
    """
    config = config or DistillConfig.for_samples(teacher.shape, max(steps))
    if times is not None and (grid is not None or start is not None):
        raise SigdegError(
            "times are given, planned, or those of the student that is gone on from: leave the "
            "others out"
        )
    if start is None:
        student = SignatureStudent.from_denoiser(
            teacher.denoiser,
            teacher.shape[0],
            order,
            steps=steps,
            sample_shape=teacher.shape,
            residual_noise=residual_noise,
            times=times,
            lookahead=lookahead,
        )
    else:
        known = SignatureStudent.from_pretrained(start)
        check_pair(known, teacher)
        student = known.at_times(known.grid(max(steps)), steps)
    check_least(evaluation_n, 2, "samples")
    check_memory(judging_bytes(evaluation_n, teacher.shape, len(steps)))
    card = dataclasses.replace(
        teacher.card,
        name=None,
        teacher=teacher.name,
        start=None if start is None else str(start),
        plan=plan,
        grid=grid,
        seed=config.seed,
    )
    student.origin = card.written
    result = distill(
        student,
        teacher.step,
        out,
        config,
        condition=teacher.conditions(),
        plan=plan,
        grid=grid,
        judge=0,
        device=device,
        progress=progress,
    )
    if not PartialState().is_main_process:
        return out / "report.html"
    save_codec(teacher.codec, out / "student")
    kept = out / "verdict.json"
    if (out / "results.json").exists() and kept.exists() and Verdict.load(kept).n == evaluation_n:
        return write_report(out)  # this run has been judged
    compared = evaluate(
        result.student,
        teacher,
        config,
        evaluation_n,
        held_out=result.held_out,
        device=resolve_device(device),
        progress=progress,
    )
    for row in compared.rows:
        if row["role"] == "student":
            row |= {"train_seconds": result.seconds, "teacher_nfe": result.teacher_nfe}
    results = {
        "title": f"{teacher.name}, distilled",
        "experiment": "distill",
        "preset": None,
        "training": {"student": result.history.tolist()},
        "student": "student",
        "example": {
            "steps": max(steps),
            "classes": isinstance(teacher.conditions, Classes),
            "decoder": not isinstance(teacher.codec, Identity),
        },
    }
    return save_comparison(out, results, compared, config.seed, device)


def check_pair(student: SignatureStudent, teacher: Model) -> None:
    """Refuse a student of another teacher.

    Raises:
        SigdegError: If samples, classes, noise levels or predictions are not the same.
    """
    own: Any = teacher.denoiser
    labels = teacher.conditions().get("class_labels")
    for what, mine, other in (
        ("samples of shape", teacher.shape, student.sample_shape),
        ("classes", None if labels is None else labels.tolist(), student.class_labels),
        ("the prediction type", own.prediction_type, student.prediction_type),
    ):
        if mine != other and (student.kind == "warm" or what != "the prediction type"):
            raise SigdegError(
                f"the student has {what} {other}, {teacher.name} {mine}: it is not its teacher"
            )
    if not teacher.schedule.equals(student.schedule):
        raise SigdegError(
            f"the student has other noise levels than {teacher.name}: it is not its teacher"
        )


class Comparison(NamedTuple):
    """What `evaluate` finds.

    Arguments:
        rows: Rows of results.
        floor: Metrics of real data against real data, where there is any.
        summary: What the numbers are, in words.
        verdict: Whether the student does what its teacher does.
        pictures: Some samples of each method by name, of the same seeds.
    """

    rows: list[Row]
    floor: dict[str, Summary]
    summary: str
    verdict: Verdict
    pictures: dict[str, Tensor]


def save_comparison(
    out: Path, results: dict[str, Any], found: Comparison, seed: int, device: str | None
) -> Path:
    """Write what `evaluate` found as verdict, results, figure and report; returns the report.

    The results come first: a picture that cannot be made takes none of them along.
    """
    found.verdict.save(out / "verdict.json")
    results = {
        "summary": found.summary,
        "seed": seed,
        "quality": {
            "metric": "sliced_w1",
            "label": "Sliced W1 distance to other samples of the teacher",
            "lower_is_better": True,
        },
        "rows": found.rows,
        "paper": [],
        "floor": found.floor,
        "warnings": found.verdict.warnings,
        "figures": [],
        **results,
    }
    save_results(out, results, device)
    try:
        images = [(planes(v).clamp(-1, 1) + 1) / 2 for v in found.pictures.values()]
        image_grid(images, out / "figures" / "samples.png", titles=list(found.pictures))
    except (SigdegError, RuntimeError, ValueError, OSError) as error:
        results["warnings"] = [*results["warnings"], f"there is no picture of samples: {error}"]
    else:
        results["figures"] = [{"file": "figures/samples.png", "caption": CAPTION}]
    save_results(out, results, device)
    return write_report(out)


def planes(images: Tensor) -> Tensor:
    """Images of 1 or 3 channels as they are, of other counts their channels side by side."""
    if images.ndim != 4 or images.shape[1] in (1, 3):
        return images
    return torch.cat(images.split(1, dim=1), dim=3)


@torch.no_grad()
def evaluate(
    student: SignatureStudent,
    teacher: Model,
    config: DistillConfig,
    n: int = 256,
    held_out: Batch | None = None,
    real: Real | None = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Comparison:
    """Teacher, student and untrained step on the same Brownian paths; latents are decoded.

    Arguments:
        student: The student; each of its step counts gives two rows.
        teacher: Its teacher.
        config: How it was distilled: the teacher's refinement and the seed.
        n: Samples in each of the two sets that are compared.
        held_out: Whole paths of this teacher that the student has not seen.
        real: Real images to compare all of them with, too.
        batch_size: Samples at a time.
        device: Where to compute.
        progress: Show a progress bar.
    """
    teacher = teacher.to(device)
    fine, student = teacher.step, copy.deepcopy(student).to(device)
    finest, condition = student.grid(max(student.steps)), teacher.conditions()
    rows = list(refine(student.schedule, finest, config.refinement, config.fine_power))
    paths = TeacherPaths(
        fine, rows, teacher.shape, student.order, device=device, condition=condition
    )
    if progress:
        fresh = 2 * n - (0 if held_out is None else min(len(held_out.start), 2 * n))
        tell_calls(
            f"two sets of {n:,} samples",
            fresh * paths.teacher_nfe + 4 * n * sum(student.steps),
            fine,
            (rows[0][0], rows[0][1]),
            teacher.shape,
            batch_size,
            device,
            condition,
            memory=judging_bytes(n, teacher.shape, len(student.steps)),
        )
    drawn = replay(
        student,
        paths,
        n,
        config.seed,
        held_out,
        teacher.codec.decode,
        batch_size,
        progress=progress,
    )
    verdict = judge(student, paths, drawn)
    calls = verdict.teacher_calls
    summary = (
        f"Teacher, student and untrained step of the same noise: two sets of {n:,}. Distances are "
        "to other samples of the teacher, not to data; ± is the noise of one such distance."
    )
    floor: dict[str, Summary] = {}
    if real is not None:
        floor, summary = real.floor, f"{summary} {real.describe()}"

    def measure(level: Level, of: str, samples: Tensor) -> dict[str, Summary]:
        return metrics(level, of) | ({} if real is None else real.compare(samples))

    own = measure(verdict.levels[0], "floor", drawn.teacher)
    table = [make_row("teacher", teacher.denoiser, calls, own)]
    pictures = {f"teacher, {calls} calls": drawn.teacher[:PICTURES]}
    whole = torch.cat([rows[0], *(row[1:] for row in rows[1:])])
    timed: dict[int, tuple[Step, Tensor]] = {calls: (fine, whole)}
    for level in verdict.levels:
        told: dict[str, Any] = {"order": student.seen, "grid": "power"}
        kind = {"elastic": student.elastic, "head": student.residual_noise, "q": config.q}
        judged = {"says": level.says, "equal": level.equal, "failed": level.failed}
        table += [
            make_row(
                "sig-deg",
                student,
                level.calls,
                measure(level, "student", drawn.student[level.calls]),
                verdict=judged,
                **told | kind,
            ),
            make_row(
                "untrained",
                teacher.denoiser,
                level.calls,
                measure(level, "untrained", drawn.untrained[level.calls]),
                **told,
            ),
        ]
        pictures[f"student, {count_calls(level.calls)}"] = drawn.student[level.calls][:PICTURES]
        timed[level.calls] = (student, student.grid(level.calls))

    condition = teacher.condition(TIMED)

    def draw(step: Step, grid: Tensor) -> Tensor:
        shape = (TIMED, *teacher.shape)
        drawn = sample(step, grid, shape, seeds=range(TIMED), device=device, **condition)
        return teacher.codec.decode(drawn)

    seconds = paired_seconds({key: partial(draw, *value) for key, value in timed.items()})
    for entry in table:
        if entry["role"] != "untrained":
            own_seconds = seconds[entry["nfe"]]
            entry |= {
                "seconds": own_seconds * n / TIMED,
                "speedup": seconds[calls] / own_seconds,
            }
    return Comparison(table, floor, summary, verdict, pictures)


def metrics(level: Level, of: str) -> dict[str, Summary]:
    """Measures of student, untrained step or teacher (the floor); deviations over splits."""
    names = {"sliced_w1": "distance", "off": "off", "missed": "missed", "path": "path"}
    found = {key: getattr(getattr(level, name), of) for key, name in names.items()}
    return {key: {"mean": m.mean, "std": m.se, "n": SPLITS} for key, m in found.items()}
