r"""Latents: what a mixture student is told in each step, $\lambda \sim \mu$.

Given it, positions are independent; they are correlated because all of them hear the same.

Components of equal weights hold no shares but multiples of 1/K, and a component that has settled on
a mode hardly learns anything of another: shares of modes stay as they first fell. Weights that are
learned, and depend on the state, are free of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sigdeg.errors import check_choice, check_whole
from sigdeg.rng import Generators, rand, randn

__all__ = ["Latent", "LatentKind"]

LatentKind = Literal["uniform", "gaussian", "categorical", "weighted"]


@dataclass(frozen=True)
class Latent:
    r"""The law $\mu$ of a latent.

    | kind | $\lambda$ |
    |---|---|
    | `uniform` | numbers in [0, 1), as many as `size` |
    | `gaussian` | standard normals, as many as `size` |
    | `categorical` | one of `size` components, as an index |
    | `weighted` | a number in [0, 1) that falls on one of `size` components, by their weights |

    The weights of a `weighted` one are the student's, see `MixtureStudent`.

    Arguments:
        kind: Which law.
        size: Its numbers, or its components.
    """

    kind: LatentKind = "uniform"
    size: int = 1

    def __post_init__(self) -> None:
        check_choice(self.kind, get_args(LatentKind), "latent")
        check_whole(self.size, 2 if self.components else 1, "size of the latent")

    @property
    def components(self) -> int:
        """The number of components; 0 where there are infinitely many."""
        return self.size if self.kind in ("categorical", "weighted") else 0

    @property
    def width(self) -> int:
        """Numbers that a latent takes."""
        return 1 if self.components else self.size

    def draw(
        self,
        n: int,
        generator: Generators | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Latents of n samples, shape (n, width), from one stream or from one a sample."""
        shape: Sequence[int] = (n, self.width)
        if self.kind == "gaussian":
            return randn(shape, generator, torch.float32, device)
        return self.place(rand(shape, generator, torch.float64, device))

    def stratified(self, uniform: Tensor, order: Tensor) -> Tensor:
        r"""Latents that cover the law evenly: the i-th of M lies in the i-th part of it.

        $\lambda_i = F^{-1}((i + U_i) / M)$, in each dimension in an order of its own. With modes
        whose shares are multiples of 1/M every mode gets its share, where independent draws leave
        it to chance.

        Arguments:
            uniform: $U$ in [0, 1), shape (batch, M, width).
            order: The i of each, a permutation along M, the same shape.

        Returns:
            Latents, shape (batch, M, width).
        """
        return self.place((order + uniform) / uniform.shape[1])

    def place(self, uniform: Tensor) -> Tensor:
        """The latents that numbers in [0, 1) stand for, by their distribution function."""
        if self.kind == "categorical":
            return (uniform * self.size).long().clamp(max=self.size - 1)
        if self.kind == "gaussian":
            normal: Tensor = torch.special.ndtri(uniform.clamp(1e-12, 1 - 1e-12))
            return normal.float()
        return uniform.float().clamp(max=1 - 2**-24)
