"""One engine for all benchmarks: each is data, teachers, rows and figures, and the rest is here.

A benchmark is a subclass of `Benchmark` that prepares data and teachers, adds rows and draws
figures; a student is told by a `Spec`, and presets are data. Whatever takes long is kept in the run
folder: the same command goes on where an interrupted run stopped.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Generator, Tensor

from sigdeg.codec import Codec, Identity, save_codec
from sigdeg.denoiser import Denoiser
from sigdeg.distillation import Distilled, distill
from sigdeg.grids import coarse_grid
from sigdeg.integrations.solvers import Solver, solver_grids
from sigdeg.networks import ResidualMLP
from sigdeg.report import write_report
from sigdeg.results import (
    Row,
    Summary,
    add_equal_quality,
    add_rivals,
    add_speed,
    count_calls,
    grid_name,
    make_row,
    save_results,
)
from sigdeg.rng import seeded
from sigdeg.runs import claim_folder, remember
from sigdeg.sampling import network_calls, sample
from sigdeg.steps import DenoiserStep, Step
from sigdeg.student import PlainStudent, ResidualNoise, SignatureStudent
from sigdeg.timing import paired_seconds
from sigdeg.training import resolve_device

__all__ = ["Bench", "Benchmark", "Draw", "Spec", "slugify"]

S = TypeVar("S")
Draw = Callable[[int, Generator], Tensor]  # how so many samples are drawn


def slugify(name: str) -> str:
    """A name as that of a file."""
    return re.sub("[^a-z0-9.]+", "-", name.lower()).strip("-")


@dataclass(frozen=True)
class Spec:
    """A student to distil.

    Arguments:
        steps: Its step counts; several make it elastic.
        order: Signature coefficients a dimension that it listens to.
        residual_noise: What it does about what they leave open.
        lookahead: Fraction of a step after which its network looks.
        kind: The warm student, or the paper's plain one.
        pretrained: Whether its network starts as the teacher's; else from scratch.
        network: Width and blocks of a network from scratch (default: the benchmark's).
        power: Exponent of its grid.
        q: Consecutive coarse steps in a loss term.
        data: Segments start from noised data, not on the teacher's own paths.
        covariance: Whether its linear response knows the data's covariance.
        normalise: Whether the loss is divided by each step's untrained error.
        paths: Cached teacher paths, or segments that start from data (default: the preset's).
        iterations: Optimiser steps (default: the preset's).
        start: The student it goes on from.
        teacher: Which teacher it learns from, where there are several.
        study: The side table it stands in; the main one if empty.
        variant: What sets it apart there.
    """

    steps: tuple[int, ...]
    order: int = 4
    residual_noise: ResidualNoise | None = None
    lookahead: float = 0.0
    kind: Literal["warm", "plain"] = "warm"
    pretrained: bool = True
    network: tuple[int, int] | None = None
    power: float = 1.5
    q: int = 1
    data: bool = False
    covariance: bool = True
    normalise: bool = True
    paths: int | None = None
    iterations: int | None = None
    start: Spec | None = None
    teacher: str = ""
    study: str = ""
    variant: str = ""

    @property
    def slug(self) -> str:
        """A name for its folder that tells what is trained, not where it is shown."""
        parts = ["-".join(map(str, self.steps))]
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if value != field.default and field.name not in ("study", "variant"):
                parts.append(f"{field.name} {value.slug if isinstance(value, Spec) else value}")
        return slugify(" ".join(parts))

    @property
    def label(self) -> str:
        """A name for its training curve."""
        steps = "/".join(map(str, self.steps)) + (" step" if self.steps == (1,) else " steps")
        noise = f"{self.residual_noise} noise" if self.residual_noise else ""
        q = f"q = {self.q}" if self.q != 1 else ""
        teacher = f"{self.teacher} teacher" if self.teacher else ""
        parts = ["student", steps, f"order {self.order}", noise, q, teacher]
        return ", ".join(filter(None, parts))


class Bench:
    """Teachers, folder and rows of a run: what every row needs.

    Arguments:
        out: The run folder.
        seed: The first training seed.
        device: Where to compute.
        progress: Show progress bars.
    """

    batch: ClassVar[int | None] = None  # samples at a time
    timing_n: int = 0  # samples behind the seconds; few enough to stay in the cache
    network: tuple[int, ...] = ()  # width and blocks of a student's network from scratch
    shape: tuple[int, ...]  # of a sample
    teachers: dict[str, DenoiserStep]  # by name; "" where there is one

    def __init__(
        self, out: Path, seed: int = 0, device: str = "cpu", progress: bool = True
    ) -> None:
        self.out, self.seed, self.device = out, seed, device
        self.options: dict[str, Any] = {"device": device, "progress": progress}
        self.rows: list[Row] = []
        self.timed: dict[int, Callable[[], Tensor]] = {}  # by the index of the row

    def add(self, row: Row, draw: Draw | None = None) -> int:
        """Add a row, and time how it draws, but for side tables; returns its index."""
        if draw is not None and self.timing_n and not row.get("study"):
            self.timed[len(self.rows)] = partial(self.time, draw)
        self.rows.append(row)
        return len(self.rows) - 1

    def add_step(
        self, method: str, step: Step, grid: Tensor, metrics: dict[str, Summary], /, **columns: Any
    ) -> int:
        """Add the row of a step marched over a grid, and time it; returns its index."""
        row = make_row(method, step, network_calls(step, grid), metrics, **columns)
        return self.add(row, self.march(step, grid))

    def time(self, draw: Draw) -> Tensor:
        """Draw what a row's seconds are told by."""
        return draw(self.timing_n, Generator().manual_seed(0))

    def recall(
        self, name: str, work: Callable[[int], dict[str, Any]], count: int = 1
    ) -> list[dict[str, Any]]:
        """What some work finds, by its index, or what an interrupted run has found of it."""
        return [
            remember(self.out / "judged" / f"{slugify(name)}-{i}.json", partial(work, i))
            for i in range(count)
        ]

    def judge(self, name: str, draw: Draw) -> dict[str, Summary]:
        """Metrics of what a training-free sampler draws."""
        raise NotImplementedError

    def score(self, draw: Draw) -> float:
        """What a choice goes by, a distance to data that no table is judged by."""
        raise NotImplementedError

    def validate(self, name: str, draw: Draw) -> float:
        """The score of a sampler, or what an interrupted run has found of it."""
        found = self.recall(f"choice {name}", lambda _: {"score": self.score(draw)})
        return float(found[0]["score"])

    def make_student(
        self, spec: Spec, seed: int, denoiser: Denoiser | None = None, **options: Any
    ) -> SignatureStudent:
        """A student to be trained.

        Arguments:
            spec: What it is.
            seed: Of a network from scratch.
            denoiser: What it starts as (default: its teacher's).
            options: What no `Spec` tells, as arguments of `SignatureStudent`.
        """
        denoiser = self.teachers[spec.teacher].denoiser if denoiser is None else denoiser
        channels = self.shape[0]
        grid = coarse_grid(denoiser.schedule, max(spec.steps), power=spec.power)
        options = {
            "steps": spec.steps,
            "times": grid.tolist(),
            "residual_noise": spec.residual_noise,
            "lookahead": spec.lookahead,
            **options,
        }
        if spec.pretrained:
            return SignatureStudent.from_denoiser(denoiser, channels, spec.order, **options)
        kind = SignatureStudent if spec.kind == "warm" else PlainStudent
        width = kind.in_channels(channels, spec.order, spec.residual_noise)
        size = spec.network or self.network
        network = seeded(seed, lambda: ResidualMLP(width, channels, *size))
        return kind(network, denoiser.schedule, channels, spec.order, **options)

    def distill(self, spec: Spec, seed: int) -> Distilled:
        """Distil a student with one seed."""
        raise NotImplementedError

    def train(self, spec: Spec, seed: int, student: SignatureStudent, **options: Any) -> Distilled:
        """Train a student in a folder of its own; the options are those of `distill`."""
        return distill(
            student,
            self.teachers[spec.teacher],
            self.out / "students" / f"{spec.slug}-seed-{seed}",
            judge=0,  # the benchmark judges
            seed=seed,
            **self.options,
            **options,
        )

    def student_row(
        self,
        spec: Spec,
        steps: int,
        results: Sequence[Distilled],
        metrics: dict[str, Summary],
        **columns: Any,
    ) -> Row:
        """The row of a student at one of its step counts, over its training seeds."""
        first = results[0]
        known: dict[str, Any] = {
            "order": spec.order,
            "head": spec.residual_noise,
            "elastic": len(spec.steps) > 1,
            "kind": spec.kind,
            "q": spec.q,
            "grid": grid_name(spec.power),
            "seeds": len(results),
            "train_seconds": statistics.fmean(r.seconds for r in results) or None,
            "teacher_nfe": first.teacher_nfe or None,  # a shipped student does not tell
            "teacher": spec.teacher or None,
            "study": spec.study or None,
            "variant": spec.variant or None,
        }
        return make_row("sig-deg", first.student, steps, metrics, **{**known, **columns})

    def march(self, step: Step, grid: Tensor, **condition: Any) -> Draw:
        """How a step marched over a grid draws."""
        each = self.shape

        def draw(n: int, generator: Generator) -> Tensor:
            shape = (n, *each)
            return sample(
                step, grid, shape, generator=generator, batch_size=self.batch, **condition
            )

        return draw

    def add_solver(self, method: str, steps: int, teacher: str = "") -> Row:
        """Add the row of a training-free solver of so many steps."""
        denoiser, grids = self.teachers[teacher].denoiser, solver_grids(method, steps)
        solvers = {grid: Solver(denoiser, method, grid, steps) for grid in grids}
        tried = {grid: (solver, solver.grid) for grid, solver in solvers.items()}
        return self.add_best(method, tried, teacher)

    def add_best(
        self, method: str, tried: Mapping[str, tuple[Step, Tensor]], teacher: str = ""
    ) -> Row:
        """Add the row of a training-free sampler on the grid, of those tried, that scores best."""

        def name(grid: str) -> str:
            return " ".join(filter(None, [teacher, method, str(network_calls(*tried[grid])), grid]))

        scores = {grid: self.validate(name(grid), self.march(*tried[grid])) for grid in tried}
        best = min(scores, key=scores.__getitem__)
        step, times = tried[best]
        metrics = self.judge(name(best), self.march(step, times))
        row = self.add_step(
            method,
            step,
            times,
            metrics,
            grid=best,
            tried=len(tried),
            teacher=teacher or None,
            steps=len(times) - 1,
            seeds=1,
        )
        return self.rows[row]

    def states(self, step: Step, grid: Tensor, n: int) -> Tensor:
        r"""Samples on their way, the same seeds for every step: shape (n, times, \*)."""
        kept: list[Tensor] = []

        def keep(k: int, time: Tensor, x: Tensor) -> None:
            kept.append(x)

        seeds = range(self.seed, self.seed + n)
        sample(step, grid, (n, *self.shape), seeds=seeds, callback=keep)
        return torch.stack(kept, dim=1)


class Benchmark(Bench, ABC, Generic[S]):
    """A benchmark: what it is called, and a run of it.

    Arguments:
        settings: A preset.
        out: The run folder.
        options: Further arguments of `Bench`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    presets: ClassVar[Mapping[str, Any]]
    quality: ClassVar[tuple[str, str]]  # the metric that counts, a distance, and what it is
    rivals: ClassVar[tuple[str, ...]] = ()  # metrics that students are compared with others by
    paper: ClassVar[Sequence[Mapping[str, Any]]] = ()
    student: Any  # the one that is kept, of paths or of tokens: it saves itself
    codec: Codec = Identity()  # of its states
    shown_steps = 5  # at which the report shows how to sample it

    def __init__(self, settings: S, out: Path, **options: Any) -> None:
        super().__init__(out, **options)
        self.settings = settings
        self.reference = 0  # the row of the teacher that students learn from
        self.over: dict[str, int] = {}  # other rows to tell speed-ups over
        self.curves: dict[str, Any] = {}

    @classmethod
    def run(
        cls,
        out: Path,
        preset: str = "default",
        seed: int = 0,
        device: str | None = None,
        data_dir: Path | None = None,
        progress: bool = True,
    ) -> Path:
        """Run the benchmark and write `results.json`, figures and the report into a folder.

        The same call resumes an interrupted run.

        Arguments:
            out: The folder.
            preset: How much work.
            seed: The first training seed.
            device: Where to compute (default: what there is).
            data_dir: Where the data lie, for a benchmark whose data are not drawn.
            progress: Show progress bars.

        Raises:
            SigdegError: If the data are not found or damaged, or the folder holds another run.
        """
        settings = cls.presets[preset]
        device = resolve_device(device)
        bench = cls(settings, out, seed=seed, device=device, progress=progress)
        bench.read(data_dir)
        identity = {"experiment": cls.name, "preset": preset, "seed": seed}
        claim_folder(out, "config.json", {**identity, **dataclasses.asdict(settings)})
        bench.prepare()
        bench.fill()
        if bench.timed:
            add_speed(bench.rows, paired_seconds(bench.timed), bench.reference, bench.over)
        if cls.rivals:
            add_rivals(bench.rows, cls.rivals)
            add_equal_quality(bench.rows, cls.rivals)
        bench.save_student()
        save_results(out, {**identity, **bench.results()}, device)
        return write_report(out)

    def read(self, data_dir: Path | None) -> None:
        """Read what the user's folders hold, before anything is written."""

    @abstractmethod
    def prepare(self) -> None:
        """Make data and teachers."""

    @abstractmethod
    def fill(self) -> None:
        """Distil the students and add all rows."""

    def floor(self) -> dict[str, Summary]:
        """The metrics between independent sets of real data."""
        return {}

    def draw_figures(self) -> Mapping[str, str]:
        """Draw the figures; returns captions by file, without its end."""
        return {}

    @property
    @abstractmethod
    def summary(self) -> str:
        """What is measured, in a sentence or two."""

    def save_student(self) -> None:
        """Save the student that is kept, and what its states stand for."""
        self.student.save_pretrained(self.out / "student")
        save_codec(self.codec, self.out / "student")

    def distill_all(self, specs: Sequence[Spec], seeds: int = 1) -> dict[Spec, list[Distilled]]:
        """Distil every student: those of the main table with all seeds, others with the first."""
        distilled = {
            spec: [self.distill(spec, self.seed + i) for i in range(1 if spec.study else seeds)]
            for spec in specs
        }
        self.curves |= {
            spec.label: results[0].history.tolist()
            for spec, results in distilled.items()
            if not spec.study
        }
        return distilled

    def show(
        self, distilled: Mapping[Spec, Sequence[Distilled]], teacher: str = ""
    ) -> dict[str, SignatureStudent]:
        """The students that figures show by label: those of one step count and one teacher."""
        return {
            f"student, {count_calls(spec.steps[0])}": results[0].student
            for spec, results in distilled.items()
            if (spec.study, spec.q, len(spec.steps), spec.teacher) == ("", 1, 1, teacher)
        }

    def results(self) -> dict[str, Any]:
        """What `results.json` holds beside the run's identity."""
        metric, label = self.quality
        return {
            "title": self.title,
            "summary": self.summary,
            "quality": {"metric": metric, "label": label, "lower_is_better": True},
            "rows": self.rows,
            "paper": list(self.paper),
            "floor": self.floor(),
            "training": self.curves,
            "figures": [
                {"file": f"figures/{file}.png", "caption": caption}
                for file, caption in self.draw_figures().items()
            ],
            "student": "student",
            "example": {"steps": self.shown_steps},
            "timing_n": self.timing_n or None,
        }
