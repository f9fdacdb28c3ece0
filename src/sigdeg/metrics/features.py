r"""Distances between two sets of feature vectors, of shapes (n, d) and (k, d).

All are computed in float64 on the CPU, over all pairs where a metric is made of pairs, in blocks
of rows: no matrix of n × k is ever held.

References:
    Heusel et al., *GANs trained by a two time-scale update rule* (2017), for the Fréchet distance.
    Bińkowski et al., *Demystifying MMD GANs* (2018), for the kernel distance.
    Kynkäänniemi et al., *Improved precision and recall metric* (2019).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sigdeg.errors import SigdegError

__all__ = [
    "Statistics",
    "diversity",
    "frechet_distance",
    "kernel_inception_distance",
    "nearest_neighbours",
    "precision_recall",
]

CHUNK = 64  # rows of a block: 5 MB for 10,000 columns of float64, more would leave the cache


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of features: all that the Fréchet distance needs of a set.

    Arguments:
        mean: Shape (d,).
        covariance: Divisor n - 1, with shape (d, d).
        n: The number of feature vectors.
    """

    mean: Tensor
    covariance: Tensor
    n: int

    @classmethod
    def of(cls, features: Tensor, weights: Tensor | None = None) -> Statistics:
        """Compute the statistics of features (n, d), n at least 2.

        Arguments:
            features: The vectors.
            weights: How much each counts, shape (n,), at least 0 (default: all alike).

        Raises:
            SigdegError: If there are fewer than 2 vectors, they are not finite or the weights are
                none of so many.
        """
        x = as_features(features, 2)
        w = torch.ones(len(x)) if weights is None else weights.detach().cpu()
        w = w.double()
        if w.shape != x.shape[:1] or not bool((w >= 0).all()) or not 0 < float(w.sum()) < torch.inf:
            raise SigdegError(
                f"expected {len(x)} weights of at least 0 and not all 0, got {tuple(w.shape)}"
            )
        covariance = x.T.cov(aweights=w).reshape(x.shape[1], x.shape[1])
        return cls(w @ x / w.sum(), covariance, len(x))


def frechet_distance(a: Tensor | Statistics, b: Tensor | Statistics) -> float:
    r"""The (squared) Fréchet distance of two Gaussians with the sets' means and covariances.

    $$ |\mu_a - \mu_b|^2 + \mathrm{tr}(\Sigma_a + \Sigma_b - 2 (\Sigma_a \Sigma_b)^{1/2}). $$

    On features of the FID Inception network this is the FID. It is biased upwards for small sets:
    compare values at one number of samples only.

    Arguments:
        a: Features of shape (n, d), or their statistics.
        b: Features of shape (k, d), or their statistics.

    Raises:
        SigdegError: If the sets do not match, are not finite or have fewer than 2 vectors.
    """
    p, q = (v if isinstance(v, Statistics) else Statistics.of(v) for v in (a, b))
    if p.mean.shape != q.mean.shape:
        raise SigdegError(f"features have {len(p.mean)} dimensions and {len(q.mean)}")
    # The product has the eigenvalues of a positive semidefinite matrix; rounding may leave some
    # a little off the real line, and their roots' imaginary parts cancel.
    roots = torch.linalg.eigvals(p.covariance @ q.covariance).sqrt().real.sum()
    squares = (p.mean - q.mean).square().sum() + p.covariance.trace() + q.covariance.trace()
    return max(0.0, float(squares - 2 * roots))


def kernel_inception_distance(a: Tensor, b: Tensor) -> float:
    r"""The squared maximum mean discrepancy with the kernel $k(x, y) = (x \cdot y / d + 1)^3$.

    The unbiased estimator: the means of $k(a_i, a_j)$ and of $k(b_i, b_j)$ over $i \ne j$, less
    twice the mean of $k(a_i, b_j)$. It has the mean 0 for equal laws and so may fall below 0. All
    pairs are used, where published values average subsets of 1,000: the mean is the same and
    the spread is smaller.

    Arguments:
        a: Features of shape (n, d), n at least 2.
        b: Features of shape (k, d), k at least 2.

    Raises:
        SigdegError: If the sets do not match, are not finite or have fewer than 2 vectors.
    """
    x, y = feature_pair(a, b, 2)

    def total(u: Tensor, v: Tensor) -> float:
        products = (rows @ v.T for rows in u.split(CHUNK))
        return float(sum(p.div_(u.shape[1]).add_(1).pow_(3).sum() for p in products))

    def within(u: Tensor) -> float:
        diagonal = (u.square().mean(1) + 1).pow(3).sum()
        return (total(u, u) - float(diagonal)) / (len(u) * (len(u) - 1))

    return within(x) + within(y) - 2 * total(x, y) / (len(x) * len(y))


def precision_recall(
    real: Tensor, fake: Tensor, k: int = 3, limit: int = 10_000
) -> tuple[float, float]:
    """Improved precision and recall: how much of each set lies in the other's neighbourhood.

    A set's neighbourhood is the union of the closed balls around its vectors, each of the radius
    of the distance to its k-th nearest neighbour, itself excluded. Precision is the share of fake
    vectors in the real neighbourhood, recall that of real ones in the fake neighbourhood.

    Arguments:
        real: Features of shape (n, d), n above k.
        fake: Features of shape (m, d), m above k.
        k: Which neighbour gives the radius.
        limit: Of a larger set a fixed random subset of this size is used.

    Returns:
        Precision and recall.

    Raises:
        SigdegError: If the sets do not match, are not finite or have k vectors or fewer.
    """
    if not 1 <= k < limit:
        raise SigdegError(f"k must be at least 1 and below the limit {limit}, got {k}")
    x, y = (subset(v, limit) for v in feature_pair(real, fake, k + 1))
    centre = x.mean(0)
    x, y = x - centre, y - centre  # squared distances then lose fewer digits
    # A ball of radius 0, of equal vectors, holds what equals its centre up to rounding.
    rounding = 1e-12 * max(float(v.square().sum(1).max()) for v in (x, y))
    real_radii, fake_radii = (kth_neighbour(v, k) + rounding for v in (x, y))
    inside = 0
    covered = torch.zeros(len(x), dtype=torch.bool)
    for distances, radii in zip(
        squared_distances(y, x), fake_radii[:, None].split(CHUNK), strict=True
    ):
        inside += int((distances <= real_radii).any(1).sum())
        covered |= (distances <= radii).any(0)
    return inside / len(y), float(covered.double().mean())


def diversity(features: Tensor, limit: int = 5_000) -> float:
    """The mean Euclidean distance of two different vectors of a set.

    Arguments:
        features: Shape (n, d), n at least 2.
        limit: Of a larger set a fixed random subset of this size is used.

    Raises:
        SigdegError: If there are fewer than 2 vectors or they are not finite.
    """
    x = subset(as_features(features, 2), limit)
    x = x - x.mean(0)
    total = sum(block.sqrt_().sum() for block in squared_distances(x, x))
    return float(total) / (len(x) * (len(x) - 1))


def nearest_neighbours(samples: Tensor, training: Tensor) -> Tensor:
    r"""Euclidean distance of each sample to the nearest training example: 0 is a copy.

    Compare it with the distances of held-out data to the same training set.

    Arguments:
        samples: Images or features, with shape (n, \*).
        training: Shape (k, \*).

    Returns:
        Distances in float64, with shape (n,).

    Raises:
        SigdegError: If the sets do not match, are empty or not finite.
    """
    if samples.shape[1:] != training.shape[1:] or samples.ndim < 2:
        raise SigdegError(
            f"samples of shape {tuple(samples.shape)} have no neighbours among training examples "
            f"of shape {tuple(training.shape)}: all but the first dimension must agree"
        )
    x, y = feature_pair(samples.flatten(1), training.flatten(1), 1)
    # The neighbour is found in float32, at half the cost; its distance is exact, a copy's is 0.
    blocks = zip(x.split(CHUNK), squared_distances(x.float(), y.float()), strict=True)
    return torch.cat([(rows - y[block.argmin(1)]).norm(dim=1) for rows, block in blocks])


def as_features(values: Tensor, least: int) -> Tensor:
    """Features (n, d), n at least so many, as float64 on the CPU."""
    x = values.detach().cpu().double()
    if x.ndim != 2 or len(x) < least or not x.shape[1]:
        raise SigdegError(
            f"expected features of shape (n, d), n at least {least}, got {tuple(x.shape)}"
        )
    if not x.isfinite().all():
        raise SigdegError("features must be finite, got NaN or infinity")
    return x


def feature_pair(a: Tensor, b: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Two sets of features of one dimension, as `as_features` gives them."""
    x, y = as_features(a, least), as_features(b, least)
    if x.shape[1] != y.shape[1]:
        raise SigdegError(f"features have {x.shape[1]} dimensions and {y.shape[1]}")
    return x, y


def subset(features: Tensor, limit: int) -> Tensor:
    """The same random `limit` rows on every call: the order of real data is not random."""
    if len(features) <= limit:
        return features
    return features[
        torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:limit]
    ]


def squared_distances(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Squared distances of `CHUNK` rows of x at a time to all rows of y."""
    norms = y.square().sum(1)
    for rows in x.split(CHUNK):
        block = torch.addmm(norms, rows, y.T, alpha=-2)
        yield block.add_(rows.square().sum(1, keepdim=True)).clamp_(min=0)


def kth_neighbour(x: Tensor, k: int) -> Tensor:
    """Squared distance of each row to its k-th nearest other row, with shape (n,)."""
    radii = []
    for i, block in enumerate(squared_distances(x, x)):
        block.diagonal(i * CHUNK).fill_(torch.inf)
        radii.append(block.topk(k, largest=False, sorted=True).values[:, -1])
    return torch.cat(radii)
