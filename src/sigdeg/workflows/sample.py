"""Draw samples into files: safetensors for programs, pictures for people."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm.auto import tqdm

from sigdeg.conditions import Unconditional
from sigdeg.costs import check_room, tell_calls
from sigdeg.discrete import TextCodec
from sigdeg.errors import SigdegError
from sigdeg.files import atomic_write, save_tensors
from sigdeg.model import Model
from sigdeg.pictures import save_sheet
from sigdeg.runs import fingerprint
from sigdeg.training import resolve_device

__all__ = ["check_unused", "draw_samples", "write_samples"]

NAME = "samples.safetensors"
TEXTS = "samples.txt"  # a sample a line, as a JSON string: some have lines of their own
SHOWN = 64  # images in the picture


def draw_samples(
    model: Model,
    out: Path,
    n: int,
    steps: int | None = None,
    seed: int = 0,
    label: int | None = None,
    single: bool = False,
    batch_size: int = 64,
    device: str | None = None,
    progress: bool = True,
) -> list[Path]:
    """Draw samples of a model, in the user's own units, into a folder.

    Arguments:
        model: The model.
        out: The folder, empty or with these very samples.
        n: How many.
        steps: Steps of each (default: all of the model's grid).
        seed: Seed of the first.
        label: Class of all of them.
        single: Whether each image also becomes a file.
        batch_size: Samples at a time.
        device: Where to compute.
        progress: Say what it takes, and show a progress bar.

    Returns:
        The files written.

    Raises:
        SigdegError: If the folder holds anything else, or what is asked for cannot be.
    """
    device = resolve_device(device)
    if label is not None and isinstance(model.conditions, Unconditional):
        raise SigdegError("this student knows no classes: leave --label out")
    request: dict[str, Any] = {} if label is None else {"label": label}
    condition, grid = model.to(device).condition(n, **request), model.grid.at(steps)
    shape = tuple(model.decode(torch.zeros(1, *model.shape, device=device)).shape[1:])
    if single and (len(shape) < 3 or shape[0] not in (1, 3)):
        raise SigdegError(f"samples of shape {shape} are no images: leave --save out")
    told = {"n": n, "steps": len(grid) - 1, "seed": seed, "label": label}
    identity = {"student": fingerprint(model.step), **told}
    check_unused(out, identity)
    drawn = 4 * n * math.prod(model.shape)
    check_room(out, drawn, 2 * drawn)
    known = model.grid.steps
    if known and len(grid) - 1 not in known:
        counts = ", ".join(map(str, known))
        tqdm.write(
            f"note: this student was trained for {counts} steps, not for {len(grid) - 1}",
            file=sys.stderr,
        )
    if progress:
        where = grid, model.shape, min(n, batch_size), device, condition
        calls = n * (len(grid) - 1)
        tell_calls(f"{n:,} samples", calls, model.step, *where, disk=drawn, memory=2 * drawn)
    asked: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "progress": progress}
    samples = model.sample(n, steps, **asked, **request).cpu()
    written = write_samples(samples, out, identity, single)
    if isinstance(model.codec, TextCodec):
        lines = "".join(f"{line}\n" for line in map(json.dumps, model.codec.text(samples)))
        atomic_write(out / TEXTS, lambda part: part.write_text(lines))
        written.append(out / TEXTS)
    return written


def check_unused(out: Path, identity: Mapping[str, Any]) -> None:
    """Refuse a folder that holds anything but samples of this identity, which come out the same."""
    if not out.is_dir() or all(path.name.startswith(".") for path in out.iterdir()):
        return
    try:
        with safe_open(out / NAME, "pt") as file:
            told = (file.metadata() or {}).get("identity")
    except (SafetensorError, OSError):
        told = None
    if told != json.dumps(identity):
        kind = "other samples" if (out / NAME).exists() else "other files"
        raise SigdegError(f"{out} holds {kind}: choose another folder with --out, or empty it")


def write_samples(
    samples: Tensor, out: Path, identity: Mapping[str, Any], single: bool = False
) -> list[Path]:
    """Write samples (n, *) to a folder; images and scalars also as a PNG, and `single` images.

    Their `identity` tells them from others, see `check_unused`.
    """
    written = [out / NAME]
    images = samples.ndim == 4 and samples.shape[1] in (1, 3)
    save_tensors(written[0], {"samples": samples}, {"identity": json.dumps(identity)})
    picture = out / "samples.png"
    if images:
        pixels = (samples.double().numpy() + 1) / 2
        save_sheet(pixels[:SHOWN], picture)
        for i in range(len(pixels) if single else 0):
            written.append(out / f"{i:04d}.png")
            save_sheet(pixels[i : i + 1], written[-1], scale=1)
    elif samples[0].numel() == 1:
        from sigdeg.report import histogram_plot  # with matplotlib

        histogram_plot({"student": samples}, None, picture)
    else:
        return written
    return [written[0], picture, *written[1:]]
