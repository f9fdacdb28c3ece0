"""Files: written so that a reader never sees half of one, read so that nothing is unpickled."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sigdeg.errors import SigdegError

__all__ = [
    "SHIPPED",
    "atomic_write",
    "find_folder",
    "load_weights",
    "read_json",
    "save_json",
    "save_tensors",
]

SHIPPED = Path(__file__).parent / "pretrained"  # models that come with the package


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Write through a temporary file in the same folder, flushed to disk, then renamed.

    Raises:
        SigdegError: If the folder cannot be made or written to, or the disk is full. What stood at
            the path before stands there still.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except Exception as error:  # safetensors reports a full disk as its own error, not as OSError
        reason = getattr(error, "strerror", None) or str(error)
        raise SigdegError(f"cannot write {path}: {reason}") from None
    finally:  # an interrupt from the keyboard leaves no litter either
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def save_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    text = json.dumps(value, indent=2) + "\n"
    atomic_write(path, lambda temporary: temporary.write_text(text))


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write safetensors atomically."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    atomic_write(path, lambda temporary: save_file(whole, temporary, metadata))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        SigdegError: If the file is missing or holds no JSON object.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SigdegError(f"{path.parent} holds no readable {path.name}: {reason}") from None
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
        reason = str(error).splitlines()[0]
        raise SigdegError(f"{name} is no folder here and could not be fetched: {reason}") from None


def load_weights(
    network: nn.Module, path: Path, rename: Callable[[str], str] = lambda name: name
) -> None:
    """Load safetensors into a network, in the network's own precision.

    Arguments:
        network: The network.
        path: The file.
        rename: From a name in the file to the network's.

    Raises:
        SigdegError: If the file is missing, damaged, of another format, or does not fit.
    """
    if not path.is_file():
        pickles = {".bin", ".ckpt", ".pkl", ".pt", ".pth"}
        others = sorted(p.name for p in path.parent.glob("*") if p.suffix in pickles)
        hint = f"; {others[0]} is a pickle and is never opened" if others else ""
        raise SigdegError(f"{path} is missing{hint}: weights are read from safetensors only")
    try:
        weights = {rename(name): value for name, value in load_file(path).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise SigdegError(f"{path} is not a whole safetensors file: {error}") from None
    own = network.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        if name not in weights or name not in own:
            where = "missing from" if name not in weights else "unknown to the network but in"
            raise SigdegError(f"weight {name} is {where} {path}")
        if own[name].shape != weights[name].shape:
            raise SigdegError(
                f"weight {name} has shape {tuple(weights[name].shape)} in {path}, "
                f"the network needs {tuple(own[name].shape)}"
            )
    network.load_state_dict(weights)
