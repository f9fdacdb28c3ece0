r"""Gaussian mixtures, on the line as in the 1DN benchmark and in any dimension, with exact laws.

The law is $F(x) = \sum_j w_j \Phi((x - \mu_j) / s_j)$. Its functions are NumPy float64, so that a
metric can compare samples with the truth itself instead of with more samples.

Source: Sig-DEG (arXiv 2508.16939), sections 4.1.1 and C.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri
from torch import Generator, Tensor

from sigdeg.errors import SigdegError

__all__ = ["GaussianMixture", "GaussianMixture1D", "MixtureSplit", "mixture_split"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GaussianMixture1D:
    """A mixture of normal laws on the line; the defaults are the paper's 1DN.

    Arguments:
        means: The mean of each component.
        stds: The standard deviation of each component, positive.
        weights: The probability of each component; they sum to 1.

    Raises:
        SigdegError: If the lengths differ, a standard deviation is not positive or the weights are
            not probabilities.
    """

    means: tuple[float, ...] = (-2.0, 2.0)
    stds: tuple[float, ...] = (0.5, 0.5)
    weights: tuple[float, ...] = (0.5, 0.5)

    def __post_init__(self) -> None:
        """Refuse what is not a law."""
        sizes = len(self.means), len(self.stds), len(self.weights)
        if len(set(sizes)) != 1:
            raise SigdegError(f"means, stds and weights must have one length, got {sizes}")
        if not all(s > 0 for s in self.stds):
            raise SigdegError(f"stds must be positive, got {self.stds}")
        if not (all(w >= 0 for w in self.weights) and math.isclose(sum(self.weights), 1)):
            raise SigdegError(f"weights must be >= 0 and sum to 1, got {self.weights}")

    @property
    def mean(self) -> float:
        r"""$\sum_j w_j \mu_j$."""
        return float(np.dot(self.weights, self.means))

    @property
    def variance(self) -> float:
        r"""$\sum_j w_j (s_j^2 + (\mu_j - \mu)^2)$."""
        offsets = np.asarray(self.means) - self.mean
        return float(np.dot(self.weights, np.square(self.stds) + offsets**2))

    def sample(self, n: int, generator: Generator) -> Tensor:
        """Draw `n` independent samples, float32 with shape (n, 1), on the generator's device."""
        device = generator.device
        weights = torch.tensor(self.weights, device=device)
        j = torch.multinomial(weights, n, replacement=True, generator=generator)
        xi = torch.randn(n, generator=generator, device=device)
        means, stds = (torch.tensor(v, device=device) for v in (self.means, self.stds))
        return (means[j] + stds[j] * xi).unsqueeze(1)

    def cdf(self, x: ArrayLike) -> Floats:
        r"""The distribution function $F(x)$, with the shape of `x`."""
        return np.asarray(ndtr(self._standardise(x)) @ np.asarray(self.weights))

    def integrated_cdf(self, x: ArrayLike) -> Floats:
        r"""$\int_{-\infty}^x F = \sum_j w_j s_j (z_j \Phi(z_j) + \varphi(z_j))$ at finite `x`."""
        z = self._standardise(x)
        density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        return np.asarray((z * ndtr(z) + density) @ np.multiply(self.weights, self.stds))

    def quantile(self, p: ArrayLike) -> Floats:
        """The inverse of the distribution function, with the shape of `p`; NaN outside [0, 1]."""
        p = np.asarray(p, dtype=np.float64)
        # At the smallest of the components' own quantiles F <= p, at the largest F >= p.
        components = np.asarray(self.means) + np.multiply.outer(ndtri(p), self.stds)
        low, high = components.min(axis=-1), components.max(axis=-1)
        for _ in range(64):  # halves any bracket down to the spacing of float64
            middle = (low + high) / 2
            below = self.cdf(middle) < p
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return np.asarray(high)

    def _standardise(self, x: ArrayLike) -> Floats:
        x = np.asarray(x, dtype=np.float64)[..., None]
        return np.asarray((x - np.asarray(self.means)) / np.asarray(self.stds))


@dataclass(frozen=True)
class GaussianMixture:
    r"""A mixture $\sum_k w_k N(\mu_k, \Sigma_k)$ of normal laws in d dimensions.

    Arguments:
        means: $\mu_k$, shape (components, d).
        covariances: $\Sigma_k$, shape (components, d, d).
        weights: $w_k$, shape (components,), which sum to 1.
    """

    means: Tensor
    covariances: Tensor
    weights: Tensor

    def sample(self, n: int, generator: Generator) -> Tensor:
        """Draw `n` independent samples, float32 with shape (n, d)."""
        j = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        xi = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        roots = torch.linalg.cholesky(self.covariances.double())
        return (self.means[j] + torch.einsum("nij,nj->ni", roots[j], xi)).float()

    def along(self, direction: Tensor) -> GaussianMixture1D:
        r"""The law of $u \cdot x$ for a direction $u$, shape (d,): a mixture on the line."""
        u = direction.double()
        variances = torch.einsum("kij,i,j->k", self.covariances.double(), u, u)
        weights = self.weights.double() / self.weights.double().sum()
        lists = (self.means.double() @ u, variances.sqrt(), weights)
        return GaussianMixture1D(*(tuple(v.tolist()) for v in lists))

    def squared_distances(self, x: Tensor) -> Tensor:
        r"""$(x - \mu_k)^\top \Sigma_k^{-1} (x - \mu_k)$ of every component, shape (n, k)."""
        residual = x.double()[:, None] - self.means.double()
        precisions = torch.linalg.inv(self.covariances.double())
        return torch.einsum("nkd,kde,nke->nk", residual, precisions, residual)

    def off(self, x: Tensor, stds: float = 4.0) -> float:
        """Share of samples that lie beyond so many standard deviations of every component."""
        return float((self.squared_distances(x).min(1).values > stds**2).double().mean())

    def shares(self, x: Tensor) -> Tensor:
        """Mean posterior probability of each component, shape (k,): its weight, for true samples.

        Unlike counting, it is exact where components overlap.
        """
        volumes = torch.logdet(self.covariances.double())
        scores = self.weights.double().log() - (self.squared_distances(x) + volumes) / 2
        return torch.softmax(scores, dim=1).mean(0)


class MixtureSplit(NamedTuple):
    """The benchmark's data: training, validation and test samples, each with shape (n, 1)."""

    train: Tensor
    validation: Tensor
    test: Tensor


def mixture_split(seed: int) -> MixtureSplit:
    """Draw the paper's 10,000 samples: 7,900 to train, 100 to validate, 2,000 to test.

    The same seed gives the same data.
    """
    samples = GaussianMixture1D().sample(10_000, torch.Generator().manual_seed(seed))
    return MixtureSplit(samples[:7_900], samples[7_900:8_000], samples[8_000:])
