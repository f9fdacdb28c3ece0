"""What the rough Bergomi benchmark trains: the presets and their students."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from sigdeg.distillation import DistillConfig
from sigdeg.experiments.bench import Spec
from sigdeg.training import TrainConfig

__all__ = ["PRESETS", "Settings"]


@dataclass(frozen=True)
class Settings:
    """A preset: the teacher, the students, and how much work.

    Arguments:
        network: Width and blocks of the teacher's residual network.
        teacher: How the teacher is trained.
        specs: The students.
        config: How they are distilled.
        fine_steps: Teacher steps a path that students learn from.
        teachers: Steps, spacing exponent and draws of the teacher's own rows; the last is the one
            that students learn from, the first stands beside it as a reference of the speed-ups.
        peers: Calls of the training-free solvers.
        seeds: Training seeds of the main table; its side tables have one.
        draws: Sampling seeds a training seed, for the main table; others have as many in all.
        n: Simulated paths.
        timing_n: Samples behind the seconds; few enough to stay in the cache, or memory is timed.
    """

    network: tuple[int, int]
    teacher: TrainConfig
    specs: tuple[Spec, ...]
    config: DistillConfig
    fine_steps: int
    teachers: tuple[tuple[int, float, int], ...]
    peers: tuple[int, ...] = ()
    seeds: int = 1
    draws: int = 4
    n: int = 100_000
    timing_n: int = 2000


# The students of the main table. 8,000 paths of 120 teacher calls: under a million. Ten steps need
# no more than two coefficients (docs/rough-bergomi.md), and what is not read costs no time.
TEN, FIVE = Spec((10,), order=2, paths=8_000, iterations=2000), Spec((5,))
# A path is one sample to a student of one step: it takes more of them.
ONE = Spec((1,), order=8, paths=60_000)
MAIN = (TEN, FIVE, Spec((2,), order=8), ONE)
# The paper's form: a plain student from scratch on raw (h, W, A), fresh pairs from noised data.
PLAIN = Spec(
    (5,),
    order=2,
    kind="plain",
    pretrained=False,
    power=1.0,
    data=True,
    covariance=False,
    normalise=False,
    paths=0,
    study="From the paper's form to the default: 5 steps, one change at a time",
    variant="plain student from scratch, fresh pairs from data",
)


def ladder() -> Iterator[Spec]:
    """One factor at a time, each on top of those before it; then the noise of what is left open."""
    changes: dict[str, dict[str, Any]] = {
        "+ cached pairs": {"paths": 100_000},
        "+ teacher's own paths": {"data": False, "paths": None},
        "+ exponential step": {"kind": "warm"},
        "+ teacher's weights": {"pretrained": True},
        "+ loss divided by each step's error": {"normalise": True},
        "+ power grid": {"power": 1.5},
        "+ order 4": {"order": 4},
        "+ response by the covariance (the default)": {"covariance": True},
    }
    spec = PLAIN
    yield spec
    for variant, change in changes.items():
        spec = replace(spec, variant=variant, **change)
        yield spec
    yield replace(spec, variant="default + energy noise", residual_noise="energy")


def studies() -> Iterator[Spec]:
    """Tables beside the main one: factors, orders, lengths of the loss, sizes of the network."""
    yield from ladder()
    for order in (1, 2, 4, 8):
        title = "Orders: 1 step, 20,000 paths"
        yield replace(ONE, paths=None, order=order, study=title, variant=f"order {order}")
    for q in (1, 2, 4):
        yield replace(FIVE, q=q, study="Steps in a loss term: 5 steps", variant=f"q = {q}")
    for width, blocks in ((128, 16), (128, 4), (64, 8)):
        yield replace(
            FIVE,
            pretrained=False,
            network=(width, blocks),
            study="Lighter students from scratch: 5 steps",
            variant=f"width {width}, {blocks} blocks",
        )


PRESETS = {
    "quick": Settings(
        network=(128, 4),
        teacher=TrainConfig(iterations=3000, batch_size=512),
        specs=(Spec((10,)), Spec((5,)), Spec((1,), order=8)),
        config=DistillConfig(iterations=600, batch_size=512, ema=0.99, paths=4000),
        fine_steps=60,
        teachers=((60, 2.0, 2),),
        draws=2,
        n=50_000,
    ),
    "default": Settings(
        network=(192, 5),
        teacher=TrainConfig(iterations=20_000, batch_size=512),
        specs=(*MAIN, *(replace(spec, iterations=600) for spec in studies())),
        config=DistillConfig(iterations=4000),
        fine_steps=120,
        teachers=((1000, 1.0, 2), *((k, 2.0, 8) for k in (20, 40, 60, 120))),
        peers=(1, 2, 5, 10, 20),
        seeds=2,
    ),
    # The paper's own form, its widths and blocks (Table 6), and the 1,000 uniform steps of its
    # teacher; the budget is ours.
    "paper": Settings(
        network=(256, 3),
        teacher=TrainConfig(iterations=6000, batch_size=512),
        specs=tuple(
            replace(PLAIN, steps=(k,), q=q, paths=4000, study="", variant="")
            for k, q in ((10, 1), (5, 1), (1, 1), (5, 2))
        ),
        config=DistillConfig(iterations=800, fine_power=1.0),
        fine_steps=1000,
        teachers=((1000, 1.0, 1),),
        timing_n=500,
    ),
}
