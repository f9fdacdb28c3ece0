"""Digits by name and by class: standard pipelines of diffusers, guided, and students of them.

A text-conditioned U-Net in a `StableDiffusionPipeline`, or a `DiTPipeline`, is trained here on
latents of MNIST with its condition withheld now and then, so that it can be guided. Its own call,
guidance on, is the teacher; the student is a pipeline of the same class that needs none. Both are
judged by the shipped classifiers: whether a digit is the one that was asked for, and how near the
digits are to the test images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from sigdeg.distillation import DistillConfig
from sigdeg.experiments.digit_pipelines import (
    KINDS,
    crop,
    encode,
    make_scheduler,
    train_autoencoder,
    train_denoiser,
)
from sigdeg.experiments.mnist_judges import EXTRACTORS, Judges, images, shipped_extractor
from sigdeg.experiments.mnist_networks import CLASSES
from sigdeg.experiments.pipeline_bench import PipelineBenchmark, Student, Work
from sigdeg.metrics import diversity
from sigdeg.pipelines import PipelineRecipe
from sigdeg.report import image_grid
from sigdeg.results import Summary
from sigdeg.rng import Stream, seeded
from sigdeg.training import TrainConfig

__all__ = ["PRESETS", "Digits", "Settings", "run"]

SHOWN = 4  # digits of each class in a figure


@dataclass(frozen=True, kw_only=True)
class Settings(Work):
    """A preset: the networks, and how much work.

    Arguments:
        kind: Whether digits are asked for by their names or by their classes.
        network: Size of the denoiser, as arguments of its class.
        autoencoder: How the autoencoder is trained.
        teacher: How the denoiser is trained.
        guidance: Scale of the guidance.
    """

    kind: Literal["names", "classes"]
    network: dict[str, Any]
    autoencoder: TrainConfig
    teacher: TrainConfig
    guidance: float = 2.0


AUTOENCODER = TrainConfig(iterations=600, batch_size=32, learning_rate=3e-3, warmup=50, ema=0.99)
TEACHER = TrainConfig(iterations=1500, batch_size=64, learning_rate=2e-3, warmup=100, ema=0.995)
STUDENT = Student(
    # Above t = 0.7 noise hides everything, below 0.2 the decoder forgives what is left of it.
    PipelineRecipe(steps=(4,), order=8, times=(1.0, 0.62, 0.46, 0.26, 0.0)),
    DistillConfig(
        iterations=600,
        batch_size=64,
        learning_rate=1e-3,
        warmup=50,
        ema=0.99,
        paths=1500,
        held_out=100,
        refinement=10,
    ),
    run=100,
)
UNET = {"block_out_channels": (32, 64), "layers_per_block": 1, "attention_head_dim": 4}
DIT = {"num_layers": 4, "num_attention_heads": 4, "attention_head_dim": 24, "patch_size": 2}
DEFAULT = Settings(
    kind="names",
    network=UNET,
    autoencoder=AUTOENCODER,
    teacher=TEACHER,
    student=STUDENT,
    n=1000,
    own=20,
)
# On a GPU, in minutes.
LARGE = Settings(
    kind="names",
    network={**UNET, "block_out_channels": (64, 128)},
    autoencoder=replace(AUTOENCODER, iterations=1400, batch_size=256, ema=0.995),
    teacher=replace(TEACHER, iterations=3000, batch_size=512, learning_rate=1e-3, ema=0.998),
    student=Student(
        PipelineRecipe(steps=(4, 2)),
        replace(
            STUDENT.config,
            iterations=450,
            batch_size=256,
            learning_rate=5e-4,
            warmup=30,
            paths=3000,
            held_out=300,
            refinement=15,
        ),
        run=300,
    ),
    n=5000,
    draws=3,
)
PRESETS = {
    "quick": replace(
        DEFAULT,
        autoencoder=replace(AUTOENCODER, iterations=100, ema=0.9),
        teacher=replace(TEACHER, iterations=200, ema=0.95),
        student=replace(
            STUDENT,
            config=replace(STUDENT.config, iterations=50, ema=0.9, paths=400, refinement=5),
        ),
        n=500,
        draws=1,
        peer_draws=1,
    ),
    "default": DEFAULT,
    "classes": replace(
        DEFAULT, kind="classes", network=DIT, teacher=replace(TEACHER, learning_rate=1e-3)
    ),
    "large": LARGE,
}


class Digits(PipelineBenchmark[Settings]):
    """The teacher, its student, and what judges them."""

    name = "digits"
    title = "Digits by name and by class: guided pipelines and their students"
    presets = PRESETS
    quality = ("fid", "Fréchet distance, features of an MNIST classifier")
    rivals = ("fid", "fid_2")  # no claim rests on one of them alone
    stream = Stream.DIGITS_DRAWS
    calls = 2

    @property
    def summary(self) -> str:
        kind = type(self.teacher).__name__
        return (
            f"A {kind} guided by {self.settings.guidance:g}, and a {kind} that takes "
            f"{self.settings.student.recipe.steps[0]} calls and needs no guidance: draws of "
            f"{self.settings.n:,} digits, each class as often as any other, against all test "
            "images. A guided step is two calls."
        )

    def read(self, data_dir: Path | None) -> None:
        self.train_set, self.test_set = images("train", data_dir), images("test", data_dir)

    def prepare(self) -> None:
        settings, out = self.settings, self.out
        self.timing_n = settings.timing_n
        extractors = [shipped_extractor(name) for name in EXTRACTORS]
        self.judges = Judges(extractors, self.train_set, self.test_set)
        self.kind = KINDS[settings.kind](self.seed)
        config = replace(settings.autoencoder, seed=self.seed)
        pictures, labels = self.train_set
        autoencoder, history = train_autoencoder(
            pictures, out / "autoencoder-training", config, **self.options
        )
        self.curves["autoencoder"] = history.tolist()
        latents = encode(autoencoder.to(self.device), pictures)
        network, history = train_denoiser(
            self.kind,
            seeded(self.seed, lambda: self.kind.network(**settings.network)),
            latents,
            labels,
            out / "teacher-training",
            replace(settings.teacher, seed=self.seed),
            **self.options,
        )
        self.curves["teacher"] = history.tolist()
        made = self.kind.pipeline(network.eval(), autoencoder.eval(), make_scheduler())
        made.save_pretrained(out / "teacher")
        self.teacher = made.to(self.device)

    def call(self, n: int) -> dict[str, Any]:
        asked = self.kind.ask([i % CLASSES for i in range(n)])
        return {**asked, "guidance_scale": self.settings.guidance, "output_type": "pt"}

    def samples(self, output: Any) -> Tensor:
        pictures: Tensor = crop(2 * output.images.float().cpu() - 1)
        return pictures.clamp(-1, 1)

    def measure(self, samples: Tensor) -> dict[str, float]:
        labels = torch.arange(len(samples)) % CLASSES
        metrics: dict[str, float] = {}
        for end, extractor in zip(("", "_2"), self.judges.extractors, strict=True):
            features, probabilities = extractor.extract(samples)
            right = (probabilities.argmax(1) == labels).double()
            metrics[f"accuracy{end}"] = float(right.mean())
            own = [diversity(features[labels == label]) for label in range(CLASSES)]
            metrics[f"class_diversity{end}"] = sum(own) / CLASSES
        return {**metrics, **self.judges.measure(samples)["metrics"]}

    def results(self) -> dict[str, Any]:
        return {**super().results(), "extractors": self.judges.describe()}

    def floor(self) -> dict[str, Summary]:
        """The metrics of training images, disjoint sets as large as a draw."""
        return self.judges.floor(self.settings.n, self.settings.draws, self.seed)

    def draw_figures(self) -> Mapping[str, str]:
        sets = [
            (draw(SHOWN * CLASSES, Generator().manual_seed(self.seed)) + 1) / 2
            for draw in self.shown.values()
        ]
        image_grid(sets, self.out / "figures" / "digits.png", CLASSES, list(self.shown))
        return {
            "digits": "Each column one digit asked for; digit i of every set has the same starting "
            "noise."
        }


run = Digits.run
