"""What benchmarks of masked characters share: a teacher of them, and its mixture students."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from sigdeg.discrete import (
    Absorbing,
    Ancestral,
    Characters,
    DiscreteConfig,
    Latent,
    NetworkTokenDenoiser,
    TokenModel,
    as_token_model,
    train_teacher,
)
from sigdeg.discrete.distill import make_student, train_student
from sigdeg.discrete.recognition import train_mixture
from sigdeg.experiments.bench import slugify
from sigdeg.experiments.token_bench import TokenBenchmark
from sigdeg.networks import TokenRecognition, TokenTransformer
from sigdeg.results import count_calls
from sigdeg.rng import seeded
from sigdeg.training import TrainConfig

__all__ = ["LanguageBenchmark", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """How much work of what kind: a teacher of text, its students, and what is drawn of them.

    Arguments:
        network: The teacher's network, as arguments of `TokenTransformer`.
        teacher: How the teacher is trained.
        students: Of each kind of student whose latents are drawn the settings of `DiscreteConfig`.
        recognised: Of each kind of student whose latents are recognised how it is trained.
        latent: What students hear whose latents are drawn.
        heard: What students hear whose latents are recognised.
        seeds: Training seeds of a student.
        counts: Step counts at which all are judged.
        n: Samples of a set.
        draws: Sets behind a number, of each training seed.
    """

    network: dict[str, Any]
    teacher: TrainConfig
    students: dict[str, dict[str, Any]]
    recognised: dict[str, TrainConfig] = field(default_factory=dict)
    latent: Latent = field(default_factory=lambda: Latent("weighted", 8))
    heard: Latent = field(default_factory=lambda: Latent("gaussian", 16))
    seeds: int = 1
    counts: tuple[int, ...] = (64, 32, 16, 8, 4, 2)
    n: int = 256
    draws: int = 2


R = TypeVar("R", bound=Recipe)


class LanguageBenchmark(TokenBenchmark[R]):
    """A benchmark of masked characters: teachers and students as a `Recipe` has them."""

    characters: Characters  # what the tokens stand for

    def __init__(self, settings: R, out: Path, **options: Any) -> None:
        super().__init__(settings, out, **options)
        self.n, self.draws = settings.n, settings.draws
        self.texts: dict[str, list[str]] = {}
        self.warnings: list[str] = []

    def results(self) -> dict[str, Any]:
        return {**super().results(), "texts": self.texts, "warnings": self.warnings}

    def teach(self, name: str, data: Tensor) -> TokenModel:
        """Train a teacher on sequences (n, D), in a folder of its own."""
        process, length = Absorbing(len(self.characters.alphabet)), data.shape[1]
        network = seeded(
            self.seed, lambda: TokenTransformer(length, process.states, **self.settings.network)
        )
        config = dataclasses.replace(self.settings.teacher, seed=self.seed)
        untrained = NetworkTokenDenoiser(network, process, length)
        denoiser, curve = train_teacher(untrained, data, self.out / name, config, **self.options)
        self.curves[name] = curve.tolist()
        made = as_token_model(denoiser.eval(), name=name)
        return dataclasses.replace(made, codec=self.characters)

    def train_kind(self, kind: str, teacher: TokenModel, data: Tensor, seed: int) -> TokenModel:
        """Train a kind of student with one seed: on drawn latents, or on recognised ones."""
        folder = self.out / "students" / slugify(f"{teacher.name} {kind} seed {seed}")
        if kind in self.settings.recognised:
            made = make_student(teacher, self.settings.heard, seed=seed)
            config = dataclasses.replace(self.settings.recognised[kind], seed=seed)
            shape, sizes = (1, made.length), (made.process.states, made.latent.size)
            seeing = seeded(seed, lambda: TokenRecognition(shape, *sizes, patch=1))
            made, curve = train_mixture(made, seeing, data, folder, config, **self.options)
        else:
            made = make_student(teacher, self.settings.latent, seed=seed)
            given = DiscreteConfig(**self.settings.students[kind], seed=seed)
            step = Ancestral(teacher.denoiser)
            found = train_student(made, step, folder, given, data=data, **self.options)
            made, curve = found.student, found.history
        if seed == self.seed:
            self.curves[f"{teacher.name}, student {kind}"] = curve.tolist()
        model = as_token_model(made.eval(), name=kind)
        return dataclasses.replace(model, codec=self.characters)

    def add_language(
        self, teacher: TokenModel, data: Tensor, **columns: Any
    ) -> dict[str, TokenModel]:
        """Add the rows of a teacher and its students; returns it and the first of each kind."""
        counts, first = self.settings.counts, {"teacher": teacher}
        self.add_models("teacher", [teacher], counts, teacher.name, **columns)
        for kind in (*self.settings.students, *self.settings.recognised):
            seeds = range(self.seed, self.seed + self.settings.seeds)
            models = [self.train_kind(kind, teacher, data, seed) for seed in seeds]
            self.add_models("di4c", models, counts, teacher.name, **columns, variant=kind)
            first[kind] = models[0]
        return first

    def show_texts(self, first: Mapping[str, TokenModel], steps: int, n: int) -> None:
        """Show texts of some models, at the same count and with the same seeds."""
        for name, model in first.items():
            drawn = model.sample(n, steps, seed=self.seed)
            self.texts[f"{name}, {count_calls(steps)}"] = self.characters.text(drawn)
