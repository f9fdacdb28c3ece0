"""Distil any image teacher and show what came of it: the path `sigdeg distill` takes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from torch import Tensor, nn
from tqdm.auto import tqdm

from sigdeg.distillation import DistillConfig, TeacherPaths, distill
from sigdeg.errors import SigdegError
from sigdeg.experiments.results import (
    count_calls,
    make_row,
    paired_seconds,
    save_results,
    single,
)
from sigdeg.grids import refine
from sigdeg.integrations import Teacher, save_decoder
from sigdeg.metrics import Summary, path_error, sliced_w1
from sigdeg.report import image_grid, write_report
from sigdeg.sampling import sample
from sigdeg.steps import Exponential, Step
from sigdeg.student import ResidualNoise, SignatureStudent
from sigdeg.training import derive_generator, resolve_device

__all__ = ["distil_images", "evaluate", "save_comparison"]

PICTURES = 32  # samples of each method in the figure
TIMED = 16  # samples behind the seconds


def distil_images(
    teacher: Teacher,
    out: Path,
    steps: tuple[int, ...] = (10,),
    order: int = 4,
    config: DistillConfig | None = None,
    data: Tensor | None = None,
    evaluation_n: int = 256,
    device: str | None = None,
    progress: bool = True,
    training: dict[str, Any] | None = None,
    folder: Path | None = None,
    residual_noise: ResidualNoise | None = None,
    guidance: float | None = None,
    guidance_until: float = 1.0,
    times: Sequence[float] | None = None,
    lookahead: float = 0.0,
    start: str | Path | None = None,
    plan: str | None = None,
    grid: Literal["planned"] | None = None,
    **texts: Any,
) -> Path:
    """Distil a teacher into a run folder, with results and a report.

    Arguments:
        teacher: The teacher.
        out: The run folder.
        steps: Step counts of the student; several make it elastic.
        order: Order of the signatures.
        config: How to distil.
        data: Real samples to compare with (default: other samples of the teacher).
        evaluation_n: Samples behind the metrics.
        device: Where to compute.
        progress: Show progress bars.
        training: Further training curves for the report.
        folder: Where the distillation itself goes (default: the run folder).
        residual_noise: What the student does about what the coefficients leave open.
        guidance: Scale of guidance, for a conditional teacher or one with a weaker version.
        guidance_until: The time above which there is none.
        times: The student's finest grid (default: power spacing).
        lookahead: Fraction of a step after which the student's network looks.
        start: Folder or hub id of a student to go on from: its order, noise, look-ahead and times
            stay.
        plan: Rounds of merges to distil in, see `distill`.
        grid: `planned` measures the teacher for the student's times, see `distill`.
        texts: Further keys of the results (experiment, title, ...).

    Returns:
        The report.
    """
    config = config or DistillConfig()
    if start is None:
        student = SignatureStudent.from_denoiser(
            teacher.denoiser,
            teacher.sample_shape[0],
            order,
            steps=steps,
            sample_shape=teacher.sample_shape,
            residual_noise=residual_noise,
            times=times,
            lookahead=lookahead,
        )
    else:
        known = SignatureStudent.from_pretrained(start)
        student = known.at_times(known.grid(max(steps)), steps)
    if evaluation_n < 2:
        raise SigdegError(f"samples must be at least 2, got {evaluation_n}")
    step = teacher.step(guidance, guidance_until)
    labels = None if teacher.classes is None else torch.arange(teacher.classes)
    folder = out if folder is None else folder
    result = distill(
        student,
        step,
        folder,
        config,
        labels=labels,
        plan=plan,
        judge=0,
        grid=grid,
        device=device,
        progress=progress,
    )
    if not PartialState().is_main_process:
        return out / "report.html"
    if folder != out:
        result.student.save_pretrained(out / "student")
    if teacher.decoder is not None:
        save_decoder(teacher.decoder, out / "student" / "decoder")
    rows, floor, pictures = evaluate(
        result.student,
        teacher,
        config,
        evaluation_n,
        data,
        guidance=guidance,
        guidance_until=guidance_until,
        device=resolve_device(device),
        progress=progress,
    )
    for row in rows:
        if row["method"] == "sig-deg":
            row |= {"train_seconds": result.seconds, "teacher_nfe": result.teacher_nfe}
    results = {
        "title": f"{teacher.name}, distilled",
        "experiment": "distill",
        "preset": None,
        "training": {**(training or {}), "student": result.history.tolist()},
        "student": "student",
        "example": {"steps": max(steps)},
        **texts,
    }
    return save_comparison(
        out, results, rows, floor, pictures, config.seed, data is not None, device
    )


def save_comparison(
    out: Path,
    results: dict[str, Any],
    rows: list[dict[str, Any]],
    floor: dict[str, Summary],
    pictures: dict[str, Tensor],
    seed: int,
    real: bool,
    device: str | None,
) -> Path:
    """Write what `evaluate` found as results, figure and report; returns the report."""
    images = [(v.clamp(-1, 1).cpu() + 1) / 2 for v in pictures.values()]
    image_grid(images, out / "figures" / "samples.png", titles=list(pictures))
    reference = "real data" if real else "other samples of the teacher"
    results = {
        "summary": "Teacher and student driven by the same noise, sample by sample.",
        "seed": seed,
        "quality": {
            "metric": "sliced_w1",
            "label": f"Sliced Wasserstein-1 distance to {reference}",
            "lower_is_better": True,
        },
        "rows": rows,
        "paper": [],
        "floor": floor,
        "figures": [
            {
                "file": "figures/samples.png",
                "caption": "The same seeds: sample i of every set started from the same noise "
                "and was driven by the same Brownian path.",
            }
        ],
        **results,
    }
    save_results(out, results, device)
    return write_report(out)


@torch.no_grad()
def evaluate(
    student: SignatureStudent,
    teacher: Teacher,
    config: DistillConfig,
    n: int = 256,
    data: Tensor | None = None,
    guidance: float | None = None,
    guidance_until: float = 1.0,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> tuple[list[dict[str, Any]], dict[str, Summary], dict[str, Tensor]]:
    """Teacher, student and untrained step on the same Brownian paths; latents are decoded.

    Arguments:
        student: The student; each of its step counts gives two rows.
        teacher: Its teacher.
        config: How it was distilled: the teacher's refinement and the seed.
        n: Samples behind the metrics.
        data: Real samples to compare with, at least 2n (default: other samples of the teacher).
        guidance: Scale of the guidance that the student was distilled with.
        guidance_until: The time above which there was none.
        batch_size: Samples at a time.
        device: Where to compute.
        progress: Show a progress bar.

    Returns:
        Rows of results, the floor, and 32 samples of each method by name.
    """
    teacher = teacher.to(device)
    fine, student = teacher.step(guidance, guidance_until), student.to(device)
    labels = None if teacher.classes is None else torch.arange(teacher.classes)
    finest = student.grid(max(student.steps))
    rows = list(refine(student.schedule, finest, config.refinement, config.fine_power))
    calls = fine.denoiser.calls(torch.stack(rows)[:, :-1])
    paths = TeacherPaths(
        fine, rows, teacher.sample_shape, student.order, device=device, labels=labels
    )
    wanted = n if data is not None else 3 * n
    drawn = [
        paths.draw(min(batch_size, wanted - first), derive_generator(config.seed, 21, first))
        for first in tqdm(range(0, wanted, batch_size), desc="evaluate", disable=not progress)
    ]
    ends = teacher.decode(torch.cat([batch.states[:, -1] for batch in drawn]))
    real = ends[n:] if data is None else data
    floor: dict[str, Summary] = {"sliced_w1": single(sliced_w1(real[n : 2 * n], real[:n]), n)}

    def row(
        method: str, model: nn.Module, samples: Tensor, nfe: int, **more: Any
    ) -> dict[str, Any]:
        metrics = {
            "sliced_w1": single(sliced_w1(samples, real[:n]), n),
            "path": single(path_error(samples, ends[:n]), n),
        }
        return make_row(method, model, nfe, metrics, seeds=1, **more)

    table = [row("teacher", teacher.denoiser, ends[:n], calls)]
    pictures = {f"teacher, {calls} calls": ends[:PICTURES]}
    whole = torch.cat([rows[0], *(row[1:] for row in rows[1:])])
    timed: dict[int, tuple[Step, Tensor]] = {calls: (fine, whole)}
    for count in sorted(student.steps, reverse=True):
        stride, grid = (len(finest) - 1) // count, student.grid(count)

        untrained = Exponential(fine.denoiser, student.seen)
        methods: dict[str, Any] = {"sig-deg": student, "untrained": untrained}
        for method, step in methods.items():
            samples = teacher.decode(
                torch.cat([batch.coarsen(finest, stride).replay(step, grid) for batch in drawn])
            )[:n]
            more: dict[str, Any] = {"order": student.seen, "grid": student.spacing}
            if method == "sig-deg":
                more |= {"elastic": student.elastic, "head": student.residual_noise, "q": config.q}
                name = count_calls(count)
                pictures[f"student, {name}"] = samples[:PICTURES]
            table.append(row(method, step, samples, count, **more))
        timed[count] = (student, grid)

    condition: dict[str, Any] = {}
    if labels is not None:
        condition["class_labels"] = (torch.arange(TIMED) % len(labels)).to(device)

    def draw(step: Step, grid: Tensor) -> Tensor:
        shape = (TIMED, *teacher.sample_shape)
        drawn = sample(step, grid, shape, seeds=range(TIMED), device=device, **condition)
        return teacher.decode(drawn)

    seconds = paired_seconds({key: partial(draw, *value) for key, value in timed.items()})
    for entry in table:
        if entry["method"] != "untrained":
            own = seconds[entry["nfe"]]
            entry |= {"seconds": own * n / TIMED, "speedup": seconds[calls] / own}
    return table, floor, pictures
