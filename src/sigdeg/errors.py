"""The errors a user is meant to read: one line, what was wrong and what would be right."""

from __future__ import annotations

import difflib
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral

__all__ = [
    "MissingPackageError",
    "SigdegError",
    "TrainingError",
    "check_choice",
    "check_least",
    "check_whole",
    "did_you_mean",
    "extra",
    "guard",
    "reason",
]

INTERRUPTED = "interrupted; the same command goes on or starts again"


class SigdegError(ValueError):
    """Bad input. The command line prints the message and exits with code 2."""

    exit_code = 2


class TrainingError(SigdegError):
    """Good input, but the work failed. The command line prints the message, exit code 1."""

    exit_code = 1


def check_choice(value: object, choices: Iterable[str], what: str) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        SigdegError: It names the choices.
    """
    choices = tuple(choices)
    if value not in choices:
        raise SigdegError(f"unknown {what} {value!r}: choose from {', '.join(choices)}")


def check_least(value: float, least: float, what: str) -> None:
    """Refuse a number below a bound.

    Raises:
        SigdegError: It names the bound.
    """
    if not value >= least:
        raise SigdegError(f"{what} must be at least {least}, got {value}")


def check_whole(value: object, least: int, what: str) -> None:
    """Refuse what is no whole number, or one below a bound.

    Raises:
        SigdegError: It names the bound.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise SigdegError(f"{what} must be a whole number, got {value!r:.60}")
    check_least(int(value), least, what)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What is added to the refusal of a name that is near a known one; nothing to others."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f", did you mean {near[0]}?" if near else ""


class MissingPackageError(ImportError):
    """Good input, but a package of an extra is not installed. The message says which, exit code 2.

    It is no `SigdegError`, so that no file is blamed for it.
    """


def reason(error: Exception) -> str:
    """What an error of another library says, in one line of a length that can be read."""
    said = getattr(error, "strerror", None) or str(error)
    lines = [" ".join(line.split()) for line in said.splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Packages that only some need are imported in here: one that is missing can be installed.

    Arguments:
        name: The extra of `sigdeg` that has them, such as "report".

    Raises:
        MissingPackageError: If one is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        told = f"{error.name} is not installed: pip install 'sigdeg[{name}]'"
        raise MissingPackageError(told) from None


def guard(work: Callable[[], int]) -> int:
    """Run a command: whatever goes wrong is one line on stderr, never a traceback.

    The traceback of an error that no one foresaw goes to a temporary file.

    Arguments:
        work: The command; returns its exit code.

    Returns:
        The exit code: 0, 1 for work that failed, 2 for bad input.
    """
    try:
        return work()
    except SigdegError as error:
        return say(str(error), error.exit_code)
    except MissingPackageError as error:
        return say(str(error), 2)
    except OSError as error:
        named = f"{error.filename}: {error.strerror}" if error.filename is not None else str(error)
        return say(named, 2)
    except KeyboardInterrupt:
        return say(INTERRUPTED, 1)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"[:300]
        return say(f"this should not happen: {what} (traceback in {log(error)})", 1)


def say(text: str, code: int) -> int:
    """Print one line."""
    print(f"sigdeg: {' '.join(text.split())}", file=sys.stderr)
    return code


def log(error: BaseException) -> str:
    """Write a traceback to a file; returns its name."""
    import traceback

    handle, name = tempfile.mkstemp(prefix="sigdeg-error-", suffix=".log")
    with open(handle, "w", errors="backslashreplace") as file:
        file.writelines(traceback.format_exception(error))
    return name
