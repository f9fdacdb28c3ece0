"""What several commands share: kinds of options, and what is printed at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from sigdeg.errors import SigdegError
from sigdeg.options import Text, whole

__all__ = ["Refinement", "StudentName", "TeacherName", "refuse", "tell"]

Refinement = Annotated[int | None, whole(2, 1000)]
StudentName = Annotated[Positional[Text], arg(metavar="STUDENT")]
TeacherName = Annotated[Positional[Text], arg(metavar="TEACHER")]


def refuse(command: Any, names: Sequence[str], why: str) -> None:
    """Refuse options that are given, and do not apply."""
    for name in names:
        if getattr(command, name) != getattr(type(command), name):
            raise SigdegError(f"--{name.replace('_', '-')} is {why}: leave it out")


def tell(page: Path) -> None:
    """Print what a run shows, what to beware of, and where its report lies."""
    from accelerate import PartialState

    from sigdeg.report.headline import headline
    from sigdeg.results import read_results

    if not PartialState().is_main_process:
        return
    results = read_results(page.with_name("results.json"))
    found = headline(results)
    warnings = [f"warning: {text}" for text in results.get("warnings") or []]
    print(
        "\n".join([*([f"{found.claim}. {found.evidence}"] if found else []), *warnings, str(page)])
    )
