"""A network that recognises which latent stands behind an image of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigdeg.errors import SigdegError
from sigdeg.networks.call import Configured

__all__ = ["TokenRecognition"]

EMBEDDED = 8  # channels that a symbol is embedded as
LOWEST, HIGHEST = -8.0, 2.0  # log-variances: nothing is known better, or less


class TokenRecognition(Configured):
    r"""Mean and log-variance of a Gaussian latent, given clean tokens and noised ones.

    Three convolutions of patches and a layer. It is there for training alone: whoever samples
    draws the latent.

    Arguments:
        shape: Rows and columns; the tokens are their product.
        states: Symbols, S.
        size: Numbers of the latent.
        width: Channels.
        patch: Pixels a side of a patch.
    """

    def __init__(
        self, shape: Sequence[int], states: int, size: int, width: int = 48, patch: int = 4
    ) -> None:
        rows, columns = shape
        if patch < 1 or rows % patch or columns % patch:
            raise SigdegError(f"images of {rows} x {columns} do not divide into patches of {patch}")
        sizes = {"states": states, "size": size, "width": width, "patch": patch}
        super().__init__(shape=[rows, columns], **sizes)
        self.shape, self.patch = (rows, columns), patch
        self.embed = nn.ModuleList(nn.Embedding(states, EMBEDDED) for _ in range(2))
        self.entry = nn.Conv2d(2 * EMBEDDED * patch**2, width, 3, padding=1)
        self.shrink = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.beside = nn.Conv2d(width, width, 3, padding=1)
        places = math.prod(math.ceil(n / patch / 2) for n in shape)
        self.head = nn.Linear(width * places, 2 * size)

    def forward(self, clean: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, both (batch, size), of clean and noised tokens (batch, D)."""
        pairs = zip(self.embed, (clean, x), strict=True)
        pixels = torch.cat([embed(v).mT.unflatten(2, self.shape) for embed, v in pairs], dim=1)
        h = F.silu(self.entry(F.pixel_unshuffle(pixels, self.patch)))
        h = F.silu(self.shrink(h))
        h = h + F.silu(self.beside(h))
        mean, log_variance = self.head(h.flatten(1)).chunk(2, dim=1)
        return mean, log_variance.clamp(LOWEST, HIGHEST)
