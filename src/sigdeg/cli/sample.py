"""`sigdeg sample`: draw from a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from sigdeg.cli.shared import StudentName
from sigdeg.options import AnyText, Folder, Seed, whole

__all__ = ["Sample"]


@dataclass(frozen=True)
class Sample:
    """Draw samples from a student: samples.safetensors, and a picture of them.

    They are in the user's own units: latents are decoded, standardised data restored. Those of
    characters are written as lines of samples.txt, too.

    Arguments:
        student: Folder or hub id of a student or of a run that made one, or mnist, which comes with
            the package.
        n: The number of samples.
        steps: Network calls a sample (default: the most it is trained for).
        seed: Seed of the first sample; sample i has seed + i.
        label: Class of the samples of a conditional student (default: all in turn).
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
    out: Folder = Path("samples")
    save: Literal["png"] | None = None
    batch_size: Annotated[int, whole(1, 10**7)] = 64
    device: AnyText = None
    progress: bool = True

    def __call__(self) -> None:
        """Draw them."""
        from sigdeg.integrations import load_model
        from sigdeg.workflows.sample import draw_samples

        model = load_model(self.student, compiled=False)
        written = draw_samples(
            model,
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
        for path in written:
            print(path)
