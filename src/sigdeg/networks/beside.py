"""More inputs for a network of any kind: a second layer beside its first one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sigdeg.errors import SigdegError
from sigdeg.networks.call import Call, Configured, call_network
from sigdeg.networks.mlp import ModulatedMLP, ResidualMLP

__all__ = ["Widened", "find_input", "widen"]

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
# How a state may reach a network's first layer.
WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda x: x,
    "channels last": lambda x: x.movedim(1, -1),
    "flat": lambda x: x.flatten(1),
}


class Widened(Configured):
    r"""A network F that takes further channels, $F(x) + $ what they add in its first layer.

    The layer that sees the state x keeps its weights; one of the same kind beside it sees the
    further channels, and what it says is added. Its weights start at zero. The network inside stays
    what it is: its weights may be shared with a teacher's, frozen, or saved by themselves.

    Arguments:
        network: The network, called as `call_network` does it.
        layer: Name of its first layer: a convolution or a linear one.
        way: How the state reaches that layer, a name in `WAYS`.
        channels: Channels of the state.
        in_channels: Channels coming in, those of the state first.
        size: Elements a channel.
        call: How the network is called, where that is different, see `CalledNetwork`.
    """

    def __init__(
        self,
        network: nn.Module,
        layer: str,
        way: str,
        channels: int,
        in_channels: int,
        size: int,
        call: Call | None = None,
    ) -> None:
        sizes = {"channels": channels, "in_channels": in_channels, "size": size}
        super().__init__(layer=layer, way=way, **sizes)
        self.network = network
        self.layer, self.way, self.channels, self.call = layer, way, channels, call
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
            return (self.call or call_network)(self.network, x, timestep, condition)
        finally:
            handle.remove()


def widen(
    network: nn.Module,
    channels: int,
    in_channels: int,
    example: tuple[Tensor, Tensor] | None = None,
    condition: Mapping[str, Any] | None = None,
    call: Call | None = None,
    like: nn.Module | None = None,
) -> Widened:
    """A copy of a network that takes more input channels, and does not listen to them yet.

    Arguments:
        network: A `ResidualMLP`, a `ModulatedMLP`, a U-Net of diffusers with `conv_in`; or, with an
            example to find its first layer by, any network that sees the state in a convolution or
            a linear layer.
        channels: Channels of the state.
        in_channels: Channels coming in, those of the state first.
        example: A state and its timesteps.
        condition: What else such a network is called with.
        call: How it is called, see `Widened`.
        like: A widened network of the same build, whose first layer was found: no example needed.

    Returns:
        The wide copy, on the same device and in the same mode, ready to train.

    Raises:
        SigdegError: If the network cannot be called so, has no such layer, or would have to shrink.
    """
    name, layer = type(network).__name__, first_layer(network)
    way, size = "as it is", 1
    if layer is not None:
        config: Any = network.config
        if config["in_channels"] != channels or in_channels < channels:
            raise SigdegError(
                f"a {name} of {config['in_channels']} channels cannot be widened from {channels} "
                f"to {in_channels}"
            )
    elif isinstance(like, Widened):
        layer, way, size, call = like.layer, like.way, like.config["size"], like.call
    elif example is not None:
        layer, way = find_input(network, *example, condition or {}, call)
        size = example[0][0, 0].numel()
    else:
        raise SigdegError(
            f"{name} cannot be widened without an example: only a ResidualMLP, a ModulatedMLP and "
            "a diffusers U-Net with conv_in can"
        )
    wide = Widened(copy.deepcopy(network), layer, way, channels, in_channels, size, call)
    return wide.train(network.training).requires_grad_(True)


def first_layer(network: nn.Module) -> str | None:
    """The name of the layer that sees the state first, of networks that are known."""
    if isinstance(network, ResidualMLP | ModulatedMLP):
        return "embed"
    unet = type(network).__module__.startswith("diffusers.models.unets")
    return "conv_in" if unet and hasattr(network, "conv_in") else None


@torch.no_grad()
def find_input(
    network: nn.Module,
    x: Tensor,
    timestep: Tensor,
    condition: Mapping[str, Any],
    call: Call | None = None,
) -> tuple[str, str]:
    """The layer of a network that sees its state first, and how the state reaches it."""
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
        (call or call_network)(network.eval(), x, timestep, condition)
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
