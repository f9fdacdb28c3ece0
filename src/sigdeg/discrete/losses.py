r"""Losses of a mixture of products, as functions of log-laws.

M latents an item make a mixture, of $p_i^d(v) = p^d(v | x_t, \lambda_i)$:

$$ \log p(y) = \log \sum_i w_i \prod_d p_i^d(y^d), \qquad
   \log \bar p^d(v) = \log \sum_i w_i p_i^d(v). $$

Latents that are drawn weigh $w_i = 1/M$ each; those of a finite law, all taken, its probabilities.

The joint law sums over positions first, the marginals over latents. For a token sequence y that is
drawn from a target with marginals $q^d$,

$$ -\log p(y) = \underbrace{-\log p(y) + \sum_d \log \bar p^d(y^d)}_{correlation}
   - \sum_d \log \bar p^d(y^d), $$

and the expectation of the last sum is known: it is replaced by $\sum_d KL(q^d \| \bar p^d)$, the
marginal loss, which has the same gradient in expectation and little noise (a control variate of
independent positions). The correlation loss alone has no lower bound; with at least its own weight
on the marginal loss the sum has.

By Jensen's inequality a mixture of M drawn latents costs more than that of all of them, in
expectation, and less with every one.

| symbol | what | shape |
|---|---|---|
| `log_p` | log-laws of M latents | (batch, M, D, S) |
| `tokens` | sequences y, K an item | (batch, K, D) |
| `target` | laws to be met | (batch, D, S) |
| `log_w` | logarithms of the weights; None for equal ones | (batch, M) |

Losses are in nats an item, shape (batch,).

Reference:
    Hayakawa et al., *Distillation of discrete diffusion through dimensional correlations* (2025).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sigdeg.errors import SigdegError

__all__ = [
    "LIMIT",
    "correlation",
    "distil",
    "effective_size",
    "joint",
    "log_marginals",
    "marginal",
    "scores",
]

LIMIT = 2**28  # bytes that a temporary tensor may take


def gather(log_p: Tensor, tokens: Tensor) -> Tensor:
    r"""$\sum_d \log p_i^d(y_j^d)$ of some latents, shape (batch, K, M)."""
    batch, latents, length, _ = log_p.shape
    index = tokens.mT[:, None].expand(batch, latents, length, tokens.shape[1])
    return log_p.gather(3, index).sum(2).mT


def scores(log_p: Tensor, tokens: Tensor, limit: int = LIMIT) -> Tensor:
    r"""Log-probability of every sequence under every latent, $\sum_d \log p_i^d(y_j^d)$.

    What tokens are asked for is gathered before sequences meet latents: the product of both with
    all symbols is never there. Latents are taken so many at a time that it fits the limit, and the
    gathered ones are not kept for the gradient but gathered again.

    Arguments:
        log_p: Log-laws, shape (batch, M, D, S).
        tokens: Sequences, int64, shape (batch, K, D).
        limit: Bytes for what is gathered at a time.

    Returns:
        Shape (batch, K, M).

    Raises:
        SigdegError: If shapes do not fit.
    """
    batch, latents, length, _ = log_p.shape
    if tokens.ndim != 3 or tokens.shape[::2] != (batch, length):
        raise SigdegError(
            f"tokens of {batch} items are ({batch}, K, {length}), got {tuple(tokens.shape)}"
        )
    each = batch * length * tokens.shape[1] * log_p.element_size()
    size = max(1, limit // each)
    if size >= latents:
        return gather(log_p, tokens)
    parts: list[Tensor] = [
        checkpoint(gather, part, tokens, use_reentrant=False) for part in log_p.split(size, 1)
    ]
    return torch.cat(parts, 2)


def log_marginals(log_p: Tensor, log_w: Tensor | None = None, limit: int = LIMIT) -> Tensor:
    r"""$\log \bar p^d(v)$, shape (batch, D, S): by an online log-sum-exp over the latents."""
    log_w = equal(log_p) if log_w is None else log_w
    size = max(1, limit // (log_p[:, 0].numel() * log_p.element_size()))
    total: Tensor | None = None
    for part, own in zip(log_p.split(size, 1), log_w.split(size, 1), strict=True):
        found = (part + own[:, :, None, None]).logsumexp(1)
        total = found if total is None else torch.logaddexp(total, found)
    assert total is not None
    return total


def equal(log_p: Tensor) -> Tensor:
    """Logarithms of equal weights, shape (1, M)."""
    return log_p.new_full((1, log_p.shape[1]), -math.log(log_p.shape[1]))


def weighted(found: Tensor, log_w: Tensor | None) -> Tensor:
    """Scores with the weights of their latents, shape (batch, K, M)."""
    return found - math.log(found.shape[2]) if log_w is None else found + log_w[:, None]


def joint(found: Tensor, log_w: Tensor | None = None) -> Tensor:
    r"""$-\frac1K \sum_j \log p(y_j)$, of `scores`."""
    return -weighted(found, log_w).logsumexp(2).mean(1)


def correlation(
    found: Tensor, log_mean: Tensor, tokens: Tensor, log_w: Tensor | None = None
) -> Tensor:
    r"""$\frac1K \sum_j (-\log p(y_j) + \sum_d \log \bar p^d(y_j^d))$: what positions share.

    Least at minus the total correlation of the target, where marginals are met.

    Arguments:
        found: Of `scores`, shape (batch, K, M).
        log_mean: Of `log_marginals`, shape (batch, D, S).
        tokens: The sequences, shape (batch, K, D).
        log_w: Weights, shape (batch, M).
    """
    return joint(found, log_w) + log_mean.gather(2, tokens.mT).sum(1).mean(1)


def marginal(log_mean: Tensor, target: Tensor) -> Tensor:
    r"""$\sum_d KL(q^d \| \bar p^d)$; `log_mean` may be any log-laws (batch, D, S)."""
    surprise: Tensor = torch.special.entr(target) + target * log_mean
    return -surprise.sum((1, 2))


def distil(log_p: Tensor, target: Tensor, log_w: Tensor | None = None) -> Tensor:
    r"""$\sum_i w_i \sum_d KL(q^d \| p_i^d)$: above the mixture's divergence by convexity.

    It is least where no latent changes anything: for steps so short that a product is right.
    """
    mean = log_p.mean(1) if log_w is None else torch.einsum("bm,bmds->bds", log_w.exp(), log_p)
    return marginal(mean, target)


def effective_size(found: Tensor, log_w: Tensor | None = None) -> Tensor:
    r"""How many latents a sequence learns from: $1 / \sum_i r_i^2$, r their shares in it.

    Shape (batch, K), from 1 to M, without a gradient. At 1 only the best latent learns.
    """
    share = weighted(found.detach(), log_w).softmax(2)
    return 1 / share.square().sum(2)
