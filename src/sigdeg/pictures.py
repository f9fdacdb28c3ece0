"""Images as one picture, without matplotlib: importing it takes longer than drawing samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sigdeg.errors import SigdegError, extra
from sigdeg.files import atomic_write

with extra("report"):
    from PIL import Image

__all__ = ["save_sheet", "sheet"]

Floats = NDArray[np.float64]
SIDE = 84  # pixels that a small image is blown up to, at most


def sheet(images: Floats, columns: int) -> Floats:
    """Images (n, height, width) or (n, channels, height, width) as one RGB image, gaps white."""
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or images.shape[1] not in (1, 3) or columns < 1 or not len(images):
        raise SigdegError(
            f"images must have shape (n, height, width) or (n, 1 or 3, height, width), "
            f"got {images.shape}"
        )
    n, _, height, width = images.shape
    columns = min(columns, n)
    gap = max(1, height // 14)
    lines = -(-n // columns)
    page = np.ones((lines * (height + gap) - gap, columns * (width + gap) - gap, 3))
    for i, image in enumerate(np.moveaxis(images, 1, -1).clip(0, 1)):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        page[top : top + height, left : left + width] = image
    return page


def save_sheet(images: Floats, path: Path, columns: int = 8, scale: int | None = None) -> None:
    """Write images as a PNG, see `sheet`; small ones larger, or all by a scale."""
    page = Image.fromarray(np.rint(255 * sheet(images, columns)).astype(np.uint8))
    scale = scale or max(1, SIDE // images.shape[-2])
    page = page.resize((scale * page.width, scale * page.height), Image.Resampling.NEAREST)
    atomic_write(path, lambda temporary: page.save(temporary, format="png"))
