"""Widening: the same network, with more inputs and outputs that change nothing yet."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from sigdeg.errors import SigdegError
from sigdeg.networks.beside import Widened, find_input
from sigdeg.networks.build import build_network, network_config

__all__ = ["widen"]

# The only parameters that may depend on the channels: of a diffusers U-Net, and of the MLPs.
INPUT = {"conv_in.weight", "embed.weight"}
OUTPUT = {"conv_out.weight", "conv_out.bias", "head.weight", "head.bias"}


def widen(
    network: nn.Module,
    in_channels: int,
    out_channels: int | None = None,
    keep: int | None = None,
    example: tuple[Tensor, Tensor] | None = None,
    **condition: Any,
) -> nn.Module:
    r"""A copy of a network that takes more input channels and gives other output channels.

    $$ \tilde F(x, y, t) = (F(x, t)_{1 \dots keep},\; 0) \quad \text{for every } y $$

    up to rounding: the weights of added inputs and the rows of added outputs are zero.

    Arguments:
        network: A `ResidualMLP`, a `ModulatedMLP`, or a diffusers U-Net with `conv_in` and
            `conv_out`.
        in_channels: Channels coming in, at least as many as now.
        out_channels: Channels going out (default: as many as now).
        keep: The number of outputs kept, the first ones (default: all there are). A denoiser's
            learned variance, say, is of no use to a student.
        example: A state and its timesteps, to find the first layer of any other network by: it is
            given another one beside it, see `Widened`, and no other outputs.
        condition: What else such a network is called with.

    Returns:
        The wide copy, of the same type, device and mode, ready to train.

    Raises:
        SigdegError: If the network is of another kind or would have to shrink.
    """
    description = copy.deepcopy(network_config(network))
    name, config = description["class"], description.get("config", {})
    names = dict(network.named_parameters())
    skips = any("Skip" in block for block in config.get("down_block_types") or ())
    if (
        skips
        or len(INPUT & names.keys()) != 1
        or not {"in_channels", "out_channels"} <= config.keys()
    ):
        if example is not None:
            return widen_any(network, in_channels, out_channels, keep, example, condition)
        raise SigdegError(
            f"{name} cannot be widened: only a ResidualMLP or a diffusers U-Net can, with conv_in "
            "and conv_out and without skip blocks"
        )
    old_in, old_out = config["in_channels"], config["out_channels"]
    keep = old_out if keep is None else keep
    out_channels = old_out if out_channels is None else out_channels
    if in_channels < old_in or not keep <= min(old_out, out_channels):
        raise SigdegError(
            f"a network of {old_in} to {old_out} channels cannot be widened to {in_channels} to "
            f"{out_channels}, {keep} of them kept"
        )
    config.update(in_channels=in_channels, out_channels=out_channels)
    wide = build_network(description).to(next(network.parameters()))
    old, new = network.state_dict(), wide.state_dict()  # views of the weights: written in place
    for key in sorted(old.keys() | new.keys()):
        before, value = old.get(key), new.get(key)
        fixed = key not in INPUT | OUTPUT
        if before is None or value is None or (fixed and before.shape != value.shape):
            raise SigdegError(
                f"{name} cannot be widened: its {key} depends on the number of channels too, or "
                "the network was changed after it was built"
            )
        if fixed:
            value.copy_(before)
            continue
        value.zero_()
        if key in OUTPUT:
            value[:keep] = before[:keep]
        else:
            value[:, :old_in] = before[:, :old_in]  # the state's own inputs stay first ...
            value[:, in_channels:] = before[:, old_in:]  # ... and an MLP's time features last
    return wide.train(network.training).requires_grad_(True)


def widen_any(
    network: nn.Module,
    in_channels: int,
    out_channels: int | None,
    keep: int | None,
    example: tuple[Tensor, Tensor],
    condition: dict[str, Any],
) -> nn.Module:
    """A network of any kind with further inputs beside its first layer."""
    x, timestep = example
    if out_channels != keep:
        raise SigdegError(
            f"{type(network).__name__} can be given further inputs, but no further outputs: only a "
            'ResidualMLP or a diffusers U-Net can have residual_noise="gaussian"'
        )
    layer, way = find_input(network, x, timestep, **condition)
    size = x[0, 0].numel()
    wide = Widened(copy.deepcopy(network), layer, way, x.shape[1], in_channels, size)
    return wide.train(network.training).requires_grad_(True)
