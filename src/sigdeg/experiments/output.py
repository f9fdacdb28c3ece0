"""Samples as files: safetensors for programs, pictures for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sigdeg.errors import SigdegError
from sigdeg.files import save_tensors
from sigdeg.pictures import save_sheet

__all__ = ["check_unused", "write_samples"]

NAME = "samples.safetensors"
SHOWN = 64  # images in the picture


def check_unused(out: Path, identity: Mapping[str, Any]) -> None:
    """Refuse a folder that holds anything but samples of this identity, which come out the same.

    Raises:
        SigdegError: If it is so.
    """
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
    """Write samples (n, *) to a folder; images and scalars also as a PNG, images also singly.

    Arguments:
        samples: The samples.
        out: The folder.
        identity: What tells them from others, see `check_unused`.
        single: Whether each image also becomes a file, 0000.png and so on.
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
