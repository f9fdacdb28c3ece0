"""What benchmarks of pipelines share: a teacher, its own scheduler, a student and its peers."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Generator, Tensor

from sigdeg.distillation import DistillConfig
from sigdeg.errors import extra
from sigdeg.experiments.bench import Benchmark, Draw
from sigdeg.grids import join_rows
from sigdeg.pipelines import (
    DistilledPipeline,
    PipelineRecipe,
    SigDEGScheduler,
    distill_pipeline,
)
from sigdeg.pipelines.scheduler import replaced
from sigdeg.pipelines.trace import call_pipeline
from sigdeg.results import Summary, count_calls, make_row, merge, summarise
from sigdeg.rng import Stream, derive_generator

with extra("pipelines"):
    import diffusers

__all__ = ["PipelineBenchmark", "Student"]


@dataclass(frozen=True)
class Student:
    """A student of a pipeline, and how it is distilled.

    Arguments:
        recipe: What it is.
        config: How it is trained.
        run: Samples of a run of the teacher.
    """

    recipe: PipelineRecipe
    config: DistillConfig
    run: int


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every preset says beside its teacher.

    Arguments:
        student: The student, and how it is distilled.
        n: Samples of a draw.
        own: Steps of the pipeline's own scheduler.
        peers: Steps of training-free samplers.
        seeds: Students, each with a seed of its own.
        draws: Draws behind a number.
        peer_draws: Draws of training-free samplers.
        timing_n: Samples behind the seconds.
    """

    student: Student
    n: int
    own: int = 50
    peers: tuple[int, ...] = (2, 4)
    seeds: int = 1
    draws: int = 2
    peer_draws: int = 2
    timing_n: int = 20


W = TypeVar("W", bound=Work)


class PipelineBenchmark(Benchmark[W]):
    """A benchmark of a pipeline.

    Attributes:
        stream: Of the generators that samples are drawn with.
        calls: Network calls of a step of the teacher.
        teacher: The pipeline.
    """

    stream: ClassVar[Stream]
    calls: ClassVar[int] = 1
    batch = 500
    teacher: Any

    @abstractmethod
    def call(self, n: int) -> dict[str, Any]:
        """The call of the teacher for n samples."""

    @abstractmethod
    def samples(self, output: Any) -> Tensor:
        """Samples of what the pipeline gives."""

    @abstractmethod
    def measure(self, samples: Tensor) -> dict[str, float]:
        """Metrics of a set of samples."""

    def sampler(self, pipeline: Any, steps: int, scheduler: Any = None, **more: Any) -> Draw:
        """How a pipeline draws, by another scheduler if one is given; `more` is said in its call.

        What is drawn is what the pipeline gives, see `samples`.
        """
        scheduler = pipeline.scheduler if scheduler is None else scheduler

        def draw(n: int, generator: Generator) -> Tensor:
            sizes = [len(part) for part in torch.arange(n).split(self.batch)]
            with replaced(pipeline, scheduler):
                parts = [
                    call_pipeline(pipeline, {**self.call(size), **more}, steps, generator)
                    for size in sizes
                ]
            return torch.cat([self.samples(part) for part in parts])

        return draw

    def judge(self, name: str, draw: Draw, count: int | None = None) -> dict[str, Summary]:
        def work(i: int) -> dict[str, Any]:
            n = self.settings.n
            return self.measure(draw(n, derive_generator(self.seed, self.stream, i)))

        return summarise(self.recall(name, work, count or self.settings.draws))

    def add_sampler(
        self, method: str, pipeline: Any, steps: int, scheduler: Any = None, **columns: Any
    ) -> None:
        """Add the row of a training-free sampler, the teacher among them."""
        draw, calls = self.sampler(pipeline, steps, scheduler), steps * self.calls
        count = None if method == "teacher" else self.settings.peer_draws
        metrics = self.judge(f"{method} {steps}", draw, count)
        told = {"steps": steps, "seeds": 1, **columns}
        self.add(make_row(method, denoiser(pipeline), calls, metrics, **told), draw)
        if method == "teacher" or calls in self.settings.student.recipe.steps:
            self.shown[f"{method}, {count_calls(calls)}"] = draw

    def distill_pipeline(self, seed: int) -> DistilledPipeline:
        """Distil a student with one seed, in a folder of its own."""
        known = self.settings.student
        found = distill_pipeline(
            self.teacher,
            [self.call(known.run)],
            self.out / "students" / f"seed-{seed}",
            known.recipe,
            dataclasses.replace(known.config, seed=seed),
            **self.options,
        )
        self.curves.setdefault("student", found.history.tolist())
        return found

    def add_student(self, steps: int, students: Sequence[DistilledPipeline]) -> None:
        """Add the row of the student at a step count, over its training seeds."""
        draws = [self.sampler(found.pipe, steps, **found.off) for found in students]
        metrics = [self.judge(f"student {i} {steps}", draw) for i, draw in enumerate(draws)]
        recipe, first = self.settings.student.recipe, students[0]
        row = make_row(
            "sig-deg",
            denoiser(first.pipe),
            steps,
            merge(metrics),
            order=recipe.order,
            head=recipe.residual_noise,
            elastic=len(recipe.steps) > 1,
            seeds=len(students),
            train_seconds=first.seconds,
            teacher_nfe=first.teacher_calls * self.calls,
        )
        self.add(row, draws[0])
        self.shown[f"student, {count_calls(steps)}"] = draws[0]

    def fill(self) -> None:
        settings, own = self.settings, self.teacher.scheduler
        recipe = settings.student.recipe
        students = [self.distill_pipeline(self.seed + i) for i in range(settings.seeds)]
        self.student, source = students[0].pipe, students[0].teacher
        fine, coarse = join_rows(source.rows).tolist(), source.student.grid().tolist()
        taught = SigDEGScheduler.like(own, times=fine, steps=[source.fine_steps])
        untrained = SigDEGScheduler.like(own, times=coarse, steps=list(recipe.steps))
        faster = diffusers.DPMSolverMultistepScheduler.from_config(own.config)
        self.shown: dict[str, Draw] = {}
        self.add_sampler("teacher", self.teacher, source.fine_steps, taught, order=1)
        for steps in recipe.steps:
            self.add_student(steps, students)
        self.add_sampler("ddim", self.teacher, settings.own)
        for steps in recipe.steps:
            self.add_sampler("untrained", self.teacher, steps, untrained, order=1)
        for steps in settings.peers:
            self.add_sampler("dpm-solver++", self.teacher, steps, faster)
            self.add_sampler("ddim", self.teacher, steps)

    def save_student(self) -> None:
        self.student.save_pretrained(self.out / "student")

    def results(self) -> dict[str, Any]:
        return {**super().results(), "student": None}  # it is not what `load_model` reads


def denoiser(pipeline: Any) -> Any:
    """A pipeline's network."""
    parts = pipeline.components
    return parts["unet"] if "unet" in parts else parts["transformer"]
