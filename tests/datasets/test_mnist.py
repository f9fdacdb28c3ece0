"""MNIST's reader, its data folder and its downloads, on tiny files served from this machine."""

import gzip
import hashlib
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pooch
import pytest

from sigdeg.datasets import load_mnist, mnist
from sigdeg.datasets.download import fetch
from sigdeg.datasets.mnist import parse_idx
from sigdeg.errors import SigdegError

Damage = Callable[[bytes], bytes]
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 28, 28), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1, 5], dtype=np.uint8)
IMAGE_FILE, LABEL_FILE = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
NOWHERE = "http://127.0.0.1:9/"  # the discard port, which nothing serves


def idx(array: np.ndarray) -> bytes:
    """The IDX file of an array of unsigned bytes."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny MNIST whose checksums are the registered ones; the cache is empty."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name, array in ((IMAGE_FILE, IMAGES), (LABEL_FILE, LABELS)):
        (folder / name).write_bytes(gzip.compress(idx(array)))
        monkeypatch.setitem(mnist.REGISTRY, name, hashlib.sha256(idx(array)).hexdigest())
    monkeypatch.delenv("SIGDEG_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(mnist, "MIRRORS", [NOWHERE])
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    return folder


class Handler(SimpleHTTPRequestHandler):
    """A quiet file server."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(files: Path) -> Iterator[str]:
    """The address of a mirror that serves the folder of `files`."""
    handler = partial(Handler, directory=str(files))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()


def assert_tiny_mnist(data_dir: Path | None = None) -> None:
    """The loaded split is the one written."""
    images, labels = load_mnist("train", data_dir)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize("shape", [(7,), (2, 3), (2, 3, 4), (0, 28, 28)])
def test_idx_round_trip(shape: tuple[int, ...]) -> None:
    array = RNG.integers(0, 256, shape, dtype=np.uint8)
    parsed = parse_idx(idx(array))
    assert parsed.dtype == np.uint8
    np.testing.assert_array_equal(parsed, array)
    assert parsed.flags.writeable


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"PK\3\4 something else", "not an IDX file"),
        (idx(LABELS)[:-1], "has 13 bytes, got 12"),
        (idx(IMAGES)[:6], "not an IDX file"),
    ],
)
def test_what_is_not_idx_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(SigdegError, match=message):
        parse_idx(content)


def test_the_data_folder_or_its_mnist_folder(files: Path, tmp_path: Path) -> None:
    assert_tiny_mnist(files)
    files.rename(tmp_path / "mnist")
    assert_tiny_mnist(tmp_path)


def test_environment_names_the_folder_and_the_argument_wins(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGDEG_DATA", str(files))
    assert_tiny_mnist()
    monkeypatch.setenv("SIGDEG_DATA", str(tmp_path / "elsewhere"))
    assert_tiny_mnist(files)


def test_the_same_data_compressed_otherwise_is_accepted(files: Path) -> None:
    before = (files / IMAGE_FILE).read_bytes()
    (files / IMAGE_FILE).write_bytes(gzip.compress(idx(IMAGES), compresslevel=0))
    assert (files / IMAGE_FILE).read_bytes() != before
    assert_tiny_mnist(files)


def test_a_folder_without_mnist_names_the_missing_file(
    files: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        mnist, "MIRRORS", [server]
    )  # a given folder is never filled from the network
    (files / LABEL_FILE).rename(files / "other.gz")
    with pytest.raises(SigdegError, match=f"{LABEL_FILE} is missing") as error:
        load_mnist("train", files)
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in files.iterdir()) == ["other.gz", IMAGE_FILE]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-12],
        lambda data: data[:100] + bytes(100) + data[200:],
        lambda _: b"<html>not found</html>",
        lambda _: b"",
        lambda _: gzip.compress(idx(IMAGES + 1)),
    ],
    ids=["half", "no-end", "holes", "web-page", "empty", "other-data"],
)
def test_a_damaged_file_names_both_checksums(files: Path, damage: Damage) -> None:
    path = files / IMAGE_FILE
    path.write_bytes(damage(path.read_bytes()))
    expected = mnist.REGISTRY[IMAGE_FILE]
    with pytest.raises(
        SigdegError, match=rf"sha256 {expected}, found (\w{{64}}|an unreadable gzip)"
    ) as error:
        load_mnist("train", files)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_download_fills_the_cache_once(
    files: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist, "MIRRORS", [server])
    assert_tiny_mnist()
    cache = tmp_path / "cache" / "sigdeg" / "mnist"
    assert sorted(p.name for p in cache.iterdir()) == [IMAGE_FILE, LABEL_FILE]
    monkeypatch.setattr(mnist, "MIRRORS", [])
    assert_tiny_mnist()


def test_a_mirror_may_call_the_file_otherwise(files: Path, server: str, tmp_path: Path) -> None:
    """An address without a "/" at its end is the file's own."""
    content = (files / LABEL_FILE).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    (files / "other.bin").write_bytes(content)
    assert fetch("labels", "own.bin", digest, [server + "other.bin"]) == content
    assert (tmp_path / "cache" / "sigdeg" / "labels" / "own.bin").read_bytes() == content


@pytest.mark.parametrize("first", [NOWHERE, "missing/", "damaged/"])
def test_the_next_mirror_serves_when_one_fails(
    first: str, files: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "damaged").mkdir()
    (files / "damaged" / IMAGE_FILE).write_bytes(b"half a file")
    (files / "damaged" / LABEL_FILE).write_bytes(b"half a file")
    broken = first if first == NOWHERE else server + first
    monkeypatch.setattr(mnist, "MIRRORS", [broken, server])
    assert_tiny_mnist()


def test_no_network_and_no_data_says_both_ways_out(files: Path, tmp_path: Path) -> None:
    with pytest.raises(SigdegError, match=r"in SIGDEG_DATA .*, or have net") as error:
        load_mnist("train")
    assert f"cannot download {IMAGE_FILE} (127.0.0.1:9: ConnectionError)" in str(error.value)
    assert "\n" not in str(error.value)
    assert not any(p.is_file() for p in tmp_path.joinpath("cache").rglob("*"))


def test_a_damaged_download_is_not_kept(
    files: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / IMAGE_FILE).write_bytes(b"half a file")
    monkeypatch.setattr(mnist, "MIRRORS", [server])
    with pytest.raises(SigdegError, match="wrong checksum"):
        load_mnist("train")
    assert not any(p.is_file() for p in tmp_path.joinpath("cache").rglob("*"))


def test_unknown_split_is_refused(files: Path) -> None:
    with pytest.raises(SigdegError, match='choose "train" or "test"'):
        load_mnist("validation", files)  # type: ignore[arg-type]  # the mistake under test
