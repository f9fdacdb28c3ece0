"""Weights in training: copied, averaged, and shared by processes where they are large.

A parameter that needs no gradient is frozen: nothing of it is copied, averaged or saved.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["Average", "copied", "ema_update", "fill", "kept", "whole"]

M = TypeVar("M", bound=nn.Module)


def copied(module: M, frozen: Iterable[nn.Parameter] | None = None) -> M:
    """A copy of a module that shares the memory of frozen parameters with it.

    Arguments:
        module: The module.
        frozen: Which they are (default: those that need no gradient).
    """
    if frozen is None:
        frozen = (p for p in module.parameters() if not p.requires_grad)
    memo = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in frozen}
    return copy.deepcopy(module, memo)


def kept(module: nn.Module) -> dict[str, Tensor]:
    """What of a module is saved, by name: all of its state but frozen parameters.

    Of several names for one tensor it is the first.
    """
    names: dict[Tensor, str] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if value.requires_grad or not isinstance(value, nn.Parameter):
            names.setdefault(value, name)
    return {name: value for value, name in names.items()}


class Average:
    """Of each trainable parameter of a module a running mean, shared by processes as it is."""

    def __init__(self, module: nn.Module) -> None:
        self.means: dict[Tensor, Tensor] = {
            p: p.detach().clone() for p in module.parameters() if p.requires_grad
        }

    def named(self, module: nn.Module) -> dict[str, Tensor]:
        """The means by the names of the parameters in their module."""
        return {name: self.means[p] for name, p in kept(module).items() if p in self.means}

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The means stand in for the parameters, for as long as this lasts."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange means and parameters, one by one, so that it takes little memory."""
        for parameter, mean in self.means.items():
            own, other = part(parameter), part(mean)
            before = own.clone()
            own.copy_(other)
            other.copy_(before)


@torch.no_grad()
def ema_update(average: Average, model: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the model's: decay * average + (1 - decay) * model."""
    means = average.means
    own = [p for p in model.parameters() if p in means]
    torch._foreach_lerp_([part(means[p]) for p in own], [part(p) for p in own], 1 - decay)


def shared(tensor: Any) -> bool:
    """Whether each process has a part of a tensor; to ask for the class would load it."""
    return hasattr(tensor, "full_tensor")


def part(tensor: Any) -> Tensor:
    """What this process has of a tensor: all of it, or its part, to be changed in place."""
    own: Tensor = tensor.detach().to_local() if shared(tensor) else tensor.detach()
    return own


def whole(tensor: Any) -> Tensor:
    """All of a tensor; of one that is shared, asked for by all processes at once."""
    every: Tensor = tensor.detach().full_tensor() if shared(tensor) else tensor.detach()
    return every


def like(value: Tensor, tensor: Any) -> Tensor:
    """A whole tensor, shared by processes as another is."""
    if not shared(tensor):
        return value
    from torch.distributed.tensor import distribute_tensor

    place, value = tensor.device_mesh, value.to(tensor.device)
    return distribute_tensor(value, place, tensor.placements, src_data_rank=None)


@torch.no_grad()
def fill(tensor: Tensor, value: Tensor) -> None:
    """Set a tensor, or the part that this process has of it, to the values of a whole one."""
    part(tensor).copy_(part(like(value, tensor)))
