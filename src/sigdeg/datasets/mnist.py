"""MNIST, read from its four IDX files.

Source: LeCun, Cortes, Burges, *The MNIST database of handwritten digits*.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sigdeg.datasets.download import fetch
from sigdeg.errors import SigdegError

__all__ = ["load_mnist", "parse_idx"]

# sha256 of the decompressed files: mirrors and local copies may compress them differently.
REGISTRY = {
    "train-images-idx3-ubyte.gz": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    ),
    "train-labels-idx1-ubyte.gz": (
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
    ),
    "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MIRRORS = [
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
]

Bytes = NDArray[np.uint8]


def load_mnist(
    split: Literal["train", "test"] = "train", data_dir: str | Path | None = None
) -> tuple[Bytes, Bytes]:
    """Load one split of MNIST; see `sigdeg.datasets.download.fetch` for where it is looked for.

    Arguments:
        split: "train" (60,000 digits) or "test" (10,000 digits).
        data_dir: The data folder, which holds the files or a folder `mnist` with them.

    Returns:
        Images of shape (n, 28, 28), 0 the background and 255 the ink, and labels 0-9 of shape (n,).

    Raises:
        SigdegError: If the split is unknown or a file is missing, damaged or out of reach.
    """
    prefixes = {"train": "train", "test": "t10k"}
    if split not in prefixes:
        raise SigdegError(f'unknown MNIST split "{split}": choose "train" or "test"')
    names = (f"{prefixes[split]}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    images, labels = (
        parse_idx(fetch("mnist", name, REGISTRY[name], MIRRORS, data_dir)) for name in names
    )
    return images, labels


def parse_idx(content: bytes) -> Bytes:
    """Parse an IDX file of unsigned bytes.

    The format: two zero bytes, the type 8, the number of dimensions, each dimension as a
    big-endian 32-bit integer, then the bytes, last dimension fastest.
    """
    header = 4 + 4 * content[3] if len(content) > 3 else 4
    if content[:3] != b"\0\0\x08" or len(content) < header:
        raise SigdegError(f"not an IDX file of unsigned bytes: it starts with {content[:16]!r}")
    shape = tuple(np.frombuffer(content[4:header], dtype=">u4").tolist())
    if len(content) != header + math.prod(shape):
        raise SigdegError(
            f"an IDX file of shape {shape} has {header + math.prod(shape)} bytes, "
            f"got {len(content)}"
        )
    # A copy, because arrays over immutable bytes are read-only and torch warns about them.
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy()
