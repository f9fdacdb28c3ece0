"""Files: written so that a reader never sees half of one, read so that nothing is unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sigdeg.errors import SigdegError, reason

try:
    import fcntl
except ImportError:  # Windows, which moves no file that is open, and has other locks
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "PIPELINE_CARD",
    "SHIPPED",
    "atomic_write",
    "count_weights",
    "find_folder",
    "find_student",
    "is_pipeline",
    "load_weights",
    "open_tensors",
    "read_identified",
    "read_json",
    "read_tensors",
    "save_json",
    "save_model",
    "save_tensors",
    "seal",
    "unseal",
    "weight_files",
]

SHIPPED = Path(__file__).parent / "pretrained"  # models that come with the package
LOCAL = ("runs", "samples")  # folders that our own commands make: nobody means the hub's
HUB = ["*.json", "*.safetensors", "*.txt", "*.model"]  # the last two: of tokenizers
SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pkl", ".pt", ".pth")  # the last five: pickles
PIPELINE_CARD = "sigdeg.json"  # beside the model_index.json of a student that is a pipeline
PART = ".part"  # ends the names of files that are being written
FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}  # of weights


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Write through a hidden file in the same folder, flushed to disk, then renamed.

    A writer that is killed leaves its hidden file behind; the next one to write here removes it.

    Raises:
        SigdegError: If the folder cannot be made or written to, or the disk is full. What stood at
            the path before stands there still.
    """
    handle, part = -1, path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        handle = begin(part)
        write(part)
        if handle >= 0:
            os.fsync(handle)
        part.replace(path)
    except Exception as error:  # safetensors reports a full disk as its own error, not as OSError
        raise SigdegError(f"cannot write {path}: {reason(error)}") from None
    finally:  # an interrupt from the keyboard leaves no litter either
        if handle >= 0:
            os.close(handle)
        with contextlib.suppress(OSError):
            part.unlink()


def begin(part: Path) -> int:
    """Create a file with the modes of the user's mask; returns its lock, or -1 without locks."""
    while True:
        handle = os.open(part, os.O_CREAT | os.O_RDWR, 0o666)
        if fcntl is None:
            os.close(handle)
            return -1
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle
        os.close(handle)  # taken for a leftover between the two lines above


def remove_leftovers(path: Path) -> None:
    """Remove what writers of this path that were killed have left: nobody holds its lock."""
    for part in () if fcntl is None else path.parent.iterdir():
        if not part.name.startswith(f".{path.name}.") or part.suffix != PART:
            continue
        try:
            handle = os.open(part, os.O_RDWR)
        except OSError:  # another has removed it, or it is none of ours
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink(missing_ok=True)
        except OSError:  # a writer at work
            pass
        finally:
            os.close(handle)


def save_json(path: Path, value: Any) -> None:
    """Write JSON atomically; numbers that JSON does not know, NaN and infinities, become null."""
    text = json.dumps(finite(value), indent=2, allow_nan=False) + "\n"
    text = re.sub(r'\[\n[^][{}"]*\]', in_one_line, text)
    atomic_write(path, lambda temporary: temporary.write_text(text))


def in_one_line(numbers: re.Match[str]) -> str:
    """A JSON list of numbers, which would take a line each."""
    return "[" + " ".join(numbers[0][1:-1].split()) + "]"


def finite(value: Any) -> Any:
    """A JSON value, its numbers that are not finite replaced by None."""
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its digest in it, `_digest`, for `unseal`."""
    text = json.dumps(finite(value), sort_keys=True)
    return {**value, "_digest": hashlib.sha256(text.encode()).hexdigest()}


def unseal(value: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The object that was sealed, unless it was changed; one of an older version has no digest."""
    whole = {key: part for key, part in value.items() if key != "_digest"}
    if value.keys() & {"_digest", "_weights"} and seal(whole) != value:
        raise SigdegError(f"{path} was changed or damaged since it was written")
    return whole


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> str:
    """Write safetensors atomically, with a digest of all that is in it; returns the digest."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    found = digest(whole, metadata or {})

    def write(temporary: Path) -> None:
        raw = memoryview(save(whole, {**(metadata or {}), "digest": found}))
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(bytes(raw[8 : 8 + size]))  # safetensors orders metadata by chance
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
        with temporary.open("wb") as file:
            file.writelines((raw[:8], text.encode().ljust(size), raw[8 + size :]))

    atomic_write(path, write)
    return found


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of tensors on the CPU and of metadata."""
    found = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        value = tensors[name]
        found.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a safetensors file, memory-mapped copy-on-write, and its metadata, verified."""
    tensors, metadata = open_tensors(path)
    other = {key: value for key, value in metadata.items() if key != "digest"}
    if "digest" in metadata and metadata["digest"] != digest(tensors, other):
        raise SigdegError(f"{path} is damaged: its digest does not match what it holds")
    return tensors, metadata


def read_identified(path: Path, identity: str) -> dict[str, Tensor]:
    """Tensors, as `read_tensors` has them, that were saved with this `identity` as metadata."""
    try:
        tensors, metadata = read_tensors(path)
    except SigdegError as error:
        raise SigdegError(f"{error}; delete it") from None
    if metadata.get("identity") != identity or "digest" not in metadata:
        raise SigdegError(f"{path} belongs to another simulation: choose another folder")
    return tensors


def open_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """As `read_tensors`, without a look at the tensors."""
    if not path.is_file():
        others = sorted(p.name for p in path.parent.glob("*") if p.suffix in SUFFIXES[1:])
        hint = ""
        if others:
            hint = (
                f"; {others[0]} is a pickle and is never opened: if you trust it, let what wrote "
                "it save safetensors (diffusers: from_pretrained and save_pretrained)"
            )
        raise SigdegError(f"{path} is missing{hint}: weights are read from safetensors only")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except Exception as error:  # whatever a hostile header makes of its reader
        raise SigdegError(f"{path} is not a whole safetensors file: {reason(error)}") from None


def weight_files(path: Path) -> list[Path]:
    """The files behind a file of weights: itself, its shards, or those of its only variant.

    diffusers saves large models in shards, `NAME-00001-of-00002.safetensors`, with an index
    `NAME.safetensors.index.json`, and halves as the variant `NAME.fp16.safetensors`.
    """
    index = path.with_name(f"{path.name}.index.json")
    if path.is_file() or index.is_file():
        return [path] if path.is_file() else shards(index)
    whole = path.parent.glob(f"{path.stem}.*{path.suffix}")
    # A variant's shards are found by its index.
    found = {p: [p] for p in whole if "-of-" not in p.name}
    found |= {p: shards(p) for p in path.parent.glob(f"{path.name}.index.*.json")}
    if len(found) > 1:
        names = ", ".join(sorted(p.name for p in found))
        raise SigdegError(f"{path} is missing, and there is more than one variant: {names}")
    return next(iter(found.values()), [path])


def shards(index: Path) -> list[Path]:
    """The files that an index names, all in its folder."""
    names = read_json(index).get("weight_map")
    files = set(names.values()) if isinstance(names, dict) else set()
    if not files or any(not isinstance(name, str) or Path(name).name != name for name in files):
        raise SigdegError(f"{index} names no files beside it")
    return [index.with_name(name) for name in sorted(files)]


def count_weights(path: Path) -> int:
    """How many numbers the files behind a file of weights hold."""
    parts = [open_tensors(file)[0] for file in weight_files(path)]
    return sum(value.numel() for part in parts for value in part.values())


def save_model(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    weights: str = "model.safetensors",
) -> None:
    """Write `config.json` and weights that belong together: `load_weights` verifies it."""
    found = save_tensors(folder / weights, tensors)
    save_json(folder / "config.json", seal({**config, "_weights": found}))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        told = f"{path.parent} holds no readable {path.name}: {reason(error)}"
        raise SigdegError(told) from None
    if not isinstance(value, dict):
        raise SigdegError(f"{path} holds no JSON object")
    return value


def find_folder(path: str | Path) -> Path:
    """A local folder, a model that comes with the package, or the local copy of a hub repository.

    A `Path` is a folder. A string that looks like one is not looked up on the hub.

    Raises:
        SigdegError: If it is none of them, may be two of them, or cannot be fetched.
    """
    name, here = str(path), Path(path).is_dir()
    shipped = sorted(folder.name for folder in SHIPPED.glob("*") if folder.is_dir())
    if name in shipped and not (here and isinstance(path, Path)):
        if here:
            raise SigdegError(
                f"{name} is a folder here and a model that comes with the package: write ./{name} "
                "for the folder, or go elsewhere for the model"
            )
        return SHIPPED / name
    if here:
        return Path(path)
    ours = f", nor one of {', '.join(shipped)}," if shipped else ""
    if Path(path).exists():
        raise SigdegError(f"{name} is a file: name the folder it lies in")
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise SigdegError(f"{name} is neither a folder{ours} nor a hub id such as user/name")
    parent = name.partition("/")[0]
    if Path(parent).exists() or parent in LOCAL or Path(name).suffix in {".json", *SUFFIXES}:
        raise SigdegError(f"there is no folder {name}, and as it looks like one it is no hub id")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=HUB))
    except (OSError, ValueError) as error:  # a hub or network error, or no valid id
        told = f"{name} is no folder here and could not be fetched: {reason(error)}"
        raise SigdegError(told) from None


def is_pipeline(path: str | Path) -> bool:
    """Whether a folder is that of a student which is a pipeline, or of the run that made one."""
    folder = find_folder(path)
    return any((place / PIPELINE_CARD).is_file() for place in (folder, folder / "student"))


def find_student(path: str | Path) -> Path:
    """The folder of a model: itself, or that of the run which made it, local or on the hub."""
    folder = find_folder(path)
    if is_pipeline(folder):
        raise SigdegError(f"{path} is a student that is a pipeline: load_pipeline loads it")
    if (folder / "model_index.json").is_file():
        raise SigdegError(f"{path} is a diffusers pipeline, a teacher: sigdeg distill it first")
    made = (folder / "student", folder / "teacher")
    return next((place for place in made if (place / "config.json").is_file()), folder)


def load_weights(
    network: nn.Module,
    path: Path,
    rename: Callable[[str], str] = lambda name: name,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Load safetensors into a network, in the network's own precision.

    Arguments:
        network: The network.
        path: The file; shards and a variant stand for it, see `weight_files`.
        rename: From a name in the file to the network's.
        config: The `config.json` beside it, as read; where `save_model` wrote it, it must be
            unchanged and the weights its own.

    Raises:
        SigdegError: If the file is missing, damaged, of another format, does not fit, or holds
            values that are not finite.
    """
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file in weight_files(path):
        more, metadata = read_tensors(file)  # what is sealed is one file
        tensors |= more
    weights = {rename(name): value for name, value in tensors.items()}
    own = network.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        if name not in weights or name not in own:
            where = "missing from" if name not in weights else "unknown to the network but in"
            raise SigdegError(f"weight {name} is {where} {path}")
        needed, value = own[name], weights[name]
        if needed.shape != value.shape:
            raise SigdegError(
                f"weight {name} has shape {tuple(value.shape)} in {path}, "
                f"the network needs {tuple(needed.shape)}"
            )
        if value.dtype != needed.dtype and not {value.dtype, needed.dtype} <= FLOATS:
            raise SigdegError(
                f"weight {name} is of type {value.dtype} in {path}, the network needs "
                f"{needed.dtype}"
            )
        if not bool(value.to(needed.dtype).isfinite().all()):
            raise SigdegError(f"weight {name} holds NaN or infinite values in {path}")
    if config is not None:
        sealed = unseal(config, path.parent / "config.json").get("_weights")
        found = metadata.get("digest") or digest(tensors, metadata)
        if sealed not in (None, found):
            raise SigdegError(
                f"{path} and the config.json beside it do not belong together: one was replaced"
            )
    network.load_state_dict(weights)
