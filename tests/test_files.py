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
from torch import Tensor, nn

from sigdeg import files
from sigdeg.errors import SigdegError
from sigdeg.files import (
    atomic_write,
    find_folder,
    load_weights,
    read_json,
    read_tensors,
    save_json,
    save_model,
    save_tensors,
    seal,
    unseal,
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

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (torch.tensor([1.0, torch.nan, 0.0]), "bias holds NaN or infinite values in"),
            (torch.tensor([1.0, 2.0, -torch.inf]), "bias holds NaN or infinite values in"),
            (torch.tensor([1e300, 0, 0], dtype=torch.float64), "bias holds NaN or infinite"),
            *(
                (torch.ones(3).to(dtype), rf"bias is of type {dtype} .* needs torch\.float32")
                for dtype in (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)
            ),
        ],
        ids=str,
    )
    def test_numbers_that_are_no_weights(self, file: Path, value: Tensor, message: str) -> None:
        """However the file was made: here by others, without a digest."""
        save_file({**nn.Linear(2, 3).state_dict(), "bias": value}, file)
        with pytest.raises(SigdegError, match=message) as caught:
            load_weights(nn.Linear(2, 3), file)
        assert "\n" not in str(caught.value)

    def test_a_model_is_one_thing(self, tmp_path: Path) -> None:
        """Configuration and weights: neither may be replaced by another's, or changed."""
        config, network = {"width": 3}, nn.Linear(2, 3)
        for name, bias in (("a", 0.0), ("b", 1.0)):
            nn.init.constant_(network.bias, bias)
            save_model(tmp_path / name, config, network.state_dict())
        weights = tmp_path / "a" / "model.safetensors"
        read = read_json(tmp_path / "a" / "config.json")
        load_weights(network, weights, config=read)
        assert bool((network.bias == 0).all())
        with pytest.raises(SigdegError, match=r"config\.json was changed"):
            load_weights(network, weights, config={**read, "width": 4})
        (tmp_path / "b" / "model.safetensors").replace(weights)
        with pytest.raises(SigdegError, match="do not belong together"):
            load_weights(network, weights, config=read)
        load_weights(network, weights, config=config)  # nothing is said of its weights

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
    """Found by their names, told in the refusal; a folder of the same name must be told apart."""
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
    with pytest.raises(SigdegError, match=r"mnist is a folder here and .*: write \./mnist for"):
        find_folder("mnist")
    assert find_folder("./mnist") == find_folder(Path("mnist")) == Path("mnist")


def test_a_mistyped_path_is_not_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: 1 / 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "student").mkdir(parents=True)
    (tmp_path / "mine" / "file").touch()
    for name in ("mine/stduent", "runs/digits", "samples/a", "user/model.safetensors"):
        with pytest.raises(SigdegError, match=f"no folder {name}, and as it looks like one"):
            find_folder(name)
    with pytest.raises(SigdegError, match="mine/file is a file: name the folder"):
        find_folder("mine/file")


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
    weights = {"*.json", "*.safetensors"}
    assert [(name, set(which) - weights) for name, which in asked] == [
        ("user/name", {"*.txt", "*.model"})  # of tokenizers; no pickle is even fetched
    ]
    with pytest.raises(SigdegError, match=r"could not be fetched: 404$"):
        find_folder("user/gone")


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_modes_that_the_user_wants(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        save_json(tmp_path / "a.json", {})
        save_tensors(tmp_path / "b.safetensors", {"x": torch.ones(1)})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


def test_what_killed_writers_left_goes_with_the_next_write(tmp_path: Path) -> None:
    """Of this file alone, and never what a living writer, in whatever process, holds."""
    code = (
        "import sys, time; from pathlib import Path; from sigdeg.files import atomic_write\n"
        "def write(part): part.write_text('half'); print('on', flush=True); time.sleep(60)\n"
        "atomic_write(Path(sys.argv[1]), write)"
    )
    path, others = tmp_path / "x.json", {".x.json", ".y.json.0a1b2c3d.part", ".x.json.swp"}
    for name in others:
        (tmp_path / name).write_text("not ours")
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "on\n"
    save_json(path, 1)
    left = contents(tmp_path).keys() - others - {"x.json"}
    assert len(left) == 1  # it is still being written
    writer.kill()
    writer.communicate()
    assert contents(tmp_path).keys() == others | left | {"x.json"}
    save_json(path, 2)
    assert contents(tmp_path).keys() == others | {"x.json"}


def test_numbers_that_json_does_not_know_are_null(tmp_path: Path) -> None:
    """What is written is JSON by the letter: other programs read it."""
    save_json(tmp_path / "a.json", {"a": [1.5, float("nan")], "b": (float("-inf"), {"c": 1e308})})

    def strict(name: str) -> None:
        raise AssertionError(name)

    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=strict) == {"a": [1.5, None], "b": [None, {"c": 1e308}]}


def test_tensors_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    """Whatever order a hash table gives: two metadata keys and more have many."""
    tensors = {name: torch.arange(i) for i, name in enumerate("abcdefg")}
    metadata = {name: name * 3 for name in "zyxwvé"}
    written = set()
    for _ in range(8):
        found = save_tensors(tmp_path / "a.safetensors", tensors, metadata)
        written.add((tmp_path / "a.safetensors").read_bytes())
    assert len(written) == 1
    again, read = read_tensors(tmp_path / "a.safetensors")
    assert read == {**metadata, "digest": found}
    assert all(torch.equal(again[name], value) for name, value in tensors.items())


TYPES = [torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.int64, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_any_flipped_bit_is_noticed(tmp_path: Path, dtype: torch.dtype) -> None:
    """All of a small file, header, metadata and tensors: the same is read, or nothing is."""
    path = tmp_path / "a.safetensors"
    tensors = {"x": torch.tensor([0.0, 1.0, 2.0]).to(dtype), "e": torch.zeros(0, 2)}
    save_tensors(path, tensors, {"step": "12"})
    whole, told = path.read_bytes(), read_tensors(path)[1]
    refused = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            again, metadata = read_tensors(path)
        except SigdegError:
            refused += 1
            continue
        # All that can go unnoticed is that there is a digest, and blanks.
        assert {**metadata, "digest": ""} == {**told, "digest": ""} or "digest" not in metadata
        assert again.keys() == tensors.keys()
        assert all(bytes_of(again[name]) == bytes_of(value) for name, value in tensors.items())
    assert refused > 0.9 * len(whole)


def bytes_of(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.shape, tensor.reshape(-1).view(torch.uint8).tolist()


def test_a_seal_tells_any_change(tmp_path: Path) -> None:
    value = {"steps": [10, 5], "std": 0.1 + 0.2, "kind": "warm", "clip": None, "é": {"deep": True}}
    path = tmp_path / "a.json"
    save_json(path, seal(value))
    assert unseal(read_json(path), path) == value
    assert unseal(value, path) == value  # as older versions wrote it
    text = path.read_text()
    for old, new in (("10", "11"), ("0.30000000000000004", "0.3"), ("warm", "worm"), ("true", "1")):
        path.write_text(text.replace(old, new))
        with pytest.raises(SigdegError, match=r"a\.json was changed or damaged"):
            unseal(read_json(path), path)


def test_json_nested_without_end(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(SigdegError, match=r"no readable a\.json"):
        read_json(tmp_path / "a.json")
