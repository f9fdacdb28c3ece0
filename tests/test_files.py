"""Files: nothing is ever half written, nothing that is not what it says is ever read."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sigdeg import files
from sigdeg.errors import SigdegError
from sigdeg.files import (
    atomic_write,
    find_folder,
    load_weights,
    read_json,
    save_json,
    save_tensors,
)


@pytest.fixture
def full_disk() -> Iterator[None]:
    """A disk on which no file can grow beyond 4 kB."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    signal.signal(signal.SIGXFSZ, handler)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_json_and_tensors_come_back(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None], "b": {"c": "é"}}
    save_json(tmp_path / "new" / "folder" / "a.json", value)
    assert read_json(tmp_path / "new" / "folder" / "a.json") == value
    tensors = {"x": torch.randn(3, 4).T, "y": torch.arange(3), "z": torch.zeros(0, 2).half()}
    save_tensors(tmp_path / "t.safetensors", tensors, {"who": "me"})
    loaded = load_file(tmp_path / "t.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "t.safetensors"]


@pytest.mark.parametrize("kind", ["json", "safetensors"])
@pytest.mark.usefixtures("full_disk")
def test_full_disk_leaves_the_old_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"file.{kind}"

    def save(size: int) -> None:
        if kind == "json":
            save_json(path, list(range(size)))
        else:
            save_tensors(path, {"x": torch.ones(size)})

    save(10)
    before = contents(tmp_path)
    with pytest.raises(SigdegError, match=r"cannot write .*file\.\w+: .*File too large") as caught:
        save(10_000)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


def test_a_failing_or_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    for error, seen in (
        (OSError(28, "No space left"), SigdegError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):

        def fail(temporary: Path, error: BaseException = error) -> None:
            temporary.write_text("half")
            raise error

        with pytest.raises(seen):
            atomic_write(tmp_path / "a", fail)
        assert contents(tmp_path) == {}


@pytest.mark.parametrize("inside", ["file/x.json", "file/deep/x.json"])
def test_folder_that_cannot_be(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").write_text("a regular file")
    with pytest.raises(SigdegError, match="cannot write"):
        save_json(tmp_path / inside, {})


def test_read_only_folder() -> None:
    """/proc takes no new files from anyone, root included."""
    with pytest.raises(SigdegError, match=r"cannot write /proc/x\.json"):
        save_json(Path("/proc/x.json"), {})


def test_a_killed_writer_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    """A process that writes without end is killed in the middle: readers see whole files only."""
    code = (
        "import sys; from pathlib import Path; from sigdeg.files import save_json\n"
        "path, n = Path(sys.argv[1]), 0\n"
        "while True: n += 1; save_json(path, [n] * 50_000); print(n, flush=True)"
    )
    path = tmp_path / "x.json"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(5):
        process.stdout.readline()
        value = json.loads(path.read_text())
        assert value == [value[0]] * 50_000
    process.kill()
    process.communicate()
    value = json.loads(path.read_text())
    assert value == [value[0]] * 50_000


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "3", "\x00"])
def test_json_that_is_none(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SigdegError, match=r"a\.json") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


def test_json_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SigdegError, match="no readable"):
        read_json(tmp_path / "a.json")


class TestWeights:
    """Weights: safetensors that fit, or one line that says what does not."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        save_tensors(tmp_path / "model.safetensors", nn.Linear(2, 3).state_dict())
        return tmp_path / "model.safetensors"

    def test_loaded_exactly(self, file: Path) -> None:
        network = nn.Linear(2, 3)
        load_weights(network, file)
        assert all(torch.equal(v, load_file(file)[k]) for k, v in network.state_dict().items())

    def test_renamed(self, file: Path) -> None:
        network = nn.Sequential(nn.Linear(2, 3))
        load_weights(network, file, lambda name: f"0.{name}")
        assert torch.equal(network[0].weight, load_file(file)["weight"])

    def test_half_weights_keep_their_values_in_the_networks_precision(self, tmp_path: Path) -> None:
        half = nn.Linear(2, 3).half()
        save_tensors(tmp_path / "h.safetensors", half.state_dict())
        network = nn.Linear(2, 3)
        load_weights(network, tmp_path / "h.safetensors")
        assert network.weight.dtype == torch.float32
        assert torch.equal(network.weight, half.weight.float())

    @pytest.mark.parametrize(
        ("network", "message"),
        [
            (nn.Linear(2, 4), r"weight bias has shape \(3,\) in .*, the network needs \(4,\)"),
            (nn.Linear(2, 3, bias=False), "weight bias is unknown to the network"),
            (nn.Sequential(nn.Linear(2, 3)), "weight 0.bias is missing from"),
        ],
    )
    def test_misfit(self, file: Path, network: nn.Module, message: str) -> None:
        with pytest.raises(SigdegError, match=message):
            load_weights(network, file)

    @pytest.mark.parametrize("length", [0, 4, 40, -1])
    def test_truncated(self, file: Path, length: int) -> None:
        file.write_bytes(file.read_bytes()[:length])
        with pytest.raises(SigdegError, match="not a whole safetensors file") as caught:
            load_weights(nn.Linear(2, 3), file)
        assert "\n" not in str(caught.value)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(SigdegError, match="is missing: weights are read from safetensors only"):
            load_weights(nn.Linear(2, 3), tmp_path / "model.safetensors")

    @pytest.mark.parametrize("name", ["model.bin", "model.safetensors"])
    def test_a_pickle_is_never_opened(self, tmp_path: Path, name: str) -> None:
        """Whatever it is called: opening it would leave a mark."""
        mark = tmp_path / "opened"

        class Bomb:
            def __reduce__(self) -> tuple[object, tuple[str, ...]]:
                return os.mkdir, (str(mark),)

        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(SigdegError, match="safetensors"):
            load_weights(nn.Linear(2, 3), tmp_path / "model.safetensors")
        assert not mark.exists()
        if name == "model.bin":
            with pytest.raises(SigdegError, match=r"model\.bin is a pickle and is never opened"):
                load_weights(nn.Linear(2, 3), tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["nowhere", "./a/b", "/no/such", "a/b/c", "user/", "~/x"])
def test_no_folder_and_no_hub_id(name: str) -> None:
    with pytest.raises(SigdegError, match=r"neither a folder.* nor a hub id such as user/name$"):
        find_folder(name)


def test_models_that_come_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by their names, told in the refusal; and a folder of one's own goes first."""
    shipped = tmp_path / "pretrained"
    monkeypatch.setattr(files, "SHIPPED", shipped)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SigdegError, match=r"^mnist is neither a folder nor a hub id such as"):
        find_folder("mnist")  # the package comes without any
    (shipped / "mnist").mkdir(parents=True)
    (shipped / "digits").mkdir()
    (shipped / "LICENSE").write_text("no model")
    assert find_folder("mnist") == shipped / "mnist"
    for name in ("LICENSE", "other", "../mnist"):
        with pytest.raises(SigdegError, match=r"folder, nor one of digits, mnist, nor a hub id"):
            find_folder(name)
    (tmp_path / "mnist").mkdir()
    assert find_folder("mnist") == Path("mnist")


def test_folder_and_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    assert find_folder(tmp_path) == tmp_path
    asked = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        if name == "user/gone":
            raise OSError("404\nmore")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert find_folder("user/name") == tmp_path
    assert asked == [("user/name", ["*.json", "*.safetensors"])]  # no pickle is even fetched
    with pytest.raises(SigdegError, match=r"could not be fetched: 404$"):
        find_folder("user/gone")


def test_written_files_can_be_read_by_others(tmp_path: Path) -> None:
    save_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644
    save_file({"x": torch.ones(1)}, tmp_path / "b.safetensors")
