"""Networks on vectors: a residual MLP after the paper's, and one that the time modulates."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sigdeg.networks.call import Configured

__all__ = ["ModulatedMLP", "ResidualMLP", "sinusoidal"]


def sinusoidal(time: Tensor, dim: int) -> Tensor:
    r"""Sinusoidal features of a time in [0, 1], shape (batch,) to (batch, dim).

    Frequencies run geometrically from 1000 down to 0.1 radians per unit of time, so that times near
    the data, which differ by thousandths, are told apart.
    """
    half = dim // 2
    frequencies = 1000 * torch.exp(
        -math.log(1e4) * torch.arange(half, device=time.device, dtype=torch.float32) / max(half, 1)
    )
    angle = time.float()[:, None] * frequencies
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class JoinedLinear(nn.Linear):
    """A linear layer of two vectors, without joining them: with many features that takes time."""

    def forward(self, x: Tensor, features: Tensor) -> Tensor:  # type: ignore[override]
        """Map (batch, m) and (batch, n), m + n features, to (batch, out_features)."""
        own, other = self.weight[:, : x.shape[1]], self.weight[:, x.shape[1] :]
        linear = nn.functional.linear
        return linear(x, own) + linear(features, other, self.bias)


class ResidualMLP(Configured):
    r"""Residual network after the paper's (C.2.3): blocks of three linear layers with SiLU.

    The paper's has as many layers a block (by its Table 6), but activates after each of them,
    divides each sum by the root of 2, embeds the time by a network of its own and ends in one more
    layer.

    Arguments:
        in_channels: Features coming in (for a student: state, coefficients and step features).
        out_channels: Features going out; the last layer starts at zero.
        width: Hidden width.
        blocks: The number of residual blocks.
        time_dim: The number of sinusoidal features of the time.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int = 128,
        blocks: int = 4,
        time_dim: int = 16,
    ) -> None:
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "width": width}
        super().__init__(**sizes, blocks=blocks, time_dim=time_dim)
        self.time_dim = time_dim
        self.embed = JoinedLinear(in_channels + time_dim, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(layer for _ in range(3) for layer in (nn.SiLU(), nn.Linear(width, width)))
            )
            for _ in range(blocks)
        )
        self.head = nn.Linear(width, out_channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Map (batch, in_channels) and times (batch,) to (batch, out_channels)."""
        h = self.embed(x, sinusoidal(timestep, self.time_dim).to(x))
        for block in self.blocks:
            h = h + block(h)
        out: Tensor = self.head(nn.functional.silu(h))
        return out


class ModulatedMLP(Configured):
    r"""Residual network on vectors whose blocks the time modulates, as in a transformer's adaLN.

    $$ h \leftarrow h + B\, \mathrm{silu}(A ((1 + \gamma_t) \odot \mathrm{norm}(h) + \beta_t)). $$

    $\gamma$ and $\beta$ start at zero. A student's steps differ in what they do, not only in what
    they see: where `ResidualMLP` has to tell them apart by one more input, each has its own scales
    here. On laws with sharp modes that is worth twice the width. Arguments as `ResidualMLP`; a
    block's inner layer is twice as wide.

    Reference:
        Peebles and Xie, *Scalable diffusion models with transformers* (2023), adaLN.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int = 128,
        blocks: int = 4,
        time_dim: int = 32,
    ) -> None:
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "width": width}
        super().__init__(**sizes, blocks=blocks, time_dim=time_dim)
        self.time_dim = time_dim
        self.embed = nn.Linear(in_channels, width)
        self.time = nn.Sequential(
            nn.Linear(time_dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.modulation = nn.Linear(width, 2 * width * blocks)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(blocks)
        )
        self.head = nn.Linear(width, out_channels)
        for layer in (self.modulation, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Map (batch, in_channels) and times (batch,) to (batch, out_channels)."""
        # A batch knows few different times.
        times, rows = timestep.unique(return_inverse=True)
        modulation = self.modulation(self.time(sinusoidal(times, self.time_dim).to(x)))[rows]
        h = self.embed(x)
        for block, own in zip(self.blocks, modulation.chunk(len(self.blocks), dim=1), strict=True):
            scale, shift = own.chunk(2, dim=1)
            h = h + block(nn.functional.layer_norm(h, h.shape[1:]) * (1 + scale) + shift)
        out: Tensor = self.head(nn.functional.silu(h))
        return out
