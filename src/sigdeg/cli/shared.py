"""What several commands share: kinds of options, the teacher's, and what is printed at the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from sigdeg.options import AnyText, Text, number, whole

if TYPE_CHECKING:
    from sigdeg.model import Model

__all__ = ["Batch", "Guided", "Refinement", "Samples", "StudentName", "TeacherName", "tell"]

Batch = Annotated[int, whole(1, 10**7)]
Refinement = Annotated[int | None, whole(2, 1000)]
Samples = Annotated[int, whole(2, 10**7)]
StudentName = Annotated[Positional[Text], arg(metavar="STUDENT")]
TeacherName = Annotated[Positional[Text], arg(metavar="TEACHER")]


@dataclass(frozen=True, kw_only=True)
class Guided:
    """How a teacher is guided.

    Arguments:
        weak: Folder or hub id of a weaker version of the teacher, such as mnist-weak: smaller, or
            trained for less long. The student learns to go the other way (see guidance), at no
            cost in calls.
        guidance: Scale of guidance, by the weaker version or else the classes of a conditional
            teacher; 1 is none.
        guidance_until: Time in (0, 1] above which there is none: 0.6 keeps the shares of the kinds
            of samples, which are settled earlier.
        null_class: The label that means no class, if the teacher was trained with one: guidance by
            classes needs it, and it is not drawn (default: as the teacher's config.json says).
    """

    weak: AnyText = None
    guidance: Annotated[float | None, number(-1000, 1000)] = None
    guidance_until: Annotated[float, number(0, 1)] = 1.0
    null_class: Annotated[int | None, whole(0, 10**6)] = None

    def load(self, teacher: str) -> Model:
        """The teacher, guided."""
        from sigdeg.integrations import load_guided

        return load_guided(teacher, self.guidance, self.guidance_until, self.weak, self.null_class)


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
