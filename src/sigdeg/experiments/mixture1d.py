"""1DN, the paper's first benchmark (4.1.1, C.2): a two-component Gaussian mixture on the line.

The law is known, so a student is judged against the truth itself, and the teacher can be exact
(`analytic`) or a network trained on 7,900 samples (`learned`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from sigdeg.datasets import GaussianMixture1D, mixture_split
from sigdeg.denoiser import GaussianMixtureDenoiser, NetworkDenoiser
from sigdeg.distillation import DistillConfig, Distilled
from sigdeg.experiments import paper
from sigdeg.experiments.bench import Benchmark, Spec
from sigdeg.grids import coarse_grid, fine_grid
from sigdeg.metrics import variance_score, w1_exact, w1_samples
from sigdeg.networks import ResidualMLP
from sigdeg.report import histogram_plot, trajectories_plot
from sigdeg.results import Summary, count_calls, grid_name, merge, summarise
from sigdeg.rng import Stream, derive_generator, seeded
from sigdeg.schedule import VPLinear
from sigdeg.steps import EulerMaruyama, Exponential, Step
from sigdeg.training import train_teacher

__all__ = ["PRESETS", "Mixture1D", "Settings", "run"]

SCHEDULE = VPLinear()
LAW = GaussianMixture1D()
STD = LAW.variance**0.5
TEACHER_STEPS = 300
# Paths of a network cost what its calls cost; an exact score costs next to nothing.
MOST_PATHS = {"learned": 20_000, "analytic": 200_000}
DRAWS = 10  # Table 1's draws of 2,000, each compared with a real set of its own


@dataclass(frozen=True)
class Settings:
    """A preset: which students, and how much work.

    Arguments:
        specs: The students.
        seeds: How many training seeds.
        config: How to distil.
        teacher_iterations: Training of the learned teacher.
        fine_steps: Fine teacher steps a path that students learn from.
        exact_n: Samples behind the exact W1.
    """

    specs: tuple[Spec, ...]
    seeds: int
    config: DistillConfig
    teacher_iterations: int
    fine_steps: int = TEACHER_STEPS
    exact_n: int = 100_000


LEARNED: dict[str, Any] = {"order": 2, "teacher": "learned"}
EXACT: dict[str, Any] = {"order": 2, "teacher": "analytic", "pretrained": False}
ENERGY: dict[str, Any] = {"residual_noise": "energy"}
PLAIN: dict[str, Any] = {"kind": "plain", "pretrained": False, "power": 1.0}


def few(**options: Any) -> tuple[Spec, ...]:
    """Ten, five steps and one."""
    return tuple(Spec((k,), **{"power": 1.0 if k == 5 else 1.5} | options) for k in (10, 5, 1))


PRESETS = {
    "quick": Settings(
        specs=(*few(**LEARNED)[:2], Spec((1,), 10, teacher="learned")),
        seeds=1,
        config=DistillConfig(
            iterations=1000, batch_size=512, learning_rate=4e-3, ema=0.99, paths=10_000
        ),
        teacher_iterations=1000,
        fine_steps=120,
        exact_n=20_000,
    ),
    "default": Settings(
        specs=(
            *few(**EXACT),
            *few(**EXACT, **ENERGY),
            Spec((1,), **EXACT | {"order": 10}),
            Spec((8, 4, 2, 1), **EXACT | {"order": 4}),
            Spec((8, 4, 2, 1), **EXACT | ENERGY | {"order": 4}),
            *few(**LEARNED, **ENERGY),
        ),
        seeds=3,
        config=DistillConfig(iterations=1500, paths=100_000),
        teacher_iterations=4000,
    ),
    # The paper's form: plain residual student from scratch on raw (h, W, A), uniform grid, local
    # loss on segments that start from noised data.
    "paper": Settings(
        specs=tuple(
            spec for q in (1, 2, 4) for spec in few(q=q, **LEARNED, **PLAIN) if spec.steps[0] >= q
        ),
        seeds=3,
        config=DistillConfig(iterations=2000, states="data", normalise=False, fine_power=1.0),
        teacher_iterations=4000,
    ),
}


class Mixture1D(Benchmark[Settings]):
    """Both teachers, and students of either."""

    name = "mixture1d"
    title = "1DN: a Gaussian mixture on the line"
    summary = "Students of a 300-step teacher, judged against the exact law."
    presets = PRESETS
    quality = ("w1_exact", "Wasserstein-1 distance to the exact law")
    paper = paper.MIXTURE1D
    batch = 20_000
    timing_n = 2_000
    shape = (1,)

    def prepare(self) -> None:
        self.kept: dict[tuple[Step, int, int], Tensor] = {}
        self.data = mixture_split(self.seed).train
        network = seeded(self.seed, lambda: ResidualMLP(1, 1))
        learned, curve = train_teacher(
            NetworkDenoiser(network, SCHEDULE, "edm", data_std=STD),
            self.data,
            self.out / "teacher",
            iterations=self.settings.teacher_iterations,
            seed=self.seed,
            **self.options,
        )
        self.curves["teacher"] = curve.tolist()
        analytic = GaussianMixtureDenoiser(LAW.means, LAW.stds, LAW.weights, SCHEDULE)
        self.teachers = {"analytic": EulerMaruyama(analytic), "learned": EulerMaruyama(learned)}

    def distill(self, spec: Spec, seed: int) -> Distilled:
        config = self.settings.config
        return self.train(
            spec,
            seed,
            self.make_student(spec, seed, data_std=STD),
            config=config,
            paths=min(config.paths, MOST_PATHS[spec.teacher]),
            data=self.data if config.states == "data" else None,
            refinement=max(2, self.settings.fine_steps // max(spec.steps)),
            q=spec.q,
        )

    def measure(self, samples: Tensor, seed: int) -> dict[str, Any]:
        """The metrics of a set of samples, its parts of 2,000 beside real ones."""
        generators = [derive_generator(seed, Stream.MIXTURE_REAL, i) for i in range(DRAWS)]
        sets = zip(samples.split(2000), generators, strict=False)
        pairs = [(x, LAW.sample(2000, generator)) for x, generator in sets]
        return {
            "w1_2000": [w1_samples(x, real) for x, real in pairs],
            "variance_2000": [variance_score(x, real) for x, real in pairs],
            "w1_exact": w1_exact(samples, LAW),
        }

    def drawn(self, step: Step, grid: Tensor, seed: int, n: int) -> Tensor:
        """The first of the samples of a seed that are judged: drawn once, if they are shown too."""
        key = step, len(grid), seed
        kept = self.kept.get(key)
        if kept is None or len(kept) < n:
            generator = derive_generator(seed, Stream.MIXTURE_DRAWS)
            kept = self.kept[key] = self.march(step, grid)(n, generator)
        return kept[:n]

    def judge_seeds(self, name: str, steps: Mapping[int, Step], grid: Tensor) -> dict[str, Summary]:
        """Metrics of what the steps of some seeds draw."""

        def judged(seed: int) -> dict[str, Summary]:
            def work(_: int) -> dict[str, Any]:
                samples = self.drawn(steps[seed], grid, seed, self.settings.exact_n)
                return self.measure(samples, seed)

            return summarise(self.recall(f"{name} seed {seed}", work))

        return merge([judged(seed) for seed in steps])

    def floor(self) -> dict[str, Summary]:
        """The same metrics of real samples, ten times over."""
        generators = [derive_generator(self.seed, Stream.MIXTURE_FLOOR, i) for i in range(10)]
        drawn = [LAW.sample(self.settings.exact_n, g) for g in generators]
        return merge([summarise([self.measure(x, self.seed + i)]) for i, x in enumerate(drawn)])

    def fill(self) -> None:
        distilled = self.distill_all(self.settings.specs, self.settings.seeds)
        seeds = range(self.seed, self.seed + self.settings.seeds)
        self.fine = fine_grid(SCHEDULE, TEACHER_STEPS)
        for name, teacher in self.teachers.items():
            judged = seeds if name == "analytic" else seeds[:1]
            marched = dict.fromkeys(judged, teacher)
            metrics = self.judge_seeds(f"{name} teacher", marched, self.fine)
            columns = {"teacher": name, "seeds": len(judged), "grid": "uniform"}
            columns |= {"order": 1, "steps": TEACHER_STEPS}
            self.reference = self.add_step("teacher", teacher, self.fine, metrics, **columns)
        for spec, results in distilled.items():
            for steps in spec.steps:
                students = {seed: r.student for seed, r in zip(seeds, results, strict=True)}
                first = students[self.seed]
                metrics = self.judge_seeds(f"{spec.slug} at {steps}", students, first.grid(steps))
                row = self.student_row(spec, steps, results, metrics)
                self.add(row, self.march(first, first.grid(steps)))
        grids = {(k, spec.power) for spec in self.settings.specs for k in spec.steps}
        for steps, power in sorted(grids, reverse=True):
            step = Exponential(self.teachers["analytic"].denoiser)
            grid = coarse_grid(SCHEDULE, steps, power=power)
            metrics = self.judge_seeds(
                f"untrained {steps} {power}", dict.fromkeys(seeds, step), grid
            )
            columns = {"teacher": "analytic", "seeds": len(seeds), "grid": grid_name(power)}
            self.add_step("untrained", step, grid, metrics, order=1, **columns)
        self.shown = self.show(distilled, "learned")
        self.student = self.shown["student, 5 calls"]

    def draw_figures(self) -> dict[str, str]:
        """Figure 2 of the paper: trajectories in diffusion time, and histograms of their ends."""
        steps: dict[str, tuple[Step, Tensor]] = {
            f"teacher, {count_calls(len(self.fine) - 1)}": (self.teachers["learned"], self.fine),
            **{label: (student, student.grid()) for label, student in self.shown.items()},
        }
        generator = derive_generator(self.seed, Stream.MIXTURE_DATA_FIGURE)
        panels, histograms = {}, {"data": LAW.sample(20_000, generator)}
        for label, (step, grid) in steps.items():
            panels[label] = grid, self.states(step, grid, 60)[..., 0]
            histograms[label] = self.drawn(step, grid, self.seed, 20_000)
        folder = self.out / "figures"
        trajectories_plot(panels, folder / "trajectories.png")
        histogram_plot(histograms, density, folder / "histograms.png")
        return {
            "trajectories": "Sixty trajectories from noise (left) to data (right), teacher and "
            "students with the same seeds (the paper's Figure 2, a and b).",
            "histograms": "Histograms of 20,000 samples beside the data (the paper's Figure 2c).",
        }


def density(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Density of the law."""
    parts = zip(LAW.weights, LAW.means, LAW.stds, strict=True)
    return np.asarray(sum(w * stats.norm.pdf(x, m, s) for w, m, s in parts))


run = Mixture1D.run
