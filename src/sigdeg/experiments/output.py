"""Samples as files: safetensors for programs, a picture for people."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from sigdeg.files import save_tensors
from sigdeg.pictures import save_sheet

__all__ = ["write_samples"]

SHOWN = 64  # images in the picture


def write_samples(samples: Tensor, out: Path) -> list[Path]:
    """Write samples (n, *) to a folder; images and scalars also as a PNG."""
    written = [out / "samples.safetensors"]
    save_tensors(written[0], {"samples": samples})
    picture = out / "samples.png"
    if samples.ndim == 4 and samples.shape[1] in (1, 3):
        save_sheet((samples[:SHOWN].double().numpy() + 1) / 2, picture)
    elif samples[0].numel() == 1:
        from sigdeg.report import histogram_plot  # with matplotlib

        histogram_plot({"student": samples}, None, picture)
    else:
        return written
    return [*written, picture]
