"""Guidance: a denoiser pushed away from another one of the same data."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from sigdeg.denoiser import Denoiser
from sigdeg.errors import SigdegError
from sigdeg.schedule import expand

__all__ = ["AutoGuidance", "ClassifierFreeGuidance", "Guidance"]


class Guidance(Denoiser):
    r"""Abstract: $F_{other} + w (F - F_{other})$, which goes further where another differs.

    $F$ is what the denoisers predict, so the means are guided by the same rule; where one clips,
    what guidance has made of them is clipped, as diffusers does it: they are not clipped before.

    At high noise the two differ in which mode they expect, and guidance shifts the shares of the
    modes; what it gains, it gains later. `until` keeps it from there (Kynkäänniemi et al.,
    *Applying guidance in a limited interval improves sample and distribution quality*, 2024).

    Arguments:
        denoiser: The denoiser that is guided.
        scale: The guidance scale $w$; 1 is the denoiser itself.
        until: The time above which there is none, and one call less.
    """

    def __init__(self, denoiser: Denoiser, scale: float, until: float = 1.0) -> None:
        if not 0 < until <= 1:
            raise SigdegError(f"guidance must end at a time in (0, 1], got {until}")
        super().__init__(denoiser.schedule)
        self.denoiser = denoiser
        self.scale = scale
        self.until = until

    def calls(self, t: Tensor) -> int:
        """Two where guided."""
        return t.numel() + int((t <= self.until).sum())

    def output(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """The guided output."""
        guided = torch.as_tensor(t) <= self.until
        if not bool(guided.any()):
            return self.denoiser.output(x, t, **condition)
        output, other = self.both(x, t, condition)
        moved = other + self.scale * (output - other)
        return moved if bool(guided.all()) else torch.where(expand(guided, x).bool(), moved, output)

    def to_mean(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """As the denoiser that is guided does it."""
        return self.denoiser.to_mean(output, x, t)

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        return self.to_mean(self.output(x, t, **condition), x, t)

    @abstractmethod
    def both(self, x: Tensor, t: Tensor, condition: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Outputs of the denoiser and of the other one."""


class ClassifierFreeGuidance(Guidance):
    r"""Guidance by classes: $D_\emptyset + w (D_c - D_\emptyset)$.

    Convention: $w = 1$ is the conditional model, $w = 0$ the unconditional one (diffusers' scale).
    Both are computed in one call of twice the batch.

    Arguments:
        denoiser, scale, until: As of `Guidance`.
        unconditional: The condition that stands for none, each a tensor with batch size 1.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float,
        unconditional: dict[str, Tensor],
        until: float = 1.0,
    ) -> None:
        super().__init__(denoiser, scale, until)
        self.unconditional = unconditional

    def both(self, x: Tensor, t: Tensor, condition: dict[str, Any]) -> tuple[Tensor, Tensor]:
        if set(condition) != set(self.unconditional):
            raise SigdegError(
                f"guidance needs the conditions {sorted(self.unconditional)}, "
                f"got {sorted(condition)}"
            )
        n = x.shape[0]
        both = {
            key: torch.cat([value, self.unconditional[key].to(value).expand_as(value)])
            for key, value in condition.items()
        }
        t = torch.as_tensor(t)
        t = t if t.ndim == 0 else torch.cat([t, t])
        output = self.denoiser.output(torch.cat([x, x]), t, **both)
        return output[:n], output[n:]


class AutoGuidance(Guidance):
    r"""Guidance by a denoiser's weaker version: $D_{weak} + w (D - D_{weak})$.

    One of the same data that is smaller, or was trained for less long, errs where the good one
    does, only more: away from it lies what both were after, no classes needed. $w = 1$ is the
    denoiser itself, 1.5 to 2 is usual.

    Arguments:
        denoiser, scale, until: As of `Guidance`.
        weak: The weaker one, of the same noise levels, that predicts the same.

    Raises:
        SigdegError: If one predicts another quantity than the other.

    Reference:
        Karras et al., *Guiding a diffusion model with a bad version of itself* (2024).
    """

    def __init__(
        self, denoiser: Denoiser, weak: Denoiser, scale: float, until: float = 1.0
    ) -> None:
        super().__init__(denoiser, scale, until)
        kinds = [getattr(d, "prediction_type", "sample") for d in (denoiser, weak)]
        if kinds[0] != kinds[1]:
            raise SigdegError(
                f"the weaker version predicts {kinds[1]}, this one {kinds[0]}: what guides and "
                "what is guided must be the same quantity"
            )
        self.weak = weak

    def both(self, x: Tensor, t: Tensor, condition: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return self.denoiser.output(x, t, **condition), self.weak.output(x, t, **condition)
