"""More inputs for a network of any kind: a second layer beside its first one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sigdeg.errors import SigdegError

__all__ = ["Widened", "find_input"]

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
# How a state may reach a network's first layer.
WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda x: x,
    "channels last": lambda x: x.movedim(1, -1),
    "flat": lambda x: x.flatten(1),
}


class Widened(nn.Module):
    r"""A network F that takes further channels, $F(x) + $ what they add in its first layer.

    The layer that sees the state x keeps its weights; one of the same kind beside it sees the
    further channels, and what it says is added. Its weights start at zero.

    Arguments:
        network: Called as `network(x, timestep, **condition)`.
        layer: Name of its first layer: a convolution or a linear one.
        way: How the state reaches that layer, a name in `WAYS`.
        channels: Channels of the state.
        in_channels: Channels coming in, those of the state first.
        size: Elements a channel.
    """

    def __init__(
        self, network: nn.Module, layer: str, way: str, channels: int, in_channels: int, size: int
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "layer": layer,
            "way": way,
            "channels": channels,
            "in_channels": in_channels,
            "size": size,
        }
        self.network = network
        self.layer, self.way, self.channels = layer, way, channels
        first: Any = network.get_submodule(layer)
        kind: Any = next(k for k in LAYERS if isinstance(first, k))
        extra = (in_channels - channels) * (size if way == "flat" else 1)
        options: dict[str, Any] = {"bias": False}
        if kind is nn.Linear:
            self.beside = kind(extra, first.out_features, **options)
        else:
            names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
            options |= {name: getattr(first, name) for name in names}
            self.beside = kind(extra, first.out_channels, **options)
        nn.init.zeros_(self.beside.weight)
        self.beside.to(first.weight)

    def forward(self, inputs: Tensor, timestep: Tensor, **condition: Any) -> Any:
        r"""The network's own output, of inputs (batch, in_channels, \*)."""
        x, more = inputs[:, : self.channels], inputs[:, self.channels :]

        def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            added: Tensor = self.beside(WAYS[self.way](more))
            return output + added

        handle = self.network.get_submodule(self.layer).register_forward_hook(add)
        try:
            return self.network(x, timestep, **condition)
        finally:
            handle.remove()


@torch.no_grad()
def find_input(
    network: nn.Module, x: Tensor, timestep: Tensor, **condition: Any
) -> tuple[str, str]:
    """The layer of a network that sees its state first, and how the state reaches it.

    Raises:
        SigdegError: If the network cannot be called so, or has no such layer.
    """
    seen: list[tuple[str, str | None]] = []
    handles = [
        part.register_forward_pre_hook(
            lambda layer, args, name=name: seen.append((name, reached(layer, args[0], x)))
        )
        for name, part in network.named_modules()
        if isinstance(part, LAYERS)
    ]
    training = network.training
    try:
        network.eval()(x, timestep, **condition)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise SigdegError(
            f"{type(network).__name__} cannot be called on a state of shape {tuple(x.shape[1:])} "
            f"(condition= gives what else it takes): {' '.join(str(error).split())}"
        ) from None
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    names = [name for name, _ in seen]
    for name, way in seen:
        if way is not None and names.count(name) == 1:
            return name, way
    raise SigdegError(
        f"{type(network).__name__} cannot be widened: none of its convolutions and linear layers "
        "sees the state's channels, its first dimension, as they come in; build a network with "
        "SignatureStudent.in_channels inputs, copy its weights and give it to SignatureStudent"
    )


def reached(layer: nn.Module, told: Tensor, x: Tensor) -> str | None:
    """The way by which a state came to be among the features of a layer's input."""
    for way, change in WAYS.items():
        y = change(x)
        dim = 1 if way == "as it is" else -1
        if dim % y.ndim != (-1 if isinstance(layer, nn.Linear) else 1) % y.ndim:
            continue  # a layer of the other kind takes something else for the features
        if told.ndim != y.ndim or told.movedim(dim, 0)[0].shape != y.movedim(dim, 0)[0].shape:
            continue
        width = y.shape[dim]
        for first in range(told.shape[dim] - width + 1):
            if torch.equal(told.narrow(dim, first, width), y):
                return way
    return None
