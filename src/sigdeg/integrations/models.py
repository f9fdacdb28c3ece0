"""Models of this package, whatever their kind."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from sigdeg.discrete.model import FORMAT, TokenModel
from sigdeg.files import find_student, read_json
from sigdeg.model import Model
from sigdeg.networks import uncompiled

__all__ = ["load_model"]


def load_model(path: str | Path, compiled: bool = True) -> Model:
    """Load a model of states or of tokens: its `config.json` tells which.

    Arguments:
        path: Folder written by `save_pretrained`, that of the run which made it, or a hub id.
        compiled: Whether functions may be compiled later; if not, diffusers loads faster.

    Raises:
        SigdegError: If the folder is missing, holds no model, or is damaged.
    """
    kind = read_json(find_student(path) / "config.json").get("format")
    if kind == FORMAT:
        return TokenModel.from_pretrained(path)
    with nullcontext() if compiled else uncompiled():
        return Model.from_pretrained(path)
