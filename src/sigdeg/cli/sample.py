"""`sigdeg sample`: draw from a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from sigdeg.cli.shared import StudentName, refuse
from sigdeg.options import AnyText, Folder, Seed, whole

__all__ = ["Sample"]


@dataclass(frozen=True)
class Sample:
    """Draw samples from a student: samples.safetensors, and a picture of them.

    They are in the user's own units: latents are decoded, standardised data restored. Those of
    characters are written as lines of samples.txt, too. A student that is a pipeline is asked as
    the pipeline is.

    Arguments:
        student: Folder or hub id of a student or of a run that made one, or mnist, which comes with
            the package.
        n: The number of samples.
        steps: Network calls a sample (default: the most it is trained for).
        seed: Seed of the first sample; sample i has seed + i.
        label: Class of the samples of a conditional student (default: all in turn).
        prompt: What a pipeline is asked for.
        arguments: Further arguments of a pipeline, a JSON object such as '{"height": 512}'.
        out: Folder for the samples, empty or with these very samples.
        save: png writes every image to a file of its own as well.
        batch_size: Samples at a time. The noise of a seed is the same to the bit in any batch, its
            sample up to rounding.
        device: cpu or cuda (default: what is found).
        progress: Show a progress bar.
    """

    student: StudentName
    n: Annotated[int, whole(1, 10**9), arg(aliases=["-n"])] = 16
    steps: Annotated[int | None, whole(1, 1000)] = None
    seed: Seed = 0
    label: Annotated[int | None, whole(0, 10**9)] = None
    prompt: AnyText = None
    arguments: AnyText = None
    out: Folder = Path("samples")
    save: Literal["png"] | None = None
    batch_size: Annotated[int, whole(1, 10**7)] = 64
    device: AnyText = None
    progress: bool = True

    def __call__(self) -> None:
        """Draw them."""
        from sigdeg.files import is_pipeline

        for path in self.of_pipeline() if is_pipeline(self.student) else self.of_model():
            print(path)

    def of_model(self) -> list[Path]:
        """Draw from a model of this package."""
        from sigdeg.integrations import load_model
        from sigdeg.workflows.sample import draw_samples

        refuse(self, ("prompt", "arguments"), "for students that are pipelines")
        return draw_samples(
            load_model(self.student, compiled=False),
            self.out,
            self.n,
            self.steps,
            self.seed,
            self.label,
            self.save == "png",
            self.batch_size,
            self.device,
            self.progress,
        )

    def of_pipeline(self) -> list[Path]:
        """Draw from a pipeline."""
        from sigdeg.workflows.draw import draw_calls
        from sigdeg.workflows.pipelines import parse_arguments

        told = {"prompt": self.prompt, "class_labels": self.label}
        return draw_calls(
            self.student,
            self.out,
            self.n,
            {k: v for k, v in told.items() if v is not None} | parse_arguments(self.arguments),
            self.steps,
            self.seed,
            self.save == "png",
            self.batch_size,
            self.device,
            self.progress,
        )
