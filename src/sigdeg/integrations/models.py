"""Models of this package, whatever their kind."""

from __future__ import annotations

from pathlib import Path

from sigdeg.discrete.model import FORMAT, TokenModel
from sigdeg.files import find_student, read_json
from sigdeg.model import Model

__all__ = ["load_model"]


def load_model(path: str | Path) -> Model:
    """Load a model of states or of tokens: its `config.json` tells which.

    Arguments:
        path: Folder written by `save_pretrained`, that of the run which made it, or a hub id.

    Raises:
        SigdegError: If the folder is missing, holds no model, or is damaged.
    """
    kind = read_json(find_student(path) / "config.json").get("format")
    return (TokenModel if kind == FORMAT else Model).from_pretrained(path)
