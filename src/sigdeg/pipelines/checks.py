"""What is wrong with a pipeline, in one line."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from sigdeg.errors import SigdegError

__all__ = ["NONE", "check_finite", "check_scheduler", "suspects"]

NONE = "it is no diffusion, or several pipelines in one, to be distilled one by one"


def check_scheduler(pipe: Any) -> None:
    """Refuse a pipeline that has no scheduler."""
    if getattr(pipe, "scheduler", None) is None:
        raise SigdegError(f"{type(pipe).__name__} has no scheduler of its own: {NONE}")


def check_finite(pipe: Any, values: Tensor) -> None:
    """Refuse what a pipeline gave where it is no number."""
    if not bool(torch.isfinite(values).all()):
        raise SigdegError(
            f"{type(pipe).__name__} gave NaN or infinite values: check its weights, their "
            "precision and its scheduler's prediction_type"
        )


def suspects(pipe: Any) -> str:
    """What a pipeline may fail for, in brackets: parts that it lacks, or parts of several types."""
    may_lack = getattr(pipe, "_optional_components", ())
    gone = [name for name, part in pipe.components.items() if part is None and name not in may_lack]
    if gone:
        return f" (it has no {', '.join(gone)})"
    modules = {k: part for k, part in pipe.components.items() if isinstance(part, nn.Module)}
    kinds = {
        name: str(weight.dtype).removeprefix("torch.")
        for name, part in modules.items()
        for weight in itertools.islice(part.parameters(), 1)
    }
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
        return f" (its parts are of several types: {told})"
    return ""
