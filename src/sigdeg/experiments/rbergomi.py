"""Rough Bergomi, the paper's time series (4.1.3, C.4): log-price and log-variance at 25 dates.

A residual network is trained on 60,000 simulated paths and marched by Euler-Maruyama; students are
distilled from it and compared with it, with real paths, and with training-free solvers that take as
many calls. Whatever is chosen, a solver's grid or a recipe in a side table, is chosen by validation
paths; the main table is judged by test paths. What the presets train stands in
`rbergomi_presets.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sigdeg.codec import Standardise
from sigdeg.datasets import RoughBergomi, rough_bergomi_split
from sigdeg.denoiser import NetworkDenoiser
from sigdeg.distillation import Distilled, TeacherPaths
from sigdeg.experiments import paper
from sigdeg.experiments.bench import Benchmark, Draw, Spec
from sigdeg.experiments.rbergomi_presets import PRESETS, Settings
from sigdeg.grids import coarse_grid, fine_grid, refine
from sigdeg.integrations.solvers import SOLVERS
from sigdeg.metrics import (
    autocorrelation_discrepancy,
    average_w1,
    correlation_discrepancy,
    energy_distance,
    increment_w1,
    marginal_loss,
    median_path_error,
    path_error,
    skew_error,
    tail_error,
)
from sigdeg.networks import ResidualMLP
from sigdeg.report import diffusion_plot, marginals_plot, paths_plot
from sigdeg.results import Summary, count_calls, grid_name, merge, summarise
from sigdeg.rng import Stream, derive_generator, seeded
from sigdeg.schedule import VPLinear
from sigdeg.steps import EulerMaruyama, Exponential, Step
from sigdeg.student import SignatureStudent
from sigdeg.training import train_teacher

__all__ = ["PRESETS", "Series", "Settings", "run"]

SCHEDULE = VPLinear()
MODEL = RoughBergomi()
# The data are the same in every run. The test paths of seed 0 hold one of log-price -13.9, which
# alone would double the floor of the correlation.
DATA_SEED = 1
METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "w1": average_w1,
    "iw1": increment_w1,
    "marginal": marginal_loss,
    "correlation": correlation_discrepancy,
    "autocorrelation": autocorrelation_discrepancy,
    # Its cost grows with the square of the paths: a half of them tell enough.
    "energy": lambda x, y: energy_distance(x[: len(x) // 2], y[: len(y) // 2]),
    "tails": tail_error,
    "skew": skew_error,
}
QUALITY = ("w1", "iw1")  # what a solver's grid is chosen by, and an equal is told by
PATHS = 2000  # fresh teacher paths behind `path`
STUDY_DRAWS = 2
SHOWN = 5000  # paths behind the other figures
TRAJECTORIES = 40  # samples in the figures of lines
CHOSEN = (0, 12, 24)  # dates in the figure of diffusion


class Series(Benchmark[Settings]):
    """The teacher, paths to judge by, and the students."""

    name = "rbergomi"
    title = "Rough Bergomi: log-price and log-variance at 25 dates"
    presets = PRESETS
    quality = ("w1", "Wasserstein-1 distance to test paths, mean of 50 coordinates")
    rivals = QUALITY
    paper = paper.RBERGOMI
    batch = 2000  # small batches stay in the cache

    def prepare(self) -> None:
        self.timing_n, self.network = self.settings.timing_n, self.settings.network
        cache = self.out / "data.safetensors"
        self.split = rough_bergomi_split(DATA_SEED, self.settings.n, model=MODEL, cache=cache)
        self.data = self.split.standardise(self.split.train)
        self.codec = Standardise(self.split.mean, self.split.std)
        self.shape = (dim,) = tuple(self.data.shape[1:])
        network = seeded(self.seed, lambda: ResidualMLP(dim, dim, *self.network))
        self.denoiser, curve = train_teacher(
            NetworkDenoiser(network, SCHEDULE, "edm", data_std=1.0),
            self.data,
            self.out / "teacher",
            self.settings.teacher,
            seed=self.seed,
            **self.options,
        )
        self.curves["teacher"] = curve.tolist()
        self.teacher = EulerMaruyama(self.denoiser)
        self.teachers = {"": self.teacher}

    @property
    def summary(self) -> str:
        return (
            f"Students of a diffusion model of rough volatility, judged by {len(self.split.test):,}"
            " samples against as many simulated test paths. Grids of the solvers and side tables: "
            "by as many validation paths."
        )

    def distill(self, spec: Spec, seed: int) -> Distilled:
        config = self.settings.config
        covariance = torch.cov(self.data.double().T) if spec.covariance else None
        return self.train(
            spec,
            seed,
            self.make_student(spec, seed, covariance=covariance),
            config=config,
            data=self.data if spec.data else None,
            states="data" if spec.data else "teacher",
            paths=config.paths if spec.paths is None else spec.paths,
            q=spec.q,
            normalise=spec.normalise,
            iterations=spec.iterations or config.iterations,
            refinement=self.settings.fine_steps // max(spec.steps),
        )

    def measure(
        self, series: Tensor, study: bool = False, keys: Sequence[str] = tuple(METRICS)
    ) -> dict[str, float]:
        """Metrics of a set of paths against the test paths, those of a study against validation."""
        real = self.split.validation if study else self.split.test
        return {key: METRICS[key](series, real) for key in keys}

    def judge(
        self,
        name: str,
        draw: Draw,
        seed: int | None = None,
        draws: int | None = None,
        study: bool = False,
    ) -> dict[str, Summary]:
        """Metrics over several draws of as many samples as there are real paths.

        By default there are as many draws as of a student over all its training seeds.
        """
        n, seed = len(self.split.test), self.seed if seed is None else seed
        draws = draws or self.settings.draws * self.settings.seeds

        def work(i: int) -> dict[str, float]:
            generator = derive_generator(seed, Stream.SERIES_DRAWS, i)
            return self.measure(self.split.restore(draw(n, generator)), study)

        kind = "study " if study else ""
        return summarise(self.recall(f"{kind}{name} seed {seed}", work, draws))

    def score(self, draw: Draw) -> float:
        """The sum of W1 of levels and of increments to validation paths."""
        generator = derive_generator(self.seed, Stream.SERIES_VALIDATION)
        series = self.split.restore(draw(len(self.split.validation), generator))
        return sum(self.measure(series, True, QUALITY).values())

    def floor(self) -> dict[str, Summary]:
        """The metrics of real paths, ten sets as large as that of the test paths."""

        def work(i: int) -> dict[str, float]:
            generator = derive_generator(self.seed, Stream.SERIES_FLOOR, i)
            return self.measure(MODEL.sample(len(self.split.test), generator))

        return summarise(self.recall("floor", work, 10))

    def path(
        self, spec: Spec, steps: int, student: SignatureStudent, seed: int
    ) -> dict[str, Summary]:
        """Distance to the teacher's ends on fresh paths driven by the same noise."""

        def work(_: int) -> dict[str, float]:
            longest = max(spec.steps)
            finest = student.grid(longest)
            refinement, power = self.settings.fine_steps // longest, self.settings.config.fine_power
            rows = list(refine(SCHEDULE, finest, refinement, power))
            paths = TeacherPaths(self.teacher, rows, self.shape, student.order)
            batch = paths.draw(PATHS, derive_generator(seed, Stream.SERIES_PATHS))
            with torch.no_grad():
                ends = batch.coarsen(finest, longest // steps).replay(student, student.grid(steps))
            teachers = batch.states[:, -1]
            median = median_path_error(ends, teachers)
            return {"path": path_error(ends, teachers), "path_median": median}

        return summarise(self.recall(f"path {spec.slug} at {steps} seed {seed}", work))

    def fill(self) -> None:
        distilled = self.distill_all(self.settings.specs, self.settings.seeds)
        for steps, power, draws in self.settings.teachers:
            self.fine = fine_grid(SCHEDULE, steps, "power", power)
            draw = self.march(self.teacher, self.fine)
            metrics = self.judge(f"teacher {steps} {power}", draw, draws=draws)
            columns = {"steps": steps, "order": 1, "seeds": 1}
            self.reference = self.add_step(
                "teacher", self.teacher, self.fine, metrics, grid=grid_name(power), **columns
            )
        if self.reference:
            self.over[count_calls(self.rows[0]["nfe"])] = 0
        for spec, results in distilled.items():
            for steps in spec.steps:
                self.add_student(spec, steps, results)
        for steps in self.settings.peers:
            step, grid = Exponential(self.denoiser), coarse_grid(SCHEDULE, steps)
            metrics = self.judge(f"untrained {steps}", self.march(step, grid))
            told = {"grid": grid_name(1.5), "order": 1, "seeds": 1}
            self.add_step("untrained", step, grid, metrics, **told)
            for method in SOLVERS:
                self.add_solver(method, steps)
        self.shown = self.show(distilled)
        self.student = self.shown["student, 5 calls"]

    def add_student(
        self, spec: Spec, steps: int, results: Sequence[Distilled], **columns: Any
    ) -> None:
        """The row of a student at one of its step counts, over its training seeds."""
        parts = []
        for seed, result in enumerate(results, start=self.seed):
            draw = self.march(result.student, result.student.grid(steps))
            draws = STUDY_DRAWS if spec.study else self.settings.draws
            metrics = self.judge(f"{spec.slug} at {steps}", draw, seed, draws, bool(spec.study))
            parts.append(metrics | self.path(spec, steps, result.student, seed))
        first = results[0].student
        row = self.student_row(spec, steps, results, merge(parts), **columns)
        self.add(row, self.march(first, first.grid(steps)))

    def draw_figures(self) -> Mapping[str, str]:
        """Figures 5 to 9 of the paper."""
        folder, n = self.out / "figures", min(SHOWN, len(self.split.test))
        steps: dict[str, tuple[Step, Tensor]] = {
            f"teacher, {count_calls(len(self.fine) - 1)}": (self.teacher, self.fine),
            **{label: (student, student.grid()) for label, student in self.shown.items()},
        }
        series, marches = {"data": self.split.test}, {}
        at = [*CHOSEN, *(25 + i for i in CHOSEN)]
        for label, (step, grid) in steps.items():
            generator = derive_generator(self.seed, Stream.SERIES_FIGURE)
            series[label] = self.split.restore(self.march(step, grid)(n, generator))
            marches[label] = grid, self.states(step, grid, TRAJECTORIES)[..., at]
        dates = torch.arange(1, 26) / 25
        names = [f"log {what}, t = {dates[i]:g}" for what in ("price", "variance") for i in CHOSEN]
        levels = {label: x.exp() for label, x in series.items()}
        paths_plot(levels, dates, ("price", "variance"), folder / "paths.png")
        for i, what in enumerate(("log-price", "log-variance")):
            one = {label: x[:, i] for label, x in series.items()}
            marginals_plot(one, dates, folder / f"marginals-{what}.png")
        diffusion_plot(marches, names, folder / "diffusion.png")
        return {
            "paths": "Prices and variances on a logarithmic scale (the paper's Figure 5).",
            "marginals-log-price": "Marginals of the log-price (the paper's Figure 6 has those of "
            "its returns).",
            "marginals-log-variance": "Marginals of the log-variance (its Figure 7 has those of "
            "increments).",
            "diffusion": "Six coordinates, standardised, from noise to data in diffusion time, "
            "with the same seeds (its Figures 8 and 9).",
        }


run = Series.run
