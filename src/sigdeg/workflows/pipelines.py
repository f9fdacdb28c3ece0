"""Distil a pipeline by its calls, from Python and from the command line."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from sigdeg.distillation import DistillConfig
from sigdeg.errors import SigdegError, reason
from sigdeg.results import Row, add_speed, count_calls, make_row, save_results
from sigdeg.timing import paired_seconds
from sigdeg.workflows.evaluate import CAPTION, PICTURES, metrics

if TYPE_CHECKING:
    from sigdeg.pipelines import DistilledPipeline, Judged

__all__ = ["distill_calls", "report_pipeline"]

TRAINING = {field.name for field in dataclasses.fields(DistillConfig)}
OWN = ("out", "device", "progress", "batch")


def read_calls(prompts: str | None, calls: str | None) -> dict[str, Any]:
    """What `distill_calls` takes of files of prompts or of calls.

    Raises:
        SigdegError: If a file cannot be read, or both are given.
    """
    from sigdeg.pipelines.inputs import read_rows

    if prompts is not None and calls is not None:
        raise SigdegError("a pipeline is distilled by calls or by prompts: give one of them")
    if prompts is not None:
        return {"prompts": read_rows(prompts)}
    return {"calls": read_rows(str(calls))}


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
    from sigdeg.pipelines.inputs import BATCH, check_calls, join_rows

    if (calls is None) == (prompts is None):
        raise SigdegError("a pipeline is distilled by calls or by prompts: give one of them")
    counts = tuple(steps) if isinstance(steps, list | tuple) else (steps,)
    pipe = load_pipeline(pipe)
    takes = inspect.signature(type(pipe).__call__).parameters
    recipes = {field.name for field in dataclasses.fields(PipelineRecipe)}
    shared = dict(arguments or {})
    for name in [*options]:
        if name in recipes | TRAINING or name in OWN:
            continue
        if name not in takes:
            near = difflib.get_close_matches(name, [*recipes, *TRAINING, *OWN, *takes], 1)
            hint = f", did you mean {near[0]}?" if near else ""
            raise SigdegError(f"unknown option {name!r} for a {type(pipe).__name__}{hint}")
        shared[name] = options.pop(name)
    if isinstance(prompts, str):
        raise SigdegError(f"prompts are a list, such as ['a cat', 'a dog'], got {prompts!r:.60}")
    rows = [row if isinstance(row, Mapping) else {"prompt": row} for row in prompts or ()]
    made = join_rows(rows, options.pop("batch", BATCH)) if calls is None else calls
    check_calls(pipe, made)
    recipe = PipelineRecipe(counts, **{k: options.pop(k) for k in recipes & options.keys()})
    config = pipeline_config(counts, **{k: options.pop(k) for k in TRAINING & options.keys()})
    out = Path(options.pop("out", "runs/distilled"))
    asked = [{**shared, **call} for call in made]
    if runs_only:
        return prepare(pipe, asked, out, recipe, config, **options).runs()
    found = distill_pipeline(pipe, asked, out, recipe, config, **options)
    if found.judged is not None:
        report_pipeline(found, out, config, options.get("device"))
    return found


def report_pipeline(
    made: DistilledPipeline, out: Path, config: DistillConfig, device: str | None = None
) -> Path:
    """Write results, pictures and report of a distilled pipeline into its run folder.

    The picture shows teacher, untrained step and student of the same noise, as the pipeline decodes
    them, where that gives images.
    """
    from sigdeg.report import image_grid, write_report  # an extra, which distilling can do without

    judged, verdict = made.judged, made.verdict
    assert judged is not None
    name, step = type(made.pipe).__name__, made.pipe.scheduler.core
    networks = nn.ModuleList(made.pipe.components[n] for n in made.teacher.trace.networks)
    table = [
        make_row("teacher", networks, verdict.teacher_calls, metrics(verdict.levels[0], "floor"))
    ]
    for level in verdict.levels:
        told: dict[str, Any] = {"order": step.seen, "grid": "power"}
        kind: dict[str, Any] = {
            "elastic": step.elastic,
            "head": step.residual_noise,
            "q": config.q,
            "verdict": {"says": level.says, "equal": level.equal, "failed": level.failed},
            "train_seconds": made.seconds,
            "teacher_nfe": made.teacher_calls,
        }
        table.append(
            make_row("sig-deg", networks, level.calls, metrics(level, "student"), **told | kind)
        )
        table.append(
            make_row("untrained", networks, level.calls, metrics(level, "untrained"), **told)
        )
    add_speed(table, time_runs(made, judged, table), teacher=0)
    results: dict[str, Any] = {
        "title": f"{name}, distilled",
        "experiment": "distill",
        "preset": None,
        "summary": (
            f"Teacher, student and untrained step of the same noise: two sets of {verdict.n:,} "
            "that training has not seen. Distances are to other samples of the teacher, in the "
            "states that the pipeline diffuses; ± is the noise of one such distance."
        ),
        "seed": config.seed,
        "quality": {
            "metric": "sliced_w1",
            "label": "Sliced W1 distance to other samples of the teacher",
            "lower_is_better": True,
        },
        "rows": table,
        "paper": [],
        "floor": {},
        "training": {"student": made.history.tolist()},
        "warnings": verdict.warnings,
        "figures": [],
    }
    save_results(out, results, device)
    if shown := decoded(made, judged):
        image_grid([*shown.values()], out / "figures" / "samples.png", titles=[*shown])
        results["figures"] = [{"file": "figures/samples.png", "caption": CAPTION}]
        save_results(out, results, device)
    return write_report(out)


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


def decoded(made: DistilledPipeline, judged: Judged) -> dict[str, Tensor]:
    """Images of each method by name, as the pipeline decodes its states; none of other outputs."""
    sets = {f"teacher, {count_calls(judged.verdict.teacher_calls)}": judged.teacher}
    for count, ends in judged.student.items():
        sets[f"untrained, {count_calls(count)}"] = judged.untrained[count]
        sets[f"student, {count_calls(count)}"] = ends
    shown: dict[str, Tensor] = {}
    for name, states in sets.items():
        parts: list[Tensor] = []
        ends = states
        for call, seed, n in judged.asked:
            if sum(map(len, parts)) >= PICTURES:
                break
            call = {k: v for k, v in call.items() if k != "output_type"}
            images = as_images(made.teacher.decode(call, seed, ends[:n]))
            if images is None:
                return {}
            parts.append(images)
            ends = ends[n:]
        shown[name] = torch.cat(parts)[:PICTURES]
    return shown


def as_images(output: Any) -> Tensor | None:
    """Images (n, channels, height, width) in [0, 1] of a pipeline's output, if it is images."""
    if isinstance(output, list) and output and hasattr(output[0], "getbands"):
        output = np.stack([np.asarray(image.convert("RGB")) / 255 for image in output])
    if isinstance(output, np.ndarray) and output.ndim == 4 and output.shape[-1] in (1, 3):
        return torch.from_numpy(output).movedim(-1, 1).float()
    return None
