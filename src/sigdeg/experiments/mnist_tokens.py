"""MNIST as tokens: pixels of few grey levels, drawn in 1 to 16 calls.

A product of pixels, the teacher, is distilled to mixtures: by latents that are drawn, as Di4C has
it, and by latents that a network recognises. All are judged by the classifiers of the `mnist`
benchmark, against test images of the same grey levels.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from sigdeg.discrete import (
    Absorbing,
    Ancestral,
    DiscreteConfig,
    DiscretisedGaussian,
    GreyLevels,
    Hybrid,
    Latent,
    NetworkTokenDenoiser,
    TokenModel,
    as_token_model,
    train_teacher,
    uniform_grid,
)
from sigdeg.discrete.distill import make_student, train_student
from sigdeg.discrete.objective import saturation
from sigdeg.discrete.process import DiscreteProcess
from sigdeg.discrete.recognition import train_mixture
from sigdeg.discrete.student import MixtureStudent
from sigdeg.experiments.bench import slugify
from sigdeg.experiments.mnist_judges import EXTRACTORS, Judges, images, shipped_extractor
from sigdeg.experiments.mnist_networks import CLASSES
from sigdeg.experiments.token_bench import TokenBenchmark
from sigdeg.metrics import class_histogram, total_variation
from sigdeg.model import Card
from sigdeg.networks import TokenRecognition, TokenUNet
from sigdeg.report import image_grid
from sigdeg.results import Summary, count_calls, versions
from sigdeg.rng import Stream, seeded
from sigdeg.runs import fingerprint
from sigdeg.training import TrainConfig

__all__ = ["PRESETS", "MnistTokens", "Pixels", "Settings", "run"]

C = TypeVar("C", bound=TrainConfig)
SHAPE = (28, 28)
PATCH = 4  # pixels a side of what the networks see as one place
RECOGNISED, DRAWN = "latents recognised", "latents drawn"
HYBRID = "latents recognised, its teacher last"
UNTIL = 0.5  # time of a hybrid's last step by the student
FLOOR = 10_000  # training images among which the floor's are
SHOWN = 32  # samples in a figure


@dataclass(frozen=True)
class Pixels:
    """Pixels as tokens, and what is trained on them.

    Arguments:
        levels: Grey levels.
        process: How they are noised.
        teacher: How the teacher is trained.
        student: How the mixture is trained whose latents are recognised.
        mixture: How the one is distilled whose latents are drawn, if it is.
    """

    levels: int
    process: Literal["masked", "gaussian"]
    teacher: TrainConfig
    student: TrainConfig
    mixture: DiscreteConfig | None = None

    @property
    def title(self) -> str:
        """What they are called."""
        return f"{self.levels} grey levels, {self.process}"

    @property
    def codec(self) -> GreyLevels:
        """Images as tokens."""
        return GreyLevels(self.levels, *SHAPE)

    def make_process(self) -> DiscreteProcess:
        """The process."""
        if self.process == "masked":
            return Absorbing(self.levels)
        return DiscretisedGaussian(self.levels)


@dataclass(frozen=True)
class Settings:
    """A preset.

    Arguments:
        pixels: What is trained; the first stands in the main table, others beside it.
        width: Channels of the networks.
        latent: Numbers of a Gaussian latent.
        counts: Step counts, the largest one first.
        n: Samples of a draw.
        draws: Draws behind a number.
        real: Test images that they are judged against.
        timing_n: Samples behind the seconds.
    """

    pixels: tuple[Pixels, ...]
    width: int = 32
    latent: int = 32
    counts: tuple[int, ...] = (16, 8, 4, 2, 1)
    n: int = 1000
    draws: int = 2
    real: int = 2500
    timing_n: int = 16


TEACHER = TrainConfig(iterations=2500, batch_size=64, learning_rate=2e-3, warmup=100, ema=0.998)
STUDENT = dataclasses.replace(TEACHER, iterations=3000, batch_size=32, checkpoint_every=250)
MIXTURE = DiscreteConfig(
    iterations=150,
    batch_size=8,
    learning_rate=1e-3,
    warmup=20,
    ema=0.98,
    latents=8,
    alpha=0.1,
    checkpoint_every=50,
)
BITS = Pixels(2, "masked", TEACHER, STUDENT, MIXTURE)


def shorter(levels: int, process: Literal["masked", "gaussian"], iterations: int) -> Pixels:
    """Other pixels, with less of everything."""
    teacher = dataclasses.replace(TEACHER, iterations=iterations, ema=0.99)
    student = dataclasses.replace(STUDENT, iterations=iterations, ema=0.99)
    return Pixels(levels, process, teacher, student)


PRESETS = {
    "quick": Settings(
        (
            Pixels(
                2,
                "masked",
                dataclasses.replace(TEACHER, iterations=100, ema=0.9),
                dataclasses.replace(STUDENT, iterations=100, ema=0.9),
            ),
        ),
        counts=(4, 1),
        n=200,
    ),
    "default": Settings((BITS,)),
    "levels": Settings(
        (shorter(16, "masked", 300), shorter(16, "gaussian", 300), shorter(2, "gaussian", 300)),
        counts=(16, 4, 1),
        n=500,
    ),
}


class MnistTokens(TokenBenchmark[Settings]):
    """Teachers and students of pixels, judged as digits."""

    name = "mnist-tokens"
    title = "MNIST as tokens: digits of few grey levels"
    presets = PRESETS
    quality = ("fid", "Fréchet distance, features of an MNIST classifier")
    rivals = ("fid", "fid_2")  # no claim rests on one of them alone
    stream = Stream.MNIST_TOKENS_DRAWS
    shape = (SHAPE[0] * SHAPE[1],)
    batch = 250
    shown_steps = 4

    @property
    def summary(self) -> str:
        return (
            f"Draws of {self.settings.n:,} samples against {self.settings.real:,} test images of "
            f"the same grey levels. Main table: {self.settings.pixels[0].title}."
        )

    def read(self, data_dir: Path | None) -> None:
        self.train_set, self.test_set = images("train", data_dir), images("test", data_dir)

    def prepare(self) -> None:
        self.n, self.draws = self.settings.n, self.settings.draws
        self.timing_n = self.settings.timing_n
        self.extractors = [shipped_extractor(name) for name in EXTRACTORS]
        self.shares = class_histogram(self.train_set[1], CLASSES)
        apart = len(self.test_set[0]) // self.settings.real  # its second half is the cleaner one
        self.tested = tuple(v[:: max(1, apart)][: self.settings.real] for v in self.test_set)
        self.warnings: list[str] = []

    def enter(self, pixels: Pixels) -> None:
        """Turn to other pixels: what is real has their grey levels."""
        self.pixels, self.codec = pixels, pixels.codec
        sets = ((part[:FLOOR] for part in self.train_set), self.tested)
        train, test = (
            (self.look(pixels.codec.encode(pictures)), labels) for pictures, labels in sets
        )
        self.judges = Judges(self.extractors, train, test)

    def look(self, tokens: Tensor) -> Tensor:
        """Tokens as images in [-1, 1]."""
        return self.codec.decode(tokens)

    def measure(self, samples: Tensor) -> dict[str, float]:
        found = self.judges.measure(self.look(samples))
        classes = torch.tensor(found["classes"], dtype=torch.float64)
        metrics: dict[str, float] = found["metrics"]
        return {**metrics, "tv": total_variation(classes, self.shares)}

    def judge(self, name: str, draw: Any) -> dict[str, Summary]:
        return super().judge(f"{self.pixels.title} {name}", draw)

    def floor(self) -> dict[str, Summary]:
        self.enter(self.settings.pixels[0])
        return self.judges.floor(self.n, self.draws, self.seed)

    def fill(self) -> None:
        for pixels in self.settings.pixels:
            self.enter(pixels)
            folder, main = self.out / slugify(pixels.title), not self.rows
            tokens = pixels.codec.encode(self.train_set[0])
            teacher = self.train_teacher(tokens, folder / "teacher")
            models = {"teacher": teacher, RECOGNISED: self.recognise(teacher, tokens, folder)}
            if pixels.mixture is not None:
                models[DRAWN] = self.distill_mixture(teacher, tokens, folder)
            for name, model in models.items():
                self.add_rows(name, model, main)
            if main:
                self.teacher, self.student = teacher, models[RECOGNISED]
                self.add_hybrids()

    def add_rows(self, name: str, model: TokenModel, main: bool) -> None:
        """The rows of a model at all step counts; in a table of their own but for the main ones."""
        method = "teacher" if name == "teacher" else "di4c"
        for steps in self.settings.counts:
            told = {} if name == "teacher" else {"variant": name}
            if not main:
                label = f"{name}, {count_calls(steps)}"
                told = {"study": self.pixels.title, "variant": label}
            self.add_models(method, [model], [steps], **told)

    def add_hybrids(self) -> None:
        """Rows of the student whose last steps are its teacher's."""
        for steps in (k for k in self.settings.counts if k > 1):
            step = Hybrid(Ancestral(self.student.denoiser), Ancestral(self.teacher.denoiser), UNTIL)
            grid = self.student.grid.at(steps)
            metrics = self.judge(f"{HYBRID} at {steps}", self.march(step, grid))
            self.add_step("di4c", step, grid, metrics, steps=steps, seeds=1, variant=HYBRID)

    def train_teacher(self, tokens: Tensor, folder: Path) -> TokenModel:
        """The product."""
        process, config = self.pixels.make_process(), self.with_seed(self.pixels.teacher)
        network = seeded(
            self.seed,
            lambda: TokenUNet(SHAPE, process.states, self.settings.width, patch=PATCH),
        )
        denoiser = NetworkTokenDenoiser(network, process, tokens.shape[1])
        denoiser, history = train_teacher(denoiser, tokens, folder, config, **self.options)
        self.curves[f"teacher, {self.pixels.title}"] = history.tolist()
        return self.model(denoiser, config, Card(name=f"{self.name} teacher"))

    def new_student(self, teacher: TokenModel) -> MixtureStudent:
        """The teacher with a latent that nobody has taught it to hear."""
        latent = Latent("gaussian", self.settings.latent)
        return make_student(teacher, latent, inject="map", seed=self.seed)

    def recognise(self, teacher: TokenModel, tokens: Tensor, folder: Path) -> TokenModel:
        """The student whose latents are recognised."""
        student, config = self.new_student(teacher), self.with_seed(self.pixels.student)
        states, size = student.process.states, student.latent.size
        recognition = seeded(self.seed, lambda: TokenRecognition(SHAPE, states, size, patch=PATCH))
        student, history = train_mixture(
            student, recognition, tokens, folder / "recognised", config, **self.options
        )
        self.curves[f"student, {RECOGNISED}, {self.pixels.title}"] = history.tolist()
        card = Card(name=self.name, teacher=teacher.name, fingerprint=fingerprint(teacher.step))
        return self.model(student, config, card)

    def distill_mixture(self, teacher: TokenModel, tokens: Tensor, folder: Path) -> TokenModel:
        """The student whose latents are drawn."""
        assert self.pixels.mixture is not None
        config = self.with_seed(self.pixels.mixture)
        found = train_student(
            self.new_student(teacher),
            Ancestral(teacher.denoiser),
            folder / "drawn",
            config,
            data=tokens,
            **self.options,
        )
        self.curves[f"student, {DRAWN}, {self.pixels.title}"] = found.history.tolist()
        if told := saturation(found.losses["ess"], config.latents, found.student.latent):
            self.warnings.append(f"{DRAWN}: {told}")
        return self.model(found.student, config, Card(name=f"{self.name}, {DRAWN}"))

    def with_seed(self, config: C) -> C:
        """A configuration with the run's seed."""
        return dataclasses.replace(config, seed=self.seed)

    def model(self, denoiser: NetworkTokenDenoiser, config: TrainConfig, card: Card) -> TokenModel:
        """A trained denoiser as a model of images, on the CPU."""
        counts = self.settings.counts
        card = dataclasses.replace(
            card,
            seed=self.seed,
            configuration=dataclasses.asdict(config),
            versions=versions(),
        )
        made = as_token_model(denoiser.cpu().eval(), uniform_grid(counts[0]).tolist(), counts)
        return dataclasses.replace(made, codec=self.pixels.codec, card=card)

    def results(self) -> dict[str, Any]:
        return {
            **super().results(),
            "extractors": self.judges.describe(),
            "warnings": self.warnings or None,
        }

    def save_student(self) -> None:
        """Save it, and in half precision as the package ships it."""
        super().save_student()
        half = copy.deepcopy(self.student.step).half()
        shipped = dataclasses.replace(self.student, step=half)
        shipped.save_pretrained(self.out / "pretrained" / self.name)

    def draw_figures(self) -> Mapping[str, str]:
        """The same seeds: teacher and student beside each other."""
        most, few = self.settings.counts[0], self.settings.counts[-3:]
        shown = [("teacher", self.teacher, k) for k in dict.fromkeys((most, few[0]))]
        shown += [("student", self.student, k) for k in few]
        sets = [(model.sample(SHOWN, k, seed=self.seed) + 1) / 2 for _, model, k in shown]
        titles = [f"{name}, {count_calls(k)}" for name, _, k in shown]
        image_grid(sets, self.out / "figures" / "digits.png", 4, titles)
        return {"digits": "Teacher and student; digit i of every set has the same seed."}


run = MnistTokens.run
