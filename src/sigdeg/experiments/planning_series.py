"""Rough Bergomi: grids from costs along the data's principal components, and plans of merges.

Side tables are judged by validation paths. What they choose, a power grid and a plan, is judged by
test paths beside what needs no choice.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sigdeg.distillation import Distilled
from sigdeg.experiments import rbergomi
from sigdeg.experiments.bench import Spec, slugify
from sigdeg.experiments.planning_grids import CHOSEN, GRIDS, Grids, GridSpec
from sigdeg.experiments.planning_presets import SeriesSettings
from sigdeg.experiments.rbergomi import QUALITY, SCHEDULE, Series
from sigdeg.grids import coarse_grid, fine_grid, refine
from sigdeg.paths import CachedPaths, TeacherPaths
from sigdeg.planning import LinearStudent, Spectrum, measured_cost, recommend_grid
from sigdeg.results import Row, grid_name, make_row
from sigdeg.rng import Stream, derive_generator
from sigdeg.runs import remember

__all__ = ["SeriesGrids"]

CANDIDATES = 18  # steps between candidate times
REFINEMENT = 8  # fine steps between two
POWERS = {grid_name(power): power for power in (1.0, 1.5, 2.0, 3.0)}
METRICS = ("w1", "iw1", "marginal", "correlation")
TEACHER_SEED = 0  # one teacher, whatever the seed of the run


class SeriesGrids(Grids, Series):
    """The teacher of rough Bergomi, its measured costs, and students on planned and other grids."""

    def __init__(self, settings: SeriesSettings, out: Path, **options: Any) -> None:
        names = ("n", "config", "seeds", "draws", "fine_steps")
        shared: dict[str, Any] = {name: getattr(settings, name) for name in names}
        super().__init__(
            dataclasses.replace(rbergomi.PRESETS[settings.teacher], **shared), out, **options
        )
        self.preset, self.fine_steps = settings, settings.fine_steps

    def prepare(self) -> None:
        """Take the teacher of the benchmark's run beside this one, or train it."""
        trained = self.out.parents[1] / f"rbergomi-{self.preset.teacher}" / "teacher"
        if trained.is_dir() and not (self.out / "teacher").exists():
            part = self.out / ".teacher"  # whole or not at all
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(trained, part).rename(self.out / "teacher")
        seed, self.seed = self.seed, TEACHER_SEED
        super().prepare()
        self.seed, self.timing_n = seed, 0
        self.covariance = torch.cov(self.data.double().T)

    def plan(self) -> dict[str, Any]:
        """Planned times by step count and name, and the teacher calls that they took."""
        spectrum, directions = torch.linalg.eigh(self.covariance)
        cost = measured_cost(
            self.teacher,
            coarse_grid(SCHEDULE, CANDIDATES),
            self.shape,
            self.preset.order,
            self.preset.measured_paths,
            REFINEMENT,
            directions=directions,
            generator=derive_generator(self.seed, Stream.PLANNING_SERIES_COST),
            device=self.device,
        )
        known, student = Spectrum.of_eigenvalues(spectrum), LinearStudent(self.preset.order)
        found: dict[str, Any] = {"teacher_nfe": cost.teacher_nfe}
        for steps in self.preset.steps:
            advice = recommend_grid(known, SCHEDULE, steps, student).with_measured(cost)
            plans = {
                "planned": advice.best,
                "measured": cost.grid(steps),
                "measured, relative cost": cost.grid(steps, "relative"),
                "measured, plain cost": cost.grid(steps, "plain"),
            }
            found[str(steps)] = {name: plan.times.tolist() for name, plan in plans.items()}
        return found

    def fill(self) -> None:
        """Add the side tables, then what they choose."""
        found = remember(self.out / "judged" / "planned.json", self.plan)
        self.planning_nfe = found["teacher_nfe"]
        plans = list(self.preset.plans)
        for steps in {*self.preset.steps, *(max(spec.steps) for spec in plans)}:
            planned = found.get(str(steps), {})
            self.tables[steps] = {
                **{name: coarse_grid(SCHEDULE, steps, power=p) for name, p in POWERS.items()},
                **{name: torch.tensor(t, dtype=torch.float64) for name, t in planned.items()},
            }
        grids = [
            GridSpec(
                (steps,),
                self.preset.order,
                grid=name,
                study=GRIDS,
                variant=f"{steps} steps, {name}",
            )
            for steps in self.preset.steps
            for name in self.tables[steps]
        ]
        self.add_teacher(GRIDS, study=True)
        students = self.distill_all(grids + plans)
        scores: dict[Spec, float] = {}
        for spec, results in students.items():
            row = self.add_grid(spec, results)
            scores[spec] = sum(row["metrics"][key]["mean"] for key in QUALITY)
        chosen = [plans[0], min(plans, key=scores.__getitem__)] if plans else []
        for steps in self.preset.steps:
            own = [spec for spec in grids if spec.steps == (steps,)]
            powers = [spec for spec in own if spec.grid in POWERS]
            chosen += [min(powers, key=scores.__getitem__)]
            chosen += [spec for spec in own if spec.grid == "planned"]
        self.add_teacher(CHOSEN)
        for spec in dict.fromkeys(chosen):
            # Without a study it is judged by test paths.
            self.add_grid(dataclasses.replace(spec, study=""), students[spec], study=CHOSEN)

    def add_teacher(self, table: str, study: bool = False) -> None:
        """The teacher's row in a side table."""
        fine = fine_grid(SCHEDULE, self.fine_steps, "power")
        metrics = self.judge("teacher", self.march(self.teacher, fine), study=study)
        told = {"study": table, "variant": "teacher"}
        self.add(make_row("teacher", self.denoiser, len(fine) - 1, metrics, **told))

    def add_grid(self, spec: Spec, results: Sequence[Distilled], **more: Any) -> Row:
        """The row of a student on its grid."""
        assert isinstance(spec, GridSpec)
        steps = max(spec.steps)
        if spec.plan:
            more |= {"plan": spec.plan, "tree": spec.tree, "iterations": spec.iterations}
        self.add_student(spec, steps, results, **self.told(steps, spec.grid), **more)
        return self.rows[-1]

    def distill_all(self, specs: Sequence[Spec], seeds: int = 1) -> dict[Spec, list[Distilled]]:
        """Distil every student with all seeds."""
        seeds = self.settings.seeds
        return {spec: [self.distill(spec, self.seed + i) for i in range(seeds)] for spec in specs}

    def distill(self, spec: Spec, seed: int) -> Distilled:
        """Distil a student: its own paths by its plan, or all seeds on the paths of its grid."""
        assert isinstance(spec, GridSpec)
        grid, config = self.times(spec), self.settings.config
        refinement = self.refinement(len(grid) - 1)
        student = self.make_student(spec, seed, times=grid.tolist(), covariance=self.covariance)
        options: dict[str, Any]
        if not spec.plan:
            rows = list(refine(SCHEDULE, grid, refinement, config.fine_power))
            paths = TeacherPaths(self.teacher, rows, self.shape, spec.order, device=self.device)
            folder = self.out / "paths" / slugify(spec.variant)
            more = {"progress": self.options["progress"]}
            cache = CachedPaths(paths, folder, config.paths, self.seed, config.held_out, **more)
            options = {"cache": cache}
        else:
            options = {"paths": spec.paths, "iterations": spec.iterations, "plan": spec.tree}
            if spec.data:
                options |= {"states": "data", "data": self.data}
        return self.train(spec, seed, student, config=config, refinement=refinement, **options)

    def measure(
        self, series: Tensor, study: bool = False, keys: Sequence[str] = METRICS
    ) -> dict[str, float]:
        return super().measure(series, study, keys)
