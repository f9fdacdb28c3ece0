r"""How likely a model of tokens makes data: the bound that its reverse steps give.

A chain of K steps from the prior draws $x_0$ with a likelihood that its steps bound,

$$ -\log p(x_0) \le KL(q_{1|0}(\cdot | x_0) \,\|\, q_1)
   + \sum_{k=1}^{K} E\, KL(q(x_s | x_0, x_t) \,\|\, p_{s|t}(x_s | x_t)),
   \qquad t = k/K,\; s = t - 1/K. $$

The laws of a step are products, so every term is a sum over positions of sums over symbols: nothing
but $x_t$ is drawn. As K grows the sum tends to the bound in continuous time; for an absorbing
process that is
$\int_0^1 \frac{-\alpha_t'}{1 - \alpha_t} E \sum_{masked} -\log p^d(x_0^d | x_t)\, dt$.

Reference:
    Austin et al., *Structured denoising diffusion models in discrete state-spaces* (2021); Sahoo et
    al., *Simple and effective masked diffusion language models* (2024).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from sigdeg.discrete.denoiser import TokenDenoiser
from sigdeg.discrete.process import DiscreteProcess
from sigdeg.errors import SigdegError, check_least

__all__ = ["Bound", "check_sequences", "nelbo", "step_divergence"]

SMALLEST = 1e-30  # probabilities below it are as good as none: their logarithms must be finite


class Bound(NamedTuple):
    """A bound on the negative log-likelihood, nats a token, and its standard error.

    Arguments:
        mean: The mean over the sequences.
        se: Its standard error, that of the drawn times and of the data together.
    """

    mean: float
    se: float


def check_sequences(data: Tensor, process: DiscreteProcess, length: int) -> None:
    """Refuse data that is no sequences of a process's tokens."""
    if not isinstance(data, Tensor):
        raise SigdegError(f"data must be a tensor of tokens (n, {length}), got {data!r:.60}")
    if data.ndim != 2 or data.shape[1] != length:
        raise SigdegError(f"data must be sequences (n, {length}), got {tuple(data.shape)}")
    process.check_tokens(data, "data")


def step_divergence(
    process: DiscreteProcess, clean: Tensor, log_p: Tensor, x: Tensor, t: Tensor, s: Tensor
) -> Tensor:
    r"""$KL(q(x_s^d | x_0^d, x_t^d) \,\|\, p^d_{s|t}(x_s^d | x_t))$, nats, in double precision.

    Arguments:
        process: The process.
        clean: $x_0$, shape (batch, D).
        log_p: Log-laws of the clean tokens, shape (batch, D, S).
        x: $x_t$, shape (batch, D).
        t: Start of the step, a scalar or with shape (batch,).
        s: Its end.

    Returns:
        Shape (batch, D).
    """
    known = process.posterior(one_hot(clean, process.states).double(), x, t, s)
    guessed = process.posterior(log_p.double().exp(), x, t, s).clamp(min=SMALLEST)
    ratio = known.clamp(min=SMALLEST).log() - guessed.log()
    return (known * ratio).sum(-1)


@torch.no_grad()
def nelbo(
    denoiser: TokenDenoiser,
    data: Tensor,
    *,
    steps: int = 1000,
    draws: int = 1,
    generator: Generator | None = None,
    batch_size: int = 64,
    **condition: Tensor,
) -> Bound:
    """The bound on the negative log-likelihood of data, at steps drawn at random.

    Of a mixture the latent is drawn once a sequence and draw: that bounds it, too, by convexity.

    Arguments:
        denoiser: The denoiser.
        data: Sequences, int64, shape (n, D).
        steps: Steps K of the chain whose likelihood is bounded.
        draws: Steps drawn a sequence, spread evenly over the chain.
        generator: Source of what is drawn.
        batch_size: Sequences at a time.
        condition: Passed on to the network, each with n rows.

    Returns:
        The bound in nats a token.

    Raises:
        SigdegError: If data holds what is no token, or there are fewer than 2 sequences.
    """
    process, n = denoiser.process, len(data)
    check_sequences(data, process, denoiser.length)
    check_least(n, 2, "the number of sequences")
    check_least(min(steps, draws), 1, "steps and draws")
    generator = generator or Generator().manual_seed(0)
    place = next((value.device for value in denoiser.state_dict().values()), data.device)
    found = torch.zeros(n, dtype=torch.float64)
    for _ in range(draws):
        order = torch.randperm(n, generator=generator)
        spread = (order + torch.rand(n, generator=generator, dtype=torch.float64)) / n
        number = (spread * steps).long().clamp(max=steps - 1) + 1  # k of each sequence
        uniform = torch.rand(data.shape, generator=generator, dtype=torch.float64)
        latent = None if denoiser.latent is None else denoiser.latent.draw(n, generator)
        for rows in torch.arange(n).split(batch_size):
            clean, k = data[rows].to(place), number[rows].to(place)
            t, s = k / steps, (k - 1) / steps
            t, s = t.double(), s.double()
            x = process.corrupt(clean, t, uniform[rows].to(place))
            told: dict[str, Any] = {name: v[rows].to(place) for name, v in condition.items()}
            if denoiser.elastic:
                told["step"] = s
            heard = None if latent is None else latent[rows].to(place)
            log_p = denoiser(x, t, heard, **told)
            term = step_divergence(process, clean, log_p, x, t, s).sum(1)
            found[rows] += steps * term.cpu() / draws
    for rows in torch.arange(n).split(batch_size):
        found[rows] += prior_divergence(process, data[rows]).cpu()
    each = found / denoiser.length
    return Bound(float(each.mean()), float(each.std() / n**0.5))


def prior_divergence(process: DiscreteProcess, clean: Tensor) -> Tensor:
    """What is left of clean tokens at time 1: KL to the prior a sequence, nats, shape (batch,)."""
    left = process.push(one_hot(clean, process.states).double(), 0.0, 1.0)
    prior = process.stationary().to(left.device).clamp(min=SMALLEST)
    return (left * (left.clamp(min=SMALLEST).log() - prior.log())).sum((1, 2))
