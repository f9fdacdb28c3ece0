"""Images of one's own: every kind of file gives the same images, and what is wrong is one line."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sigdeg.datasets import images
from sigdeg.datasets.images import load_images
from sigdeg.errors import SigdegError

GREY = np.random.default_rng(0).integers(0, 256, (5, 6, 8), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def save(folder: Path, kind: str, values: np.ndarray) -> Path:
    """Images in one of the kinds of file."""
    file = folder / f"images.{kind}"
    if kind == "folder":
        for i, image in enumerate(values):
            part = file / str(i % 2)  # classes, say
            part.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(part / f"{i}.png")
    elif kind == "npy":
        np.save(file, values)
    elif kind == "safetensors":
        save_file({"x": torch.from_numpy(values)}, file)
    else:
        content = idx(values)
        file.write_bytes(gzip.compress(content) if kind == "gz" else content)
    return file


@pytest.mark.parametrize("kind", ["folder", "npy", "safetensors", "idx", "gz"])
def test_every_kind_of_file_gives_the_same_images(tmp_path: Path, kind: str) -> None:
    order = [0, 2, 4, 1, 3] if kind == "folder" else range(5)
    found = load_images(save(tmp_path, kind, GREY), (1, 6, 8))
    expected = torch.from_numpy(GREY).float()[list(order), None] / 127.5 - 1
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    if kind in ("idx", "gz"):
        return
    (tmp_path / "colour").mkdir()
    coloured = load_images(save(tmp_path / "colour", kind, COLOUR), (3, 6, 8))
    expected = torch.from_numpy(COLOUR).permute(0, 3, 1, 2)[list(order)] / 127.5 - 1
    torch.testing.assert_close(coloured, expected, rtol=0, atol=0)


def test_floats_are_taken_as_they_are(tmp_path: Path) -> None:
    values = 2 * torch.rand(4, 2, 6, 8, dtype=torch.float64) - 1
    np.save(tmp_path / "x.npy", values.numpy())
    torch.testing.assert_close(load_images(tmp_path / "x.npy", (2, 6, 8)), values.float())
    save_file({"x": values.bfloat16()}, tmp_path / "x.safetensors")
    half = load_images(tmp_path / "x.safetensors", (2, 6, 8))
    torch.testing.assert_close(half, values.bfloat16().float())


def test_sizes_change_where_it_is_asked_for(tmp_path: Path) -> None:
    folder = save(tmp_path, "folder", COLOUR)
    with pytest.raises(SigdegError, match="has 8 x 6 pixels, the model's images 4 x 4: give --res"):
        load_images(folder, (3, 4, 4))
    assert load_images(folder, (3, 4, 4), resize=True).shape == (5, 3, 4, 4)
    assert load_images(folder, (1, 6, 8)).shape == (5, 1, 6, 8)  # colours become grey


def test_of_many_a_random_set_is_always_the_same(tmp_path: Path, monkeypatch: Any) -> None:
    file = save(tmp_path, "npy", GREY)
    monkeypatch.setattr(images, "LIMIT", 3)
    first = load_images(file, (1, 6, 8))
    assert first.shape == (3, 1, 6, 8)
    assert torch.equal(first, load_images(file, (1, 6, 8)))


def write(path: Path, content: Any) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "x.npy",
            GREY[:, :3],
            "holds samples of shape (1, 3, 8), the model's images have (1, 6, 8)",
        ),
        ("x.npy", GREY[:, None].astype(np.int64), "holds int64: give bytes"),
        ("x.npy", GREY[:, None] / 255, "holds values from 0"),
        ("x.npy", np.full((4, 1, 6, 8), np.nan), "holds values from nan to nan"),
        ("x.npy", 2.0 * GREY[:, None] - 255, "give floats in [-1, 1], or bytes"),
        ("x.npy", np.array([{}, {}]), "is damaged: Object arrays cannot be loaded"),
        ("x.npy", np.empty((0, 1, 6, 8)), "holds no images"),
        ("x.npy", np.float32(1), "holds samples of shape ()"),
        ("x.npy", b"\x93NUMPY", "is damaged"),
        ("x.safetensors", b"12345678{", "is damaged"),
        ("x.idx", idx(GREY)[:-1], "an IDX file of shape (5, 6, 8) has"),
        ("x.gz", b"no gzip", "is damaged"),
        ("x.pt", pickle.dumps(1), "may hold a pickle and is never opened"),
    ],
)
def test_what_is_no_set_of_images_is_one_line(
    tmp_path: Path, name: str, content: Any, words: str
) -> None:
    write(tmp_path / name, content)
    with pytest.raises(SigdegError) as error:
        load_images(tmp_path / name, (1, 6, 8))
    assert words in str(error.value)


@pytest.mark.parametrize(("name", "kind"), [("x.png", "u2"), ("x.tif", "f4"), ("x.tif", "i4")])
def test_pictures_of_more_than_8_bits_are_not_cut_off(tmp_path: Path, name: str, kind: str) -> None:
    Image.fromarray(np.linspace(0, 65535, 48).astype(kind).reshape(6, 8)).save(tmp_path / name)
    with pytest.raises(SigdegError, match="has more than 8 bits a pixel: give such pictures as a"):
        load_images(tmp_path, (1, 6, 8))


def test_folders_without_whole_pictures(tmp_path: Path) -> None:
    with pytest.raises(SigdegError, match="is neither a folder nor a file"):
        load_images(tmp_path / "none", (1, 6, 8))
    with pytest.raises(SigdegError, match="holds no images: a folder of pictures"):
        load_images(tmp_path, (1, 6, 8))
    (tmp_path / "x.png").write_bytes(b"\x89PNG")
    with pytest.raises(SigdegError, match="is no whole picture"):
        load_images(tmp_path, (1, 6, 8))
    with pytest.raises(SigdegError, match="pictures have no 2 channels"):
        load_images(tmp_path, (2, 6, 8))
    with pytest.raises(SigdegError, match="are no images"):
        load_images(tmp_path, (4,))
    save_file({"a": torch.rand(2, 2), "b": torch.rand(2, 2)}, tmp_path / "two.safetensors")
    with pytest.raises(SigdegError, match="one tensor is needed, got a, b"):
        load_images(tmp_path / "two.safetensors", (1, 6, 8))
