"""Rough Bergomi, the paper's time series (4.1.3, C.4): log-price and log-variance at 25 dates.

A residual network is trained on 60,000 simulated paths and marched by Euler-Maruyama; students are
distilled from it and compared with it, with real paths, and with training-free solvers that take as
many calls. Whatever is chosen, a solver's grid or a recipe in a side table, is chosen by validation
paths; the main table is judged by test paths. What the presets train stands in
`rbergomi_presets.py`.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from sigdeg.datasets import RoughBergomi, SeriesSplit, rough_bergomi_split
from sigdeg.denoiser import NetworkDenoiser
from sigdeg.distillation import Distilled, TeacherPaths, distill
from sigdeg.experiments import paper
from sigdeg.experiments.rbergomi_presets import DEFAULT, PRESETS, Settings, Spec
from sigdeg.grids import coarse_grid, fine_grid, refine
from sigdeg.integrations import SOLVERS, solver_grids, solver_sample
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
from sigdeg.report import diffusion_plot, marginals_plot, paths_plot, write_report
from sigdeg.results import (
    Row,
    Summary,
    add_equal_quality,
    add_rivals,
    add_speed,
    count_calls,
    grid_name,
    make_row,
    merge,
    save_results,
    summarise,
)
from sigdeg.rng import Stream, derive_generator, seeded
from sigdeg.runs import claim_folder, remember
from sigdeg.sampling import sample
from sigdeg.schedule import VPLinear
from sigdeg.steps import EulerMaruyama, Exponential, Step
from sigdeg.student import SignatureStudent
from sigdeg.timing import paired_seconds
from sigdeg.training import resolve_device, train_teacher

__all__ = ["DEFAULT", "PRESETS", "Settings", "run"]

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

Draw = Callable[[int, Generator], Tensor]


def run(
    out: Path,
    preset: str = DEFAULT,
    seed: int = 0,
    device: str | None = None,
    data_dir: Path | None = None,
    progress: bool = True,
) -> Path:
    """Run the benchmark and write `results.json`, figures and the report into a folder.

    The same call resumes an interrupted run. `data_dir` is not used: the data are simulated.

    Raises:
        SigdegError: If the folder holds another run, or its data are damaged.
    """
    settings = PRESETS[preset]
    identity = {"experiment": "rbergomi", "preset": preset, "seed": seed}
    device = resolve_device(device)
    claim_folder(out, "config.json", {**identity, **dataclasses.asdict(settings)})
    split = rough_bergomi_split(DATA_SEED, settings.n, model=MODEL, cache=out / "data.safetensors")
    bench = Bench(settings, split, out, seed, device, progress)
    seeds = range(seed, seed + settings.seeds)
    distilled = {
        spec: [bench.distil(spec, s) for s in (seeds[:1] if spec.study else seeds)]
        for spec in settings.specs
    }

    rows: list[Row] = []
    timed: dict[int, Callable[[], Tensor]] = {}  # by the index of the row

    def add(draw: Draw, row: Row) -> None:
        if not row.get("study"):
            timed[len(rows)] = lambda: draw(
                settings.timing_n, derive_generator(seed, Stream.SERIES_TIMING)
            )
        rows.append(row)

    for setting in settings.teachers:
        add(*bench.teacher_row(*setting))
    for spec, results in distilled.items():
        for steps in spec.steps:
            add(*bench.student_row(spec, steps, results))
    for steps in settings.peers:
        add(*bench.untrained_row(steps))
        for method in SOLVERS:
            add(*bench.peer_row(method, steps))
    learned_from = len(settings.teachers) - 1
    over = {count_calls(rows[0]["nfe"]): 0} if learned_from else {}
    add_speed(rows, paired_seconds(timed), learned_from, over)
    add_rivals(rows, QUALITY)
    add_equal_quality(rows, QUALITY)

    shown = {
        count_calls(steps): results[0].student
        for spec, results in distilled.items()
        if not spec.study and len(spec.steps) == 1 and spec.q == 1
        for steps in spec.steps
    }
    shown["5 calls"].save_pretrained(out / "student")
    save_results(
        out,
        {
            **identity,
            "title": "Rough Bergomi: log-price and log-variance at 25 dates",
            "summary": "Students of a diffusion model of rough volatility, judged by "
            f"{len(split.test):,} samples against as many simulated test paths. Grids of the "
            "solvers and side tables: by as many validation paths.",
            "quality": {
                "metric": "w1",
                "label": "Wasserstein-1 distance to test paths, mean of 50 coordinates",
                "lower_is_better": True,
            },
            "rows": rows,
            "paper": paper.RBERGOMI,
            "floor": bench.floor(),
            "training": {
                "teacher": bench.curve.tolist(),
                **{
                    f"student, {count_calls(spec.steps[0])}, q = {spec.q}": results[
                        0
                    ].history.tolist()
                    for spec, results in distilled.items()
                    if not spec.study
                },
            },
            "figures": bench.figures(shown),
            "student": "student",
            "example": {"steps": 5},
            "timing_n": settings.timing_n,
        },
        device,
    )
    return write_report(out)


class Bench:
    """Teacher, paths to judge by and folder of a run: what every row needs."""

    def __init__(
        self,
        settings: Settings,
        split: SeriesSplit,
        out: Path,
        seed: int,
        device: str,
        progress: bool,
    ) -> None:
        self.settings, self.split, self.out, self.seed = settings, split, out, seed
        self.options: dict[str, Any] = {"device": device, "progress": progress}
        self.data = split.standardise(split.train)
        self.dim = self.data.shape[1]
        network = seeded(seed, lambda: ResidualMLP(self.dim, self.dim, *settings.network))
        self.denoiser, self.curve = train_teacher(
            NetworkDenoiser(network, SCHEDULE, "edm", data_std=1.0),
            self.data,
            out / "teacher",
            settings.teacher,
            seed=seed,
            **self.options,
        )
        self.teacher = EulerMaruyama(self.denoiser)

    def distil(self, spec: Spec, seed: int) -> Distilled:
        """Distil one student with one seed."""
        options: dict[str, Any] = {
            "steps": spec.steps,
            "power": spec.power,
            "residual_noise": spec.residual_noise,
            "lookahead": 0.0,
            "covariance": torch.cov(self.data.double().T) if spec.covariance else None,
        }
        if spec.pretrained:
            student = SignatureStudent.from_denoiser(self.denoiser, self.dim, spec.order, **options)
        else:
            size = spec.network or self.settings.network
            inputs = SignatureStudent.in_channels(
                self.dim, spec.order, spec.kind, spec.residual_noise
            )
            network = seeded(seed, lambda: ResidualMLP(inputs, self.dim, *size))
            student = SignatureStudent(
                network, SCHEDULE, self.dim, spec.order, spec.kind, **options
            )
        return distill(
            student,
            self.teacher,
            self.out / "students" / f"{spec.slug}-seed-{seed}",
            self.settings.config,
            judge=0,
            data=self.data if spec.data else None,
            states="data" if spec.data else "teacher",
            paths=spec.paths,
            q=spec.q,
            normalise=spec.normalise,
            iterations=spec.iterations or self.settings.config.iterations,
            refinement=self.settings.fine_steps // max(spec.steps),
            seed=seed,
            **self.options,
        )

    def march(self, step: Step, grid: Tensor) -> Draw:
        """How a step marched over a grid draws n samples."""

        def draw(n: int, generator: Generator) -> Tensor:
            # Small batches stay in the cache.
            return sample(step, grid, (n, self.dim), generator=generator, batch_size=2000)

        return draw

    def measure(
        self, series: Tensor, study: bool = False, keys: Sequence[str] = tuple(METRICS)
    ) -> dict[str, float]:
        """Metrics of a set of paths against the test paths, those of a study against validation."""
        real = self.split.validation if study else self.split.test
        return {key: METRICS[key](series, real) for key in keys}

    def judge(
        self, name: str, draw: Draw, seed: int, draws: int | None = None, study: bool = False
    ) -> dict[str, Summary]:
        """Metrics over several draws of as many samples as there are real paths.

        By default there are as many draws as of a student over all its training seeds.
        """
        n, draws = len(self.split.test), draws or self.settings.draws * self.settings.seeds
        slug = re.sub("[^a-z0-9]+", "-", f"{'study ' if study else ''}{name} seed {seed}")

        def compute() -> dict[str, Any]:
            generators = [derive_generator(seed, Stream.SERIES_DRAWS, i) for i in range(draws)]
            drawn = (self.split.restore(draw(n, g)) for g in generators)
            return {"draws": [self.measure(series, study) for series in drawn]}

        return summarise(remember(self.out / "judged" / f"{slug}.json", compute)["draws"])

    def floor(self) -> dict[str, Summary]:
        """The metrics of real paths, ten sets as large as that of the test paths."""
        n = len(self.split.test)

        def compute() -> dict[str, Any]:
            generators = [derive_generator(self.seed, Stream.SERIES_FLOOR, i) for i in range(10)]
            return {"draws": [self.measure(MODEL.sample(n, g)) for g in generators]}

        return summarise(remember(self.out / "judged" / "floor.json", compute)["draws"])

    def teacher_row(self, steps: int, power: float, draws: int) -> tuple[Draw, Row]:
        """The teacher on a grid of its own."""
        draw = self.march(self.teacher, fine_grid(SCHEDULE, steps, "power", power))
        metrics = self.judge(f"teacher {steps} {power}", draw, self.seed, draws)
        more = {"steps": steps, "grid": grid_name(power), "order": 1, "seeds": 1}
        return draw, make_row("teacher", self.teacher, steps + 1, metrics, **more)

    def untrained_row(self, steps: int) -> tuple[Draw, Row]:
        """The step that students start from."""
        step = Exponential(self.denoiser)
        draw = self.march(step, coarse_grid(SCHEDULE, steps))
        metrics = self.judge(f"untrained {steps}", draw, self.seed)
        return draw, make_row(
            "untrained", step, steps, metrics, grid=grid_name(1.5), order=1, seeds=1
        )

    def peer_row(self, method: str, steps: int) -> tuple[Draw, Row]:
        """A training-free solver on the grid that validation chose."""
        grid = self.choose_grid(method, steps)
        draw = partial(self.solve, method, grid, steps)
        metrics = self.judge(f"{method} {steps} {grid}", draw, self.seed)
        more = {"grid": grid, "tried": len(solver_grids(method, steps)), "seeds": 1}
        return draw, make_row(method, self.denoiser, steps, metrics, **more)

    def choose_grid(self, method: str, steps: int) -> str:
        """The grid with the smallest sum of W1 of levels and increments to validation paths."""

        def compute() -> dict[str, float]:
            scores = {}
            for grid in solver_grids(method, steps):
                generator = derive_generator(self.seed, Stream.SERIES_VALIDATION)
                series = self.solve(method, grid, steps, len(self.split.validation), generator)
                found = self.measure(self.split.restore(series), True, QUALITY)
                scores[grid] = sum(found.values())
            return scores

        slug = re.sub("[^a-z0-9]+", "-", f"grid {method} {steps}")
        scores = remember(self.out / "judged" / f"{slug}.json", compute)
        return min(scores, key=scores.__getitem__)

    def solve(self, method: str, grid: str, steps: int, n: int, generator: Generator) -> Tensor:
        """Draw with a training-free solver."""
        shape = (n, self.dim)
        return solver_sample(self.denoiser, method, grid, steps, shape, generator, batch_size=2000)

    def student_row(self, spec: Spec, steps: int, results: Sequence[Distilled]) -> tuple[Draw, Row]:
        """A student, over its training seeds."""
        parts = []
        for seed, result in enumerate(results, start=self.seed):
            draw = self.march(result.student, result.student.grid(steps))
            draws = STUDY_DRAWS if spec.study else self.settings.draws
            metrics = self.judge(f"{spec.slug} {steps}", draw, seed, draws, bool(spec.study))
            parts.append(metrics | self.path(spec, steps, result.student, seed))
        first = results[0]
        return self.march(first.student, first.student.grid(steps)), make_row(
            "sig-deg",
            first.student,
            steps,
            merge(parts),
            order=spec.order,
            head=spec.residual_noise,
            elastic=len(spec.steps) > 1,
            kind=spec.kind,
            q=spec.q,
            grid=grid_name(spec.power),
            seeds=len(results),
            train_seconds=statistics.fmean(r.seconds for r in results),
            teacher_nfe=first.teacher_nfe,
            study=spec.study or None,
            variant=spec.variant or None,
        )

    def path(
        self, spec: Spec, steps: int, student: SignatureStudent, seed: int
    ) -> dict[str, Summary]:
        """Distance to the teacher's ends on fresh paths driven by the same noise."""

        def compute() -> dict[str, Any]:
            longest = max(spec.steps)
            finest = student.grid(longest)
            refinement, power = self.settings.fine_steps // longest, self.settings.config.fine_power
            rows = list(refine(SCHEDULE, finest, refinement, power))
            paths = TeacherPaths(self.teacher, rows, (self.dim,), student.order)
            batch = paths.draw(PATHS, derive_generator(seed, Stream.SERIES_PATHS))
            with torch.no_grad():
                ends = batch.coarsen(finest, longest // steps).replay(student, student.grid(steps))
            own = batch.states[:, -1]
            found = {"path": path_error(ends, own), "path_median": median_path_error(ends, own)}
            return {"draws": [found]}

        file = self.out / "judged" / f"path-{spec.slug}-{steps}-seed-{seed}.json"
        return summarise(remember(file, compute)["draws"])

    def figures(self, students: Mapping[str, SignatureStudent]) -> list[dict[str, str]]:
        """Figures 5 to 9 of the paper."""
        folder, n = self.out / "figures", min(SHOWN, len(self.split.test))
        steps, power, _ = self.settings.teachers[-1]
        fine = fine_grid(SCHEDULE, steps, "power", power)
        methods: dict[str, tuple[Step, Tensor]] = {
            f"teacher, {count_calls(len(fine) - 1)}": (self.teacher, fine)
        }
        methods |= {f"student, {calls}": (s, s.grid()) for calls, s in students.items()}
        series, marches = {"data": self.split.test}, {}
        chosen = [0, 12, 24]
        at = [*chosen, *(25 + i for i in chosen)]
        for label, (step, grid) in methods.items():
            draw = self.march(step, grid)
            series[label] = self.split.restore(
                draw(n, derive_generator(self.seed, Stream.SERIES_FIGURE))
            )
            states: list[Tensor] = []

            def keep(k: int, time: Tensor, x: Tensor, states: list[Tensor] = states) -> None:
                states.append(x[:, at])

            shape, seeds = (TRAJECTORIES, self.dim), range(self.seed, self.seed + TRAJECTORIES)
            sample(step, grid, shape, seeds=seeds, callback=keep)
            marches[label] = (grid, torch.stack(states, dim=1))
        dates = torch.arange(1, 26) / 25
        names = [f"log {what}, t = {dates[i]:g}" for what in ("price", "variance") for i in chosen]
        levels = {label: x.exp() for label, x in series.items()}
        paths_plot(levels, dates, ("price", "variance"), folder / "paths.png")
        for i, what in enumerate(("log-price", "log-variance")):
            one = {label: x[:, i] for label, x in series.items()}
            marginals_plot(one, dates, folder / f"marginals-{what}.png")
        diffusion_plot(marches, names, folder / "diffusion.png")
        return [
            {"file": f"figures/{file}.png", "caption": caption}
            for file, caption in (
                ("paths", "Prices and variances on a logarithmic scale (the paper's Figure 5)."),
                (
                    "marginals-log-price",
                    "Marginals of the log-price (the paper's Figure 6 has those of its returns).",
                ),
                (
                    "marginals-log-variance",
                    "Marginals of the log-variance (its Figure 7 has those of increments).",
                ),
                (
                    "diffusion",
                    "Six coordinates, standardised, from noise to data in diffusion time, with the "
                    "same seeds (its Figures 8 and 9).",
                ),
            )
        ]
