"""Options of the command line: which values are right, and one line about those that are not."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

from tyro.constructors import PrimitiveConstructorSpec
from tyro.extras import SubcommandApp

from sigdeg.errors import SigdegError

__all__ = [
    "AnyFolder",
    "AnyText",
    "File",
    "Folder",
    "Group",
    "Samples",
    "Seed",
    "Text",
    "number",
    "parse",
    "whole",
]

Command = Callable[..., Any]
Values = int | Literal["*"] | None  # None: one, and not a tuple of one


def option(read: Callable[[str], Any], words: str, metavar: str, values: Values = None) -> Any:
    """What makes a type an option's: how its text is read, and the words for what is right."""

    def read_all(texts: list[str]) -> Any:
        found = []
        for text in texts:
            try:
                found.append(read(text))
            except ValueError:
                raise ValueError(f"must be {words}, got {text[:60]!r}") from None
        return found[0] if values is None else tuple(found)

    def texts(value: Any) -> list[str]:
        return [str(part) for part in value] if isinstance(value, tuple) else [str(value)]

    # Whatever stands as a default is right: None too.
    return PrimitiveConstructorSpec(values or 1, metavar, read_all, lambda _: True, texts)


def within(kind: Callable[[str], Any], low: float, high: float) -> Callable[[str], Any]:
    """Reads a number that lies between two, both of them right."""

    def read(text: str) -> Any:
        value = kind(text)
        if not low <= value <= high:  # nor is NaN
            raise ValueError
        return value

    return read


def whole(low: int, high: int, values: Values = None) -> Any:
    """Whole numbers from low to high."""
    words = f"a whole number from {low:,} to {high:,}"
    return option(within(int, low, high), words, "INT", values)


def number(low: float, high: float, values: Values = None) -> Any:
    """Numbers from low to high."""
    words = f"a number from {low:,g} to {high:,g}"
    return option(within(float, low, high), words, "FLOAT", values)


def some(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Reads text that is not empty."""

    def read(text: str) -> Any:
        if not text.strip() or "\0" in text:
            raise ValueError
        return kind(text)

    return read


FOLDER = option(some(Path), "the path of a folder", "PATH")
TEXT = option(some(str), "some text", "STR")
File = Annotated[Path, option(some(Path), "the path of a file", "PATH")]
Folder = Annotated[Path, FOLDER]
AnyFolder = Annotated[Path | None, FOLDER]
Text = Annotated[str, TEXT]
AnyText = Annotated[str | None, TEXT]
Samples = Annotated[int, whole(2, 10**7)]
Seed = Annotated[int, whole(0, 2**32 - 1)]


class Group(NamedTuple):
    """Commands under one name: dataclasses of their options, which are called."""

    help: str
    commands: Mapping[str, Command | Group]


def parse(group: Group, arguments: Sequence[str]) -> Callable[[], None]:
    """The command that arguments ask for, with all its options, ready to be called.

    Raises:
        SigdegError: If they are wrong, in one line.
        SystemExit: If they ask for help, which is printed.
    """
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            asked: Callable[[], None] = app(group).cli(prog="sigdeg", args=arguments)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise SigdegError(complaint(shown.getvalue(), group, arguments)) from None
    return asked


def app(group: Group) -> SubcommandApp:
    """Tyro's view of commands; it calls none of them itself."""
    made = SubcommandApp()
    for name, found in group.commands.items():
        if isinstance(found, Group):
            made.command(app(found), name=name, help=found.help)
        else:
            made.command(name=name)(found)
    return made


def complaint(shown: str, group: Group, arguments: Sequence[str]) -> str:
    """What tyro says in a box of many lines, in one, with a name that may have been meant."""
    # A title, perhaps a rule, what is wrong, and rules between further advice.
    lines = [line.strip("│╭╰╮╯─ ") for line in shown.splitlines()[1:]]
    words = [line.strip("-") and line for line in lines]
    text = " ".join(itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, words)))
    line, found = "", cast(Group | Command, group)
    for name in arguments:
        if not isinstance(found, Group) or name not in found.commands:
            break
        line, found = f"{line}{name} ", found.commands[name]
    where = f"{line.strip()}: " if line else ""
    unknown = re.match(r"Unrecognized options: (.*?)(, |$)", text)
    if unknown is None:
        return where + text.removeprefix("Error parsing ").replace(": must be", " must be", 1)
    known = list(found.commands) if isinstance(found, Group) else flags(found)
    near = difflib.get_close_matches(unknown[1].partition("=")[0], known, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    more = (
        f"choose from {', '.join(known)}"
        if isinstance(found, Group)
        else f"see sigdeg {line}--help"
    )
    return f"{where}unknown {unknown[1]!r}: {hint}{more}"


def flags(command: Command) -> list[str]:
    """The options of a command as they are typed."""
    known = []
    for name, parameter in inspect.signature(command).parameters.items():
        name = name.removeprefix("as_").replace("_", "-")
        known += [f"--{name}"] + [f"--no-{name}"] * isinstance(parameter.default, bool)
    return known
