r"""Option prices of generated log-returns: implied volatilities and their skew.

The price of the asset is $S = e^x$ for a log-return $x$ up to the maturity $T$; there are no rates
and the forward is 1. A call of the log-strike $k$, the strike $K = e^k$, is worth in the
Black-Scholes model of volatility $\sigma$

$$ C(k) = \Phi(d) - e^k \Phi(d - s), \qquad s = \sigma \sqrt T, \qquad d = \frac{-k}{s} +
   \frac{s}{2}. $$

The implied volatility of a price is the $\sigma$ that gives it. The smile, that of all log-strikes,
is flat for Gaussian log-returns; for equity it falls at the money.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_ndtr, logsumexp, ndtr
from torch import Tensor

from sigdeg.errors import SigdegError
from sigdeg.metrics.series import series_pair
from sigdeg.metrics.wasserstein import scalars

__all__ = ["atm_skew", "implied_volatility", "skew_error", "smile"]

Floats = NDArray[np.float64]


def implied_volatility(price: ArrayLike, log_strike: ArrayLike, maturity: float) -> Floats:
    r"""The implied volatility of calls, by bisection.

    Arguments:
        price: Prices of the calls, from the intrinsic value $\max(1 - e^k, 0)$, whose volatility is
            0, to less than 1.
        log_strike: Log-strikes $k$, of a shape that broadcasts with that of the prices.
        maturity: The maturity $T$, in years.

    Returns:
        The volatilities, per root year, in the broadcast shape.

    Raises:
        SigdegError: If a price allows arbitrage, a log-strike is not finite, the shapes do not
            match, or the maturity is not positive and finite.
    """
    try:
        c, k = np.broadcast_arrays(np.asarray(price, float), np.asarray(log_strike, float))
    except ValueError:
        raise SigdegError(
            f"prices and log-strikes must broadcast, got the shapes {np.shape(price)} and "
            f"{np.shape(log_strike)}"
        ) from None
    if not np.isfinite(k).all():
        raise SigdegError("log-strikes must be finite, got NaN or infinity")
    value = c + np.expm1(np.minimum(k, 0))
    sound = (value >= -1e-15) & (c < 1)  # parity may round a worthless put to less than 0
    if not sound.all():
        raise SigdegError(
            f"a call must cost at least max(1 - K, 0) and less than 1, got {c[~sound][0]:g} for "
            f"the log-strike {k[~sound][0]:g}"
        )
    return volatility(value, k, maturity)


def smile(
    log_returns: Tensor | NDArray[np.floating], log_strikes: ArrayLike, maturity: float
) -> Floats:
    r"""The implied volatilities of Monte-Carlo prices.

    With prices $S_i = e^{x_i} / \overline{e^x}$, scaled to a mean of 1, the forward, options out of
    the money are priced by their mean payoffs: calls, $(S - K)^+$, for $k \ge 0$ and puts,
    $(K - S)^+$, for $k < 0$. The scaling makes the two agree at the money (put-call parity);
    unscaled, the sampling error of the forward would tear the smile apart there. A forward that
    the sampler has wrong does not show.

    Arguments:
        log_returns: Samples of the log-return up to the maturity, with shape (n,) or (n, 1).
        log_strikes: Log-strikes $k$, with shape (m,).
        maturity: The maturity $T$, in years.

    Returns:
        The volatilities, per root year, with shape (m,): 0 where no sample lies beyond the strike.

    Raises:
        SigdegError: If the samples are empty, not one-dimensional or not finite, log-strikes are
            not finite numbers in a row, or the maturity is not positive and finite.
    """
    x = scalars(log_returns)
    k = np.asarray(log_strikes, float)
    if k.ndim != 1 or not np.isfinite(k).all():
        raise SigdegError(f"log-strikes must be finite, with shape (m,), got {k.tolist()}")
    prices = np.exp(x - logsumexp(x) + np.log(len(x)))
    sides = np.where(k < 0, -1, 1)
    payoffs = (np.maximum(w * (prices - np.exp(one)), 0) for w, one in zip(sides, k, strict=True))
    return volatility(np.array([payoff.mean() for payoff in payoffs]), k, maturity)


def atm_skew(
    log_returns: Tensor | NDArray[np.floating], maturity: float, width: float = 0.05
) -> float:
    r"""The slope of the smile at the money, $(\sigma(w) - \sigma(-w)) / 2w$ for the width $w$.

    Arguments:
        log_returns: Samples of the log-return up to the maturity, with shape (n,) or (n, 1).
        maturity: The maturity, in years.
        width: The log-strike $w$; a smaller one has less bias and a little more noise.

    Raises:
        SigdegError: As `smile` does, or if the width is not positive.
    """
    if not width > 0:
        raise SigdegError(f"width must be positive, got {width}")
    low, high = smile(log_returns, (-width, width), maturity)
    return float((high - low) / (2 * width))


def skew_error(samples: Tensor, reference: Tensor, maturity: float = 1.0) -> float:
    r"""The absolute difference of the skews at the money of two sets of time series.

    The log-return is feature 0, the log-price, at the last date, the maturity: $\log S_0 = 0$.

    Arguments:
        samples: Generated series, with shape (n, features, dates).
        reference: Real series, with shape (k, features, dates).
        maturity: The last date, in years.

    Raises:
        SigdegError: If the sets do not match, are empty or not finite, or the maturity is not
            positive and finite.
    """
    x, y = (values[:, 0, -1] for values in series_pair(samples, reference))
    return abs(atm_skew(x, maturity) - atm_skew(y, maturity))


def time_value(log_strike: Floats, s: Floats) -> Floats:
    """Black-Scholes value of the option out of the money, for a total volatility s > 0."""
    side = np.where(log_strike < 0, -1.0, 1.0)
    d = s / 2 - log_strike / s
    # A large strike times a small probability: e^k alone would overflow.
    strike = np.exp(log_strike + log_ndtr(side * (d - s)))
    return np.asarray(side * (ndtr(side * d) - strike))


def volatility(value: Floats, log_strike: Floats, maturity: float) -> Floats:
    """The volatility that gives options out of the money these values."""
    if not 0 < maturity < np.inf:
        raise SigdegError(f"maturity must be positive and finite, got {maturity}")
    low = np.zeros_like(value)
    # There d and s - d are at least 15: the value is its bound, the smaller of 1 and the strike.
    high = 40 + 3 * np.sqrt(np.abs(log_strike))
    for _ in range(64):  # down to less than 1e-17
        middle = (low + high) / 2
        below = time_value(log_strike, middle) < value
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.asarray(low / np.sqrt(maturity))
