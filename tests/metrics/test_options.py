"""Implied volatilities and skews: laws whose smile is known."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import integrate, optimize, stats

from sigdeg.errors import SigdegError
from sigdeg.metrics import atm_skew, implied_volatility, skew_error, smile

Floats = NDArray[np.float64]
NORMAL = stats.norm


def gaussian(n: int = 100_000) -> Floats:
    """n midpoints of the quantiles of N(0, 1): its law without noise."""
    return NORMAL.ppf((np.arange(n) + 0.5) / n)


def call(k: float, s: float) -> float:
    """Black-Scholes with the strike in the exponent, so that no strike overflows."""
    d = s / 2 - k / s
    return NORMAL.cdf(d) - np.exp(k + NORMAL.logcdf(d - s))


@pytest.mark.parametrize("maturity", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("sigma", [0.05, 0.3, 2.0])
@pytest.mark.parametrize("moneyness", [-3.0, -1.0, 0.0, 0.7, 3.0])
def test_volatility_of_integrated_prices(sigma: float, maturity: float, moneyness: float) -> None:
    s = sigma * np.sqrt(maturity)
    k = moneyness * s

    def payoff(z: float) -> float:
        return NORMAL.pdf(z) * (np.exp(s * z - s * s / 2) - np.exp(k))

    least = k / s + s / 2  # the call pays beyond it
    price = integrate.quad(payoff, least, max(least, s) + 12, epsabs=1e-15, limit=200)[0]
    assert implied_volatility(price, k, maturity) == pytest.approx(sigma, rel=1e-8)


def test_at_the_money_in_closed_form() -> None:
    prices = np.array([[1e-9, 0.1, 0.9], [0.5, 0.99, 1 - 1e-9]])
    expected = 2 * NORMAL.ppf((prices + 1) / 2) / np.sqrt(2.5)
    assert implied_volatility(prices, 0.0, 2.5) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("k", "s"), [(5.0, 0.8), (50.0, 12.0), (800.0, 45.0), (-30.0, 9.0)])
def test_strikes_far_from_the_money(k: float, s: float) -> None:
    # From -30 a price near 1 keeps few digits of its time value.
    assert implied_volatility(call(k, s), k, 1.0) == pytest.approx(s, rel=1e-3 if k < 0 else 1e-8)


def test_an_intrinsic_value_has_no_volatility() -> None:
    k = np.array([-1.0, -1e-3, 0.0, 2.0])
    price = np.maximum(1 - np.exp(k), 0)
    assert implied_volatility(price, k, 1.0) == pytest.approx(np.zeros(4), abs=1e-12)


@pytest.mark.parametrize(
    ("price", "k"), [(0.3, np.log(0.69)), (-1e-9, 0.2), (1.0, 0.2), (1.0, -3.0), (np.nan, 0.0)]
)
def test_arbitrage_is_refused(price: float, k: float) -> None:
    with pytest.raises(SigdegError, match=r"a call must cost at least max\(1 - K, 0\)"):
        implied_volatility([0.9, price], [0.0, k], 1.0)


def test_smile_of_a_lognormal_price_is_flat() -> None:
    sigma, maturity = 0.3, 0.5
    x = sigma * np.sqrt(maturity) * gaussian()
    k = np.linspace(-0.5, 0.5, 11)
    assert smile(x, k, maturity) == pytest.approx(np.full(11, sigma), abs=2e-4)
    # The forward is scaled to 1, also where its exponential is no float.
    for forward in (0.2, -3000.0, 3000.0):
        assert smile(x + forward, k, maturity) == pytest.approx(smile(x, k, maturity), abs=1e-8)
    assert atm_skew(x, maturity) == pytest.approx(0, abs=2e-4)


def test_smile_is_that_of_all_calls_and_has_no_tear_at_the_money() -> None:
    x = np.random.default_rng(0).normal(0.1, 0.3, 200)
    prices = np.exp(x) / np.exp(x).mean()
    k = np.array([-0.4, -0.1, -1e-9, 0.0, 1e-9, 0.1, 0.4])
    calls = np.maximum(prices[:, None] - np.exp(k), 0).mean(0)
    volatilities = smile(torch.from_numpy(x), k, 2.0)
    assert volatilities == pytest.approx(implied_volatility(calls, k, 2.0), rel=1e-9)
    assert np.ptp(volatilities[2:5]) < 1e-8


def displaced(sigma: float, a: float) -> Floats:
    """Log-returns of S = (1 + a) L - a for a lognormal L of mean 1."""
    return np.log((1 + a) * np.exp(sigma * gaussian() - sigma**2 / 2) - a)


@pytest.mark.parametrize(("sigma", "a"), [(0.2, 0.5), (0.4, -0.3), (0.07, 2.0)])
def test_smile_of_a_displaced_lognormal_price(sigma: float, a: float) -> None:
    # A call of the strike K is 1 + a calls on L of the strike (K + a) / (1 + a).
    k, maturity = np.array([-0.15, -0.05, 0.0, 0.05, 0.15]), 0.25
    prices = [(1 + a) * call(np.log((np.exp(one) + a) / (1 + a)), sigma) for one in k]
    pairs = zip(k, prices, strict=True)
    s = [optimize.brentq(lambda s, k=k, c=c: call(k, s) - c, 0.01, 2) for k, c in pairs]
    expected = np.array(s) / np.sqrt(maturity)
    assert smile(displaced(sigma, a), k, maturity) == pytest.approx(expected, abs=2e-4)
    skew = (expected[3] - expected[1]) / 0.1
    assert abs(skew) > 0.05
    assert atm_skew(displaced(sigma, a), maturity) == pytest.approx(skew, abs=1e-3)


@pytest.mark.parametrize(("sigma", "a"), [(0.2, 0.5), (0.4, -0.3)])
def test_skew_is_the_derivative_that_digital_options_give(sigma: float, a: float) -> None:
    # d/dk C(k, s(k)) = -K P(S > K), so at k = 0: s' = (Phi(-s/2) - P(S > 1)) / phi(s/2).
    price = (1 + a) * call(0.0, sigma)
    s = 2 * NORMAL.ppf((price + 1) / 2)
    digital = NORMAL.cdf(-sigma / 2)  # of S > 1, that is L > 1
    slope = (NORMAL.cdf(-s / 2) - digital) / NORMAL.pdf(s / 2)
    value = atm_skew(displaced(sigma, a), 1.0, width=0.01)
    assert value == pytest.approx(slope, rel=0.01)


@pytest.mark.parametrize("sigma", [0.03, 0.1])
def test_skew_of_a_normal_price(sigma: float) -> None:
    # Bachelier: sigma (1 - k/2 + ...) to first order in sigma.
    assert atm_skew(np.log1p(sigma * gaussian()), 1.0, width=0.02) == pytest.approx(
        -sigma / 2, rel=0.02
    )


def test_volatilities_are_per_root_year() -> None:
    x = displaced(0.2, 0.5)
    assert smile(x, [0.1], 4.0) == pytest.approx(smile(x, [0.1], 1.0) / 2, rel=1e-12)
    assert atm_skew(x, 4.0) == pytest.approx(atm_skew(x, 1.0) / 2, rel=1e-9)


def test_samples_that_do_not_vary_have_no_volatility() -> None:
    assert smile(torch.full((5, 1), 0.3), [-0.1, 0.1], 1.0).tolist() == [0.0, 0.0]
    assert atm_skew(torch.full((5,), 0.3), 1.0) == 0


def test_skew_error_is_of_the_last_log_price() -> None:
    draw = np.random.default_rng(0)
    x, y = (torch.from_numpy(draw.normal(size=(100_000, 2, 3))) for _ in range(2))
    x[:, 0, -1] = torch.from_numpy(displaced(0.2, 0.5))
    y[:, 0, -1] = torch.from_numpy(displaced(0.2, -0.3))
    expected = atm_skew(displaced(0.2, -0.3), 2.0) - atm_skew(displaced(0.2, 0.5), 2.0)
    assert expected > 0.04
    assert skew_error(x, y, maturity=2.0) == pytest.approx(expected, rel=1e-6)
    assert skew_error(y, x, maturity=2.0) == skew_error(x, y, maturity=2.0)
    # By default the maturity is 1 year, and a skew is taken between the log-strikes -+0.05.
    ends = smile(x[:, 0, -1], [-0.05, 0.05], 1.0) - smile(y[:, 0, -1], [-0.05, 0.05], 1.0)
    assert skew_error(x, y) == pytest.approx(abs(np.diff(ends)[0]) / 0.1, rel=1e-6)


def test_bad_input_is_refused() -> None:
    x = gaussian(9)
    for maturity in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(SigdegError, match="maturity must be positive"):
            implied_volatility(0.1, 0.0, maturity)
        with pytest.raises(SigdegError, match="maturity must be positive"):
            atm_skew(x, maturity)
    for width in (0.0, -0.1, np.nan):
        with pytest.raises(SigdegError, match="width must be positive"):
            atm_skew(x, 1.0, width)
    for strikes in ([np.nan], [np.inf], 0.0, [[0.0]]):
        with pytest.raises(SigdegError, match="log-strikes must be finite"):
            smile(x, strikes, 1.0)
    with pytest.raises(SigdegError, match="log-strikes must be finite"):
        implied_volatility(0.1, np.nan, 1.0)
    with pytest.raises(SigdegError, match=r"broadcast, got the shapes \(2,\) and \(3,\)"):
        implied_volatility([0.1, 0.2], [0.0, 0.1, 0.2], 1.0)
    for bad in (np.zeros(0), np.zeros((3, 2)), np.array([0.0, np.nan]), np.array([np.inf])):
        with pytest.raises(SigdegError, match=r"shape \(n,\)|must be finite"):
            smile(bad, [0.0], 1.0)
