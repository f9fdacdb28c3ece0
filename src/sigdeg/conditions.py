"""Conditions: what a network is called with beside state and time, and what stands for none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from sigdeg.errors import SigdegError

__all__ = ["Classes", "Conditions", "Unconditional"]


class Conditions(Protocol):
    """What a model can be asked for. Whatever it gives is passed on to its network by name."""

    def __call__(self, n: int | None = None, **request: Any) -> dict[str, Any]:
        """Conditions of n samples (default: one of each), all in turn or as requested."""

    def none(self, n: int) -> dict[str, Any]:
        """What stands for no condition, n times."""


@dataclass(frozen=True)
class Unconditional:
    """A model of one law."""

    def __call__(self, n: int | None = None, **request: Any) -> dict[str, Any]:
        """Nothing, and nothing may be requested."""
        if request:
            raise SigdegError(f"this model knows no classes: leave {', '.join(request)} out")
        return {}

    def none(self, n: int) -> dict[str, Any]:
        """Nothing."""
        return {}


@dataclass(frozen=True)
class Classes:
    """A model of classes, whose network takes `class_labels`.

    Arguments:
        labels: Their labels.
        null: The label that means no class, where there is one and it is known. It is not guessed,
            and not among the labels.
    """

    labels: tuple[int, ...]
    null: int | None = None

    def __call__(
        self, n: int | None = None, label: int | None = None, **request: Any
    ) -> dict[str, Any]:
        """Labels of n samples: all in turn, or one that there is."""
        if request:
            raise SigdegError(f"a class is asked for by its label, got {', '.join(request)}")
        if label is not None and label not in self.labels:
            raise SigdegError(f"label must be one of the {len(self.labels)} classes, got {label}")
        asked = torch.tensor(self.labels if label is None else [label])
        return {"class_labels": asked[torch.arange(len(asked) if n is None else n) % len(asked)]}

    def none(self, n: int) -> dict[str, Any]:
        """The label that means no class, where it is known."""
        if self.null is None:
            raise SigdegError("it is not known which class means none: say it, null_class=...")
        return {"class_labels": torch.full((n,), self.null)}
