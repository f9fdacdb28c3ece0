"""Strings whose validity a program decides: how many steps does a sampler need to write them?

Brackets of two kinds, drawn uniformly from all that are balanced, and small molecules in SMILES,
which RDKit reads. A step that draws positions apart breaks both.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sigdeg.datasets import Brackets, Language, Molecules
from sigdeg.discrete import Characters, Latent, TokenModel
from sigdeg.errors import MissingPackageError
from sigdeg.experiments.language import LanguageBenchmark, Recipe
from sigdeg.metrics import validity
from sigdeg.results import count_calls
from sigdeg.rng import Stream, derive_generator
from sigdeg.training import TrainConfig

__all__ = ["PRESETS", "Grammar", "Settings", "run"]

LANGUAGES: dict[str, Any] = {"brackets": Brackets, "molecules": Molecules}
SHOWN = 8  # strings of each sampler in the report


@dataclass(frozen=True)
class Settings(Recipe):
    """A preset: as a recipe, for each of some languages.

    Arguments:
        languages: The length of a string of each.
        strings: Strings that its models are trained on.
    """

    languages: tuple[tuple[str, int], ...] = (("brackets", 16), ("molecules", 24))
    strings: int = 20_000


TRAINING = TrainConfig(
    iterations=1500,
    batch_size=64,
    learning_rate=3e-3,
    optimizer="muon",
    ema=0.995,
    checkpoint_every=300,
    tracker="none",
)
STUDENT: dict[str, Any] = {
    "iterations": 200,
    "batch_size": 8,
    "latents": 8,
    "learning_rate": 3e-4,
    "warmup": 20,
    "ema": 0.98,
    "shortest": 1 / 16,
    "longest": 1 / 4,
    "checkpoint_every": 100,
    "tracker": "none",
}
PRESETS = {
    "quick": Settings(
        network={"width": 32, "depth": 2, "heads": 2},
        teacher=dataclasses.replace(TRAINING, iterations=300, ema=0.98),
        students={"with data": {**STUDENT, "iterations": 60}},
        recognised={"latents recognised": dataclasses.replace(TRAINING, iterations=60, ema=0.9)},
        counts=(8, 2),
        n=200,
        languages=(("brackets", 8), ("molecules", 16)),
        strings=2000,
    ),
    "default": Settings(
        network={"width": 64, "depth": 3, "heads": 4},
        teacher=TRAINING,
        students={"with data": STUDENT},
        recognised={"latents recognised": dataclasses.replace(TRAINING, iterations=600, ema=0.99)},
        latent=Latent("weighted", 16),
        counts=(16, 8, 4, 2, 1),
        n=500,
    ),
}


class Grammar(LanguageBenchmark[Settings]):
    """The benchmark: brackets stand in the main table, molecules in one of their own."""

    name = "grammar"
    title = "Strings that are valid or not"
    summary = (
        "A masked teacher and its mixture students at the same counts of calls: the share of what "
        "they write that is invalid, of the valid ones that differ, and of those that are new. "
        "The main table is of balanced brackets of two kinds; molecules stand below."
    )
    presets = PRESETS
    quality = ("invalid", "Share of invalid strings of brackets")
    stream = Stream.GRAMMAR_DRAWS
    timing_n = 64

    def prepare(self) -> None:
        self.languages: dict[str, Language] = {}
        for name, length in self.settings.languages:
            language = LANGUAGES[name](length)
            try:
                language.forms([])
            except MissingPackageError as error:
                self.warnings.append(f"There are no {name} here: {error}")
            else:
                self.languages[name] = language

    def measure(self, samples: Tensor) -> dict[str, float]:
        found = validity(self.language.forms(self.characters.text(samples)), self.known)
        return {"invalid": 1 - found["valid"], "unique": found["unique"], "new": found["new"]}

    def fill(self) -> None:
        for place, name in enumerate(self.languages):
            first = self.fill_language(name, place)
            if not place:
                self.student = first[next(iter(self.settings.students))]

    def fill_language(self, name: str, place: int) -> dict[str, TokenModel]:
        """Train all that a language needs, and add its rows; returns a model of each kind."""
        self.language = language = self.languages[name]
        self.characters, self.shape = Characters(language.alphabet), (language.length,)
        generator = derive_generator(self.seed, Stream.GRAMMAR_DATA, place)
        drawn = language.sample(self.settings.strings, generator)
        self.known = {form for form in language.forms(drawn) if form is not None}
        data = self.characters.encode(drawn)
        rows, study = len(self.rows), {"study": name.capitalize()} if place else {}
        first = self.add_language(self.teach(name, data), data, **study)
        for row in self.rows[rows:] if place else ():
            kinds = row.get("variant"), count_calls(row["nfe"])
            row["variant"] = ", ".join(filter(None, kinds))
        named = {f"{name}, {kind}": model for kind, model in first.items()}
        counts = sorted(self.settings.counts)
        self.show_texts(named, counts[(len(counts) - 1) // 2], SHOWN)
        return first


run = Grammar.run
