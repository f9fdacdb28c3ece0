"""What a JSON file may hold: types and bounds, and one line where a value is none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sigdeg.errors import SigdegError

__all__ = ["flag", "listed", "mapped", "maybe", "number", "record", "text", "whole"]

Kind = Callable[[Any, str], None]  # looks at a value and its name, raises SigdegError


def refuse(value: Any, name: str, kind: str) -> None:
    """Say what a value should have been, and what it is."""
    shown = " ".join(repr(value)[:60].split())
    raise SigdegError(f"{name or 'it'} must be {kind}, got {shown}")


def anything(value: Any, name: str) -> None:
    """Any value."""


def whole(least: int = 0, most: int = 2**24) -> Kind:
    """A whole number within bounds."""

    def check(value: Any, name: str) -> None:
        if type(value) is not int or not least <= value <= most:
            refuse(value, name, f"a whole number from {least:,} to {most:,}")

    return check


def number(least: float = -1e30, most: float = 1e30) -> Kind:
    """A finite number within bounds."""

    def check(value: Any, name: str) -> None:
        if type(value) not in (int, float) or not least <= value <= most:
            refuse(value, name, f"a number from {least:g} to {most:g}")

    return check


def text(value: Any, name: str) -> None:
    """A string."""
    if not isinstance(value, str):
        refuse(value, name, "text")


def flag(value: Any, name: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        refuse(value, name, "true or false")


def maybe(kind: Kind) -> Kind:
    """The kind, or null."""

    def check(value: Any, name: str) -> None:
        if value is not None:
            kind(value, name)

    return check


def listed(kind: Kind, most: int = 2**20) -> Kind:
    """A list of the kind."""

    def check(value: Any, name: str) -> None:
        if not isinstance(value, list) or len(value) > most:
            refuse(value, name, f"a list of at most {most:,} values")
        for index, part in enumerate(value):
            kind(part, f"{name}.{index}")

    return check


def mapped(kind: Kind = anything) -> Kind:
    """An object whose values are of the kind."""

    def check(value: Any, name: str) -> None:
        if not isinstance(value, dict):
            refuse(value, name, "an object")
        for key, part in value.items():
            kind(part, f"{name}.{key}" if name else key)

    return check


def record(needed: Mapping[str, Kind], further: Mapping[str, Kind]) -> Kind:
    """An object with keys of their own kinds, and any others."""

    def check(value: Any, name: str) -> None:
        mapped()(value, name)
        prefix = f"{name}." if name else ""
        for key in needed:
            if key not in value:
                raise SigdegError(f"{prefix}{key} is missing")
        for key, part in value.items():
            kind = needed.get(key) or further.get(key)
            if kind is not None:
                kind(part, prefix + key)

    return check
