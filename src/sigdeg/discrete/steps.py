r"""Steps of discrete diffusion: from a sequence at t to one at s < t, all positions at once.

| step | what moves |
|---|---|
| `Ancestral` | every position by its own law at s, exact but for the product |
| `TauLeaping` | every position that its rates at t, held until s, let jump |
| `Confidence`, `RandomOrder`, `Halton` | masks, as many as the schedule says; see `orders` |
| `Hybrid` | one step above a time, another below |

A step of a mixture draws one latent a sample, and is otherwise the same. A step to time 0 draws
clean tokens: no mask is left.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sigdeg.discrete.denoiser import FLOOR, TokenDenoiser
from sigdeg.discrete.process import DiscreteProcess, choose
from sigdeg.errors import SigdegError, check_least
from sigdeg.grids import check_grid
from sigdeg.protocols import Time
from sigdeg.rng import Generators, rand

__all__ = ["Ancestral", "Hybrid", "TauLeaping", "TokenNoise", "TokenStep"]


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
      With a mask they are seen from the start. Without one they end as they are given, on a path of
      their own law, and the free ones see no more of them than of any noised token.

    Arguments:
        denoiser: Laws of the clean tokens.
        temperature: What log-probabilities are divided by; 0 takes the most probable token.
        best_of: Latents that a step to time 0 chooses among, by the probability of the most
            probable sequence under each. As a temperature does, it prefers what is frequent.

    Raises:
        SigdegError: If the temperature is negative, or a product is to choose among latents.
    """

    draws: int = 1  # uniform numbers a position

    def __init__(self, denoiser: TokenDenoiser, temperature: float = 1.0, best_of: int = 1) -> None:
        super().__init__()
        if not 0 <= temperature < float("inf"):
            raise SigdegError(f"temperature must be at least 0 and finite, got {temperature}")
        check_least(best_of, 1, "best_of")
        if best_of > 1 and denoiser.latent is None:
            raise SigdegError("a product has no latents to choose among: best_of must be 1")
        self.denoiser = denoiser
        self.temperature = temperature
        self.best_of = best_of

    @property
    def process(self) -> DiscreteProcess:
        """The process that it reverses."""
        return self.denoiser.process

    def calls(self, t: float, s: float) -> int:
        """Network calls a sample: those of guidance, and of every latent that is chosen among."""
        return self.denoiser.calls(t) * (1 if s > 0 else self.best_of)

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
        law, latent = self.denoiser.latent, None
        if law is not None:
            latent = law.draw(shape[0], generator, device)
            if self.best_of > 1 and ends(s):
                more = [law.draw(shape[0], generator, device) for _ in range(self.best_of - 1)]
                latent = torch.stack([latent, *more], dim=1)
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
        if latent is not None and self.denoiser.latent is None:
            raise SigdegError("a latent is given to a product, which hears none")
        if given is None:
            log_p = self.laws(x, t, s, noise.latent if latent is None else latent, condition)
            return self.advance(x, t, s, log_p, noise.uniform)
        if given.shape != x.shape:
            raise SigdegError(
                f"given tokens have the shape of the samples, {tuple(x.shape)}, with -1 where "
                f"they are free, got {tuple(given.shape)}"
            )
        known, tokens = given >= 0, given.clamp(min=0)
        self.process.check_tokens(given[known], "given tokens")
        if self.process.mask is not None:
            x = torch.where(known, tokens, x)
        log_p = self.laws(x, t, s, noise.latent if latent is None else latent, condition)
        certain = nn.functional.one_hot(tokens, self.process.states).to(log_p).log()
        log_p = torch.where(known[..., None], certain, log_p)
        return self.advance(x, t, s, log_p, noise.uniform)

    def laws(
        self, x: Tensor, t: Time, s: Time, latent: Tensor | None, condition: dict[str, Any]
    ) -> Tensor:
        """Log-laws of the clean tokens, float64, (batch, D, S): of what cannot be, minus infinity.

        Those of the best latent, where there are several a sample.
        """
        if self.denoiser.elastic:
            condition = {**condition, "step": torch.as_tensor(s, dtype=torch.float64)}
        time = torch.as_tensor(t, dtype=torch.float64)
        if latent is None or latent.ndim == 2:
            return self.tempered(self.denoiser(x, time, latent, **condition))
        found = [
            self.tempered(self.denoiser(x, time, one, **condition)) for one in latent.unbind(1)
        ]
        sure = torch.stack([log_p.amax(-1).sum(1) for log_p in found])
        rows = torch.arange(len(x), device=x.device)
        return torch.stack(found)[sure.argmax(0), rows]

    def tempered(self, log_p: Tensor) -> Tensor:
        """Laws over the tokens at this temperature: a mask's share, and what cannot be, is dropped.

        Raises:
            SigdegError: If they hold NaN.
        """
        log_p = log_p.double()
        if self.process.mask is not None:
            out = torch.tensor(self.process.mask, device=log_p.device)
            log_p = log_p.index_fill(-1, out, -float("inf"))
        impossible = log_p <= FLOOR
        nothing = impossible.all(-1, keepdim=True)  # all that it gave was the mask's
        log_p = log_p.masked_fill(impossible & ~nothing, -float("inf"))
        if self.temperature == 0:
            best = nn.functional.one_hot(log_p.argmax(-1), log_p.shape[-1])
            return best.to(log_p).log()
        found = (log_p / self.temperature).log_softmax(-1)
        if bool(found.isnan().any()):
            raise SigdegError("sampling gave NaN: the model is broken")
        return found

    @abstractmethod
    def advance(self, x: Tensor, t: Time, s: Time, log_p: Tensor, uniform: Tensor) -> Tensor:
        """The state at s, given log-laws (batch, D, S) and numbers (batch, D, draws)."""


def ends(s: Time) -> bool:
    """Whether a step to s is the last."""
    return bool((torch.as_tensor(s) <= 0).all())


class Ancestral(TokenStep):
    r"""Draw $x_0 \sim p(\cdot | x_t)$ and $x_s \sim q(\cdot | x_0, x_t)$, in one: by $p_{s|t}$."""

    def kernel(self, x: Tensor, t: Time, s: Time, log_p: Tensor) -> Tensor:
        """Probabilities of the tokens at s, position by position, given their log-laws at 0."""
        return self.process.posterior(log_p.double().exp(), x, t, s)

    def advance(self, x: Tensor, t: Time, s: Time, log_p: Tensor, uniform: Tensor) -> Tensor:
        return choose(self.kernel(x, t, s, log_p), uniform[..., 0])


class TauLeaping(Ancestral):
    r"""Hold the rates of the way back over the step: $P_y \sim$ Poisson$((t - s)\,\hat R_t(x, y))$.

    Ordered tokens, as grey levels, go to $x + \sum_y P_y (y - x)$, clamped. Of others several jumps
    are rejected: y is reached with probability $\mu_y e^{-\mu}$, where $\mu = \sum_y \mu_y$. A step
    to time 0 draws $x_0 \sim p(\cdot | x_t)$.

    It errs as a step of Euler's does, where the ancestral one errs by the product alone: it is
    here to compare with, and for what is published with it.

    Arguments:
        denoiser, temperature, best_of: As of `TokenStep`.

    Reference:
        Campbell et al., *A continuous time framework for discrete denoising models* (2022).
    """

    def __init__(self, denoiser: TokenDenoiser, temperature: float = 1.0, best_of: int = 1) -> None:
        super().__init__(denoiser, temperature, best_of)
        self.draws = self.process.states if self.process.ordered else 1

    def means(self, x: Tensor, t: Time, s: Time, log_p: Tensor) -> Tensor:
        """Expected jumps to each symbol, shape (batch, D, S)."""
        span = (torch.as_tensor(t) - torch.as_tensor(s)).to(x.device, torch.float64)
        span = span.reshape(-1, 1, 1) if span.ndim else span
        return span * self.process.reverse_rates(log_p.double().exp(), x, t)

    def kernel(self, x: Tensor, t: Time, s: Time, log_p: Tensor) -> Tensor:
        """Of tokens without an order, see `Ancestral.kernel`."""
        if ends(s):
            return super().kernel(x, t, s, log_p)
        if self.process.ordered:
            raise SigdegError("where ordered tokens leap to is drawn, no formula has its law")
        means = self.means(x, t, s, log_p)
        once = means * (-means.sum(-1, keepdim=True)).exp()
        return once.scatter(-1, x[..., None], 1 - once.sum(-1, keepdim=True))

    def advance(self, x: Tensor, t: Time, s: Time, log_p: Tensor, uniform: Tensor) -> Tensor:
        if not self.process.ordered or ends(s):
            return super().advance(x, t, s, log_p, uniform)
        jumps = poisson(self.means(x, t, s, log_p), uniform)
        moved = torch.arange(self.process.states, device=x.device) - x[..., None]
        found: Tensor = x + (jumps * moved).sum(-1).long()
        return found.clamp(0, self.process.states - 1)


def poisson(means: Tensor, uniform: Tensor) -> Tensor:
    r"""Poisson counts by inverting the distribution function: the least n with $P(N \le n) > u$.

    Arguments:
        means: Their means.
        uniform: Numbers in [0, 1), the same shape.

    Returns:
        Whole numbers, float64.
    """
    counts = torch.zeros_like(means)
    some = uniform >= (-means).exp()
    mean, level = means[some], uniform[some]
    low, high = torch.zeros_like(mean), (mean + 10 * mean.sqrt() + 40).ceil()
    while bool((high - low > 1).any()):
        middle = ((low + high) / 2).floor()
        above = torch.special.gammaincc(middle + 1, mean) > level
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    counts[some] = high
    return counts


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

    @classmethod
    def on(
        cls, grid: Tensor | Sequence[float], first: TokenStep, last: TokenStep, count: int
    ) -> Hybrid:
        """The hybrid whose last `count` steps of a grid are those of `last`."""
        times = check_grid(grid)
        if not 0 <= count < len(times):
            raise SigdegError(f"of {len(times) - 1} steps the last {count} cannot be another's")
        return cls(first, last, float(times[-1 - count]))

    @property
    def process(self) -> DiscreteProcess:
        """The process of both."""
        return self.first.process

    @property
    def denoiser(self) -> TokenDenoiser:
        """That of the first step."""
        return self.first.denoiser

    def at(self, t: Time) -> TokenStep:
        """The step that starts at a time."""
        return (
            self.first
            if bool((torch.as_tensor(t, dtype=torch.float64) > self.until).all())
            else self.last
        )

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
