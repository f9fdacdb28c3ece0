"""What the MNIST benchmark trains: the presets and their students."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from sigdeg.distillation import DistillConfig
from sigdeg.experiments.bench import Spec
from sigdeg.training import TrainConfig

__all__ = ["PRESETS", "WIDTHS", "Settings", "Weak", "student"]

# The paper's five sizes of the U-Net (C.3.3); of the fourth it lists one 96 too many.
WIDTHS = {
    "full": (128, 256, 256),
    "three quarters": (96, 192, 192),
    "half": (64, 128, 128),
    "three eighths": (48, 96, 96),
    "quarter": (32, 64, 64),
}
# Above t = 0.7 the noise hides everything, below 0.1 the decoder forgives what is left of it: the
# steps belong between. The ancestral sampler's FID falls by a third against the power grid.
TIMES = (1.0, 0.70, 0.64, 0.57, 0.51, 0.44, 0.37, 0.29, 0.21, 0.12, 0.0)


def student(steps: tuple[int, ...], **options: Any) -> Spec:
    """A student to distil: it looks half-way and learns the whole law of what is left open."""
    return replace(Spec(steps, order=8, residual_noise="energy", lookahead=0.5), **options)


@dataclass(frozen=True)
class Guided:
    """The class-conditional variant: its teacher goes on from the unconditional one.

    Arguments:
        teacher: How the conditional teacher is trained.
        scale: Of the guidance, see `ClassifierFreeGuidance`.
        spec: The student.
        config: How it is distilled, from guided paths of two network calls a step.
    """

    teacher: TrainConfig
    scale: float
    spec: Spec
    config: DistillConfig


@dataclass(frozen=True)
class Weak:
    """A smaller teacher, trained for less long: it guides the other by its faults.

    Arguments:
        widths: Channels of its U-Net.
        teacher: How it is trained.
        scale: Of the guidance, see `AutoGuidance`.
        until: The time above which there is none.
        matching: How a student goes on that learns from both, and their paths.
    """

    widths: tuple[int, ...]
    teacher: TrainConfig
    scale: float
    until: float
    matching: DistillConfig


@dataclass(frozen=True)
class Settings:
    """A preset: the networks, the students, and how much work.

    Arguments:
        widths: Channels of the U-Net at its three resolutions.
        autoencoder: How the autoencoder is trained.
        classifiers: How the metrics' classifiers are trained, by the extractor's name; what is not
            named is the one that is shipped.
        teacher: How the teacher is trained.
        train_steps: Noise levels of the teacher's scheduler.
        specs: The students.
        config: How they are distilled, and how many teacher paths they share.
        matching: How those go on that start from another student.
        times: The finest grid of the students; one of fewer steps takes every so many of them.
        also: Step counts that the main student is judged at though it was not trained for them.
        peers: Calls of the training-free solvers.
        guided_peers: Calls of those of the guided teacher: a step is two, so only many may pay.
        scales: Scales of the guidance, each with the time above which there is none, to compare.
        sized: Whether to time networks of the paper's other sizes.
        guided: The class-conditional variant.
        weak: The weak teacher, for the students that want it.
        shipped: Whether to judge the models that come with the package instead of training.
        draws: Draws of teachers and students.
        peer_draws: Draws of the training-free samplers.
        n: Samples of a draw, against all test images.
        tried: Samples behind a choice, such as of a solver's grid.
        timing_n: Samples behind the seconds.
    """

    widths: tuple[int, ...]
    autoencoder: TrainConfig
    teacher: TrainConfig
    specs: tuple[Spec, ...]
    config: DistillConfig
    matching: DistillConfig
    classifiers: dict[str, TrainConfig] = field(default_factory=dict)
    train_steps: int = 1000
    times: tuple[float, ...] = TIMES
    also: tuple[int, ...] = ()
    peers: tuple[int, ...] = ()
    guided_peers: tuple[int, ...] = ()
    scales: tuple[tuple[float, float], ...] = ()
    sized: bool = False
    guided: Guided | None = None
    weak: Weak | None = None
    shipped: bool = False
    draws: int = 1
    peer_draws: int = 1
    n: int = 10_000
    tried: int = 2048
    timing_n: int = 64


PAIRED = student((10, 5, 2, 1))
MATCHED = replace(PAIRED, start=PAIRED)
ELASTIC = replace(MATCHED, start=MATCHED, teacher="guided")


def studies() -> Iterator[Spec]:
    """Tables beside the main one; every student of the later ones is alike and short."""
    title = "Distribution matching"
    yield replace(PAIRED, study=title, variant="before it: paths alone")
    yield replace(MATCHED, study=title, variant="its own teacher, not guided")
    for steps, iterations in ((10, 150), (5, 200), (2, 300)):
        yield student(
            (steps,),
            start=MATCHED,
            iterations=iterations,
            study=title,
            variant="the same, going on with this step count alone",
        )
    five = student((5,), order=4, iterations=300)
    for order in (2, 4, 8):
        yield replace(five, order=order, study="Orders: 5 steps", variant=f"order {order}")
    for q in (2, 4):
        yield replace(five, q=q, study="Steps in a loss term: 5 steps", variant=f"q = {q}")
    title = "What the coefficients leave open: 5 steps"
    yield replace(five, residual_noise=None, study=title, variant="its mean (regression)")
    for part in (0.0, 0.5):
        title, name = "Where the network looks: 1 step", f"after {part:g} of the step"
        yield replace(five, steps=(1,), order=8, lookahead=part, study=title, variant=name)


# Times near the data decide the shape of a digit: power 2 dwells there.
TRAINED = TrainConfig(iterations=24_000, batch_size=64, learning_rate=1e-3, warmup=200, ema=0.9995)
STUDENT = DistillConfig(
    iterations=12_500,
    batch_size=64,
    learning_rate=1e-3,
    paths=20_256,
    held_out=256,
    refinement=12,
    shard_size=250,
)
# All steps of the student in the loss, so that its samples can be judged.
MATCHING = replace(
    STUDENT,
    iterations=2000,
    batch_size=96,
    learning_rate=5e-4,
    warmup=50,
    ema=0.995,
    q=0,
    matching=4.0,
)
WEAK = Weak(
    widths=(16, 32, 32),
    teacher=replace(TRAINED, iterations=2000, ema=0.998, seed=1),
    scale=1.5,
    # Above it is settled which digit comes: a student guided there too draws zeros too often.
    until=0.6,
    # Two networks a step, so half as many steps. Digits are as good after 600 iterations as after
    # 2,000, by which their shares have drifted.
    matching=replace(MATCHING, iterations=600, refinement=6),
)
QUARTER = Settings(
    widths=WIDTHS["quarter"],
    autoencoder=TrainConfig(iterations=4000, batch_size=64, learning_rate=3e-3, ema=0.998),
    classifiers={
        "mnist": TrainConfig(iterations=3500, batch_size=128, learning_rate=1e-3, ema=0.995),
        "mnist-2": TrainConfig(
            iterations=8000, batch_size=64, learning_rate=2e-3, ema=0.998, seed=1
        ),
    },
    teacher=TRAINED,
    specs=(ELASTIC, *studies()),
    config=STUDENT,
    matching=MATCHING,
    also=(4,),
    peers=(1, 2, 5, 10),
    guided_peers=(10, 20),
    scales=((1.0, 1.0), (1.25, 0.6), (1.5, 0.6), (1.75, 0.6), (2.0, 0.6), (1.5, 1.0)),
    sized=True,
    guided=Guided(
        teacher=replace(TRAINED, iterations=2000, ema=0.998),
        scale=2.0,
        spec=student((5,), order=4, teacher="classes"),
        config=replace(STUDENT, iterations=600, paths=2512, refinement=6, ema=0.995),
    ),
    weak=WEAK,
    draws=4,
    peer_draws=2,
    n=5000,
    tried=1024,
)
PRESETS = {
    "quick": Settings(
        widths=WIDTHS["quarter"],
        autoencoder=TrainConfig(iterations=600, batch_size=64, learning_rate=3e-3, ema=0.99),
        teacher=replace(TRAINED, iterations=1200, ema=0.99),
        specs=(student((10, 5), order=4, residual_noise=None),),
        config=replace(STUDENT, iterations=400, paths=2100, held_out=52, refinement=4),
        matching=replace(MATCHING, iterations=50),
        n=2048,
    ),
    "default": QUARTER,
    # The models that come with the package, judged again without any training.
    "shipped": replace(
        QUARTER,
        shipped=True,
        classifiers={},
        specs=(ELASTIC,),
        config=replace(STUDENT, paths=10_000),
        weak=replace(WEAK, matching=replace(WEAK.matching, paths=20_000)),
        sized=False,
        guided=None,
    ),
    # Three times the cost of a call, so less of everything: an afternoon of two cores.
    "half": Settings(
        widths=WIDTHS["half"],
        autoencoder=QUARTER.autoencoder,
        teacher=replace(TRAINED, iterations=10_000, ema=0.999),
        specs=(MATCHED,),
        config=replace(STUDENT, iterations=1000, paths=10_256, refinement=6, ema=0.998),
        matching=replace(MATCHING, iterations=300, paths=10_256, refinement=6, ema=0.99),
    ),
    # For an accelerator: full width, the scheduler of 1,500 steps.
    "paper": replace(
        QUARTER,
        widths=WIDTHS["full"],
        classifiers={},
        teacher=replace(TRAINED, iterations=100_000, batch_size=256, learning_rate=3e-4),
        train_steps=1500,
        config=replace(STUDENT, iterations=20_000, batch_size=256, paths=60_512),
        matching=replace(MATCHING, iterations=4000, batch_size=256),
        weak=replace(
            WEAK,
            widths=WIDTHS["half"],
            matching=replace(WEAK.matching, iterations=1200, batch_size=256, paths=60_512),
        ),
    ),
}
