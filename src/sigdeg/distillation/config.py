"""How to distil: the settings, and their defaults by the kind of data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sigdeg.errors import SigdegError, check_choice
from sigdeg.student import kind_of_data
from sigdeg.training import TrainConfig

__all__ = ["HELD_OUT", "DistillConfig", "States"]

States = Literal["teacher", "data"]
FINE = 120  # teacher steps a path: fewer are felt, more are not (docs/recipe.md)
# What is not said here is as in `DistillConfig`: that is how series are distilled.
KINDS: dict[str, dict[str, Any]] = {
    "points": {
        "iterations": 4000,
        "batch_size": 512,
        "late": 1,
        "paths": 100_000,
        "learning_rate": 4e-3,
        "ema": 0.99,
        "optimizer": "muon",
        "draws": 4,
    },
    "series": {},
    "images": {"iterations": 3000, "batch_size": 64, "learning_rate": 2e-4, "paths": 5000},
}
LATEST = 4  # beyond it early steps get next to nothing
HELD_OUT = 2048  # segments behind the second loss curve and the normalisation


@dataclass(frozen=True)
class DistillConfig(TrainConfig):
    """How to distil: how to train, and on what.

    Arguments:
        q: Consecutive coarse steps in a loss term (Eq. 11); 0 for all of them (Eq. 10). An elastic
            student has no more than all of them at each of its step counts.
        matching: Weight of distribution matching beside the loss on paths, see
            `sigdeg.distillation.matching`; it judges samples, and so needs q = 0.
        late: How much of a batch goes to late steps: of K, the k-th has a share in proportion to
            $k^{late}$. Early ones are nearly Gaussian, and so nearly known before any training.
        draws: Draws of the student a segment behind the energy score, see
            `sigdeg.distillation.objective`: more leave less noise in the loss, each at its price.
        states: Start segments from the teacher's own paths (data-free) or from noised data.
        paths: Teacher paths to cache and reuse; 0 simulates fresh ones for every batch.
        held_out: Cached paths kept out of training, for the second loss curve.
        refinement: Fine teacher steps a coarse step.
        fine_power: Spacing exponent of the fine steps, see `sigdeg.grids.refine`.
        normalise: Divide the loss of each coarse step by the untrained student's error there.
        shard_size: Paths a cache file, at most, see `CachedPaths`.
    """

    q: int = 1
    matching: float = 0.0
    late: int = 0
    draws: int = 2
    states: States = "teacher"
    paths: int = 20_000
    held_out: int = 1000
    refinement: int = 30
    fine_power: float = 2.0
    normalise: bool = True
    shard_size: int = 65536

    @classmethod
    def for_samples(cls, shape: Sequence[int], steps: int = 10, **options: Any) -> DistillConfig:
        """The defaults for a kind of data, as `distill` and the command line take them.

        Points train on many cheap paths, series on fewer, images with small batches and a small
        rate, as their networks want it (see `kind_of_data`). The teacher takes 120 steps a path,
        however few the student is to take.

        Arguments:
            shape: Shape of one sample.
            steps: The student's steps, on its finest grid.
            options: Fields that are to have another value.
        """
        kind = kind_of_data(shape)
        refinement = max(2, math.ceil(FINE / max(1, steps)))
        defaults: dict[str, Any] = {"refinement": refinement} | KINDS[kind]
        if kind == "images":
            paths = options.get("paths", defaults["paths"])
            defaults["held_out"] = min(2 * options.get("batch_size", 64), paths // 20 + 8)
        return cls(**defaults | options)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(0, "q", "matching", "late", "paths", "held_out")
        self.at_least(1, "refinement", "shard_size")
        self.at_least(2, "draws")
        if self.late > LATEST:
            raise SigdegError(f"late must lie between 0 and {LATEST}, got {self.late}")
        check_choice(self.states, get_args(States), "states")
