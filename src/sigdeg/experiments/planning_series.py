"""Rough Bergomi: grids from costs along the data's principal components, and plans of merges."""

from __future__ import annotations

import dataclasses
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sigdeg.distillation import CachedPaths, Distilled, TeacherPaths, distill
from sigdeg.experiments import rbergomi
from sigdeg.experiments.bench import Draw
from sigdeg.experiments.planning_presets import SeriesSettings
from sigdeg.experiments.rbergomi import MODEL, SCHEDULE, Series
from sigdeg.grids import coarse_grid, fine_grid, refine
from sigdeg.metrics import median_path_error, path_error
from sigdeg.planning import LinearStudent, Spectrum, measured_cost, recommend_grid
from sigdeg.results import Row, Summary, grid_name, make_row, merge, summarise
from sigdeg.rng import Stream, derive_generator
from sigdeg.runs import remember
from sigdeg.student import SignatureStudent

__all__ = ["GRIDS", "PLANS", "SeriesGrids"]

CANDIDATES = 18  # steps between candidate times
REFINEMENT = 8  # fine steps between two
POWERS = (1.0, 1.5, 2.0, 3.0)
METRICS = ("w1", "iw1", "marginal", "correlation")
TEACHER_SEED = 0  # one teacher, whatever the seed of the run
PATHS = 2000  # fresh teacher paths behind `path`
GRIDS = "Rough Bergomi: grids, one small training budget"
PLANS = "Rough Bergomi: plans, as many optimiser steps a round"


class SeriesGrids:
    """The teacher of rough Bergomi, its measured costs, and students on planned and other grids."""

    def __init__(
        self, settings: SeriesSettings, out: Path, seed: int, device: str, progress: bool
    ) -> None:
        self.settings, self.out, self.seed = settings, out, seed
        self.options: dict[str, Any] = {"device": device, "progress": progress}
        folder = out / "rbergomi"
        trained = out.parent / f"rbergomi-{settings.teacher}" / "teacher"
        if trained.is_dir() and not (folder / "teacher").exists():
            part = folder / ".teacher"  # whole or not at all
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(trained, part).rename(folder / "teacher")
        preset = dataclasses.replace(rbergomi.PRESETS[settings.teacher], n=settings.n)
        self.bench = Series(preset, folder, seed=TEACHER_SEED, **self.options)
        self.bench.prepare()
        self.covariance = torch.cov(self.bench.data.double().T)

    @property
    def planning_nfe(self) -> int:
        """Teacher calls behind the measured costs."""
        return self.settings.measured_paths * CANDIDATES * REFINEMENT

    def planned(self) -> dict[str, Any]:
        """Planned times by step count and name, as in the file that keeps them."""

        def measure() -> dict[str, Any]:
            spectrum, directions = torch.linalg.eigh(self.covariance)
            cost = measured_cost(
                self.bench.teacher,
                coarse_grid(SCHEDULE, CANDIDATES),
                self.bench.shape,
                self.settings.order,
                self.settings.measured_paths,
                REFINEMENT,
                directions=directions,
                generator=derive_generator(self.seed, Stream.PLANNING_SERIES_COST),
                device=self.options["device"],
            )
            known, student = Spectrum.of_eigenvalues(spectrum), LinearStudent(self.settings.order)
            plans = {
                steps: {
                    "planned": recommend_grid(known, SCHEDULE, steps, student)
                    .with_measured(cost)
                    .best,
                    "measured": cost.grid(steps),
                    "measured, relative cost": cost.grid(steps, "relative"),
                    "measured, plain cost": cost.grid(steps, "plain"),
                }
                for steps in self.settings.steps
            }
            return {
                str(steps): {name: plan.times.tolist() for name, plan in named.items()}
                for steps, named in plans.items()
            }

        return remember(self.out / "judged" / "series-planned.json", measure)

    def rows(self) -> list[Row]:
        """The teacher's row and those of students on every grid."""
        plans, fine = self.plan_rows(), fine_grid(SCHEDULE, self.settings.fine_steps, "power")
        draw = self.bench.march(self.bench.teacher, fine)
        calls = len(fine) - 1
        found = self.judge(f"teacher-{calls}", draw, self.seed)
        rows = [
            make_row("teacher", self.bench.denoiser, calls, found, study=GRIDS, variant="teacher")
        ]
        for steps in self.settings.steps:
            grids = {grid_name(p): coarse_grid(SCHEDULE, steps, power=p) for p in POWERS}
            planned = self.planned()[str(steps)]
            grids |= {name: torch.tensor(t, dtype=torch.float64) for name, t in planned.items()}
            for name, grid in grids.items():
                slug = f"series-{steps}-{re.sub('[^a-z0-9]+', '-', name)}"
                row = self.row(slug, grid)
                row.update({"grid": name, "times": grid.tolist()})
                row.update({"study": GRIDS, "variant": f"{steps} steps, {name}"})
                rows.append(row)
                if name in planned:
                    rows[-1]["planning_nfe"] = self.planning_nfe
        return rows + plans

    def plan_rows(self) -> list[Row]:
        """Students of one grid: one shot, and merged by plans."""
        rows, steps = [], self.settings.plan_steps
        grid = coarse_grid(SCHEDULE, steps)
        for spec in self.settings.plans:
            slug = f"plan-{re.sub('[^a-z0-9]+', '-', spec.name)}"
            options: dict[str, Any] = {"paths": spec.paths, "iterations": spec.iterations}
            if spec.data:
                options |= {"states": "data", "data": self.bench.data}
            row = self.judged_row(slug, grid, plan=spec.plan, **options)
            row.update({"study": PLANS, "variant": spec.name, "plan": spec.name})
            row.update({"tree": spec.plan, "grid": grid_name(1.5), "iterations": spec.iterations})
            rows.append(row)
        return rows

    def row(self, slug: str, grid: Tensor) -> Row:
        """Distil students on a grid, one a seed, from the same paths, and judge them."""
        config, refinement = self.settings.config, self.refinement(len(grid) - 1)
        rows = list(refine(SCHEDULE, grid, refinement, config.fine_power))
        shape, order = self.bench.shape, self.settings.order
        cache = CachedPaths(
            TeacherPaths(self.bench.teacher, rows, shape, order, device=self.options["device"]),
            self.out / "paths" / slug,
            config.paths,
            self.seed,
            config.held_out,
            progress=self.options["progress"],
        )
        return self.judged_row(slug, grid, cache=cache)

    def judged_row(self, slug: str, grid: Tensor, **options: Any) -> Row:
        """The row of a grid's students, one a seed; `options` are those of `distill`."""
        results, parts = [], []
        for seed in range(self.seed, self.seed + self.settings.seeds):
            own = f"{slug}-seed-{seed}"
            results.append(self.distil(own, grid, seed, **options))
            student = results[-1].student
            found = self.judge(own, self.bench.march(student, student.grid()), seed)
            parts.append(found | self.path(own, student, seed))
        first = results[0]
        return make_row(
            "sig-deg",
            first.student,
            len(grid) - 1,
            merge(parts),
            order=self.settings.order,
            seeds=len(results),
            train_seconds=statistics.fmean(r.seconds for r in results),
            teacher_nfe=first.teacher_nfe,
        )

    def refinement(self, steps: int) -> int:
        """Fine teacher steps a coarse step."""
        return max(2, self.settings.fine_steps // steps)

    def distil(self, slug: str, grid: Tensor, seed: int, **options: Any) -> Distilled:
        """Distil one student on a grid with one seed."""
        steps = len(grid) - 1
        student = SignatureStudent.from_denoiser(
            self.bench.denoiser,
            self.bench.shape[0],
            self.settings.order,
            steps=(steps,),
            times=grid.tolist(),
            covariance=self.covariance,
            lookahead=0.0,
            residual_noise=None,
        )
        return distill(
            student,
            self.bench.teacher,
            self.out / "students" / slug,
            self.settings.config,
            judge=0,
            refinement=self.refinement(steps),
            seed=seed,
            **options | self.options,
        )

    def measure(self, series: Tensor) -> dict[str, float]:
        """Metrics of a set of paths against the test paths."""
        test = self.bench.split.test
        return {key: rbergomi.METRICS[key](series, test) for key in METRICS}

    def judge(self, slug: str, draw: Draw, seed: int) -> dict[str, Summary]:
        """Metrics over several draws of as many samples as there are test paths."""
        split = self.bench.split

        def compute() -> dict[str, Any]:
            generators = [
                derive_generator(seed, Stream.SERIES_DRAWS, i) for i in range(self.settings.draws)
            ]
            drawn = (split.restore(draw(len(split.test), g)) for g in generators)
            return {"draws": [self.measure(series) for series in drawn]}

        return summarise(remember(self.out / "judged" / f"{slug}.json", compute)["draws"])

    def path(self, slug: str, student: SignatureStudent, seed: int) -> dict[str, Summary]:
        """Distance to the teacher's ends on fresh paths driven by the same noise."""

        def compute() -> dict[str, Any]:
            grid = student.grid()
            rows = list(refine(SCHEDULE, grid, self.refinement(len(grid) - 1)))
            teacher, shape = self.bench.teacher, self.bench.shape
            batch = TeacherPaths(teacher, rows, shape, student.order).draw(
                PATHS, derive_generator(seed, Stream.SERIES_PATHS)
            )
            with torch.no_grad():
                ends, own = batch.replay(student, grid), batch.states[:, -1]
            found = {"path": path_error(ends, own), "path_median": median_path_error(ends, own)}
            return {"draws": [found]}

        return summarise(remember(self.out / "judged" / f"path-{slug}.json", compute)["draws"])

    def floor(self) -> dict[str, Summary]:
        """The metrics of real paths, ten sets as large as that of the test paths."""
        n = len(self.bench.split.test)

        def compute() -> dict[str, Any]:
            generators = [derive_generator(self.seed, Stream.SERIES_FLOOR, i) for i in range(10)]
            return {"draws": [self.measure(MODEL.sample(n, g)) for g in generators]}

        return summarise(remember(self.out / "judged" / "floor.json", compute)["draws"])
