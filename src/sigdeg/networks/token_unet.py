"""A U-Net of images whose pixels are symbols."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigdeg.errors import SigdegError
from sigdeg.networks.tokens import Attention, TokenNetwork

__all__ = ["TokenUNet"]

EMBEDDED = 8  # channels that a symbol is embedded as, before pixels are put together
GROUPS = 8


class ResBlock(nn.Module):
    """Residual block of two convolutions, scaled and shifted in between."""

    def __init__(self, inputs: int, outputs: int, modulation: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, n) for n in (inputs, outputs))
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.beside = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.film = nn.Linear(modulation, 2 * outputs) if modulation else None

    def forward(self, h: Tensor, told: Tensor | None) -> Tensor:
        inner = self.norms[1](self.first(F.silu(self.norms[0](h))))
        if self.film is not None:
            scale, shift = self.film(told)[..., None, None].chunk(2, dim=1)
            inner = torch.addcmul(shift, inner, 1 + scale)
        out: Tensor = self.beside(h) + self.second(F.silu(inner))
        return out


class TokenUNet(TokenNetwork):
    r"""A U-Net of two levels with attention at the lower one, for images of tokens, row by row.

    Pixels are put together to patches before the first convolution and come apart after the last
    one, so that no layer but the embedding sees the full resolution.

    Arguments:
        shape: Rows and columns; the tokens are their product.
        states: Symbols, S.
        width: Channels of the upper level, a multiple of 8; the lower one has twice as many.
        blocks: Residual blocks a level, on the way down and on the way up.
        heads: Attention heads.
        patch: Pixels a side of a patch.
        timed: With `elastic`, `classes`, `latent` and `inject` as `TokenNetwork` has it; a latent
            as a token is one more place of the attention. As a "map" it modulates the blocks, and a
            layer makes of it what is added at each place of the lower level: where nothing else
            is known, a latent that says the same everywhere can hardly tell a shape.
    """

    ways = (*TokenNetwork.ways, "map")

    def __init__(
        self,
        shape: Sequence[int] = (28, 28),
        states: int = 3,
        width: int = 32,
        blocks: int = 1,
        heads: int = 4,
        patch: int = 2,
        timed: bool = True,
        elastic: bool = False,
        classes: int = 0,
        latent: Mapping[str, Any] | None = None,
        inject: str = "film",
    ) -> None:
        rows, columns = shape
        if patch < 1 or rows % patch or columns % patch:
            raise SigdegError(f"images of {rows} x {columns} do not divide into patches of {patch}")
        sizes = {"states": states, "width": width, "blocks": blocks, "heads": heads, "patch": patch}
        told = {"timed": timed, "elastic": elastic, "classes": classes, "inject": inject}
        config = {"shape": [rows, columns], **sizes, **told, "latent": latent}
        deep = 2 * width
        super().__init__(rows * columns, deep, width, **config)
        self.shape, self.patch, m = (rows, columns), patch, self.modulation
        self.embed = nn.Embedding(states, EMBEDDED)
        self.entry = nn.Conv2d(EMBEDDED * patch**2, width, 3, padding=1)
        self.down = nn.ModuleList(ResBlock(width, width, m) for _ in range(blocks))
        self.shrink = nn.Conv2d(width, deep, 3, stride=2, padding=1)
        lower = [math.ceil(n / patch / 2) for n in shape]
        self.position = nn.Parameter(torch.randn(deep, *lower) / deep**0.5)
        self.spread = None
        if latent is not None and inject == "map":
            self.spread = nn.Linear(deep, deep * lower[0] * lower[1])
        self.before = nn.ModuleList(ResBlock(deep, deep, m) for _ in range(blocks))
        self.norm, self.attention = nn.LayerNorm(deep), Attention(deep, heads)
        self.after = nn.ModuleList(ResBlock(deep, deep, m) for _ in range(blocks))
        self.grow = nn.Conv2d(deep, width, 1)
        self.up = nn.ModuleList(
            ResBlock(width if k else 2 * width, width, m) for k in range(blocks)
        )
        self.exit = nn.Sequential(
            nn.GroupNorm(GROUPS, width),
            nn.SiLU(),
            nn.Conv2d(width, states * patch**2, 3, padding=1),
            nn.PixelShuffle(patch),
        )

    def forward(
        self,
        x: Tensor,
        timestep: Tensor | float | None = None,
        latent: Tensor | None = None,
        step: Tensor | float | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Logits (batch, D, S) of tokens (batch, D)."""
        told, vector = self.told(x, timestep, latent, step, class_labels)
        pixels = self.embed(x.unflatten(1, self.shape)).movedim(-1, 1)
        h = self.entry(F.pixel_unshuffle(pixels, self.patch))
        if vector is not None and self.inject == "add":
            h, vector = h + vector[..., None, None], None
        for block in self.down:
            h = block(h, told)
        beside, h = h, self.shrink(h) + self.position
        if self.spread is not None:
            h, vector = h + self.spread(vector).reshape(-1, *h.shape[1:]), None
        for block in self.before:
            h = block(h, told)
        h = self.attend(h, vector)
        for block in self.after:
            h = block(h, told)
        h = F.interpolate(self.grow(h), size=beside.shape[2:])
        h = torch.cat([h, beside], dim=1)
        for block in self.up:
            h = block(h, told)
        logits: Tensor = self.exit(h).flatten(2).mT
        return logits

    def attend(self, h: Tensor, vector: Tensor | None) -> Tensor:
        """Attention of all places, and of a latent's vector where it is one of them."""
        places = h.flatten(2).mT
        if vector is not None:
            places = torch.cat([places, vector[:, None]], dim=1)
        mixed = self.attention(self.norm(places))[:, : h[0, 0].numel()]
        out: Tensor = h + mixed.mT.unflatten(2, h.shape[2:])
        return out
