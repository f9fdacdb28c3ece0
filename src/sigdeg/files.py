"""Files: written so that a reader never sees half of one, read so that nothing is unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
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
    "SHIPPED",
    "atomic_write",
    "count_weights",
    "find_folder",
    "load_weights",
    "read_json",
    "read_tensors",
    "save_json",
    "save_model",
    "save_tensors",
    "seal",
    "unseal",
]

SHIPPED = Path(__file__).parent / "pretrained"  # models that come with the package
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
    """Create a file with the modes that the user's mask leaves, locked as long as we live.

    Returns:
        What holds the lock; -1 where there are none.
    """
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
    atomic_write(path, lambda temporary: temporary.write_text(text))


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
    """The object that was sealed; one without a digest, of an older version, is taken as it is.

    Raises:
        SigdegError: If it was changed since.
    """
    whole = {key: part for key, part in value.items() if key != "_digest"}
    if value.keys() & {"_digest", "_weights"} and seal(whole) != value:
        raise SigdegError(f"{path} was changed or damaged since it was written")
    return whole


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> str:
    """Write safetensors atomically, with a digest of names, types, shapes, bytes and metadata.

    Returns:
        The digest.
    """
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
    """Tensors of a safetensors file, memory-mapped copy-on-write, and its metadata.

    Raises:
        SigdegError: If the file is missing or damaged: its digest is verified where it has one.
    """
    tensors, metadata = open_tensors(path)
    other = {key: value for key, value in metadata.items() if key != "digest"}
    if "digest" in metadata and metadata["digest"] != digest(tensors, other):
        raise SigdegError(f"{path} is damaged: its digest does not match what it holds")
    return tensors, metadata


def open_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """As `read_tensors`, without a look at the tensors."""
    if not path.is_file():
        pickles = {".bin", ".ckpt", ".pkl", ".pt", ".pth"}
        others = sorted(p.name for p in path.parent.glob("*") if p.suffix in pickles)
        hint = f"; {others[0]} is a pickle and is never opened" if others else ""
        raise SigdegError(f"{path} is missing{hint}: weights are read from safetensors only")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except Exception as error:  # whatever a hostile header makes of its reader
        raise SigdegError(f"{path} is not a whole safetensors file: {reason(error)}") from None


def count_weights(path: Path) -> int:
    """How many numbers a safetensors file holds.

    Raises:
        SigdegError: If it is missing or damaged.
    """
    return sum(value.numel() for value in open_tensors(path)[0].values())


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
    """Read a JSON object.

    Raises:
        SigdegError: If the file is missing or holds no JSON object.
    """
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

    Raises:
        SigdegError: If it is none of them, or cannot be fetched.
    """
    if Path(path).is_dir():
        return Path(path)
    name = str(path)
    shipped = sorted(folder.name for folder in SHIPPED.glob("*") if folder.is_dir())
    if name in shipped:
        return SHIPPED / name
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        ours = f", nor one of {', '.join(shipped)}," if shipped else ""
        raise SigdegError(f"{name} is neither a folder{ours} nor a hub id such as user/name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError) as error:  # a hub or network error, or no valid id
        told = f"{name} is no folder here and could not be fetched: {reason(error)}"
        raise SigdegError(told) from None


def load_weights(
    network: nn.Module,
    path: Path,
    rename: Callable[[str], str] = lambda name: name,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Load safetensors into a network, in the network's own precision.

    Arguments:
        network: The network.
        path: The file.
        rename: From a name in the file to the network's.
        config: The `config.json` beside it, as read; where `save_model` wrote it, it must be
            unchanged and the weights its own.

    Raises:
        SigdegError: If the file is missing, damaged, of another format, does not fit, or holds
            values that are not finite.
    """
    tensors, metadata = read_tensors(path)
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
