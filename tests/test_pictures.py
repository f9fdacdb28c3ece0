"""Images as one picture: every pixel where it belongs, small images larger."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sigdeg.errors import SigdegError
from sigdeg.pictures import save_sheet


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_every_pixel_is_where_it_belongs(tmp_path: Path) -> None:
    """Three grey images of 28 x 28, two a line: each pixel three times as large."""
    images = np.stack([np.full((1, 28, 28), value) for value in (0.0, 0.4, 2.0)])
    images[1, 0, 5, 7] = 1.0
    save_sheet(images, tmp_path / "sheet.png", columns=2)
    page = read(tmp_path / "sheet.png")
    assert page.shape == (3 * 58, 3 * 58, 3)
    small = page[::3, ::3]
    assert np.array_equal(small.repeat(3, 0).repeat(3, 1), page)
    assert (small[:28, :28] == 0).all()
    assert (small[:28, 28:30] == 255).all()
    assert (small[5, 37] == 255).all()
    assert (small[5, 36] == 102).all()
    assert (small[30:, :28] == 255).all()  # beyond 1: clipped
    assert (small[30:, 30:] == 255).all()  # nobody's place


def test_large_images_stay_as_they_are(tmp_path: Path) -> None:
    save_sheet(np.zeros((1, 3, 100, 90)), tmp_path / "sheet.png")
    assert read(tmp_path / "sheet.png").shape == (100, 90, 3)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SigdegError, match="images must have shape"):
        save_sheet(np.zeros((4, 2, 8, 8)), tmp_path / "sheet.png")
    assert not list(tmp_path.iterdir())


def test_matplotlib_is_left_out() -> None:
    """It would cost the command line as long as drawing the samples."""
    line = "import sys, sigdeg.workflows.sample; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", line], check=True)
