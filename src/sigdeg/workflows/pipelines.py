"""Distil a pipeline by its calls, from Python and from the command line."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from sigdeg.distillation import DistillConfig, Verdict
from sigdeg.errors import SigdegError, did_you_mean, reason
from sigdeg.results import Row, add_speed, count_calls, make_row
from sigdeg.timing import paired_seconds
from sigdeg.training import resolve_device
from sigdeg.workflows.evaluate import PICTURES, Comparison, metrics, save_comparison
from sigdeg.workflows.real import Features, Real, read_real

if TYPE_CHECKING:
    from sigdeg.pipelines import DistilledPipeline, Judged

__all__ = ["distill_calls", "evaluate_calls", "report_pipeline"]

TRAINING = {field.name for field in dataclasses.fields(DistillConfig)}
OWN = {"out", "device", "progress", "batch"}


def read_calls(prompts: str | None, calls: str | None) -> dict[str, Any]:
    """What `distill_calls` takes of files of prompts or of calls.

    Raises:
        SigdegError: If a file cannot be read.
    """
    from sigdeg.pipelines.inputs import read_rows

    files = {"prompts": prompts, "calls": calls}
    return {name: read_rows(file) for name, file in files.items() if file is not None}


def parse_arguments(text: str | None) -> dict[str, Any]:
    """Arguments of a pipeline from a JSON object.

    Raises:
        SigdegError: If the text is none.
    """
    try:
        found = json.loads(text or "{}")
    except (json.JSONDecodeError, RecursionError) as error:
        raise SigdegError(f"--arguments is no JSON: {reason(error)}") from None
    if not isinstance(found, dict):
        raise SigdegError(
            f'--arguments is a JSON object, such as {{"height": 512}}, got {text!r:.60}'
        )
    return found


def distill_calls(
    pipe: Any,
    *,
    calls: Sequence[Mapping[str, Any]] | None = None,
    prompts: Iterable[str | Mapping[str, Any]] | None = None,
    arguments: Mapping[str, Any] | None = None,
    steps: int | Sequence[int] = (10,),
    runs_only: bool = False,
    **options: Any,
) -> Any:
    """Distil a pipeline by its calls; see `distill_pipeline`.

    `distill(pipe, prompts=["a cat", ...], guidance_scale=5.0, steps=4, out="runs/cats")`: options
    are those of `PipelineRecipe` and `DistillConfig`, `out`, `device`, `progress`, `batch` (samples
    of a call that is made of several prompts), and arguments of the pipeline, for all its calls.

    Arguments:
        pipe: The pipeline, or its folder or hub id.
        calls: Arguments of `pipe(...)`, as they are, of one sample or of several each.
        prompts: Prompts, or arguments of one sample each: joined into calls of several.
        arguments: Arguments of the pipeline for all its calls, beside those among `options`.
        steps: Step counts of the student.
        runs_only: Only simulate the teacher's runs, together with all who do so for this folder;
            the same call without it trains on them.
        options: See above.

    Returns:
        A `DistilledPipeline`, or the `PipelinePaths` of its teacher where only these are made.

    Raises:
        SigdegError: If options do not fit together, or the folder holds another run.
    """
    from sigdeg.pipelines import (
        PipelineRecipe,
        distill_pipeline,
        load_pipeline,
        pipeline_config,
        prepare,
    )

    check_asked(calls, prompts)
    counts = tuple(steps) if isinstance(steps, list | tuple) else (steps,)
    pipe = load_pipeline(pipe)
    recipes = {field.name for field in dataclasses.fields(PipelineRecipe)}
    others = sort_out(pipe, options, recipes | TRAINING | OWN)
    shared = {name: options.pop(name) for name in others}
    asked = join_calls(pipe, calls, prompts, arguments, shared, options.pop("batch", None))
    recipe = PipelineRecipe(counts, **{k: options.pop(k) for k in recipes & options.keys()})
    config = pipeline_config(counts, **{k: options.pop(k) for k in TRAINING & options.keys()})
    out = Path(options.pop("out", "runs/distilled"))
    if runs_only:
        return prepare(pipe, asked, out, recipe, config, **options).runs()
    found = distill_pipeline(pipe, asked, out, recipe, config, **options)
    if found.judged is not None:
        report_pipeline(found, out, config.seed, options.get("device"), config.q)
    return found


def check_asked(calls: object, prompts: object) -> None:
    """Refuse both or none of what a pipeline can be asked by, before it is loaded."""
    if (calls is None) == (prompts is None):
        raise SigdegError("a pipeline is asked by calls or by prompts: give one of them")


def join_calls(
    pipe: Any,
    calls: Sequence[Mapping[str, Any]] | None,
    prompts: Iterable[str | Mapping[str, Any]] | None,
    arguments: Mapping[str, Any] | None,
    shared: Mapping[str, Any],
    batch: int | None = None,
) -> list[dict[str, Any]]:
    """Calls as they are, or of prompts, with arguments for all of them; see `distill_calls`."""
    from sigdeg.pipelines.inputs import BATCH, check_calls, join_rows

    if not isinstance(arguments or {}, Mapping):
        raise SigdegError(
            f"arguments are a mapping, such as {{'height': 512}}, got {arguments!r:.60}"
        )
    if isinstance(prompts, str | bytes | Mapping | Set) or not isinstance(prompts or (), Iterable):
        raise SigdegError(f"prompts are a list, such as ['a cat', 'a dog'], got {prompts!r:.60}")
    if calls is not None and batch is not None:
        raise SigdegError("batch joins prompts: calls are run as they are, leave it out")
    rows = [row if isinstance(row, Mapping) else {"prompt": row} for row in prompts or ()]
    size = BATCH if batch is None else batch
    made = join_rows(rows, size) if calls is None else calls
    check_calls(pipe, made)
    return [{**(arguments or {}), **shared, **call} for call in made]


def sort_out(pipe: Any, options: Iterable[str], known: set[str]) -> list[str]:
    """Those of some options that are not known ones, but arguments of a pipeline.

    Raises:
        SigdegError: If one is neither.
    """
    takes = inspect.signature(type(pipe).__call__).parameters
    others = [name for name in options if name not in known]
    for name in others:
        if name not in takes:
            hint = did_you_mean(name, [*known, *takes])
            raise SigdegError(f"unknown option {name!r} for a {type(pipe).__name__}{hint}")
    return others


def evaluate_calls(
    student: str | Path,
    pipe: Any,
    *,
    calls: Sequence[Mapping[str, Any]] | None = None,
    prompts: Iterable[str | Mapping[str, Any]] | None = None,
    arguments: Mapping[str, Any] | None = None,
    out: str | Path = "runs/evaluation",
    samples: int = 256,
    refinement: int | None = None,
    data: tuple[str, Features, bool] | None = None,
    seed: int = 1,
    device: str | None = None,
    progress: bool = True,
) -> Path:
    """Compare a student that is a pipeline with its teacher, and with real images.

    Arguments:
        student: Its folder or hub id.
        pipe: The pipeline that it learned from, or its folder or hub id.
        calls: As for `distill_calls`, like the next two.
        prompts: See there.
        arguments: See there. Without a scale of guidance in them the teacher has the one that the
            student was distilled with.
        out: The run folder.
        samples: Samples in each of the two sets that are compared.
        refinement: Fine teacher steps a coarse step (default: 120 in all).
        data: Where real images are, what they are compared by, and whether to resize them.
        seed: Seed of the noise.
        device: Where to compute (default: what there is).
        progress: Show a progress bar.

    Returns:
        The report.

    Raises:
        SigdegError: If they do not fit together, or the folder holds another run.
    """
    from sigdeg.pipelines import evaluate_pipeline, load_pipeline
    from sigdeg.pipelines.files import find_student, read_guidance

    check_asked(calls, prompts)
    pipe, out = load_pipeline(pipe), Path(out)
    told = read_guidance(find_student(student))
    taught = {} if told is None else told.call
    asked = join_calls(pipe, calls, prompts, arguments, {})
    for name, scale in taught.items():
        if progress and not all(name in call for call in asked):
            print(f"note: {name} {scale:g}, as the student was taught", file=sys.stderr)
    asked = [{**taught, **call} for call in asked]
    real: list[Real] = []

    def look(output: Any) -> dict[str, Any]:
        """Read the real images, of the size of those that the pipeline draws."""
        assert data is not None
        drawn = as_images(output)
        if drawn is None:
            raise SigdegError("this pipeline gives no images: leave --data out")
        shape = tuple(drawn.shape[1:])
        found, told = read_real(data, shape, 2 * samples, resolve_device(device))
        real.append(found)
        return told

    more: dict[str, Any] = {"seed": seed, "device": device, "progress": progress}
    found = evaluate_pipeline(
        student,
        pipe,
        asked,
        out,
        samples,
        refinement=refinement,
        look=look if data else None,
        **more,
    )
    return report_pipeline(found, out, seed, device, real=next(iter(real), None))


def report_pipeline(
    made: DistilledPipeline,
    out: Path,
    seed: int,
    device: str | None = None,
    q: int = 1,
    real: Real | None = None,
) -> Path:
    """Write results, pictures and report of a student that is judged into its run folder.

    The picture shows teacher, untrained step and student of the same noise, as the pipeline decodes
    them, where that gives images. Of these all are compared with real ones, if there are any.
    """
    judged = made.judged
    assert judged is not None
    rows = rows_of(made, judged.verdict, q)
    add_speed(rows, time_runs(made, judged, rows), teacher=0)
    summary = (
        f"Teacher, student and untrained step of the same noise: two sets of {judged.verdict.n:,} "
        "that training has not seen. Distances are to other samples of the teacher, in the "
        "states that the pipeline diffuses; ± is the noise of one such distance."
    )
    trained = len(made.history) > 0
    results = {
        "title": f"{type(made.pipe).__name__}, {'distilled' if trained else 'student and teacher'}",
        "experiment": "distill" if trained else "evaluate",
        "preset": None,
        "training": {"student": made.history.tolist()} if trained else {},
    }
    images = decoded(made, judged, PICTURES if real is None else len(judged.teacher))
    if real is not None:
        for row, shown in zip(rows, images.values(), strict=True):
            row["metrics"] |= real.compare(shown)
        summary = f"{summary} {real.describe()}"
    pictures = {name: shown[:PICTURES] for name, shown in images.items()}
    floor = {} if real is None else real.floor
    found = Comparison(rows, floor, summary, judged.verdict, pictures)
    return save_comparison(out, results, found, seed, device)


def rows_of(made: DistilledPipeline, verdict: Verdict, q: int) -> list[Row]:
    """The rows of the teacher and, at each step count, of student and untrained step."""
    step = made.pipe.scheduler.core
    networks = nn.ModuleList(made.pipe.components[n] for n in made.teacher.trace.networks)
    rows = [
        make_row("teacher", networks, verdict.teacher_calls, metrics(verdict.levels[0], "floor"))
    ]
    for level in verdict.levels:
        told: dict[str, Any] = {"order": step.seen, "grid": "power"}
        kind: dict[str, Any] = {
            "elastic": step.elastic,
            "head": step.residual_noise,
            "q": q,
            "verdict": {"says": level.says, "equal": level.equal, "failed": level.failed},
        }
        if len(made.history):
            kind |= {"train_seconds": made.seconds, "teacher_nfe": made.teacher_calls}
        rows.append(
            make_row("sig-deg", networks, level.calls, metrics(level, "student"), **told | kind)
        )
        rows.append(
            make_row("untrained", networks, level.calls, metrics(level, "untrained"), **told)
        )
    return rows


def time_runs(made: DistilledPipeline, judged: Judged, rows: Sequence[Row]) -> dict[int, float]:
    """Seconds of a run of teacher and student, by row."""
    call, seed, _ = judged.asked[0]
    unguided = {**call, **made.off}
    from sigdeg.pipelines.trace import call_pipeline

    timed: dict[int, Callable[[], object]] = {0: lambda: made.teacher.march(call, seed)}
    for i, row in enumerate(rows):
        if row["role"] == "student":
            timed[i] = partial(call_pipeline, made.pipe, unguided, row["nfe"])
    return paired_seconds(timed, rounds=1)


def decoded(made: DistilledPipeline, judged: Judged, most: int) -> dict[str, Tensor]:
    """Images of each method by name, as the pipeline decodes its states; none of other outputs."""
    sets = {f"teacher, {count_calls(judged.verdict.teacher_calls)}": judged.teacher}
    for count, ends in judged.student.items():
        sets[f"student, {count_calls(count)}"] = ends
        sets[f"untrained, {count_calls(count)}"] = judged.untrained[count]
    shown: dict[str, Tensor] = {}
    for name, states in sets.items():
        parts: list[Tensor] = []
        ends = states
        for call, seed, n in judged.asked:
            if sum(map(len, parts)) >= most:
                break
            call = {k: v for k, v in call.items() if k != "output_type"}
            try:
                images = as_images(made.teacher.decode(call, seed, ends[:n]))
            except SigdegError:  # its calls asked for states: what decodes them need not work
                return {}
            if images is None:
                return {}
            parts.append(images)
            ends = ends[n:]
        shown[name] = torch.cat(parts)[:most]
    return shown


def as_images(output: Any) -> Tensor | None:
    """Images (n, channels, height, width) in [-1, 1] of a pipeline's output, if it is images."""
    if isinstance(output, list) and output and hasattr(output[0], "getbands"):
        output = np.stack([np.asarray(image.convert("RGB")) / 255 for image in output])
    if isinstance(output, np.ndarray) and output.ndim == 4 and output.shape[-1] in (1, 3):
        return 2 * torch.from_numpy(output).movedim(-1, 1).float() - 1
    return None
