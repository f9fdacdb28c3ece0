"""The questions of planning, `sigdeg plan spectrum | merge | grid | phase | tokens`, and options.

Without torch: the command line tells of bad options before it is there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from tyro.conf import Positional, arg

from sigdeg.options import AnyFolder, AnyText, Samples, Seed, Text, number, whole
from sigdeg.workflows.recipe import Guided

__all__ = ["Grid", "Merge", "Phase", "Question", "Spectrum", "Tokens"]

Accounting = Literal["equal-s", "equal-steps", "equal-compute"]
Kind = Literal["cosine", "vp"]
TeacherSteps = Annotated[int, whole(2, 1000), arg(aliases=["-T"])]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What every question can be asked.

    Arguments:
        out: Folder for the answer, JSON and a picture.
        as_json: Print JSON and nothing else.
    """

    name: ClassVar[str]  # as the JSON file is called
    out: AnyFolder = None
    as_json: Annotated[bool, arg(name="json")] = False

    def __call__(self) -> None:
        """Print the answer."""
        from sigdeg.workflows.plan.commands import answer

        print(answer(self))


@dataclass(frozen=True, kw_only=True)
class SourceQuestion(Question):
    """A question about data or a teacher.

    Arguments:
        source: Samples (.npy, or .safetensors with one tensor), eigenvalues (.json, .csv) or a
            spectrum that was saved, the benchmarks mixture1d and rbergomi, or a teacher: folder or
            hub id of a diffusers pipeline, mnist-teacher.
        seed: Seed of what is drawn.
        device: cpu or cuda (default: what is found).
        progress: Show progress bars.
    """

    source: Annotated[Positional[Text], arg(metavar="SOURCE")]
    seed: Seed = 0
    device: AnyText = None
    progress: bool = True


@dataclass(frozen=True, kw_only=True)
class Spectrum(SourceQuestion):
    """The eigenvalues of data or of a teacher's own samples, and which plans they call for.

    Arguments:
        schedule: Schedule of the windows.
        teacher_steps: Teacher steps T of the windows.
        samples: Samples to draw from a teacher or a benchmark.
        sampling_steps: Steps to draw a teacher's samples with.
    """

    name = "spectrum"
    schedule: Kind = "cosine"
    teacher_steps: TeacherSteps = 32
    samples: Samples = 1024
    sampling_steps: Annotated[int, whole(1, 1000)] = 30


@dataclass(frozen=True, kw_only=True)
class Merge(SourceQuestion):
    """The order in which to merge a teacher's steps into one, and what each order would give.

    Arguments:
        schedule: Schedule of the teacher (default: a teacher's own, otherwise cosine).
        teacher_steps: Teacher steps T that are merged into one.
        training_time: Training time s of the one-shot student, learning rate times steps of
            gradient descent; under Adam the law does not hold (docs/planning.md).
        accounting: What other plans share with it: s a merge, optimiser steps in all, or network
            calls in all.
    """

    name = "plan"
    schedule: Kind | None = None
    teacher_steps: TeacherSteps = 32
    training_time: Annotated[float, number(0, 1e6), arg(aliases=["-s"])] = 0.5
    accounting: Accounting = "equal-s"


@dataclass(frozen=True, kw_only=True)
class Grid(Guided, SourceQuestion):
    """The times at which a student of a few steps loses the least, from a spectrum or a teacher.

    A teacher is measured: what coarse steps between candidate times lose, however far from Gaussian
    it is. `sigdeg distill TEACHER --grid planned` takes the same times.

    Arguments:
        steps: Steps of the student.
        order: Signature coefficients a dimension.
        budget: Training time of every step, learning rate times iterations; inf is converged.
        start: Start of the training: the ancestral step, or zero.
        residual_noise: The student adds noise of the variance that it loses.
        schedule: Schedule of the teacher (default: a teacher's own, otherwise vp).
        fine_steps: Fine steps of the linear teacher that the grid is chosen from.
        measure: Measure a teacher; otherwise only the spectrum of its samples counts.
        candidates: Candidate times to measure between (default: 19, or more for more than 9 steps).
        paths: Teacher paths to measure with.
        refinement: Fine teacher steps between neighbouring candidates.
        axes: Principal axes to measure along, at most.
        weighing: How measured losses are weighed: plain, relative to the variance of the states, or
            both alike (default: plain along one axis, otherwise balanced).
        samples: Samples behind the spectrum of a benchmark, or of a teacher that is not measured.
    """

    name = "grid"
    steps: Annotated[int, whole(1, 1000)] = 8
    order: Annotated[int, whole(1, 64)] = 2
    budget: Annotated[float, number(0, math.inf)] = math.inf
    start: Literal["warm", "zero"] = "warm"
    residual_noise: bool = False
    schedule: Kind | None = None
    fine_steps: Annotated[int, whole(2, 1000)] = 256
    measure: bool = True
    candidates: Annotated[int | None, whole(2, 1000)] = None
    paths: Annotated[int, whole(2, 10**7)] = 2000
    refinement: Annotated[int, whole(2, 1000)] = 6
    axes: Annotated[int, whole(1, 4096)] = 64
    weighing: Literal["plain", "relative", "balanced"] | None = None
    samples: Samples = 1024


@dataclass(frozen=True, kw_only=True)
class Phase(Question):
    """Which plan is best for data of one variance: the phase diagram.

    Arguments:
        schedule: Schedule of the teacher.
        teacher_steps: Teacher steps T that are merged into one.
        accounting: What the plans share with the one-shot student.
        variances: Smallest and largest variance of the data.
        training_times: Smallest and largest training time s of the one-shot student.
    """

    name = "phase"
    schedule: Kind = "cosine"
    teacher_steps: TeacherSteps = 32
    accounting: Accounting = "equal-s"
    variances: Annotated[tuple[float, float], number(1e-9, 1e9, 2)] = (0.03, 10.0)
    training_times: Annotated[tuple[float, float], number(1e-9, 1e9, 2)] = (0.02, 4.0)


@dataclass(frozen=True, kw_only=True)
class Tokens(Question):
    """How many steps a teacher of tokens needs, and where they should go.

    Arguments:
        teacher: Folder or hub id of a model of tokens, of transformers, too, or a known law for its
            exact teacher: bits2, copy6, xor3, checker8, checker32, moons16, words4, markov4 or
            sudoku4.
        steps: Steps to find the times of (default: 8).
        distance: Total variation that is to be reached, in place of a number of steps: exact for a
            short law that is known, otherwise by a bound.
        candidates: Steps between candidate times.
        samples: Sequences to measure a network on, which it draws in as many steps.
        seed: Seed of what is drawn.
        device: cpu or cuda (default: what is found).
        progress: Show progress bars.
    """

    name = "tokens"
    teacher: Annotated[Positional[Text], arg(metavar="TEACHER")]
    steps: Annotated[int | None, whole(1, 1000)] = None
    distance: Annotated[float | None, number(1e-9, 1)] = None
    candidates: Annotated[int, whole(2, 256)] = 32
    samples: Samples = 256
    seed: Seed = 0
    device: AnyText = None
    progress: bool = True
