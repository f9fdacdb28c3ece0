"""1DN, the paper's first benchmark (4.1.1, C.2): a two-component Gaussian mixture on the line.

The law is known, so a student is judged against the truth itself, and the teacher can be exact
(`analytic`) or a network trained on 7,900 samples (`learned`).
"""

from __future__ import annotations

import dataclasses
import re
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from sigdeg.datasets import GaussianMixture1D, mixture_split
from sigdeg.denoiser import Denoiser, GaussianMixtureDenoiser, NetworkDenoiser
from sigdeg.distillation import DistillConfig, Distilled, distill
from sigdeg.experiments import paper
from sigdeg.grids import coarse_grid, fine_grid
from sigdeg.metrics import variance_score, w1_exact, w1_samples
from sigdeg.networks import ResidualMLP
from sigdeg.report import histogram_plot, trajectories_plot, write_report
from sigdeg.results import Row, Summary, grid_name, make_row, merge, over_draws, save_results
from sigdeg.rng import Stream, derive_generator, seeded
from sigdeg.runs import claim_folder
from sigdeg.sampling import sample
from sigdeg.schedule import VPLinear
from sigdeg.steps import EulerMaruyama, Exponential, Step
from sigdeg.student import ResidualNoise, SignatureStudent
from sigdeg.timing import paired_seconds
from sigdeg.training import resolve_device, train_teacher

__all__ = ["DEFAULT", "PRESETS", "Settings", "Spec", "run"]

SCHEDULE = VPLinear()
LAW = GaussianMixture1D()
STD = LAW.variance**0.5
TEACHER_STEPS = 300


@dataclass(frozen=True)
class Spec:
    """A student to distil: which teacher, how many steps, what it listens to."""

    steps: tuple[int, ...]
    order: int = 2
    teacher: Literal["analytic", "learned"] = "learned"
    residual_noise: ResidualNoise | None = None
    kind: Literal["warm", "plain"] = "warm"
    q: int = 1
    power: float = 1.5

    @property
    def shown(self) -> bool:
        """Whether it stands in the figures: the students of the learned teacher."""
        return self.teacher == "learned" and self.q == 1

    @property
    def label(self) -> str:
        """A name for curves, panels and, with dashes, folders."""
        steps = "/".join(map(str, self.steps)) + (" step" if self.steps == (1,) else " steps")
        parts = [
            f"student, {steps}",
            *([f"order {self.order}"] if self.order != 2 else []),
            *([f"{self.residual_noise} noise"] if self.residual_noise else []),
            *([f"q {self.q}"] if self.q != 1 else []),
            *(["exact teacher"] if self.teacher == "analytic" else []),
        ]
        return ", ".join(parts)


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
        timing_n: Samples behind the seconds; few enough to stay in the cache, or memory is timed.
    """

    specs: tuple[Spec, ...]
    seeds: int
    config: DistillConfig
    teacher_iterations: int
    fine_steps: int = TEACHER_STEPS
    exact_n: int = 100_000
    timing_n: int = 2_000


def few(**options: Any) -> tuple[Spec, ...]:
    """Ten, five steps and one."""
    return tuple(Spec((k,), power=1.0 if k == 5 else 1.5, **options) for k in (10, 5, 1))


PRESETS = {
    "quick": Settings(
        specs=(Spec((10,)), Spec((5,), power=1.0), Spec((1,), order=10)),
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
            *few(teacher="analytic"),
            *few(teacher="analytic", residual_noise="energy"),
            Spec((1,), teacher="analytic", residual_noise="gaussian"),
            Spec((1,), order=10, teacher="analytic"),
            Spec((8, 4, 2, 1), order=4, teacher="analytic"),
            Spec((8, 4, 2, 1), order=4, teacher="analytic", residual_noise="energy"),
            *few(residual_noise="energy"),
        ),
        seeds=3,
        config=DistillConfig(iterations=1500, paths=100_000),
        teacher_iterations=4000,
    ),
    # The paper's form: plain residual student from scratch on raw (h, W, A), uniform grid, local
    # loss on segments that start from noised data.
    "paper": Settings(
        specs=tuple(
            Spec((k,), kind="plain", q=q, power=1.0)
            for q in (1, 2, 4)
            for k in (10, 5, 1)
            if k >= q
        ),
        seeds=3,
        config=DistillConfig(iterations=2000, states="data", normalise=False, fine_power=1.0),
        teacher_iterations=4000,
    ),
}

DEFAULT = "default"


def run(
    out: Path,
    preset: str = DEFAULT,
    seed: int = 0,
    device: str | None = None,
    data_dir: Path | None = None,
    progress: bool = True,
) -> Path:
    """Run the benchmark and write `results.json`, figures and the report into a folder.

    The same call resumes an interrupted run. `data_dir` is not used: the data are drawn.

    Raises:
        SigdegError: If the folder holds another run.
    """
    settings = PRESETS[preset]
    identity = {"experiment": "mixture1d", "preset": preset, "seed": seed}
    device = resolve_device(device)
    claim_folder(out, "config.json", {**identity, **dataclasses.asdict(settings)})
    split = mixture_split(seed)

    analytic = GaussianMixtureDenoiser(LAW.means, LAW.stds, LAW.weights, SCHEDULE)
    network = seeded(seed, lambda: ResidualMLP(1, 1))
    untrained = NetworkDenoiser(network, SCHEDULE, "edm", data_std=STD)
    learned, curve = train_teacher(
        untrained,
        split.train,
        out / "teacher",
        iterations=settings.teacher_iterations,
        seed=seed,
        device=device,
        progress=progress,
    )
    denoisers: dict[str, Denoiser] = {"analytic": analytic, "learned": learned}
    teachers = {name: EulerMaruyama(denoiser) for name, denoiser in denoisers.items()}
    seeds = range(seed, seed + settings.seeds)
    distilled = {
        spec: [
            make(spec, settings, denoisers, split.train, out, s, device, progress) for s in seeds
        ]
        for spec in settings.specs
    }

    judge = Judge(settings.exact_n)
    rows: list[Row] = []
    timed: dict[int, tuple[Step, Tensor]] = {}  # by the index of the row
    grid = fine_grid(SCHEDULE, TEACHER_STEPS)
    for name, teacher in teachers.items():
        judged = seeds if name == "analytic" else seeds[:1]  # a network's 301 calls are dear
        metrics = merge([judge(teacher, grid, s) for s in judged])
        more = {"teacher": name, "grid": "uniform", "seeds": len(judged), "order": 1}
        rows.append(
            make_row("teacher", teacher, len(grid) - 1, metrics, steps=TEACHER_STEPS, **more)
        )
    reference = len(rows) - 1  # the network's own row
    timed[reference] = (teachers["learned"], grid)
    for spec, results in distilled.items():
        for steps in spec.steps:
            grid = results[0].student.grid(steps)
            metrics = merge(
                [judge(r.student, grid, s) for r, s in zip(results, seeds, strict=True)]
            )
            timed[len(rows)] = (results[0].student, grid)
            rows.append(
                make_row(
                    "sig-deg",
                    results[0].student,
                    steps,
                    metrics,
                    order=spec.order,
                    teacher=spec.teacher,
                    head=spec.residual_noise,
                    elastic=len(spec.steps) > 1,
                    kind=spec.kind,
                    q=spec.q,
                    grid=grid_name(spec.power),
                    seeds=len(seeds),
                    train_seconds=statistics.fmean(r.seconds for r in results),
                    teacher_nfe=results[0].teacher_nfe,
                )
            )
    for steps, power in sorted(
        {(k, s.power) for s in settings.specs for k in s.steps}, reverse=True
    ):
        step, grid = Exponential(analytic), coarse_grid(SCHEDULE, steps, power=power)
        metrics = merge([judge(step, grid, s) for s in seeds])
        more = {"teacher": "analytic", "grid": grid_name(power), "seeds": len(seeds), "order": 1}
        rows.append(make_row("untrained", step, steps, metrics, **more))
    add_times(rows, timed, reference, settings.timing_n)

    shown = {spec.label: results[0].student for spec, results in distilled.items() if spec.shown}
    figures = draw(out, teachers["learned"], shown, seed)
    next(s for s in shown.values() if s.steps == (5,)).save_pretrained(out / "student")
    curves = {spec.label: results[0].history.tolist() for spec, results in distilled.items()}
    save_results(
        out,
        {
            **identity,
            "title": "1DN: a Gaussian mixture on the line",
            "summary": "Students of a 300-step teacher, judged against the exact law.",
            "quality": {
                "metric": "w1_exact",
                "label": "Wasserstein-1 distance to the exact law",
                "lower_is_better": True,
            },
            "rows": rows,
            "paper": paper.MIXTURE1D,
            "floor": judge.floor(seed),
            "training": {"teacher": curve.tolist(), **curves},
            "figures": figures,
            "student": "student",
            "example": {"steps": 5},
        },
        device,
    )
    return write_report(out)


def make(
    spec: Spec,
    settings: Settings,
    denoisers: dict[str, Denoiser],
    data: Tensor,
    out: Path,
    seed: int,
    device: str,
    progress: bool,
) -> Distilled:
    """Distil one student with one seed."""
    options: dict[str, Any] = {
        "steps": spec.steps,
        "power": spec.power,
        "residual_noise": spec.residual_noise,
        "lookahead": 0.0,
        "data_std": STD,
    }
    teacher = denoisers[spec.teacher]
    if isinstance(teacher, NetworkDenoiser) and spec.kind == "warm":
        student = SignatureStudent.from_denoiser(teacher, 1, spec.order, **options)
    else:
        width = SignatureStudent.in_channels(1, spec.order, spec.kind, spec.residual_noise)
        outputs = 2 if spec.residual_noise == "gaussian" else 1
        network = seeded(seed, lambda: ResidualMLP(width, outputs))
        student = SignatureStudent(network, SCHEDULE, 1, spec.order, spec.kind, **options)
    return distill(
        student,
        EulerMaruyama(teacher),
        out / "students" / re.sub("[^a-z0-9]+", "-", f"{spec.label} seed {seed}"),
        settings.config,
        # A network's paths cost what its calls cost; an exact score costs next to nothing.
        paths=min(settings.config.paths, 20_000 if spec.teacher == "learned" else 200_000),
        data=data if settings.config.states == "data" else None,
        refinement=max(2, settings.fine_steps // max(spec.steps)),
        q=spec.q,
        seed=seed,
        judge=0,
        device=device,
        progress=progress,
    )


class Judge:
    """The metrics of a step on a grid, from the same number of samples for all.

    Table 1's draws of 2,000 are each compared with a real set of their own.
    """

    def __init__(self, exact_n: int, draws: int = 10) -> None:
        self.exact_n, self.draws = exact_n, draws

    def _measure(self, samples: Tensor, seed: int) -> dict[str, Summary]:
        sets = samples.split(2000)
        real = [
            LAW.sample(2000, derive_generator(seed, Stream.MIXTURE_REAL, i))
            for i in range(self.draws)
        ]
        return {
            "w1_2000": over_draws(lambda i: w1_samples(sets[i], real[i]), int, self.draws),
            "variance_2000": over_draws(
                lambda i: variance_score(sets[i], real[i]), int, self.draws
            ),
            "w1_exact": over_draws(lambda x: w1_exact(x, LAW), lambda _: samples, 1),
        }

    def __call__(self, step: Step, grid: Tensor, seed: int) -> dict[str, Summary]:
        """Metrics of a step marched over a grid."""
        generator, shape = derive_generator(seed, Stream.MIXTURE_DRAWS), (self.exact_n, 1)
        return self._measure(
            sample(step, grid, shape, generator=generator, batch_size=20_000), seed
        )

    def floor(self, seed: int) -> dict[str, Summary]:
        """The same metrics of real samples, ten times over."""
        draws = [
            LAW.sample(self.exact_n, derive_generator(seed, Stream.MIXTURE_FLOOR, i))
            for i in range(10)
        ]
        return merge([self._measure(samples, seed + i) for i, samples in enumerate(draws)])


def add_times(
    rows: list[Row], timed: dict[int, tuple[Step, Tensor]], reference: int, n: int
) -> None:
    """Seconds for n samples and the speed-up over the reference row, measured in one run."""

    def draw(step: Step, grid: Tensor) -> Tensor:
        return sample(step, grid, (n, 1), generator=Generator().manual_seed(0))

    seconds = paired_seconds({index: partial(draw, *value) for index, value in timed.items()})
    for index, own in seconds.items():
        rows[index] |= {"seconds": own, "speedup": seconds[reference] / own}


def density(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Density of the law."""
    parts = zip(LAW.weights, LAW.means, LAW.stds, strict=True)
    terms = [w * np.exp(-(((x - m) / s) ** 2) / 2) / (s * np.sqrt(2 * np.pi)) for w, m, s in parts]
    return np.asarray(sum(terms))


def draw(
    out: Path, teacher: Step, students: dict[str, SignatureStudent], seed: int
) -> list[dict[str, str]]:
    """Figure 2 of the paper: trajectories in diffusion time, and histograms of their ends."""
    panels: dict[str, tuple[Tensor, Tensor]] = {}
    histograms: dict[str, Tensor] = {
        "data": LAW.sample(20_000, derive_generator(seed, Stream.MIXTURE_DATA_FIGURE))
    }
    steps: dict[str, tuple[Step, Tensor]] = {
        "teacher": (teacher, fine_grid(SCHEDULE, TEACHER_STEPS))
    }
    steps |= {label: (student, student.grid()) for label, student in students.items()}
    for label, (step, grid) in steps.items():
        states: list[Tensor] = []

        def keep(k: int, time: Tensor, x: Tensor, states: list[Tensor] = states) -> None:
            states.append(x[:, 0])

        sample(step, grid, (60, 1), seeds=range(seed, seed + 60), callback=keep)
        panels[label] = (grid, torch.stack(states, dim=1))
        histograms[label] = sample(
            step, grid, (20_000, 1), generator=derive_generator(seed, Stream.MIXTURE_FIGURE)
        )
    trajectories_plot(panels, out / "figures" / "trajectories.png")
    histogram_plot(histograms, density, out / "figures" / "histograms.png")
    return [
        {
            "file": "figures/trajectories.png",
            "caption": "Sixty trajectories from noise (left) to data (right), teacher and students "
            "with the same seeds (the paper's Figure 2, a and b).",
        },
        {
            "file": "figures/histograms.png",
            "caption": "Histograms of 20,000 samples beside the data (the paper's Figure 2c).",
        },
    ]
