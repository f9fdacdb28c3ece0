"""Compare a student with its teacher, and show what came of it: tables, pictures, verdict."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sigdeg.costs import check_room, judging_bytes, tell_calls
from sigdeg.distillation import DistillConfig, Verdict, judge, replay
from sigdeg.distillation.judgement import SPLITS, Level, Samples
from sigdeg.distillation.regression import fine_rows
from sigdeg.errors import SigdegError
from sigdeg.grids import join_rows
from sigdeg.model import Model
from sigdeg.paths import Batch, TeacherPaths
from sigdeg.report import histogram_plot, image_grid, scatter_plot, write_report
from sigdeg.results import Row, Summary, add_speed, count_calls, make_row, save_results
from sigdeg.runs import claim_folder
from sigdeg.steps import GaussianStep
from sigdeg.student import SignatureStudent
from sigdeg.timing import paired_seconds
from sigdeg.training import resolve_device
from sigdeg.workflows.real import Features, Real, read_real

__all__ = ["Comparison", "check_pair", "evaluate", "finer_grid", "measure", "save_comparison"]

PICTURES = 32  # samples of each method in the figure
TIMED = 16  # samples behind the seconds
CAPTION = (
    "The same seeds: sample i of every set started from the same noise and was driven by the same "
    "Brownian path."
)


def check_pair(student: SignatureStudent, teacher: Model) -> None:
    """Refuse a student of another teacher: of other samples, classes, noise or predictions."""
    own: Any = teacher.step if finer_grid(teacher) is not None else teacher.denoiser
    labels = teacher.conditions().get("class_labels")
    kind = getattr(own, "prediction_type", student.prediction_type)  # exact laws predict nothing
    for what, mine, other in (
        ("samples of shape", teacher.shape, student.sample_shape),
        ("classes", None if labels is None else labels.tolist(), student.class_labels),
        ("the prediction type", kind, student.prediction_type),
    ):
        if mine != other and (student.kind == "warm" or what != "the prediction type"):
            raise SigdegError(
                f"the student has {what} {other}, {teacher.name} {mine}: it is not its teacher"
            )
    if not teacher.schedule.equals(student.schedule):
        raise SigdegError(
            f"the student has other noise levels than {teacher.name}: it is not its teacher"
        )


def finer_grid(teacher: Model) -> Tensor | None:
    """The grid of a student that is a teacher; what another marches over refines its student's."""
    return teacher.grid.at() if isinstance(teacher.step, SignatureStudent) else None


class Comparison(NamedTuple):
    """What `measure` finds.

    Arguments:
        rows: Rows of results.
        floor: Metrics of real data against real data, where there is any.
        summary: What the numbers are, in words.
        verdict: Whether the student does what its teacher does.
        pictures: Some samples of each method by name.
        caption: What is to be said of them.
    """

    rows: list[Row]
    floor: dict[str, Summary]
    summary: str
    verdict: Verdict
    pictures: dict[str, Tensor]
    caption: str = CAPTION


def save_comparison(
    out: Path, results: dict[str, Any], found: Comparison, seed: int, device: str | None
) -> Path:
    """Write what `measure` found as verdict, results, figure and report; returns the report.

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
        shown = draw_pictures(found.pictures, out / "figures" / "samples.png")
    except (SigdegError, RuntimeError, ValueError, OSError) as error:
        results["warnings"] = [*results["warnings"], f"there is no picture of samples: {error}"]
    else:
        picture = {"file": "figures/samples.png", "caption": found.caption}
        results["figures"] = [picture] if shown else []
    save_results(out, results, device)
    return write_report(out)


def draw_pictures(samples: dict[str, Tensor], path: Path) -> bool:
    """A picture of images, of numbers or of points in the plane; whether there is one."""
    if not samples:
        return False
    shape = next(iter(samples.values())).shape
    if len(shape) == 4:
        images = [(planes(v).clamp(-1, 1) + 1) / 2 for v in samples.values()]
        image_grid(images, path, titles=list(samples))
    elif shape[1:].numel() == 1:
        histogram_plot(samples, None, path)
    elif shape[1:] == (2,):
        scatter_plot(samples, path)
    else:
        return False
    return True


def planes(images: Tensor) -> Tensor:
    """Images of 1 or 3 channels as they are, of other counts their channels side by side."""
    if images.ndim != 4 or images.shape[1] in (1, 3):
        return images
    return torch.cat(images.split(1, dim=1), dim=3)


@torch.no_grad()
def measure(
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
    fine, student = teacher.gaussian, copy.deepcopy(student).to(device)
    finest, condition = student.grid(max(student.steps)), teacher.conditions()
    rows = fine_rows(student, finest, config, finer_grid(teacher))
    paths = TeacherPaths(
        fine, rows, teacher.shape, student.order, device=device, condition=condition
    )
    if progress:
        fresh = 2 * n - (0 if held_out is None else min(len(held_out.start), 2 * n))
        where = rows[0], teacher.shape, batch_size, device, condition
        calls = fresh * paths.teacher_nfe + 4 * n * sum(student.steps)
        memory = judging_bytes(n, teacher.shape, len(student.steps))
        tell_calls(f"two sets of {n:,} samples", calls, fine, *where, memory=memory)
    drawn = replay(
        student,
        paths,
        n,
        config.seed,
        held_out,
        teacher.decode,
        batch_size,
        progress=progress,
    )
    verdict = judge(student, paths, drawn)
    table, timed = make_table(student, teacher, verdict, drawn, config, real)
    timed[0] = fine, join_rows(rows)
    seconds = paired_seconds(
        {
            i: partial(replace(teacher, step=step).sample, TIMED, grid=grid, seed=0)
            for i, (step, grid) in timed.items()
        }
    )
    add_speed(table, {i: own * n / TIMED for i, own in seconds.items()}, teacher=0)
    summary = (
        f"Teacher, student and untrained step of the same noise: two sets of {n:,}. Distances are "
        "to other samples of the teacher, not to data; ± is the noise of one such distance."
    )
    few = PICTURES if drawn.teacher.ndim == 4 else len(drawn.teacher)
    pictures = {f"teacher, {count_calls(verdict.teacher_calls)}": drawn.teacher[:few]}
    for calls, samples in drawn.student.items():
        pictures[f"student, {count_calls(calls)}"] = samples[:few]
    if real is None:
        return Comparison(table, {}, summary, verdict, pictures)
    return Comparison(table, real.floor, f"{summary} {real.describe()}", verdict, pictures)


def make_table(
    student: SignatureStudent,
    teacher: Model,
    verdict: Verdict,
    drawn: Samples,
    config: DistillConfig,
    real: Real | None,
) -> tuple[list[Row], dict[int, tuple[GaussianStep, Tensor]]]:
    """A row of the teacher, and for each step count one of the student and of the untrained step.

    Returns:
        The rows; and, by the index of a row, the steps and grids of the student, to be timed.
    """

    def score(level: Level, of: str, samples: Tensor) -> dict[str, Summary]:
        return metrics(level, of) | ({} if real is None else real.compare(samples))

    called = teacher.gaussian if finer_grid(teacher) is not None else teacher.denoiser
    own = score(verdict.levels[0], "floor", drawn.teacher)
    table = [make_row("teacher", called, verdict.teacher_calls, own)]
    timed: dict[int, tuple[GaussianStep, Tensor]] = {}
    for level in verdict.levels:
        count = level.calls
        told: dict[str, Any] = {"order": student.seen, "grid": "power"}
        kind: dict[str, Any] = {
            "elastic": student.elastic,
            "head": student.residual_noise,
            "q": config.q,
            "verdict": {"says": level.says, "equal": level.equal, "failed": level.failed},
        }
        timed[len(table)] = student, student.grid(count)
        found = score(level, "student", drawn.student[count])
        table.append(make_row("sig-deg", student, count, found, **told | kind))
        found = score(level, "untrained", drawn.untrained[count])
        table.append(make_row("untrained", called, count, found, **told))
    return table, timed


def metrics(level: Level, of: str) -> dict[str, Summary]:
    """Measures of student, untrained step or teacher (the floor); deviations over splits."""
    names = {"sliced_w1": "distance", "off": "off", "missed": "missed", "path": "path"}
    found = {key: getattr(getattr(level, name), of) for key, name in names.items()}
    return {key: {"mean": m.mean, "std": m.se, "n": SPLITS} for key, m in found.items()}


def evaluate(
    student: Model,
    teacher: Model,
    out: Path,
    identity: dict[str, Any],
    config: DistillConfig,
    samples: int = 256,
    data: tuple[str, Features, bool] | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Path:
    """Compare a student with its teacher, and with real images, in a folder of its own.

    Arguments:
        student: The student.
        teacher: The teacher, guided as it was when the student learned from it.
        out: The folder.
        identity: What tells this comparison from another.
        config: The teacher's refinement, and the seed of the noise.
        samples: Samples in each of the two sets that are compared.
        data: Where real images are, what they are compared by, and whether to resize them.
        device: Where to compute.
        progress: Show a progress bar.

    Returns:
        The report.

    Raises:
        SigdegError: If the student is another teacher's, or the folder holds something else.
    """
    own: Any = student.step
    check_pair(own, teacher)
    fine_rows(own, own.grid(), config, finer_grid(teacher))  # refuses what cannot be, at once
    check_room(out, memory=judging_bytes(samples, teacher.shape, len(own.steps)))
    device, real = resolve_device(device), None
    if data is not None:
        shape = tuple(teacher.decode(torch.zeros(1, *teacher.shape)).shape[1:])
        real, told = read_real(data, shape, 2 * samples, device)
        identity = {**identity, **told}
    identity = {**identity, "samples": samples, "refinement": config.refinement}
    claim_folder(out, "config.json", identity)
    found = measure(own, teacher, config, samples, real=real, device=device, progress=progress)
    results = {**identity, "title": f"{teacher.name}: student and teacher", "preset": None}
    return save_comparison(out, results, found, config.seed, device)
