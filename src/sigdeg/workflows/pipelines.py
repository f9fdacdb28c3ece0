"""Distil a pipeline by its calls, from Python and from the command line."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sigdeg.distillation import DistillConfig
from sigdeg.errors import SigdegError, extra, reason
from sigdeg.files import find_folder

__all__ = ["distill_calls", "load_pipeline"]

TRAINING = {field.name for field in dataclasses.fields(DistillConfig)}
OWN = ("out", "device", "progress", "batch")


def load_pipeline(path: Any) -> Any:
    """A diffusers pipeline: itself, or that of a folder or hub id.

    Raises:
        SigdegError: If there is none, or it cannot be loaded: what diffusers says, in one line.
    """
    with extra("pipelines"):
        from diffusers import DiffusionPipeline
    if not isinstance(path, str | Path):
        if not isinstance(path, DiffusionPipeline):
            raise SigdegError(
                f"calls are those of a diffusers pipeline, a {type(path).__name__} is none"
            )
        return path
    folder = find_folder(path)
    try:
        return DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    except Exception as error:  # whatever a damaged folder makes of its reader
        raise SigdegError(f"{folder} cannot be loaded: {reason(error)}") from None


def distill_calls(
    pipe: Any,
    *,
    calls: Sequence[Mapping[str, Any]] | None = None,
    prompts: Iterable[str | Mapping[str, Any]] | None = None,
    steps: int | Sequence[int] = (4,),
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
        steps: Step counts of the student.
        options: See above.

    Returns:
        A `DistilledPipeline`.

    Raises:
        SigdegError: If options do not fit together, or the folder holds another run.
    """
    from sigdeg.pipelines import PipelineRecipe, distill_pipeline, pipeline_config
    from sigdeg.pipelines.inputs import BATCH, join_rows

    if (calls is None) == (prompts is None):
        raise SigdegError("a pipeline is distilled by calls or by prompts: give one of them")
    counts = tuple(steps) if isinstance(steps, list | tuple) else (steps,)
    pipe = load_pipeline(pipe)
    takes = inspect.signature(type(pipe).__call__).parameters
    recipes = {field.name for field in dataclasses.fields(PipelineRecipe)}
    shared = {}
    for name in [*options]:
        if name in recipes | TRAINING or name in OWN:
            continue
        if name not in takes:
            near = difflib.get_close_matches(name, [*recipes, *TRAINING, *OWN, *takes], 1)
            hint = f", did you mean {near[0]}?" if near else ""
            raise SigdegError(f"unknown option {name!r} for a {type(pipe).__name__}{hint}")
        shared[name] = options.pop(name)
    rows = [row if isinstance(row, Mapping) else {"prompt": row} for row in prompts or ()]
    made = join_rows(rows, options.pop("batch", BATCH)) if calls is None else list(calls)
    recipe = PipelineRecipe(counts, **{k: options.pop(k) for k in recipes & options.keys()})
    config = pipeline_config(counts, **{k: options.pop(k) for k in TRAINING & options.keys()})
    out = options.pop("out", "runs/distilled")
    return distill_pipeline(
        pipe, [{**shared, **call} for call in made], out, recipe, config, **options
    )
