r"""Distances of laws on the line: Wasserstein-1, $W_1 = \int |F - G|\, dx$, and of variances."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sigdeg.errors import SigdegError

__all__ = ["Law", "scalars", "variance_score", "w1_columns", "w1_exact", "w1_samples"]

Floats = NDArray[np.float64]


class Law(Protocol):
    r"""A law on the line with a finite mean, by its distribution function $F$."""

    @property
    def mean(self) -> float:
        """The expectation."""

    def cdf(self, x: ArrayLike) -> Floats:
        """$F(x)$."""

    def quantile(self, p: ArrayLike) -> Floats:
        r"""The inverse of $F$, for p in (0, 1)."""

    def integrated_cdf(self, x: ArrayLike) -> Floats:
        r"""$\int_{-\infty}^x F$."""


def w1_exact(samples: Tensor | NDArray[np.floating], law: Law) -> float:
    r"""The exact distance between the empirical law of samples and a known law.

    Between two neighbours of the sorted samples $x_1 \le \dots \le x_n$ the empirical distribution
    function is the constant $i/n$, which $F$ crosses once at most, at its quantile $q$; where it
    does not, $q$ is an end of the interval. With $I(x) = \int_{-\infty}^x F$,

    $$ \int_{x_i}^{x_{i+1}} |i/n - F| = \frac in (2q - x_i - x_{i+1}) + I(x_i) + I(x_{i+1}) - 2I(q).
    $$

    The tails are $I(x_1)$ on the left and $E[X] - x_n + I(x_n)$ on the right. Nothing is
    approximated: the distance keeps the sampling floor of n samples and no other error.

    Arguments:
        samples: The n samples, with shape (n,) or (n, 1).
        law: The law they should have.

    Returns:
        The distance, in the unit of the samples.

    Raises:
        SigdegError: If the samples are empty, not one-dimensional or not finite.
    """
    x = np.sort(scalars(samples))
    levels = np.arange(1, len(x)) / len(x)
    f = law.cdf(x)
    q = np.where(f[:-1] < levels, x[1:], x[:-1])
    crossed = (f[:-1] < levels) & (levels < f[1:])  # about sqrt(n) of n: quantiles are dear
    q[crossed] = law.quantile(levels[crossed])
    at_x, at_q = law.integrated_cdf(x), law.integrated_cdf(q)
    inner = levels * (2 * q - x[:-1] - x[1:]) + at_x[:-1] + at_x[1:] - 2 * at_q
    return float(at_x[0] + inner.sum() + law.mean - x[-1] + at_x[-1])


def w1_samples(a: Tensor | NDArray[np.floating], b: Tensor | NDArray[np.floating]) -> float:
    """The distance between the empirical laws of two sets of samples.

    Arguments:
        a: Samples, with shape (n,) or (n, 1).
        b: Samples, with shape (k,) or (k, 1); k may differ from n.

    Returns:
        The distance, in the unit of the samples.

    Raises:
        SigdegError: If a set is empty, not one-dimensional or not finite.
    """
    return float(w1_columns(scalars(a), scalars(b)))


def w1_columns(a: Floats, b: Floats) -> Floats:
    r"""The distance between the empirical laws of each column, $\int_0^1 |F^{-1} - G^{-1}|$.

    Of finite numbers with shapes (n, \*) and (k, \*) the distances have shape (\*).
    """
    n, k = len(a), len(b)
    # Levels in units of 1 / (n k): between two neighbours both quantile functions are constant.
    levels = np.union1d(np.arange(1, n + 1) * k, np.arange(1, k + 1) * n)
    widths = np.diff(levels, prepend=0) / (n * k)
    x, y = np.sort(a, axis=0)[(levels - 1) // k], np.sort(b, axis=0)[(levels - 1) // n]
    return np.asarray(widths @ np.abs(x - y))


def variance_score(
    samples: Tensor | NDArray[np.floating], reference: Tensor | NDArray[np.floating]
) -> float:
    r"""The paper's variance score of 1DN, $|\mathrm{Var}(samples) - \mathrm{Var}(reference)|$.

    It is the absolute difference of the variances of the two empirical laws: 0 is best, and two
    sets of real data have a score above 0 too, the floor.

    Arguments:
        samples: Generated samples, with shape (n,) or (n, 1).
        reference: Real samples, with shape (k,) or (k, 1).

    Raises:
        SigdegError: If a set is empty, not one-dimensional or not finite.
    """
    return float(abs(scalars(samples).var() - scalars(reference).var()))


def scalars(samples: Tensor | NDArray[np.floating]) -> NDArray[np.float64]:
    """Finite samples of a one-dimensional law, with shape (n,) or (n, 1), as n float64 numbers."""
    values = torch.as_tensor(samples).detach().cpu().double()
    if values.ndim not in (1, 2) or values.numel() == 0 or values.numel() != len(values):
        raise SigdegError(f"expected samples of shape (n,) or (n, 1), got {tuple(values.shape)}")
    if not values.isfinite().all():
        raise SigdegError("samples must be finite, got NaN or infinity")
    return np.asarray(values.flatten().numpy())
