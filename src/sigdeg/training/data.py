"""Data to train on: what is refused, what is held out, and batches of the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Generator, Tensor

from sigdeg.errors import SigdegError
from sigdeg.rng import Stream, derive_generator
from sigdeg.training.config import TrainConfig

__all__ = ["LEAST", "check_data", "check_labels", "draw_labels", "split_batches"]

B = TypeVar("B")
LEAST = 20  # samples: every twentieth is held out


def check_data(data: Tensor, least: int = 1) -> None:
    """Refuse too small a set and samples that are not finite: they would spoil every weight."""
    if not len(data):
        raise SigdegError("there are no samples to train on")
    if len(data) < least:
        raise SigdegError(f"at least {least} samples are needed to train on, got {len(data)}")
    if bad := int((~data.isfinite()).flatten(1).any(1).sum()):
        raise SigdegError(
            f"{bad:,} of {len(data):,} samples hold NaN or infinite values: remove them"
        )


def check_labels(labels: Tensor | None, count: int) -> None:
    """Refuse labels, where there are any, that are not one a sample."""
    if labels is not None and labels.shape != (count,):
        raise SigdegError(f"{count:,} samples need as many labels, got {tuple(labels.shape)}")


def draw_labels(
    labels: Tensor | None, rows: Tensor, unlabelled: float, generator: Generator
) -> dict[str, Tensor]:
    """The condition of some samples: their labels, a share of them withheld.

    What stands for none is one more than the largest. Without labels there is no condition, and
    nothing is drawn.
    """
    if labels is None:
        return {}
    withheld = torch.rand(len(rows), generator=generator) < unlabelled
    return {"class_labels": torch.where(withheld, labels.max() + 1, labels[rows])}


def split_batches(
    count: int, held_out: int, config: TrainConfig, draw: Callable[[Tensor, Generator], B]
) -> tuple[Callable[[Generator], B], B]:
    """How a batch is drawn, and one of samples that no batch has: of the last twentieth.

    Arguments:
        count: Samples there are.
        held_out: Samples of the held-out batch at most.
        config: How to train.
        draw: Makes a batch of rows of the data.
    """
    kept = count - count // 20

    def batch(generator: Generator) -> B:
        return draw(torch.randint(kept, (config.batch_size,), generator=generator), generator)

    unseen = torch.arange(kept, count)[:held_out]
    return batch, draw(unseen, derive_generator(config.seed, Stream.HELD_OUT))
