"""What a training takes of memory, and what makes it take less."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil
import torch
from torch import nn

from sigdeg.errors import SigdegError
from sigdeg.training.config import TrainConfig

__all__ = ["check_networks", "checkpoint_gradients", "memory_used", "reset_memory"]

PROCESS = psutil.Process()


def check_networks(module: nn.Module, config: TrainConfig) -> None:
    """Refuse what the networks of a module cannot do to take less memory.

    Raises:
        SigdegError: If none can compute its activations anew where that is asked for; or if a
            weight is a single number, which processes cannot share, where they are to.
    """
    if config.gradient_checkpointing and not any(checkpointing(module)):
        raise SigdegError(
            "gradient_checkpointing is for networks that have it, as most of diffusers' do: leave "
            "it out here"
        )
    for name, p in module.named_parameters():
        if config.sharding == "fsdp" and not p.ndim:
            raise SigdegError(
                f"weight {name} is a single number, which has no parts to share: leave sharding out"
            )


def checkpointing(module: nn.Module) -> Iterator[Any]:
    """The networks in a module that can compute their activations anew."""
    for part in module.modules():
        if getattr(part, "_supports_gradient_checkpointing", False):  # diffusers' word for it
            yield part


def checkpoint_gradients(module: nn.Module) -> None:
    """Let networks compute activations anew for the gradient, which takes a third more time."""
    for network in checkpointing(module):
        network.enable_gradient_checkpointing()


def reset_memory(place: torch.device) -> None:
    """Count a GPU's peak from here."""
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)


def memory_used(place: torch.device) -> int:
    """Bytes in use: at most since `reset_memory` of a GPU, by this process now for a CPU."""
    if place.type == "cuda":
        return torch.cuda.max_memory_allocated(place)
    return int(PROCESS.memory_info().rss)
