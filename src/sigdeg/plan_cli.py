"""The command line of planning: `sigdeg plan spectrum | merge | grid | phase`."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from sigdeg.options import AnyFolder, AnyText, Group, Seed, Text, number, whole

__all__ = ["PLAN"]

Accounting = Literal["equal-s", "equal-steps", "equal-compute"]
Guidance = Annotated[float | None, number(-1000, 1000)]
Kind = Literal["cosine", "vp"]
NullClass = Annotated[int | None, whole(0, 10**6)]
Json = Annotated[bool, arg(name="json")]
Samples = Annotated[int, whole(2, 10**7)]
Source = Annotated[Positional[Text], arg(metavar="SOURCE")]
TeacherSteps = Annotated[int, whole(2, 1000), arg(aliases=["-T"])]
Until = Annotated[float, number(0, 1)]


def spectrum(
    source: Source,
    schedule: Kind = "cosine",
    teacher_steps: TeacherSteps = 32,
    samples: Samples = 1024,
    sampling_steps: Annotated[int, whole(1, 1000)] = 30,
    seed: Seed = 0,
    device: AnyText = None,
    out: AnyFolder = None,
    as_json: Json = False,
    progress: bool = True,
) -> None:
    """The eigenvalues of data or of a teacher's own samples, and which plans they call for.

    Args:
        source: Samples (.npy, or .safetensors with one tensor), eigenvalues (.json, .csv), the
            benchmarks mixture1d and rbergomi, or a teacher: folder or hub id of a diffusers
            pipeline, mnist-teacher.
        schedule: Schedule of the windows.
        teacher_steps: Teacher steps T of the windows.
        samples: Samples to draw from a teacher or a benchmark.
        sampling_steps: Steps to draw a teacher's samples with.
        seed: Seed of what is drawn.
        device: cpu or cuda (default: what is found).
        out: Folder for spectrum.json, which the other commands read, and spectrum.png.
        as_json: Print JSON and nothing else.
        progress: Show a progress bar.
    """
    tell("spectrum", locals())


def merge(
    source: Source,
    schedule: Kind | None = None,
    teacher_steps: TeacherSteps = 32,
    training_time: Annotated[float, number(0, 1e6), arg(aliases=["-s"])] = 0.5,
    accounting: Accounting = "equal-s",
    seed: Seed = 0,
    device: AnyText = None,
    out: AnyFolder = None,
    as_json: Json = False,
    progress: bool = True,
) -> None:
    """The order in which to merge a teacher's steps into one, and what each order would give.

    Args:
        source: A spectrum, or what `sigdeg plan spectrum` takes.
        schedule: Schedule of the teacher (default: a teacher's own, otherwise cosine).
        teacher_steps: Teacher steps T that are merged into one.
        training_time: Training time s of the one-shot student, learning rate times steps of
            gradient descent; under Adam the law does not hold (docs/planning.md).
        accounting: What other plans share with it: s a merge, optimiser steps in all, or network
            calls in all.
        seed: Seed of what is drawn.
        device: cpu or cuda (default: what is found).
        out: Folder for plan.json and plan.png.
        as_json: Print JSON and nothing else.
        progress: Show a progress bar.
    """
    tell("plan", locals())


def grid(
    source: Source,
    steps: Annotated[int, whole(1, 1000)] = 8,
    order: Annotated[int, whole(1, 64)] = 2,
    budget: Annotated[float, number(0, math.inf)] = math.inf,
    start: Literal["warm", "zero"] = "warm",
    residual_noise: bool = False,
    schedule: Kind | None = None,
    fine_steps: Annotated[int, whole(2, 1000)] = 256,
    guidance: Guidance = None,
    guidance_until: Until = 1.0,
    weak: AnyText = None,
    null_class: NullClass = None,
    measure: bool = True,
    candidates: Annotated[int | None, whole(2, 1000)] = None,
    paths: Annotated[int, whole(2, 10**7)] = 2000,
    refinement: Annotated[int, whole(2, 1000)] = 6,
    axes: Annotated[int, whole(1, 4096)] = 64,
    weighing: Literal["plain", "relative", "balanced"] | None = None,
    samples: Samples = 1024,
    seed: Seed = 0,
    device: AnyText = None,
    out: AnyFolder = None,
    as_json: Json = False,
    progress: bool = True,
) -> None:
    """The times at which a student of a few steps loses the least, from a spectrum or a teacher.

    A teacher is measured: what coarse steps between candidate times lose, however far from Gaussian
    it is. `sigdeg distill TEACHER --grid planned` takes the same times.

    Args:
        source: A spectrum, or what `sigdeg plan spectrum` takes.
        steps: Steps of the student.
        order: Signature coefficients a dimension.
        budget: Training time of every step, learning rate times iterations; inf is converged.
        start: Start of the training: the ancestral step, or zero.
        residual_noise: The student adds noise of the variance that it loses.
        schedule: Schedule of the teacher (default: a teacher's own, otherwise vp).
        fine_steps: Fine steps of the linear teacher that the grid is chosen from.
        guidance: Scale of guidance, as `sigdeg distill` takes it.
        guidance_until: Time above which there is none.
        weak: Folder or hub id of a weaker version of the teacher that guides it.
        null_class: The label that means no class.
        measure: Measure a teacher; otherwise only the spectrum of its samples counts.
        candidates: Candidate times to measure between (default: 19, or more for more than 9 steps).
        paths: Teacher paths to measure with.
        refinement: Fine teacher steps between neighbouring candidates.
        axes: Principal axes to measure along, at most.
        weighing: How measured losses are weighed: plain, relative to the variance of the states, or
            both alike (default: plain along one axis, otherwise balanced).
        samples: Samples behind the spectrum of a benchmark, or of a teacher that is not measured.
        seed: Seed of what is drawn.
        device: cpu or cuda (default: what is found).
        out: Folder for grid.json and grid.png.
        as_json: Print JSON and nothing else.
        progress: Show progress bars.
    """
    tell("grid", locals())


def phase(
    schedule: Kind = "cosine",
    teacher_steps: TeacherSteps = 32,
    accounting: Accounting = "equal-s",
    variances: Annotated[tuple[float, float], number(1e-9, 1e9, 2)] = (0.03, 10.0),
    training_times: Annotated[tuple[float, float], number(1e-9, 1e9, 2)] = (0.02, 4.0),
    out: AnyFolder = None,
    as_json: Json = False,
) -> None:
    """Which plan is best for data of one variance: the phase diagram.

    Args:
        schedule: Schedule of the teacher.
        teacher_steps: Teacher steps T that are merged into one.
        accounting: What the plans share with the one-shot student.
        variances: Smallest and largest variance of the data.
        training_times: Smallest and largest training time s of the one-shot student.
        out: Folder for phase.json and phase.png.
        as_json: Print JSON and nothing else.
    """
    tell("phase", locals())


def tell(name: str, options: dict[str, Any]) -> None:
    """Print the answer to a question."""
    from sigdeg.workflows.plan import answer

    print(answer(name, options, options.pop("out"), options.pop("as_json")))


PLAN = Group(
    "Plan a distillation: what to merge in which order, and where to put the student's times.",
    {"spectrum": spectrum, "merge": merge, "grid": grid, "phase": phase},
)
