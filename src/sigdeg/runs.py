"""Run folders: a folder belongs to one run, told by what went into it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sigdeg.errors import SigdegError
from sigdeg.files import read_json, save_json, seal, unseal

__all__ = ["claim_folder", "fingerprint", "keep", "kept", "remember"]


def fingerprint(value: Any) -> str:
    """Short hash of a tensor, or of a module: classes, plain settings, schedules, weights."""
    digest = hashlib.sha256(type(value).__name__.encode())
    tensors: dict[str, Tensor] = {"": value} if isinstance(value, Tensor) else {}
    if isinstance(value, nn.Module):
        tensors = value.state_dict()
        for name, part in value.named_modules():
            digest.update(f"{name} {type(part).__name__} {settings(part)}".encode())
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()[:16]


def settings(part: nn.Module) -> list[tuple[str, Any]]:
    """Plain attributes of a module itself, and what has a `config()`, as a schedule has.

    Its mode is none of its settings.
    """
    plain = (bool, int, float, str, tuple, type(None))
    return sorted(
        (name, value)
        for name, value in vars(part).items()
        if callable(getattr(value, "config", None))
        or (isinstance(value, plain) and not name.startswith("_") and name != "training")
    )


def claim_folder(folder: Path, name: str, identity: dict[str, Any], resume: bool = True) -> None:
    """Make a folder ours by writing the run's identity, or refuse one that holds another run.

    Arguments:
        folder: The folder; made if needed.
        name: File that holds the identity.
        identity: JSON values that tell this run from any other.
        resume: Whether to go on with this very run where the folder holds it already.

    Raises:
        SigdegError: If the folder holds another run, or this one while `resume` is off.
    """
    file = folder / name
    identity = json.loads(json.dumps(identity))
    if not file.exists():
        # A write that was killed leaves a hidden temporary file behind.
        if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise SigdegError(f"{folder} is not empty and holds no such run: choose another folder")
        save_json(file, identity)
        return
    try:
        other = read_json(file)
    except SigdegError:
        raise SigdegError(f"{file} is damaged: choose another folder") from None
    if other != identity:
        keys = sorted(k for k in identity.keys() | other.keys() if identity.get(k) != other.get(k))
        raise SigdegError(
            f"{folder} holds another run (it differs in {', '.join(keys)}): choose another folder"
        )
    if not resume:
        raise SigdegError(f"{folder} holds this run already: resume it or choose another folder")


def keep(file: Path, value: Mapping[str, Any], folder: Path) -> None:
    """Write what a run has found, as JSON that belongs to it: `config.json` of its folder says."""
    save_json(file, seal({**value, "_run": run_of(file, folder)}))


def kept(file: Path, folder: Path) -> dict[str, Any]:
    """Read what `keep` wrote.

    Raises:
        SigdegError: If it is damaged, or was found by another run.
    """
    written = read_json(file)
    found = unseal(written, file)
    if found.pop("_run", None) != run_of(file, folder) or "_digest" not in written:
        raise SigdegError(f"{file} is not what this run found: delete it")
    return found


def remember(file: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What an interrupted run has found already, or find it now and keep it.

    Raises:
        SigdegError: If the file is damaged, or another run's: a run is told by its `config.json`.
    """
    folder = file.parents[1]
    if not file.exists():
        keep(file, compute(), folder)
    return kept(file, folder)


def run_of(file: Path, folder: Path) -> str:
    """What ties a file to a run."""
    config = folder / "config.json"
    told = {"file": file.name, "run": read_json(config) if config.exists() else None}
    return str(seal(told)["_digest"])
