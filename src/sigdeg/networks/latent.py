"""Latents as networks hear them, and what weighs the components of a mixture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sigdeg.errors import SigdegError, check_choice, check_least
from sigdeg.networks.mlp import sinusoidal

__all__ = ["LatentEmbedding", "MixingWeights", "two_layers"]

FEATURES = 64  # sinusoidal features of a time, and of each number of a uniform latent
COUNTED = ("categorical", "weighted")
KINDS = ("uniform", "gaussian", *COUNTED)
GATE = 32  # width of what weighs the components


class LatentEmbedding(nn.Module):
    r"""Latents as vectors of a network's width.

    Uniform numbers in [0, 1] by their sinusoidal features, two layers and a norm, Gaussian ones by
    one layer, categories and weighted components by a table. Nothing in here starts at zero, or
    small: where all components of a mixture are one, they get the same gradient and stay so.
    Without the norm they part three to five times as late.

    Arguments:
        kind: "uniform", "gaussian", "categorical" or "weighted".
        size: How many numbers a latent has, or how many categories or components there are.
        width: Size of a vector.
    """

    def __init__(self, kind: str, size: int, width: int) -> None:
        super().__init__()
        check_choice(kind, KINDS, "kind of latent")
        check_least(size, 1, "the size of a latent")
        self.kind, self.numbers = kind, 1 if kind in COUNTED else size
        self.layers: nn.Module
        if kind in COUNTED:
            self.layers = nn.Embedding(size, width)
        elif kind == "gaussian":
            self.layers = nn.Linear(size, width)
        else:
            self.layers = two_layers(size * FEATURES, width).append(nn.LayerNorm(width))

    def forward(self, latent: Tensor) -> Tensor:
        """Vectors (batch, width) of latents (batch, size), or of categories (batch, 1)."""
        if latent.ndim != 2 or latent.shape[1] != self.numbers:
            raise SigdegError(
                f"this network takes {self.kind} latents of shape (batch, {self.numbers}), "
                f"got {tuple(latent.shape)}"
            )
        like = next(self.parameters())
        if self.kind in COUNTED:
            told = latent[:, 0].long()
        elif self.kind == "gaussian":
            told = latent.to(like)
        else:
            told = sinusoidal(latent.flatten(), FEATURES).to(like).reshape(len(latent), -1)
        vectors: Tensor = self.layers(told)
        return vectors


def two_layers(features: int, width: int) -> nn.Sequential:
    """Two linear layers."""
    return nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))


class MixingWeights(nn.Module):
    """Weights of a mixture's components in a state: a sum over its tokens and two layers.

    It is small, so that a network's call costs hardly more for it.

    Arguments:
        length: Tokens a sample, D.
        states: Symbols, S.
        size: Components.
        condition: Width of what else it is told; 0 for nothing.
    """

    def __init__(self, length: int, states: int, size: int, condition: int) -> None:
        super().__init__()
        self.states = states
        self.tokens = nn.EmbeddingBag(length * states, GATE, mode="sum")
        self.told = nn.Linear(condition, GATE) if condition else None
        self.layers = nn.Sequential(nn.LayerNorm(GATE), nn.SiLU(), nn.Linear(GATE, size))

    def forward(self, x: Tensor, told: Tensor | None) -> Tensor:
        """Log-weights (batch, size) of tokens (batch, D)."""
        h = self.tokens(x + self.states * torch.arange(x.shape[1], device=x.device))
        if self.told is not None and told is not None:
            h = h + self.told(told)
        weights: Tensor = self.layers(h).log_softmax(-1)
        return weights
