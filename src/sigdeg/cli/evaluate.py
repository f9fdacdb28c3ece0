"""`sigdeg evaluate`: a student beside its teacher."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from sigdeg.cli.shared import Refinement, StudentName, TeacherName, refuse, tell
from sigdeg.errors import SigdegError
from sigdeg.options import AnyText, Folder, Samples, Seed, number
from sigdeg.workflows.recipe import Guided, Recipe

if TYPE_CHECKING:
    from sigdeg.discrete import TokenModel
    from sigdeg.model import Card
    from sigdeg.workflows.real import Features

__all__ = ["Evaluate"]

ASKED = ("prompts", "calls", "guidance_scale", "arguments")
GUIDED = ("weak", "guidance", "guidance_until", "null_class")


@dataclass(frozen=True, kw_only=True)
class Evaluate(Guided):
    """Compare a student with its teacher on the same noise, and write results and a report.

    Arguments:
        student: Folder or hub id of a student.
        teacher: Folder or hub id of the teacher it was distilled from.
        prompts: What pipelines are asked for, see `sigdeg distill`.
        calls: Calls of pipelines as they are, see there.
        guidance_scale: Guidance of the teacher's pipeline (default: as the student was taught).
        arguments: Further arguments of pipelines for all their calls, a JSON object.
        samples: Samples in each of the two sets that are compared.
        refinement: Fine teacher steps a coarse step (default: 120 in all).
        weak: Folder or hub id of the weaker version that guided the teacher.
        guidance: Scale of guidance that the student was distilled with (default: as its card says).
        guidance_until: Time above which there was none.
        null_class: The label that means no class, as it was given to distill.
        data: Real images to compare with as well, for FID, KID, precision, recall and diversity: a
            folder of pictures, a .npy, a .safetensors or an IDX file.
        features: What images are compared by: the FID Inception (fetched once, 96 MB), the MNIST
            classifier that comes with the package, or pixels as they are (default: inception).
        resize: Cut and resize pictures of another size.
        out: Run folder.
        seed: Seed of the noise.
        device: cpu or cuda (default: what is found).
        progress: Show a progress bar.
    """

    student: StudentName
    teacher: TeacherName
    prompts: AnyText = None
    calls: AnyText = None
    guidance_scale: Annotated[float | None, number(-1000, 1000)] = None
    arguments: AnyText = None
    samples: Samples = 256
    refinement: Refinement = None
    data: AnyText = None
    features: Literal["inception", "mnist", "pixels"] | None = None
    resize: bool = False
    out: Folder = Path("runs/evaluation")
    seed: Seed = 1
    device: AnyText = None
    progress: bool = True

    def __call__(self) -> None:
        """Compare them."""
        from sigdeg.discrete import TokenModel
        from sigdeg.files import is_pipeline
        from sigdeg.integrations import load_model
        from sigdeg.student import SignatureStudent
        from sigdeg.workflows.distill import configure
        from sigdeg.workflows.evaluate import evaluate

        if self.data is None and (self.features is not None or self.resize):
            raise SigdegError("--features and --resize are for real images: give --data, too")
        data = None if self.data is None else (self.data, self.features or "inception", self.resize)
        if is_pipeline(self.student):
            tell(self.evaluate_pipeline(data))
            return
        refuse(self, ASKED, "for students that are pipelines")
        student = load_model(self.student)
        if isinstance(student, TokenModel):
            tell(self.evaluate_tokens(student, data))
            return
        if not isinstance(student.step, SignatureStudent):
            raise SigdegError(f"{self.student} is a teacher: evaluate compares a student with it")
        asked = self.as_card(student.card)
        teacher = asked.load(self.teacher)
        identity = {"experiment": "evaluate", "student": self.student, "teacher": self.teacher}
        recipe = Recipe(steps=student.step.steps)
        config = configure(teacher, recipe, refinement=self.refinement, seed=self.seed)
        page = evaluate(
            student,
            teacher,
            self.out,
            {**identity, "seed": self.seed, **asked.told},
            config,
            self.samples,
            data,
            self.device,
            self.progress,
        )
        tell(page)

    def evaluate_pipeline(self, data: tuple[str, Features, bool] | None) -> Path:
        """Compare a student that is a pipeline with its teacher; returns the report."""
        from sigdeg.workflows.pipelines import evaluate_calls, parse_arguments, read_calls

        refuse(self, GUIDED, "for other students than pipelines")
        arguments = parse_arguments(self.arguments)
        if self.guidance_scale is not None:
            arguments["guidance_scale"] = self.guidance_scale
        return evaluate_calls(
            self.student,
            self.teacher,
            **read_calls(self.prompts, self.calls),
            arguments=arguments,
            out=self.out,
            samples=self.samples,
            refinement=self.refinement,
            data=data,
            seed=self.seed,
            device=self.device,
            progress=self.progress,
        )

    def evaluate_tokens(self, student: TokenModel, data: tuple[str, Features, bool] | None) -> Path:
        """Compare a student of tokens with its teacher; returns the report."""
        from sigdeg.discrete import TokenModel
        from sigdeg.workflows.tokens import evaluate_tokens

        refuse(self, ("refinement",), "for students that paths drive, not for one of tokens")
        asked = self.as_card(student.card)
        teacher = asked.load(self.teacher)
        if not isinstance(teacher, TokenModel):
            raise SigdegError(f"{self.teacher} is no model of tokens: it is not its teacher")
        identity = {"experiment": "evaluate", "student": self.student, "teacher": self.teacher}
        told = {**identity, "seed": self.seed, **asked.told}
        more = self.samples, data, self.seed, self.device, self.progress
        return evaluate_tokens(student, teacher, self.out, told, *more)

    def as_card(self, card: Card) -> Evaluate:
        """With the guidance of the card where none is asked for; says so on stderr."""
        from sigdeg.files import SHIPPED

        if card.guidance is None or self.guidance is not None or self.weak is not None:
            return self
        until = 1.0 if card.guidance_until is None else card.guidance_until
        said = f"guidance {card.guidance:g}" + (f" below t = {until:g}" if until < 1 else "")
        said += "" if card.weak is None else f" by {card.weak}"
        if card.weak is not None and not (SHIPPED / card.weak).is_dir():  # a name is no folder
            print(
                f"warning: the student was distilled with {said}, and is compared without: give "
                f"--guidance {card.guidance:g} --weak {card.weak}",
                file=sys.stderr,
            )
            return self
        print(f"note: {said}, as the student's card says", file=sys.stderr)
        null = card.null_class if self.null_class is None else self.null_class
        return dataclasses.replace(
            self, guidance=card.guidance, guidance_until=until, weak=card.weak, null_class=null
        )
