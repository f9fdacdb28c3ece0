"""Calling networks: what their classes agree on, and the one thing they do not."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["Call", "Configured", "Function", "call_network"]

Call = Callable[[nn.Module, Tensor, Tensor, Mapping[str, Any]], Any]


class Configured(nn.Module):
    """A network of this package: its `config` are the arguments that build it again."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = config


class Function(nn.Module):
    """A function in the place of a network: of a state, its timestep and a condition."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, timestep: Tensor, **condition: Any) -> Any:
        """What the function gives."""
        return self.function(x, timestep, **condition)


@functools.cache
def by_name(forward: Callable[..., Any]) -> bool:
    """Whether a class's `forward` takes the timestep, but not as its second argument."""
    names = list(inspect.signature(forward).parameters)
    return "timestep" in names[3:]  # after self, the state and something else


def call_network(
    network: nn.Module, x: Tensor, timestep: Tensor, condition: Mapping[str, Any]
) -> Any:
    """A network's output: U-Nets take (x, timestep), many transformers the text in between."""
    if by_name(type(network).forward):
        return network(x, timestep=timestep, **condition)
    return network(x, timestep, **condition)
