"""Draw from a student that is a pipeline, into files."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from tqdm.auto import tqdm

from sigdeg.errors import SigdegError, did_you_mean
from sigdeg.training import resolve_device
from sigdeg.workflows.pipelines import as_images
from sigdeg.workflows.sample import check_unused, write_samples

__all__ = ["draw_calls"]


def draw_calls(
    path: str | Path,
    out: Path,
    n: int,
    request: Mapping[str, Any],
    steps: int | None = None,
    seed: int = 0,
    single: bool = False,
    batch_size: int = 64,
    device: str | None = None,
    progress: bool = True,
) -> list[Path]:
    """Draw samples of a student's pipeline into a folder: images in [-1, 1], others as they are.

    Arguments:
        path: Folder of the student, or that of the run which made it, or a hub id.
        out: The folder, empty or with these very samples.
        n: How many.
        request: Arguments of the pipeline for one sample, over those that belong to the student's
            calls.
        steps: Steps of each (default: the most that the student knows).
        seed: Seed of the first; sample i has `seed` + i.
        single: Whether each image also becomes a file.
        batch_size: Samples at a time.
        device: Where to compute.
        progress: Show a progress bar.

    Returns:
        The files written.

    Raises:
        SigdegError: If the folder holds anything else, or the pipeline refuses what is asked for.
    """
    from sigdeg.pipelines import load_pipeline
    from sigdeg.pipelines.files import find_pipeline, read_card
    from sigdeg.pipelines.prepare import identify

    own, _ = read_card(find_pipeline(path))
    pipe = load_pipeline(path)
    check_request(pipe, request)
    count = max(pipe.scheduler.core.steps) if steps is None else steps
    pipe.scheduler.core.grid(count)  # refused before anything is drawn
    kind = hashlib.sha256(json.dumps(identify(pipe), sort_keys=True).encode()).hexdigest()[:16]
    identity = {"student": kind, "n": n, "steps": count, "seed": seed, "request": dict(request)}
    check_unused(out, identity)
    pipe.to(resolve_device(device))
    seeds = range(seed, seed + n)
    samples = draw_seeds(pipe, {**own, **request}, count, seeds, batch_size, progress)
    if single and not (samples.ndim == 4 and samples.shape[1] in (1, 3)):
        raise SigdegError(
            f"samples of shape {tuple(samples.shape[1:])} are no images: leave --save out"
        )
    return write_samples(samples, out, identity, single)


def check_request(pipe: Any, request: Mapping[str, Any]) -> None:
    """Refuse arguments that the pipeline does not take, and none where it needs one."""
    name, takes = type(pipe).__name__, inspect.signature(type(pipe).__call__).parameters
    for argument, option in (("prompt", "--prompt"), ("class_labels", "--label")):
        if argument in request and argument not in takes:
            raise SigdegError(f"a {name} takes no {argument}: leave {option} out")
        embedded = any(key.startswith(f"{argument}_embeds") for key in request)
        if argument in takes and argument not in request and not embedded:
            raise SigdegError(f"a {name} is asked for samples of something: give {option}")
    for argument in request:
        if argument not in takes:  # many pipelines would leave it unseen
            raise SigdegError(f"a {name} takes no {argument!r}{did_you_mean(argument, takes)}")


def draw_seeds(
    pipe: Any,
    request: Mapping[str, Any],
    steps: int,
    seeds: Sequence[int],
    batch_size: int,
    progress: bool,
) -> Tensor:
    r"""Samples of seeds, shape (seeds, \*), so many at a time; see `draw_calls`."""
    from sigdeg.pipelines.checks import check_finite
    from sigdeg.pipelines.trace import call_pipeline

    parts: list[Tensor] = []
    with tqdm(total=len(seeds), unit="sample", disable=not progress) as bar:
        for first in range(0, len(seeds), batch_size):
            generators = [Generator().manual_seed(v) for v in seeds[first : first + batch_size]]
            size = len(generators)
            call = call_of(pipe, request, size)
            parts.append(samples_of(call_pipeline(pipe, call, steps, generators)[0], size))
            check_finite(pipe, parts[-1])
            bar.update(size)
    return torch.cat(parts)


def call_of(pipe: Any, request: Mapping[str, Any], n: int) -> dict[str, Any]:
    """The call of n samples, of the arguments of one."""
    from sigdeg.pipelines.inputs import join_rows

    takes = inspect.signature(type(pipe).__call__).parameters
    (call,) = join_rows([request] * n, n)
    if not any(isinstance(value, list) for value in call.values()):
        counts = ("batch_size", "num_images_per_prompt", "num_videos_per_prompt")
        call |= {next((name for name in counts if name in takes), counts[0]): n}
    if "output_type" in takes:
        call.setdefault("output_type", "np")
    return call


def samples_of(output: Any, n: int) -> Tensor:
    """What a pipeline gave as numbers, a sample a row; images in [-1, 1]."""
    images = as_images(output)
    if images is not None:
        return images
    samples = torch.as_tensor(np.asarray(output) if isinstance(output, list) else output)
    if len(samples) != n or not math.prod(samples.shape):
        raise SigdegError(f"the pipeline gave {len(samples)} samples where {n} were asked for")
    return samples.float().cpu()
