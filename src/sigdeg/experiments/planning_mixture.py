"""Grids on 1DN: where a nonlinear teacher decides is measured, not read off a spectrum."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sigdeg.denoiser import GaussianMixtureDenoiser
from sigdeg.distillation import Distilled, TeacherPaths
from sigdeg.experiments.bench import Spec
from sigdeg.experiments.mixture1d import LAW, SCHEDULE, STD, density
from sigdeg.experiments.planning_grids import Grids, GridSpec
from sigdeg.experiments.planning_presets import MixtureSettings
from sigdeg.grids import coarse_grid, fine_grid, refine
from sigdeg.metrics import w1_exact
from sigdeg.planning import FineSDE, dp_grid, measured_cost
from sigdeg.planning.measured import StepRegression
from sigdeg.planning.spectrum import Floats
from sigdeg.report import histogram_plot
from sigdeg.results import Row, Summary, grid_name, make_row, summarise
from sigdeg.rng import Stream, derive_generator
from sigdeg.steps import EulerMaruyama

__all__ = ["LEAST_SQUARES", "MixtureGrids"]

CANDIDATES = 18  # steps between candidate times: 19 of them, denser near the data
REFINEMENT = 16  # fine steps between two
MEASURED_PATHS = 5000
ORDER = 2
POWERS = (1.0, 1.5, 2.0)
TRAINED = ("planned", "uniform")  # the grids of trained students
LEAST_SQUARES = "1DN, the most flexible student: least squares on cubic features"


class MixtureGrids(Grids):
    """The mixture's exact teacher, its measured costs, and students on planned and other grids."""

    batch = 20_000
    shape = (1,)

    def __init__(self, settings: MixtureSettings, out: Path, **options: Any) -> None:
        super().__init__(out, **options)
        self.settings, self.fine_steps = settings, settings.fine_steps
        denoiser = GaussianMixtureDenoiser(LAW.means, LAW.stds, LAW.weights, SCHEDULE)
        self.teacher = EulerMaruyama(denoiser)
        self.teachers = {"": self.teacher}
        self.students: dict[tuple[int, str], list[Distilled]] = {}

    def fill(self) -> None:
        """Measure, and add the teacher, trained students, and those of least squares."""
        cost = measured_cost(
            self.teacher,
            coarse_grid(SCHEDULE, CANDIDATES),
            self.shape,
            ORDER,
            MEASURED_PATHS,
            REFINEMENT,
            features="cubic",
            generator=derive_generator(self.seed, Stream.PLANNING_MIXTURE_COST),
        )
        self.planning_nfe = cost.teacher_nfe
        for steps in self.settings.steps:
            powers = {grid_name(p): coarse_grid(SCHEDULE, steps, power=p) for p in POWERS}
            # The plan for Gaussian data.
            spectrum = dp_grid(FineSDE([LAW.variance], 256, SCHEDULE), steps).times
            self.tables[steps] = {"planned": cost.grid(steps).times, **powers, "spectrum": spectrum}
        seeds = [self.seed + i for i in range(self.settings.seeds)]
        fine = fine_grid(SCHEDULE, self.settings.fine_steps, "power")
        march = self.march(self.teacher, fine)
        metrics = self.measure("teacher", lambda i: march(*self.drawn(seeds[i])))
        row = make_row("teacher", self.teacher, len(fine) - 1, metrics, grid="power 2", order=1)
        self.add(row)
        for steps in self.settings.steps:
            for name in TRAINED:
                spec = GridSpec((steps,), ORDER, pretrained=False, grid=name)
                results = [self.distill(spec, seed) for seed in seeds]
                self.students[steps, name] = results
                metrics = self.measure(spec.slug, partial(self.draw, results))
                more = self.told(steps, name)
                self.add(self.student_row(spec, steps, results, metrics, **more))
        for steps, grids in self.tables.items():
            for name, grid in grids.items():
                regression = partial(self.regression, grid)
                metrics = self.measure(f"least squares {steps} {name}", regression)
                self.add(self.regression_row(steps, name, metrics))

    def regression_row(self, steps: int, name: str, metrics: dict[str, Summary]) -> Row:
        """The row of a least-squares student."""
        return make_row(
            "sig-deg",
            None,
            steps,
            metrics,
            order=ORDER,
            seeds=self.settings.seeds,
            teacher_nfe=self.settings.regression_paths * self.refinement(steps) * steps,
            study=LEAST_SQUARES,
            variant=f"{steps} steps, {name}",
            **self.told(steps, name),
        )

    def distill(self, spec: Spec, seed: int) -> Distilled:
        times = self.times(spec).tolist()
        student = self.make_student(spec, seed, times=times, data_std=STD)
        refinement = self.refinement(max(spec.steps))
        return self.train(spec, seed, student, config=self.settings.config, refinement=refinement)

    def drawn(self, seed: int) -> tuple[int, torch.Generator]:
        """How many samples a seed draws, and by what."""
        return self.settings.exact_n, derive_generator(seed, Stream.MIXTURE_DRAWS)

    def draw(self, results: list[Distilled], i: int) -> Tensor:
        """Samples of the student of one seed."""
        student = results[i].student
        return self.march(student, student.grid())(*self.drawn(self.seed + i))

    def measure(self, name: str, draw: Callable[[int], Tensor | Floats]) -> dict[str, Summary]:
        """Distance to the exact law of what is drawn with every seed."""

        def work(i: int) -> dict[str, float]:
            return {"w1_exact": w1_exact(draw(i), LAW)}

        return summarise(self.recall(name, work, self.settings.seeds))

    def floor(self) -> dict[str, Summary]:
        """The same of real samples, ten times over."""
        n = self.settings.exact_n
        generators = [derive_generator(self.seed, Stream.MIXTURE_FLOOR, i) for i in range(10)]
        return summarise([{"w1_exact": w1_exact(LAW.sample(n, g), LAW)} for g in generators])

    def regression(self, grid: Tensor, i: int) -> Floats:
        """Fit a least-squares student of a grid with one seed, and march it."""
        rows = list(refine(SCHEDULE, grid, self.refinement(len(grid) - 1)))
        paths = TeacherPaths(self.teacher, rows, self.shape, ORDER)
        generator = derive_generator(self.seed + i, Stream.PLANNING_MIXTURE_PATHS)
        batch = paths.draw(self.settings.regression_paths, generator)
        # The law is symmetric: with every path its mirror image, no mode has more of them.
        states, coefficients = (
            torch.cat([v, -v]).double().numpy() for v in (batch.states, batch.coefficients)
        )
        n = self.settings.exact_n
        generator = derive_generator(self.seed + i, Stream.PLANNING_MIXTURE_DRAWS)
        z: Floats = SCHEDULE.prior_std * torch.randn(n, 1, generator=generator).double().numpy()
        for k in range(len(rows)):
            step = StepRegression.fit(
                states[:, k], coefficients[:, k], states[:, k + 1], "cubic", knots=16
            )
            z = step(z, torch.randn(n, ORDER, 1, generator=generator).double().numpy())
        return z

    def draw_histograms(self, path: Path) -> None:
        """Histograms of trained students of the fewest steps."""
        steps, n = min(self.settings.steps), min(20_000, self.settings.exact_n)
        generator = derive_generator(self.seed, Stream.MIXTURE_DATA_FIGURE)
        histograms = {"data": LAW.sample(n, generator)}
        for name in TRAINED:
            student = self.students[steps, name][0].student
            generator = derive_generator(self.seed, Stream.MIXTURE_FIGURE)
            drawn = self.march(student, student.grid())(n, generator)
            histograms[f"student, {steps} steps, {name}"] = drawn
        histogram_plot(histograms, density, path)
