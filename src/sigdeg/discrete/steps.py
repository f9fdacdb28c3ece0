r"""Steps of discrete diffusion: from a sequence at t to one at s < t, all positions at once.

| step | what moves |
|---|---|
| `Ancestral` | every position by its own law at s, exact but for the product |
| `Hybrid` | one step above a time, another below |

A step of a mixture draws one latent a sample, and is otherwise the same.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from sigdeg.discrete.denoiser import TokenDenoiser
from sigdeg.discrete.process import DiscreteProcess, choose
from sigdeg.errors import SigdegError
from sigdeg.protocols import Time
from sigdeg.rng import Generators, rand

__all__ = ["Ancestral", "Hybrid", "TokenNoise", "TokenStep"]


class TokenNoise(NamedTuple):
    """What drives one step.

    Arguments:
        uniform: Numbers in [0, 1), float64, shape (batch, D, n).
        latent: Latents, shape (batch, width), or (batch, k, width) of a step that chooses among k;
            None for a product.
    """

    uniform: Tensor
    latent: Tensor | None = None


class TokenStep(nn.Module):
    r"""Abstract: what all steps share.

    Of the conditions every step itself understands two; all others go to the network.

    - `latent`, shape (batch, width): in place of the noise's, so that it stays fixed.
    - `given`, int64, shape (batch, D): tokens that are known, -1 where free. Infilling, prefixes.

    Arguments:
        denoiser: Laws of the clean tokens.
        temperature: What log-probabilities are divided by.
    """

    draws: ClassVar[int] = 1  # uniform numbers a position

    def __init__(self, denoiser: TokenDenoiser, temperature: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise SigdegError(f"temperature must be above 0, got {temperature}")
        self.denoiser = denoiser
        self.temperature = temperature

    @property
    def process(self) -> DiscreteProcess:
        """The process that it reverses."""
        return self.denoiser.process

    def calls(self, t: float, s: float) -> int:
        """Network calls a sample."""
        return self.denoiser.calls(t)

    def noise(
        self,
        t: Time,
        s: Time,
        shape: Sequence[int],
        generator: Generators | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> TokenNoise:
        """Uniform numbers and latents of one step, see `sigdeg.protocols.Step`."""
        latent = None
        if self.denoiser.latent is not None:
            latent = self.denoiser.latent.draw(shape[0], generator, device)
        uniform = rand((*shape, self.draws), generator, torch.float64, device)
        return TokenNoise(uniform, latent)

    def forward(
        self,
        x: Tensor,
        t: Time,
        s: Time,
        noise: TokenNoise,
        /,
        latent: Tensor | None = None,
        given: Tensor | None = None,
        **condition: Any,
    ) -> Tensor:
        """Advance tokens (batch, D) from t to s."""
        if given is not None:
            if given.shape != x.shape:
                raise SigdegError(
                    f"given tokens have the shape of the samples, {tuple(x.shape)}, with -1 where "
                    f"they are free, got {tuple(given.shape)}"
                )
            known = given >= 0
            first = noise.uniform[..., 0]
            settled = self.process.settle(given.clamp(min=0), t, first)
            x = torch.where(known, settled, x)
        heard = noise.latent if latent is None else latent
        log_p = self.laws(x, t, s, heard, condition)
        y = self.advance(x, t, s, log_p, noise.uniform)
        if given is not None:
            settled = self.process.settle(given.clamp(min=0), s, first)
            y = torch.where(known, settled, y)
        return y

    def laws(
        self, x: Tensor, t: Time, s: Time, latent: Tensor | None, condition: dict[str, Any]
    ) -> Tensor:
        """Log-laws of the clean tokens at this temperature, (batch, D, S)."""
        if self.denoiser.elastic:
            condition = {**condition, "step": torch.as_tensor(s)}
        time = torch.as_tensor(t)
        log_p = self.denoiser(x, time, latent, **condition)
        if self.temperature != 1:
            log_p = (log_p / self.temperature).log_softmax(-1)
        return log_p

    @abstractmethod
    def advance(self, x: Tensor, t: Time, s: Time, log_p: Tensor, uniform: Tensor) -> Tensor:
        """The state at s, given log-laws (batch, D, S) and numbers (batch, D, draws)."""


class Ancestral(TokenStep):
    r"""Draw $x_0 \sim p(\cdot | x_t)$ and $x_s \sim q(\cdot | x_0, x_t)$, in one: by $p_{s|t}$."""

    def advance(self, x: Tensor, t: Time, s: Time, log_p: Tensor, uniform: Tensor) -> Tensor:
        return choose(self.process.posterior(log_p.double().exp(), x, t, s), uniform[..., 0])


class Hybrid(nn.Module):
    """One step above a time, another from it on: a student first, its teacher at the end.

    Arguments:
        first: The step above.
        last: The step from there on, of the same process.
        until: The time.
    """

    def __init__(self, first: TokenStep, last: TokenStep, until: float) -> None:
        super().__init__()
        if first.process != last.process:
            raise SigdegError("a hybrid takes two steps of one process")
        self.first, self.last, self.until = first, last, until

    @property
    def process(self) -> DiscreteProcess:
        """The process of both."""
        return self.first.process

    def at(self, t: Time) -> TokenStep:
        """The step that starts at a time."""
        return self.first if float(torch.as_tensor(t).max()) > self.until else self.last

    def calls(self, t: float, s: float) -> int:
        """Those of the step that starts there."""
        return self.at(t).calls(t, s)

    def noise(self, t: Time, s: Time, *shape: Any, **options: Any) -> TokenNoise:
        """That of the step that starts there."""
        return self.at(t).noise(t, s, *shape, **options)

    def forward(
        self, x: Tensor, t: Time, s: Time, noise: TokenNoise, /, **condition: Any
    ) -> Tensor:
        """Advance tokens by the step that starts there; a product is told no latent."""
        step = self.at(t)
        if step.denoiser.latent is None:
            condition.pop("latent", None)
        advanced: Tensor = step(x, t, s, noise, **condition)
        return advanced
