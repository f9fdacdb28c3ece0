r"""Metrics between two sets of time series: how far generated series are from real ones in law.

A set has the shape (n, features, dates); log-price and log-variance are the features of rough
Bergomi. Every metric but `tail_error` first standardises each coordinate (feature, date) of both
sets by the mean and the standard deviation (divisor k) of the reference, so it has no unit, and
a shift or a change of scale of a feature in both sets does not alter it. All are 0 for a set
against itself and above 0 between two sets of real data, the floor.

Where the paper sums over features and dates these take means, so that values for different numbers
of features and dates compare.

What all of them take and refuse stands at `average_w1`.

References:
    Sig-DEG (arXiv 2508.16939), C.4.2, for the marginal loss and the two of correlations.
    Székely, Rizzo, *Energy statistics* (2013), for the energy distance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sigdeg.errors import SigdegError, check_least
from sigdeg.metrics.wasserstein import w1_columns

__all__ = [
    "autocorrelation_discrepancy",
    "average_w1",
    "correlation_discrepancy",
    "energy_distance",
    "increment_w1",
    "marginal_loss",
    "series_pair",
    "tail_error",
]

CHUNK = 64  # rows of a block of distances: 5 MB for 20,000 columns, more would leave the cache


def marginal_loss(samples: Tensor, reference: Tensor, bins: int = 50) -> float:
    r"""The histogram loss of C.4.2: the mean absolute difference of marginal densities.

    Each coordinate $j$ is cut into $B$ bins of equal width $w_j$ between the least and the greatest
    value of the reference. With $c_{jb}$ values of $n$ samples and $d_{jb}$ of $k$ references in
    bin $b$ (its left edge belongs to it, in the last bin both do),

    $$ \frac1{JB} \sum_{j=1}^{J} \sum_{b=1}^{B}
       \left| \frac{c_{jb}}{n w_j} - \frac{d_{jb}}{k w_j} \right|. $$

    Samples beyond the range are in no bin, but count in $n$. Sets and errors as in `average_w1`.

    Arguments:
        samples: Generated series.
        reference: Real series.
        bins: The number of bins $B$, at least 1.
    """
    check_least(bins, 1, "bins")
    x, y = (values.flatten(1).T.numpy() for values in standardised(samples, reference))
    loss = 0.0
    for a, b in zip(x, y, strict=True):
        ends = (b.min(), b.max())
        p, q = np.histogram(a, bins, ends)[0] / len(a), np.histogram(b, bins, ends)[0] / len(b)
        loss += np.abs(p - q).mean() * bins / (ends[1] - ends[0])
    return float(loss / len(x))


def average_w1(samples: Tensor, reference: Tensor) -> float:
    r"""The mean over coordinates of the Wasserstein-1 distance of the marginals.

    Arguments:
        samples: Generated series, with shape (n, features, dates).
        reference: Real series, with shape (k, features, dates).

    Returns:
        The distance, in standard deviations of the reference.

    Raises:
        SigdegError: If the sets do not match, are empty or not finite, or a coordinate of the
            reference is constant.
    """
    x, y = (values.flatten(1).numpy() for values in standardised(samples, reference))
    return float(w1_columns(x, y).mean())


def increment_w1(samples: Tensor, reference: Tensor) -> float:
    r"""The mean W1 of the increments $x_{i,t+1} - x_{i,t}$ from each date to the next.

    It is `average_w1` of the increments, in standard deviations of the reference's increments:
    a noise too small to show in the marginals of a series shows here. Arguments and errors as
    there; a single date has no increments.
    """
    x, y = series_pair(samples, reference, dates=2)
    return average_w1(x.diff(), y.diff())


def correlation_discrepancy(samples: Tensor, reference: Tensor) -> float:
    r"""The mean absolute difference of the correlations of coordinates.

    With the Pearson correlations $\rho$ over the samples, the mean of
    $|\rho^{samples}_{(i,s),(j,t)} - \rho^{reference}_{(i,s),(j,t)}|$ over all ordered pairs of
    coordinates (feature $i$, date $s$) and (feature $j$, date $t$), the equal ones included, which
    add 0. Arguments and errors as `average_w1`; no coordinate of samples may be constant either.
    """
    x, y = standardised(samples, reference)
    return float((correlations(x) - correlations(y)).abs().mean())


def autocorrelation_discrepancy(samples: Tensor, reference: Tensor) -> float:
    r"""The mean absolute difference of the autocorrelations, over features and lags.

    The autocorrelation of feature $i$ at the lag $k = 1, \dots, T - 1$ is

    $$ A_i(k) = \frac1{T - k} \sum_{t=1}^{T-k} \mathrm{corr}(x_{i,t}, x_{i,t+k}), $$

    with the Pearson correlation over the samples: no stationarity is assumed. Arguments and errors
    as `correlation_discrepancy`; of a single date there is none.
    """
    x, y = (autocorrelations(values) for values in standardised(samples, reference, dates=2))
    return float((x - y).abs().mean())


def energy_distance(samples: Tensor, reference: Tensor) -> float:
    r"""The energy distance $2 E|X - Y| - E|X - X'| - E|Y - Y'|$ of whole series.

    $|\cdot|$ is the Euclidean norm of the flattened standardised series and the means are over all
    pairs, a series and itself included: the V-statistic, the distance between the two empirical
    laws, never negative, and not its square root. Its floor is $E|X - X'| (1/n + 1/k)$.

    Distances are in float32 and their sums in float64: the error is about 1e-7 of $E|X - Y|$.
    Arguments, unit and errors as `average_w1`.
    """
    x, y = (values.flatten(1) for values in standardised(samples, reference))
    scale = torch.maximum(x.abs().max(), y.abs().max())  # the square of 1e20 is no float32
    x, y = (x / scale).float(), (y / scale).float()
    value = 2 * mean_distance(x, y) - mean_distance(x, x) - mean_distance(y, y)
    return max(0.0, value * float(scale))


def tail_error(samples: Tensor, reference: Tensor, levels: Sequence[float] = (0.01, 0.99)) -> float:
    r"""The mean absolute difference of quantiles of the terminal log-return.

    The log-return is feature 0, the log-price, at the last date: $\log S_0 = 0$. The error has its
    unit; a constant coordinate is no error here.

    Arguments:
        samples: Generated series, as in `average_w1`.
        reference: Real series.
        levels: Levels of the quantiles, in [0, 1].
    """
    if not len(levels) or not all(0 <= level <= 1 for level in levels):
        raise SigdegError(f"levels must be one or more numbers in [0, 1], got {tuple(levels)}")
    x, y = (values[:, 0, -1].numpy() for values in series_pair(samples, reference))
    return float(np.abs(np.quantile(x, levels) - np.quantile(y, levels)).mean())


def series_pair(samples: Tensor, reference: Tensor, dates: int = 1) -> tuple[Tensor, Tensor]:
    """Two sets of series as float64 on the CPU, verified, of at least so many dates."""
    x, y = (values.detach().cpu().double() for values in (samples, reference))
    if x.ndim != 3 or x.shape[1:] != y.shape[1:] or not x.numel() or not y.numel():
        raise SigdegError(
            f"expected series of shapes (n, features, dates) and (k, features, dates), got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    if x.shape[2] < dates:
        raise SigdegError(f"the metric needs at least {dates} dates, got {x.shape[2]}")
    for name, values in (("samples", x), ("reference", y)):
        if not values.isfinite().all():
            raise SigdegError(f"{name} must be finite, got NaN or infinity")
    return x, y


def standardised(samples: Tensor, reference: Tensor, dates: int = 1) -> tuple[Tensor, Tensor]:
    """The two sets over the mean and the spread of the reference, coordinate by coordinate."""
    x, y = series_pair(samples, reference, dates)
    refuse_constants(y, "reference")
    mean, std = y.mean(0), y.std(0, correction=0)
    return (x - mean) / std, (y - mean) / std


def refuse_constants(values: Tensor, name: str) -> None:
    """An error if a coordinate has no spread."""
    constant = (values.amax(0) == values.amin(0)).nonzero()
    if len(constant):
        feature, date = constant[0].tolist()
        raise SigdegError(
            f"every coordinate must vary, but feature {feature} of the {name} is constant at "
            f"date index {date}"
        )


def correlations(values: Tensor) -> Tensor:
    """Pearson correlations of (n, features, dates), with shape (features dates)²."""
    refuse_constants(values, "samples")
    return torch.corrcoef(values.flatten(1).T).reshape(2 * values.shape[1:])


def autocorrelations(values: Tensor) -> Tensor:
    """Autocorrelations of (n, features, dates) at the lags 1, ..., dates - 1, a row a lag."""
    pairs = correlations(values).diagonal(dim1=0, dim2=2)  # (date, date, feature)
    return torch.stack([pairs.diagonal(lag).mean(-1) for lag in range(1, len(pairs))])


def mean_distance(x: Tensor, y: Tensor) -> float:
    """Mean Euclidean distance over all pairs of a row of x and a row of y."""
    sums = (torch.cdist(rows, y).sum(dtype=torch.float64) for rows in x.split(CHUNK))
    return float(sum(sums)) / (len(x) * len(y))
