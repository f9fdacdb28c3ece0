"""Images of your own, from a folder or a file: nothing is unpickled, nothing is guessed."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import Tensor

from sigdeg.datasets.mnist import parse_idx
from sigdeg.errors import SigdegError, extra

with extra("report"):
    from PIL import Image, ImageOps

__all__ = ["load_images"]

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
PICTURES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
LIMIT = 20_000  # images: of more, a random set that is always the same

Array = NDArray[Any]


def load_images(path: str | Path, shape: tuple[int, ...], resize: bool = False) -> Tensor:
    r"""Read images, as the models of this package know them.

    Arguments:
        path: A folder of pictures (those of its subfolders too), a `.npy`, a `.safetensors` with
            one tensor, or an IDX file, compressed or not. Arrays have the shape (n, channels,
            height, width), (n, height, width, channels) or (n, height, width); they are bytes, or
            floats in [-1, 1].
        shape: (channels, height, width) that is needed.
        resize: Cut pictures of another size to the form needed, about their centre, and resize
            them; arrays have to fit.

    Returns:
        Shape (n, \*shape), float32 in [-1, 1]. Of more than `LIMIT` a random set.

    Raises:
        SigdegError: If there are none, or they are of another shape, range or kind.
    """
    path = Path(path)
    if len(shape) != 3:
        raise SigdegError(f"samples of shape {shape} are no images: there is nothing to compare")
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES)
        chosen = [files[i] for i in some(len(files))]
        values = np.stack([read_picture(file, shape, resize) for file in chosen] or [np.empty(0)])
    elif path.is_file():
        values = np.atleast_1d(read_array(path))
        values = values[some(len(values))]
    else:
        raise SigdegError(f"{path} is neither a folder nor a file of images")
    if not values.size:
        kinds = ", ".join(sorted(PICTURES))
        raise SigdegError(f"{path} holds no images: a folder of pictures ({kinds}) has some")
    return as_images(values, shape, path)


def some(n: int) -> list[int]:
    """All of n indices, or a random set of `LIMIT` that is always the same."""
    if n <= LIMIT:
        return list(range(n))
    return sorted(map(int, np.random.default_rng(0).choice(n, LIMIT, replace=False)))


def read_picture(file: Path, shape: tuple[int, ...], resize: bool) -> Array:
    """A picture as bytes of the shape (height, width, channels)."""
    channels, height, width = shape
    if channels not in MODES:
        raise SigdegError(f"pictures have no {channels} channels: give an array, such as a .npy")
    try:
        with Image.open(file) as opened:
            if opened.mode[0] in "IF":  # a conversion would cut all above 255 off
                raise SigdegError(
                    f"{file} has more than 8 bits a pixel: give such pictures as a .npy of floats "
                    "in [-1, 1]"
                )
            image = ImageOps.exif_transpose(opened).convert(MODES[channels])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SigdegError(f"{file} is no whole picture: {error}") from None
    if image.size != (width, height):
        if not resize:
            raise SigdegError(
                f"{file} has {image.width} x {image.height} pixels, the model's images "
                f"{width} x {height}: give --resize, or resize them"
            )
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(height, width, channels)


def read_array(file: Path) -> Array:
    """The array of a file, by its kind."""
    name = file.name.lower()
    parse: Callable[[bytes], Array] = parse_idx
    if name.endswith(".npy"):
        parse = parse_npy
    elif name.endswith(".safetensors"):
        parse = parse_tensor
    elif name.endswith((".pt", ".pth", ".bin", ".ckpt", ".pkl", ".npz")):
        raise SigdegError(f"{file} may hold a pickle and is never opened: save it as a .npy")
    try:
        content = file.read_bytes()
        if name.endswith(".gz"):
            content = gzip.decompress(content)
        return parse(content)
    except SigdegError as error:
        raise SigdegError(f"{file}: {error}") from None
    except (OSError, EOFError, ValueError, SafetensorError) as error:
        raise SigdegError(f"{file} is damaged: {error}") from None


def parse_npy(content: bytes) -> Array:
    """The array of a .npy; one of objects, a pickle, is refused by numpy."""
    return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))


def parse_tensor(content: bytes) -> Array:
    """The only tensor of a safetensors file."""
    tensors = parse_safetensors(content)
    if len(tensors) != 1:
        raise SigdegError(f"one tensor is needed, got {', '.join(sorted(tensors)) or 'none'}")
    value = next(iter(tensors.values()))
    return (value.float() if value.is_floating_point() else value).numpy()


def as_images(values: Array, shape: tuple[int, ...], path: Path) -> Tensor:
    """Bytes or floats as images in [-1, 1] of the shape that is needed."""
    channels, height, width = shape
    if values.ndim == 3 and channels == 1:
        values = values[:, None]
    if values.shape[1:] == (height, width, channels) and values.shape[1:] != shape:
        values = np.moveaxis(values, -1, 1)
    if values.shape[1:] != shape:
        raise SigdegError(
            f"{path} holds samples of shape {values.shape[1:]}, the model's images have {shape}"
        )
    if values.dtype == np.uint8:
        return torch.from_numpy(values.astype(np.float32)) / 127.5 - 1
    if not np.issubdtype(values.dtype, np.floating):
        raise SigdegError(f"{path} holds {values.dtype}: give bytes (uint8), or floats in [-1, 1]")
    low, high = float(values.min()), float(values.max())
    if not -1 <= low < 0 <= high <= 1:  # NaN too; 0 to 1 would be the brighter half of all images
        raise SigdegError(
            f"{path} holds values from {low:.4g} to {high:.4g}: give floats in [-1, 1], or bytes"
        )
    return torch.from_numpy(values.astype(np.float32))
