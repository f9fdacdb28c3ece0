"""How to train: the settings of every training, and its learning rate."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any, Literal

from sigdeg.errors import SigdegError, check_choice, check_least, check_whole

__all__ = ["TrainConfig", "learning_rate"]

DEFAULT_TRACKER = "tensorboard"
PLACEMENT = ("gradient_checkpointing", "sharding")  # what is learnt is the same, to rounding


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Arguments:
        iterations: Optimiser steps.
        batch_size: Samples a step, over all processes.
        learning_rate: Peak rate: linear warm-up, then cosine to zero.
        optimizer: `adam`, or `muon` for the matrices of hidden layers and Adam for the rest, see
            `sigdeg.training.optimizer`: better for networks that start from nothing.
        warmup: Warm-up steps.
        ema: Decay of the averaged weights, which are the ones that are kept.
        gradient_clip: Bound on the gradient norm.
        seed: Seed of everything that is drawn.
        checkpoint_every: Steps between checkpoints.
        mixed_precision: Passed on to accelerate.
        gradient_checkpointing: Compute activations anew for the gradient, which takes less memory
            and more time, in networks that can (diffusers').
        sharding: Of several processes `fsdp` leaves each a part of every weight, its gradient and
            its moments, for networks too large for one device; otherwise each has all of them.
        tracker: Passed on to accelerate (tensorboard, wandb ...); none logs nothing, and so does
            tensorboard where it is not installed.
    """

    iterations: int = 2000
    batch_size: int = 1024
    learning_rate: float = 2e-3
    optimizer: Literal["adam", "muon"] = "adam"
    warmup: int = 100
    ema: float = 0.999
    gradient_clip: float = 1.0
    seed: int = 0
    checkpoint_every: int = 500
    mixed_precision: Literal["no", "bf16"] = "no"
    gradient_checkpointing: bool = False
    sharding: Literal["none", "fsdp"] = "none"
    tracker: str = DEFAULT_TRACKER

    def __post_init__(self) -> None:
        self.at_least(1, "iterations", "batch_size", "checkpoint_every")
        self.at_least(0, "warmup", "seed")
        check_choice(self.optimizer, ("adam", "muon"), "optimizer")
        check_choice(self.mixed_precision, ("no", "bf16"), "mixed_precision")
        check_choice(self.sharding, ("none", "fsdp"), "sharding")
        if not (self.learning_rate > 0 and self.gradient_clip > 0 and 0 <= self.ema < 1):
            raise SigdegError(
                "learning_rate and gradient_clip must be positive, and ema must lie in [0, 1)"
            )

    def identity(self) -> dict[str, Any]:
        """JSON values that tell a training from any other; how it is spread over memory is none."""
        told = asdict(self)
        return {name: value for name, value in told.items() if name not in PLACEMENT}

    def at_least(self, least: int, *names: str) -> None:
        """Refuse fields below a bound, whole numbers that are none, and infinite ones."""
        whole = {field.name for field in fields(self) if field.type == "int"}
        for name in names:
            value = getattr(self, name)
            if name in whole:
                check_whole(value, least, name)
            elif not isinstance(value, Real) or not math.isfinite(value):
                raise SigdegError(f"{name} must be a finite number, got {value!r:.60}")
            check_least(value, least, name)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Learning rate at a step, a function of the step alone: nothing of it needs to be saved."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.iterations - config.warmup)
    return config.learning_rate * (1 + math.cos(math.pi * progress)) / 2
