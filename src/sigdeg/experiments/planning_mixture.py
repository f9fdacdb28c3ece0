"""Grids on 1DN: where a nonlinear teacher decides is measured, not read off a spectrum."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sigdeg.denoiser import GaussianMixtureDenoiser
from sigdeg.distillation import Distilled, TeacherPaths, distill
from sigdeg.experiments.mixture1d import LAW, SCHEDULE, STD, density
from sigdeg.experiments.planning_presets import MixtureSettings
from sigdeg.grids import coarse_grid, fine_grid, refine
from sigdeg.metrics import w1_exact
from sigdeg.networks import ResidualMLP
from sigdeg.planning import FineSDE, MeasuredCost, dp_grid, measured_cost
from sigdeg.planning.measured import StepRegression
from sigdeg.report import histogram_plot
from sigdeg.results import Row, Summary, grid_name, make_row, merge, single, summarise
from sigdeg.rng import Stream, derive_generator, seeded
from sigdeg.runs import remember
from sigdeg.sampling import sample
from sigdeg.steps import EulerMaruyama, Step
from sigdeg.student import SignatureStudent

__all__ = ["MixtureGrids"]

CANDIDATES = 18  # steps between candidate times: 19 of them, denser near the data
REFINEMENT = 16  # fine steps between two
MEASURED_PATHS = 5000
ORDER = 2
POWERS = (1.0, 1.5, 2.0)
TRAINED = ("planned", "uniform")  # the grids of trained students
LEAST_SQUARES = "1DN, the most flexible student: least squares on cubic features"


class MixtureGrids:
    """The mixture's exact teacher, its measured costs, and students on planned and other grids."""

    def __init__(
        self, settings: MixtureSettings, out: Path, seed: int, device: str, progress: bool
    ) -> None:
        self.settings, self.out, self.seed = settings, out, seed
        self.options: dict[str, Any] = {"device": device, "progress": progress}
        denoiser = GaussianMixtureDenoiser(LAW.means, LAW.stds, LAW.weights, SCHEDULE)
        self.teacher = EulerMaruyama(denoiser)
        self.cost: MeasuredCost = measured_cost(
            self.teacher,
            coarse_grid(SCHEDULE, CANDIDATES),
            (1,),
            ORDER,
            MEASURED_PATHS,
            REFINEMENT,
            features="cubic",
            generator=derive_generator(seed, Stream.PLANNING_MIXTURE_COST),
        )
        self.students: dict[tuple[int, str], list[Distilled]] = {}

    def grids(self, steps: int) -> dict[str, Tensor]:
        """Grids of as many steps by name; `spectrum` is the plan for Gaussian data."""
        spectrum = dp_grid(FineSDE([LAW.variance], 256, SCHEDULE), steps).times
        powers = {grid_name(p): coarse_grid(SCHEDULE, steps, power=p) for p in POWERS}
        return {"planned": self.cost.grid(steps).times, **powers, "spectrum": spectrum}

    @property
    def planning_nfe(self) -> int:
        """Teacher calls behind the measured costs."""
        return MEASURED_PATHS * CANDIDATES * REFINEMENT

    def rows(self) -> list[Row]:
        """The teacher, trained students, and the side table of least-squares students."""
        seeds = range(self.seed, self.seed + self.settings.seeds)
        fine = fine_grid(SCHEDULE, self.settings.fine_steps, "power")
        metrics = merge([self.judge(self.teacher, fine, s) for s in seeds])
        rows = [make_row("teacher", self.teacher, len(fine) - 1, metrics, grid="power 2", order=1)]
        for steps in self.settings.steps:
            grids = self.grids(steps)
            for name in TRAINED:
                results = [self.distil(steps, name, grids[name], s) for s in seeds]
                self.students[steps, name] = results
                metrics = merge(
                    [
                        self.judge(r.student, r.student.grid(), s)
                        for r, s in zip(results, seeds, strict=True)
                    ]
                )
                student = results[0].student
                more: dict[str, Any] = {
                    "train_seconds": statistics.fmean(r.seconds for r in results),
                    "teacher_nfe": results[0].teacher_nfe,
                }
                rows.append(self.row(student, steps, name, grids[name], metrics, **more))
        for steps in self.settings.steps:
            for name, grid in self.grids(steps).items():
                file = self.out / "judged" / f"least-squares-{steps}-{name.replace(' ', '-')}.json"
                found = remember(file, partial(self.regressions, grid))
                more = {
                    "study": LEAST_SQUARES,
                    "variant": f"{steps} steps, {name}",
                    "teacher_nfe": self.settings.regression_paths * self.refinement(steps) * steps,
                }
                metrics = summarise(found["draws"])
                rows.append(self.row(nn.Identity(), steps, name, grid, metrics, **more))
        return rows

    def row(
        self,
        model: nn.Module,
        steps: int,
        name: str,
        grid: Tensor,
        metrics: dict[str, Summary],
        **more: Any,
    ) -> Row:
        """A student's row."""
        return make_row(
            "sig-deg",
            model,
            steps,
            metrics,
            order=ORDER,
            grid=name,
            times=grid.tolist(),
            seeds=self.settings.seeds,
            planning_nfe=self.planning_nfe if name == "planned" else None,
            **more,
        )

    def refinement(self, steps: int) -> int:
        """Fine teacher steps a coarse step."""
        return max(2, self.settings.fine_steps // steps)

    def distil(self, steps: int, name: str, grid: Tensor, seed: int) -> Distilled:
        """Distil one student on a grid with one seed."""
        network = seeded(seed, lambda: ResidualMLP(SignatureStudent.in_channels(1, ORDER), 1))
        times = grid.tolist()
        student = SignatureStudent(
            network, SCHEDULE, 1, ORDER, steps=(steps,), times=times, data_std=STD
        )
        return distill(
            student,
            self.teacher,
            self.out / "students" / f"mixture-{steps}-{name.replace(' ', '-')}-seed-{seed}",
            self.settings.config,
            judge=0,
            refinement=self.refinement(steps),
            seed=seed,
            **self.options,
        )

    def judge(self, step: Step, grid: Tensor, seed: int) -> dict[str, Summary]:
        """Distance of a step's samples to the exact law."""
        n, generator = self.settings.exact_n, derive_generator(seed, Stream.MIXTURE_DRAWS)
        drawn = sample(step, grid, (n, 1), generator=generator, batch_size=20_000)
        return {"w1_exact": single(w1_exact(drawn, LAW), 1)}

    def floor(self) -> dict[str, Summary]:
        """The same of real samples, ten times over."""
        generators = [derive_generator(self.seed, Stream.MIXTURE_FLOOR, i) for i in range(10)]
        n = self.settings.exact_n
        return summarise([{"w1_exact": w1_exact(LAW.sample(n, g), LAW)} for g in generators])

    def regressions(self, grid: Tensor) -> dict[str, Any]:
        """The same of students fitted by least squares, step by step, one a seed."""
        seeds = range(self.seed, self.seed + self.settings.seeds)
        return {"draws": [{"w1_exact": self.regression(grid, seed)} for seed in seeds]}

    def regression(self, grid: Tensor, seed: int) -> float:
        """Fit a least-squares student of a grid, march it, and compare with the exact law."""
        rows = list(refine(SCHEDULE, grid, self.refinement(len(grid) - 1)))
        paths = TeacherPaths(self.teacher, rows, (1,), ORDER)
        batch = paths.draw(
            self.settings.regression_paths, derive_generator(seed, Stream.PLANNING_MIXTURE_PATHS)
        )
        # The law is symmetric: with every path its mirror image, no mode has more of them.
        states, coefficients = (
            torch.cat([v, -v]).double().numpy() for v in (batch.states, batch.coefficients)
        )
        n, generator = self.settings.exact_n, derive_generator(seed, Stream.PLANNING_MIXTURE_DRAWS)
        z = SCHEDULE.prior_std * torch.randn(n, 1, generator=generator).double().numpy()
        for k in range(len(rows)):
            step = StepRegression.fit(
                states[:, k], coefficients[:, k], states[:, k + 1], "cubic", knots=16
            )
            z = step(z, torch.randn(n, ORDER, 1, generator=generator).double().numpy())
        return w1_exact(z, LAW)

    def histograms(self, path: Path) -> None:
        """Histograms of trained students of the fewest steps."""
        steps, n = min(self.settings.steps), min(20_000, self.settings.exact_n)
        histograms = {
            "data": LAW.sample(n, derive_generator(self.seed, Stream.MIXTURE_DATA_FIGURE))
        }
        for name in TRAINED:
            student = self.students[steps, name][0].student
            label = f"student, {steps} steps, {name}"
            generator = derive_generator(self.seed, Stream.MIXTURE_FIGURE)
            histograms[label] = sample(student, student.grid(), (n, 1), generator=generator)
        histogram_plot(histograms, density, path)
