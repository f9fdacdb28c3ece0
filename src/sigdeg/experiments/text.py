"""Characters of a small text: does a student of few steps write as its teacher of many?

What is written is judged by a scorer that was trained apart from all of them. Its perplexity is
told together with entropy, distinct n-grams and self-BLEU: whoever repeats a few words has a low
one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sigdeg.datasets import load_text, split_text, windows
from sigdeg.discrete import Characters, nelbo
from sigdeg.experiments.language import LanguageBenchmark, Recipe
from sigdeg.experiments.scorer import Scorer, train_scorer
from sigdeg.metrics import text_metrics
from sigdeg.results import Summary, summarise
from sigdeg.rng import Stream, derive_generator, seeded
from sigdeg.training import TrainConfig

__all__ = ["PRESETS", "Settings", "Text", "run"]

STRIDE = 8  # characters from the beginning of one training piece to that of the next
SHOWN = 4  # texts of each sampler in the report
BOUND_DRAWS = 8  # of times, behind the likelihood bound


@dataclass(frozen=True)
class Settings(Recipe):
    """A preset: as a recipe, and how the scorer is trained.

    Arguments:
        length: Characters of a piece.
        scorer: How the scorer is trained.
        width: Size of its memory.
        unseen: Pieces of the test text behind the likelihood bound.
        shown: Step counts of the texts in the report.
    """

    length: int = 64
    scorer: TrainConfig = field(default_factory=TrainConfig)
    width: int = 256
    unseen: int = 512
    shown: tuple[int, ...] = (64, 8)


TRAINING = TrainConfig(
    iterations=2000,
    batch_size=32,
    learning_rate=3e-3,
    optimizer="muon",
    ema=0.995,
    checkpoint_every=200,
    tracker="none",
)
STUDENT: dict[str, Any] = {
    "iterations": 300,
    "batch_size": 4,
    "latents": 8,
    "learning_rate": 2e-3,
    "warmup": 20,
    "ema": 0.98,
    "shortest": 1 / 16,
    "longest": 1 / 4,
    "checkpoint_every": 100,
    "tracker": "none",
}
PRESETS = {
    "quick": Settings(
        network={"width": 64, "depth": 2, "heads": 2},
        teacher=dataclasses.replace(TRAINING, iterations=300, ema=0.98),
        students={"with data": {**STUDENT, "iterations": 60}},
        recognised={"latents recognised": dataclasses.replace(TRAINING, iterations=60, ema=0.9)},
        counts=(16, 4),
        n=64,
        length=32,
        scorer=dataclasses.replace(TRAINING, iterations=200, ema=0.98),
        width=128,
        unseen=64,
        shown=(4,),
    ),
    "default": Settings(
        network={"width": 128, "depth": 3, "heads": 4},
        teacher=TRAINING,
        students={"with data": STUDENT},
        recognised={"latents recognised": dataclasses.replace(TRAINING, iterations=600, ema=0.99)},
        n=64,
        draws=3,
        scorer=TrainConfig(
            iterations=900,
            batch_size=64,
            learning_rate=4e-3,
            optimizer="muon",
            ema=0.99,
            tracker="none",
        ),
    ),
}


class Text(LanguageBenchmark[Settings]):
    """The benchmark: one teacher, its students, the text itself."""

    name = "text"
    title = "Characters of Shakespeare"
    summary = (
        "A masked teacher of characters and its mixture students at the same counts of calls. "
        "Perplexity is that of a recurrent scorer trained apart, on the same text; it is read with "
        "entropy, distinct 4-grams and self-BLEU beside it, and the floor is the unseen text."
    )
    presets = PRESETS
    quality = ("perplexity", "Perplexity under the scorer")
    stream = Stream.TEXT_DRAWS
    timing_n = 16

    def read(self, data_dir: Path | None) -> None:
        self.text = load_text(data_dir)

    def prepare(self) -> None:
        settings = self.settings
        self.shape = (settings.length,)
        self.characters = Characters("".join(sorted(set(self.text))))
        split = split_text(self.text)
        train, unseen, test = (self.characters.encode([part])[0] for part in split)
        self.test = windows(test, settings.length)
        network = seeded(self.seed, lambda: Scorer(len(self.characters.alphabet), settings.width))
        config = dataclasses.replace(settings.scorer, seed=self.seed)
        self.scorer, curve = train_scorer(
            network, train, unseen, settings.length, self.out / "scorer", config, **self.options
        )
        self.curves["scorer"] = curve.tolist()
        self.data = windows(train, settings.length, STRIDE).contiguous()
        self.teacher = self.teach("teacher", self.data)

    def measure(self, samples: Tensor) -> dict[str, float]:
        with torch.no_grad():
            return text_metrics(samples, self.scorer)

    def floor(self) -> dict[str, Summary]:
        """The metrics of as many pieces of the test text, as often as samples are drawn."""
        generators = [derive_generator(self.seed, self.stream, i) for i in range(self.draws)]
        rows = [torch.randperm(len(self.test), generator=g)[: self.n] for g in generators]
        return summarise([self.measure(self.test[part]) for part in rows])

    def bound(self, i: int) -> dict[str, Any]:
        """The bound on the teacher's nats a character of the test text, by one draw of times."""
        generator = derive_generator(self.seed, Stream.TEXT_BOUND, i)
        pieces = self.test[: self.settings.unseen]
        return {"bound": nelbo(self.teacher.denoiser, pieces, generator=generator).mean}

    def fill(self) -> None:
        first = self.add_language(self.teacher, self.data)
        self.rows[0]["metrics"] |= summarise(self.recall("bound", self.bound, BOUND_DRAWS))
        self.student = first[next(iter(self.settings.students))]
        self.texts["the test text"] = self.characters.text(self.test[:SHOWN])
        for steps in self.settings.shown:
            self.show_texts(first, steps, SHOWN)


run = Text.run
