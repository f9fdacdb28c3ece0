r"""Denoisers of tokens: laws of the clean token at each position, given a noised sequence.

$p(x_0 | x_t) = \prod_d p^d(x_0^d | x_t)$: a product, whatever the positions have to do with one
another. That is exact where one position moves at a time, and loses their correlations in long
steps. A mixture of products, over a latent that all positions hear, loses none
(`sigdeg.discrete.student`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sigdeg.discrete.latent import Latent
from sigdeg.discrete.process import DiscreteProcess, choose
from sigdeg.errors import SigdegError, check_choice, check_least

__all__ = [
    "FLOOR",
    "ExactDenoiser",
    "GuidedTokens",
    "NetworkTokenDenoiser",
    "Parameterisation",
    "TokenDenoiser",
]

Parameterisation = Literal["masked", "all"]
FLOOR = -40.0  # log-probability of what cannot be: finite, so that gradients are


class TokenDenoiser(nn.Module):
    r"""Abstract: log-laws $\log p^d(x_0^d | x_t, \lambda)$ of the clean tokens.

    Arguments:
        process: The process that noises.
        length: Positions D of a sequence.

    Attributes:
        latent: The law of its latent; None for a product.
        elastic: Whether it is also told where the step ends, `step`.
    """

    latent: Latent | None = None
    elastic: bool = False
    __call__: Callable[..., Tensor]

    def __init__(self, process: DiscreteProcess, length: int) -> None:
        super().__init__()
        check_least(length, 1, "length")
        self.process = process
        self.length = length

    @abstractmethod
    def forward(
        self, x: Tensor, t: Tensor, latent: Tensor | None = None, **condition: Any
    ) -> Tensor:
        r"""Log-probabilities.

        Arguments:
            x: State, int64, shape (batch, D).
            t: Time in (0, 1], a scalar or with shape (batch,).
            latent: $\lambda$, shape (batch, width); what has no latent is not given one.
            condition: Passed on to the network.

        Returns:
            Shape (batch, D, S), a law in every row; `FLOOR` for what cannot be.
        """

    def calls(self, t: float) -> int:
        """Network calls a sample that the laws at a time cost."""
        return 1

    def log_weights(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """Log-weights of the components of a `weighted` latent, shape (batch, K).

        Raises:
            SigdegError: If its latent is of another kind.
        """
        raise SigdegError(f"{type(self).__name__} weighs no components: it has no weighted latent")

    def hear(self, x: Tensor, t: Tensor, latent: Tensor | None, **condition: Any) -> Tensor | None:
        """The component that the number of a `weighted` latent falls on; all else as it is."""
        weighted = self.latent is not None and self.latent.kind == "weighted"
        if latent is None or not weighted or not latent.is_floating_point():
            return latent
        weights = self.log_weights(x, t, **condition).double().exp()
        return choose(weights, latent[:, 0])[:, None]


class ExactDenoiser(TokenDenoiser):
    r"""The posterior marginals of a law on finitely many sequences, in double precision.

    $$ p^d(v | x_t) \propto \sum_{x_0 : x_0^d = v} q(x_0) \prod_e Q_{t|0}(x_t^e | x_0^e). $$

    A state that cannot be is given the law's own marginals, with its unmasked tokens kept.

    Arguments:
        support: The sequences, int64, shape (n, D).
        weights: Their probabilities up to a factor, shape (n,).
        process: The process.

    Raises:
        SigdegError: If they are no law on its tokens.
    """

    support: Tensor
    weights: Tensor

    def __init__(self, support: Tensor, weights: Tensor, process: DiscreteProcess) -> None:
        if not (isinstance(support, Tensor) and isinstance(weights, Tensor)):
            raise SigdegError("a law is tensors, sequences (n, D) and as many weights")
        if support.ndim != 2 or weights.shape != support.shape[:1] or not len(support):
            raise SigdegError(
                "a law is sequences (n, D) and as many weights, got "
                f"{tuple(support.shape)} and {tuple(weights.shape)}"
            )
        process.check_tokens(support, "sequences of a law")
        if not bool(weights.isfinite().all() and (weights >= 0).all() and weights.sum() > 0):
            raise SigdegError("weights of a law must be finite, not negative, and not all zero")
        super().__init__(process, support.shape[1])
        self.register_buffer("support", support)
        self.register_buffer("weights", weights.double() / weights.double().sum())

    def posterior(self, x: Tensor, t: Tensor) -> Tensor:
        """Probabilities of the sequences, shape (batch, n); their own weights where x cannot be."""
        evidence = self.process.evidence(x, t).log()  # (batch, D, S)
        found = self.weights.log().expand(len(x), -1)
        for d in range(self.length):
            found = found + evidence[:, d, self.support[:, d]]
        best = found.amax(1, keepdim=True)
        possible = best > -float("inf")
        found = (found - best.where(possible, torch.zeros_like(best))).exp()
        found = found.where(possible, self.weights.expand_as(found))
        return found / found.sum(1, keepdim=True)

    def forward(
        self, x: Tensor, t: Tensor, latent: Tensor | None = None, **condition: Any
    ) -> Tensor:
        posterior = self.posterior(x, torch.as_tensor(t, dtype=torch.float64))
        one_hot = nn.functional.one_hot(self.support, self.process.states).double()
        found = torch.einsum("bn,nds->bds", posterior, one_hot).log().clamp(min=FLOOR)
        return carry_over(found, x, self.process)


def carry_over(log_p: Tensor, x: Tensor, process: DiscreteProcess) -> Tensor:
    """Laws of an absorbing process: a position that is not masked is what it is, for certain."""
    if process.mask is None:
        return log_p
    seen = nn.functional.one_hot(x, process.states).to(log_p)
    return torch.where((x == process.mask)[..., None], log_p, (1 - seen) * FLOOR)


class NetworkTokenDenoiser(TokenDenoiser):
    r"""A network whose output are logits over all symbols.

    `masked` takes the softmax over the tokens and keeps what is not masked (MDLM's substitution);
    `all` takes it over all symbols, the mask among them, at every position (MaskGIT). A process
    without a mask knows no difference.

    Arguments:
        network: Called as `network(x, t, **condition)`, with `latent` and `step` where it has them;
            gives logits (batch, D, S).
        process: The process that it was trained with.
        length: Positions D.
        parameterisation: See above.
    """

    def __init__(
        self,
        network: nn.Module,
        process: DiscreteProcess,
        length: int,
        parameterisation: Parameterisation = "masked",
    ) -> None:
        super().__init__(process, length)
        check_choice(parameterisation, get_args(Parameterisation), "parameterisation")
        self.network = network
        self.parameterisation: Parameterisation = parameterisation

    def forward(
        self, x: Tensor, t: Tensor, latent: Tensor | None = None, **condition: Any
    ) -> Tensor:
        time = torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(len(x))
        if latent is not None:
            condition["latent"] = latent
        logits = self.network(x, time, **condition)
        if logits.shape != (*x.shape, self.process.states):
            raise SigdegError(
                f"the network gives logits of shape {tuple(logits.shape)} for states of "
                f"{tuple(x.shape)}, the process has {self.process.states} symbols"
            )
        logits = logits.float()
        if self.process.mask is None or self.parameterisation == "all":
            everywhere: Tensor = logits.log_softmax(-1).clamp(min=FLOOR)
            return everywhere
        out = torch.tensor(self.process.mask, device=logits.device)
        logits = logits.index_fill(-1, out, FLOOR * 1e3)
        return carry_over(logits.log_softmax(-1).clamp(min=FLOOR), x, self.process)


class GuidedTokens(TokenDenoiser):
    r"""Guidance of tokens: $\log p \propto \log p_\emptyset + w\,(\log p_c - \log p_\emptyset)$.

    Both hear the same latent, a component of the conditional one's weights where it is `weighted`.
    Convention: $w = 1$ is the conditional model, diffusers' scale.

    With a ramp the scale of a step that ends at s is $1 + (w - 1)(1 - s)$: little at first, where
    guidance would settle too much, and $w$ in the last step, the only one of a single step
    included.

    Arguments:
        denoiser: The denoiser that is guided.
        scale: $w$.
        unconditional: The condition that stands for none, each a tensor with batch size 1.
        other: Whose laws without a condition are taken (default: its own).
        ramp: Whether the scale grows over the steps.
    """

    def __init__(
        self,
        denoiser: TokenDenoiser,
        scale: float,
        unconditional: Mapping[str, Tensor],
        other: TokenDenoiser | None = None,
        ramp: bool = False,
    ) -> None:
        if other is not None:
            own, its = ((part.process, part.length) for part in (denoiser, other))
            if its != own:
                raise SigdegError(
                    "what guides has another process, vocabulary or length than what is guided"
                )
        super().__init__(denoiser.process, denoiser.length)
        self.denoiser, self.other = denoiser, denoiser if other is None else other
        self.scale, self.ramp = scale, ramp
        self.unconditional = dict(unconditional)
        self.latent = denoiser.latent
        self.elastic = ramp or denoiser.elastic or self.other.elastic

    def calls(self, t: float) -> int:
        """Those of both."""
        return self.denoiser.calls(t) + self.other.calls(t)

    def log_weights(
        self, x: Tensor, t: Tensor, step: Tensor | float = 0.0, **condition: Any
    ) -> Tensor:
        told = {"step": step} if self.denoiser.elastic else {}
        return self.denoiser.log_weights(x, t, **condition, **told)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        latent: Tensor | None = None,
        step: Tensor | float = 0.0,
        **condition: Any,
    ) -> Tensor:
        none = {
            k: v.to(x.device).expand(len(x), *v.shape[1:]) for k, v in self.unconditional.items()
        }

        latent = self.hear(x, t, latent, step=step, **condition)

        def laws(part: TokenDenoiser, asked: dict[str, Any]) -> Tensor:
            told = {"step": step} if part.elastic else {}
            return part(x, t, None if part.latent is None else latent, **asked, **told)

        own, base = laws(self.denoiser, condition), laws(self.other, {**condition, **none})
        end = torch.as_tensor(step, dtype=own.dtype, device=own.device).reshape(-1, 1, 1)
        scale = 1 + (self.scale - 1) * (1 - end) if self.ramp else self.scale
        moved = base + scale * (own - base)
        possible = own > FLOOR / 2
        found = moved.where(possible, torch.full_like(moved, FLOOR * 1e3)).log_softmax(-1)
        return found.clamp(min=FLOOR)
