"""Options of several commands: how a teacher is guided, and what student it is to get.

Without torch: the command line tells of bad options before it is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sigdeg.options import AnyText, number, whole

if TYPE_CHECKING:
    from sigdeg.model import Model

__all__ = ["Guided", "Recipe"]


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

    @property
    def told(self) -> dict[str, Any]:
        """What of this is not as it is without guidance."""
        keys = ("guidance", "guidance_until", "weak", "null_class")
        return {key: v for key in keys if (v := getattr(self, key)) != getattr(Guided, key)}

    def load(self, teacher: str) -> Model:
        """The teacher, guided."""
        from sigdeg.integrations import load_guided

        return load_guided(teacher, self.guidance, self.guidance_until, self.weak, self.null_class)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What student a teacher gets.

    Arguments:
        steps: Step counts of the student; several, each dividing the largest, make it elastic.
        order: Signature coefficients a dimension: more for fewer steps.
        residual_noise: What to do about what the coefficients leave open: learn its law (energy,
            at twice the cost of training) or its mean (none).
        times: The largest step count's times, from 1 down to 0 (default: power spacing); fewer
            steps take every so many of them.
        lookahead: Fraction of a step after which the student's network looks: it is called on the
            state that Gaussian data would have there; 0 calls it at the step's start (default:
            0.5, of points 0.75).
        start: Folder or hub id of a student to go on from. Its order, noise, look-ahead and times
            stay.
        plan: Distil in rounds: vanilla, progressive, consistency, boot, hybrid-M or a tree such as
            "(1 (2 3..6))" over leaves that divide the refinement, see docs/planning.md.
        grid: planned measures the teacher and puts the student's times where that loses least.
    """

    steps: Annotated[tuple[int, ...], whole(1, 1000, "*")] = (10,)
    order: Annotated[int, whole(1, 64)] = 4
    residual_noise: Literal["energy", "none"] = "energy"
    times: Annotated[tuple[float, ...] | None, number(0, 1, "*")] = None
    lookahead: Annotated[float | None, number(0, 1)] = None
    start: AnyText = None
    plan: AnyText = None
    grid: Literal["planned"] | None = None
