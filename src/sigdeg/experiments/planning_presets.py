"""What the experiment on planning trains: the presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sigdeg.distillation import DistillConfig
from sigdeg.experiments.planning_grids import PLANS, GridSpec

__all__ = ["PRESETS", "MixtureSettings", "SeriesSettings", "Settings", "plan"]


@dataclass(frozen=True)
class MixtureSettings:
    """Grids on 1DN.

    Arguments:
        steps: Step counts.
        config: How students are distilled.
        seeds: Training seeds.
        fine_steps: Teacher steps a path that students learn from.
        regression_paths: Teacher paths behind a least-squares student.
        exact_n: Samples behind the exact W1.
    """

    steps: tuple[int, ...]
    config: DistillConfig
    seeds: int = 3
    fine_steps: int = 300
    regression_paths: int = 20_000
    exact_n: int = 100_000


@dataclass(frozen=True)
class SeriesSettings:
    """Grids and plans on rough Bergomi.

    Arguments:
        teacher: The preset of that experiment whose teacher is used.
        steps: Step counts.
        config: How students are distilled.
        seeds: Training seeds.
        draws: Sampling seeds a training seed of what is judged by test paths.
        fine_steps: Teacher steps a path that students learn from.
        order: Signature coefficients a dimension.
        measured_paths: Teacher paths behind the measured costs.
        n: Simulated paths, of which a fifth validate and a fifth test.
        plans: Students distilled by plans, the first of them the one to compare with.
    """

    teacher: str
    steps: tuple[int, ...]
    config: DistillConfig
    seeds: int = 1
    draws: int = 2
    fine_steps: int = 120
    order: int = 4
    measured_paths: int = 5000
    n: int = 100_000
    plans: tuple[GridSpec, ...] = ()


@dataclass(frozen=True)
class Settings:
    """A preset.

    Arguments:
        mixture: Part 1.
        series: Parts 2 and 3, or None to leave them out.
        merged: Steps T of the linear teacher of part 4.
        times: Training times s there.
        gaussian_seeds: Seeds there.
    """

    mixture: MixtureSettings
    series: SeriesSettings | None
    merged: int = 16
    times: tuple[float, ...] = (0.1, 0.5, 2.0)
    gaussian_seeds: int = 3


def plan(name: str, tree: str | None, paths: int, **options: Any) -> GridSpec:
    """A student of five steps by a plan.

    Segments start from noised data, where what is merged costs no teacher calls.
    """
    told: dict[str, Any] = {"steps": (5,), "iterations": 1600, "data": True, **options}
    return GridSpec(plan=name, tree=tree, paths=paths, study=PLANS, variant=name, **told)


# At 24 teacher calls a coarse step: 960,000 calls, then a fifth of them. Merging pairs of eight
# leaves costs 6 calls a segment, and the rounds after it none.
PLANNED = (
    plan("one shot, whole paths", None, 8000, data=False),
    plan("one shot", None, 8000),
    plan("progressive", "(((1 2) (3 4)) ((5 6) (7 8)))", 32_000),
    plan("hybrid of pairs", "((1 2) ((3 4) (5 6) (7 8)))", 32_000),
)

PRESETS = {
    "quick": Settings(
        mixture=MixtureSettings(
            steps=(3,),
            config=DistillConfig(
                iterations=500, batch_size=512, learning_rate=4e-3, ema=0.99, paths=10_000
            ),
            seeds=1,
            fine_steps=60,
            regression_paths=8000,
        ),
        series=None,
        times=(0.1, 0.5),
        gaussian_seeds=1,
    ),
    "default": Settings(
        mixture=MixtureSettings(
            steps=(3, 5, 8), config=DistillConfig(iterations=1500, paths=100_000)
        ),
        series=SeriesSettings(
            teacher="default",
            steps=(5, 10),
            config=DistillConfig(iterations=600, paths=4000),
            seeds=2,
            draws=3,
            plans=PLANNED,
        ),
    ),
}
