"""What benchmarks of masked characters share: a teacher of them, and its mixture students."""

from __future__ import annotations

import dataclasses
import statistics
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
from sigdeg.discrete.distill import Distilled, make_student, train_student
from sigdeg.experiments.bench import slugify
from sigdeg.experiments.token_bench import TokenBenchmark
from sigdeg.networks import TokenTransformer
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
        students: Of each kind of student, by what sets it apart, the options of `distill`.
        latent: What students hear.
        seeds: Training seeds of a student.
        counts: Step counts at which all are judged.
        n: Samples of a set.
        draws: Sets behind a number, of each training seed.
    """

    network: dict[str, Any]
    teacher: TrainConfig
    students: dict[str, dict[str, Any]]
    latent: Latent = field(default_factory=Latent)
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

    def distill_kind(
        self, name: str, teacher: TokenModel, data: Tensor, seed: int
    ) -> tuple[TokenModel, Distilled]:
        """Distil a kind of student with one seed."""
        folder = self.out / "students" / slugify(f"{teacher.name} {name} seed {seed}")
        student = make_student(teacher, self.settings.latent, seed=seed)
        step = Ancestral(teacher.denoiser)
        config = DiscreteConfig(**self.settings.students[name], seed=seed)
        found = train_student(student, step, folder, config, data=data, **self.options)
        model = as_token_model(found.student.eval(), name=name)
        return dataclasses.replace(model, codec=self.characters), found

    def add_language(
        self, teacher: TokenModel, data: Tensor, **columns: Any
    ) -> dict[str, TokenModel]:
        """Add the rows of a teacher and its students; returns it and the first of each kind."""
        counts, first = self.settings.counts, {"teacher": teacher}
        self.add_models("teacher", [teacher], counts, teacher.name, **columns)
        for name in self.settings.students:
            seeds = range(self.seed, self.seed + self.settings.seeds)
            both = [self.distill_kind(name, teacher, data, seed) for seed in seeds]
            models, found = [model for model, _ in both], [trained for _, trained in both]
            told = {
                "variant": name,
                "train_seconds": statistics.fmean(trained.seconds for trained in found),
                "teacher_nfe": found[0].teacher_nfe,
            }
            self.curves[f"{teacher.name}, student {name}"] = found[0].history.tolist()
            self.add_models("di4c", models, counts, teacher.name, **columns, **told)
            first[name] = models[0]
        return first

    def show_texts(self, first: Mapping[str, TokenModel], steps: int, n: int) -> None:
        """Show texts of some models, at the same count and with the same seeds."""
        for name, model in first.items():
            drawn = model.sample(n, steps, seed=self.seed)
            self.texts[f"{name}, {count_calls(steps)}"] = self.characters.text(drawn)
