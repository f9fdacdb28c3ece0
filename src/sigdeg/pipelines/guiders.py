"""Components that guide: pipelines that have them take no scale of guidance in their calls.

A call here may have the name of one as an argument: False turns it off for the call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sigdeg.errors import extra

with extra("pipelines"):
    from diffusers import BaseGuidance

__all__ = ["disabled", "guiders", "turned_off"]


def guiders(pipe: Any) -> dict[str, Any]:
    """The components of a pipeline that guide, by name."""
    parts = pipe.components.items()
    return {name: part for name, part in parts if isinstance(part, BaseGuidance)}


def disabled(pipe: Any, names: Iterable[str]) -> dict[str, Any]:
    """New ones in the place of some of them, that do not guide: their configuration says so."""
    found = guiders(pipe)
    return {name: found[name].new(enabled=False) for name in names if name in found}


@contextmanager
def turned_off(pipe: Any, names: Iterable[str]) -> Iterator[None]:
    """Some of a pipeline's guiders do not guide in here."""
    own = guiders(pipe)
    changed = disabled(pipe, names)
    try:
        for name, guider in changed.items():
            setattr(pipe, name, guider)
        yield
    finally:
        for name in changed:
            setattr(pipe, name, own[name])
