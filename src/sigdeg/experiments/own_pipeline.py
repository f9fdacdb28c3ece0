"""A pipeline class of one's own: rough Bergomi, drawn by a 1-D U-Net, and its student.

The class is that of `series_pipeline.py`, which diffusers does not know. It is trained here on
simulated paths of log-price and log-variance, and judged by the metrics of the `rbergomi`
benchmark against as many test paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from sigdeg.datasets import rough_bergomi_split
from sigdeg.denoiser import NetworkDenoiser
from sigdeg.distillation import DistillConfig
from sigdeg.errors import extra
from sigdeg.experiments.pipeline_bench import PipelineBenchmark, Student, Work
from sigdeg.experiments.rbergomi import DATA_SEED, METRICS, MODEL
from sigdeg.experiments.series_pipeline import SeriesPipeline, make_network
from sigdeg.integrations import describe
from sigdeg.pipelines import PipelineRecipe
from sigdeg.report import paths_plot
from sigdeg.results import Summary, summarise
from sigdeg.rng import Stream, derive_generator, seeded
from sigdeg.training import TrainConfig, train_teacher

with extra("diffusers"):
    import diffusers

__all__ = ["PRESETS", "OwnPipeline", "Settings", "run"]

DATES = 24  # they can be halved twice
SHOWN = 5000


@dataclass(frozen=True, kw_only=True)
class Settings(Work):
    """A preset: the network, and how much work.

    Arguments:
        widths: Channels of the U-Net.
        teacher: How it is trained.
    """

    widths: tuple[int, ...]
    teacher: TrainConfig

    @property
    def paths(self) -> int:
        """Simulated paths: of ten, six to train, two to choose by, two to judge by."""
        return 5 * self.n


DEFAULT = Settings(
    widths=(32, 64),
    teacher=TrainConfig(iterations=1500, batch_size=256, learning_rate=2e-3, warmup=100, ema=0.995),
    student=Student(
        PipelineRecipe(steps=(4,), order=8),
        DistillConfig(
            iterations=600,
            batch_size=256,
            learning_rate=1e-3,
            warmup=50,
            ema=0.99,
            paths=8000,
            held_out=500,
            refinement=10,
        ),
        run=500,
    ),
    n=5000,
    own=20,
    timing_n=50,
)
PRESETS = {
    "quick": replace(
        DEFAULT,
        teacher=replace(DEFAULT.teacher, iterations=200, ema=0.95),
        student=replace(
            DEFAULT.student,
            config=replace(
                DEFAULT.student.config, iterations=100, ema=0.95, paths=2000, refinement=5
            ),
        ),
        n=1000,
        draws=1,
        peer_draws=1,
    ),
    "default": DEFAULT,
}


class OwnPipeline(PipelineBenchmark[Settings]):
    """The teacher, its student, and paths to judge by."""

    name = "own-pipeline"
    title = "A pipeline of one's own: rough Bergomi at 24 dates"
    presets = PRESETS
    quality = ("w1", "Wasserstein-1 distance to test paths, mean of 48 coordinates")
    rivals = ("w1", "iw1")
    stream = Stream.OWN_PIPELINE_DRAWS
    batch = 1000

    @property
    def summary(self) -> str:
        return (
            "A 1-D U-Net in a pipeline class that diffusers does not know, and its student: "
            f"{self.settings.n:,} samples against as many simulated test paths."
        )

    def prepare(self) -> None:
        self.timing_n = self.settings.timing_n
        cache = self.out / "data.safetensors"
        self.split = rough_bergomi_split(DATA_SEED, self.settings.paths, DATES, MODEL, cache)
        data = self.split.standardise(self.split.train).unflatten(1, self.split.mean.shape)
        scheduler = diffusers.DDIMScheduler(
            prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing"
        )
        told = describe(scheduler)
        network = seeded(self.seed, lambda: make_network(data.shape[1:], self.settings.widths))
        denoiser, history = train_teacher(
            NetworkDenoiser(network, told.schedule, told.prediction),
            data,
            self.out / "teacher-training",
            self.settings.teacher,
            seed=self.seed,
            **self.options,
        )
        self.curves["teacher"] = history.tolist()
        units = self.split.mean.tolist(), self.split.std.tolist()
        made = SeriesPipeline(denoiser.network.eval(), scheduler, *units)
        made.save_pretrained(self.out / "teacher")
        self.teacher = made.to(self.device)

    def call(self, n: int) -> dict[str, Any]:
        return {"batch_size": n}

    def samples(self, output: Any) -> Tensor:
        series: Tensor = output.series.double().cpu()
        return series

    def measure(self, samples: Tensor) -> dict[str, float]:
        return {key: metric(samples, self.split.test) for key, metric in METRICS.items()}

    def floor(self) -> dict[str, Summary]:
        """The metrics of real paths, as many as in a draw."""

        def work(i: int) -> dict[str, Any]:
            generator = derive_generator(self.seed, Stream.OWN_PIPELINE_FLOOR, i)
            return self.measure(MODEL.sample(self.settings.n, generator, DATES))

        return summarise(self.recall("floor", work, self.settings.draws))

    def draw_figures(self) -> Mapping[str, str]:
        n = min(SHOWN, self.settings.n)
        series = {"data": self.split.test[:n].exp()}
        for label, draw in self.shown.items():
            series[label] = draw(n, Generator().manual_seed(self.seed)).exp()
        dates = torch.arange(1, DATES + 1) / DATES
        file = self.out / "figures" / "paths.png"
        paths_plot(series, dates, ("price", "variance"), file)
        return {"paths": "Prices and variances on a logarithmic scale."}


run = OwnPipeline.run
