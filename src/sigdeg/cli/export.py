"""`sigdeg export`: a student as a file for other runtimes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from sigdeg.cli.shared import StudentName
from sigdeg.options import AnyText, File, whole

__all__ = ["Export"]


@dataclass(frozen=True)
class Export:
    """Write the whole sampler of a student as one graph, with its noise as an input.

    The graph holds every step and the decoder; of a pipeline's student every step of its denoiser,
    with what it makes of prompts as an input. It is compared with the student, and a report beside
    it says how large, how exact and how fast it is.

    Arguments:
        student: Folder or hub id of a student or of a run that made one, or mnist, which comes with
            the package.
        steps: Network calls a sample (default: the most it is trained for).
        out: The file: .onnx for ONNX, .pt2 for an exported program of torch.
        int8: Write a second file, .int8.onnx, with the weights of matrix products in eight bits.
        batch: Samples a run (default: any number that the network takes).
        calls: What a pipeline's student is tried on, by sample, two or more: a text of a prompt a
            line, a CSV whose head are arguments of the pipeline, or JSON, a list of objects.
        progress: Show a progress bar.
    """

    student: StudentName
    steps: Annotated[int | None, whole(1, 1000)] = None
    out: File = Path("sampler.onnx")
    int8: bool = False
    batch: Annotated[int | None, whole(1, 10**7)] = None
    calls: AnyText = None
    progress: bool = True

    def __call__(self) -> None:
        """Write it."""
        from sigdeg.workflows.export import export

        report = export(
            self.student,
            self.out,
            self.steps,
            int8=self.int8,
            batch=self.batch,
            call=self.read_call(),
            progress=self.progress,
        )
        for name, found in report["files"].items():
            print(
                f"{self.out.with_name(name)}: {found['bytes'] / 1e6:.2f} MB, error at most "
                f"{found['largest_error']:.1e}, {1e3 * found['seconds']:.3g} ms for "
                f"{report['samples']} on one thread, where the student takes "
                f"{1e3 * found['eager_seconds']:.3g}"
            )
        print(self.out.with_suffix(".json"))

    def read_call(self) -> dict[str, Any] | None:
        """The first call that the file of calls makes."""
        if self.calls is None:
            return None
        from sigdeg.pipelines.inputs import join_rows, read_rows

        return join_rows(read_rows(self.calls))[0]
