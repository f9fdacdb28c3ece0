r"""Steps that unmask by count: as many positions as the schedule says, in an order.

From t to s, of the n masks that stand there

$$ \left\lfloor n \, \frac{1 - \alpha_s}{1 - \alpha_t} \right\rfloor $$

stay, and at least one falls; so N steps of D <= N positions unmask one at a time, and are exact
for an exact denoiser, where the ancestral step lets two fall together by chance. The state alone
says how many masks there are: a step knows nothing of the steps before it.

| step | which masks fall first |
|---|---|
| `Confidence` | those whose drawn tokens are most probable, with noise (MaskGIT) |
| `RandomOrder` | any |
| `Halton` | those that lie far from each other, always in the same order |

References:
    Chang et al., *MaskGIT: masked generative image transformer* (2022); Besnier et al., *Halton
    scheduler for masked generative image transformer* (2025).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from sigdeg.discrete.denoiser import TokenDenoiser
from sigdeg.discrete.process import Absorbing, against, choose
from sigdeg.discrete.steps import TokenStep
from sigdeg.errors import SigdegError, check_least
from sigdeg.protocols import Time

__all__ = ["Confidence", "CountedStep", "Halton", "RandomOrder", "halton_order"]


class CountedStep(TokenStep):
    r"""Abstract: draw all tokens, keep those of the highest rank, mask the others again.

    Arguments:
        denoiser, temperature, best_of: As of `TokenStep`.

    Raises:
        SigdegError: If its process has no mask.
    """

    draws = 2

    def __init__(self, denoiser: TokenDenoiser, temperature: float = 1.0, best_of: int = 1) -> None:
        super().__init__(denoiser, temperature, best_of)
        if not isinstance(denoiser.process, Absorbing):
            raise SigdegError(
                f"a {type(self).__name__} step unmasks, and a {type(denoiser.process).__name__} "
                "process has no mask: take the ancestral step"
            )
        self.absorbing = denoiser.process

    def advance(self, x: Tensor, t: Time, s: Time, log_p: Tensor, uniform: Tensor) -> Tensor:
        masked = self.absorbing.masked(x)
        drawn = choose(log_p.exp(), uniform[..., 0])
        chance = log_p.gather(-1, drawn[..., None])[..., 0]
        rank = self.rank(chance, uniform[..., 1], against(s, x))
        rank = rank.masked_fill(~masked, -float("inf"))
        now = masked.sum(1, keepdim=True)
        share = 1 - self.absorbing.alpha(against(s, x))
        left = now * share / (1 - self.absorbing.alpha(against(t, x)))
        left = (left + 1e-9).floor().clamp(max=now - 1)  # n s / t, rounded, may fall short of it
        place = rank.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return torch.where(masked & (place < now - left), drawn, x)

    @abstractmethod
    def rank(self, chance: Tensor, uniform: Tensor, s: Tensor) -> Tensor:
        """Ranks of the positions, shape (batch, D): the highest are kept.

        Arguments:
            chance: Log-probabilities of the drawn tokens, shape (batch, D).
            uniform: Numbers in [0, 1), the same shape.
            s: End of the step, a scalar or with shape (batch, 1).
        """


class Confidence(CountedStep):
    r"""MaskGIT's order: by $\log p^d(x^d) + c\, s\, G_d$, with Gumbel noise $G_d$.

    The noise falls with what remains of the time, and is 0 in the last step, the only one of a
    single step included. Without any, drawn tokens decide alone.

    Arguments:
        denoiser, temperature, best_of: As of `TokenStep`.
        noise_scale: $c$, at least 0. Little noise prefers what is frequent.
    """

    def __init__(
        self,
        denoiser: TokenDenoiser,
        temperature: float = 1.0,
        best_of: int = 1,
        noise_scale: float = 4.5,
    ) -> None:
        super().__init__(denoiser, temperature, best_of)
        check_least(noise_scale, 0, "noise_scale")
        self.noise_scale = noise_scale

    def rank(self, chance: Tensor, uniform: Tensor, s: Tensor) -> Tensor:
        gumbel = -(-uniform.clamp(min=2.0**-54).log()).log()
        return chance + self.noise_scale * s * gumbel


class RandomOrder(CountedStep):
    """Any order: all subsets of as many masks are equally likely to fall."""

    def rank(self, chance: Tensor, uniform: Tensor, s: Tensor) -> Tensor:
        return uniform


class Halton(CountedStep):
    """An order that spreads over the positions, the same for all samples.

    Arguments:
        denoiser, temperature, best_of: As of `TokenStep`.
        shape: Rows and columns that the positions fill, or their number (default: that).
    """

    def __init__(
        self,
        denoiser: TokenDenoiser,
        temperature: float = 1.0,
        best_of: int = 1,
        shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__(denoiser, temperature, best_of)
        shape = (denoiser.length,) if shape is None else tuple(shape)
        if math.prod(shape) != denoiser.length:
            raise SigdegError(f"{denoiser.length} positions do not fill the shape {tuple(shape)}")
        self.register_buffer("place", halton_order(shape).argsort(), persistent=False)

    place: Tensor

    def rank(self, chance: Tensor, uniform: Tensor, s: Tensor) -> Tensor:
        return -self.place.to(chance).expand_as(chance)


def halton_order(shape: Sequence[int]) -> Tensor:
    r"""Positions of a grid in the order in which a Halton sequence first meets their cells.

    Arguments:
        shape: Cells along each axis.

    Returns:
        Indices of the flattened grid, int64, each once.
    """
    from scipy.stats import qmc  # slow to import

    sequence = qmc.Halton(len(shape), scramble=False)
    sizes = torch.tensor(shape)
    met: dict[int, None] = {}
    while len(met) < math.prod(shape):
        cells = (torch.from_numpy(sequence.random(4 * math.prod(shape))) * sizes).long()
        flat = torch.zeros(len(cells), dtype=torch.int64)
        for axis, size in enumerate(shape):
            flat = flat * size + cells[:, axis]
        met |= dict.fromkeys(flat.tolist())
    return torch.tensor(list(met))
