"""Metrics of time series: sets whose distance is known."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from sigdeg.errors import SigdegError
from sigdeg.metrics import (
    autocorrelation_discrepancy,
    average_w1,
    correlation_discrepancy,
    energy_distance,
    increment_w1,
    marginal_loss,
    skew_error,
    tail_error,
)

STANDARDISED = (
    autocorrelation_discrepancy,
    average_w1,
    correlation_discrepancy,
    energy_distance,
    increment_w1,
    marginal_loss,
)
ALL = (*STANDARDISED, skew_error, tail_error)
Metric = Callable[[Tensor, Tensor], float]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(n: int) -> Tensor:
    """n midpoints of the quantiles of N(0, 1): its law without noise."""
    return torch.from_numpy(stats.norm.ppf((np.arange(n) + 0.5) / n))


def correlated(correlation: Tensor, seed: int) -> Tensor:
    """Series (100, F, T) with exactly the correlation (F, T, F, T), and any means and spreads."""
    shape = correlation.shape[:2]
    d = shape.numel()
    z = normal(100, d, seed=seed)
    z -= z.mean(0)
    white = torch.linalg.qr(z).Q
    x = white @ torch.linalg.cholesky(correlation.reshape(d, d)).T
    return (x * (1 + torch.arange(d)) - torch.arange(d)).reshape(100, *shape)


def blocks(*features: Tensor) -> Tensor:
    """The correlation (F, T, F, T) of independent features of the correlations (T, T)."""
    t = len(features[0])
    return torch.block_diag(*features).reshape(len(features), t, len(features), t)


def powers(phi: float, dates: int) -> Tensor:
    """The correlations of a stationary AR(1), phi^|s - t|."""
    t = torch.arange(dates, dtype=torch.float64)
    return phi ** (t[:, None] - t).abs()


def test_marginal_loss_of_shifted_gaussians() -> None:
    n, shifts, scales = 50_000, (0.5, -1.0, 0.0, 2.0), (0.1, 3.0, 1.0, 20.0)
    z = gaussian(n)
    reference = torch.stack([s * z + 4 for s in scales], 1).reshape(n, 2, 2)
    samples = torch.stack([s * (z + d) + 4 for s, d in zip(scales, shifts, strict=True)], 1)
    edges = np.linspace(z.numpy()[0], z.numpy()[-1], 51)
    p = np.diff(stats.norm.cdf(edges))
    gaps = [np.abs(np.diff(stats.norm.cdf(edges - d)) - p).mean() for d in shifts]
    expected = np.mean(gaps) / (edges[1] - edges[0])
    assert marginal_loss(samples.reshape(n, 2, 2), reference) == pytest.approx(expected, rel=1e-3)


def test_marginal_loss_by_hand() -> None:
    # Bins [0, 1), [1, 2), [2, 3] hold 1, 1, 2 of 4 references and 1, 1, 1 of 5 samples.
    reference = torch.tensor([0.0, 1.2, 2.5, 3.0]).reshape(4, 1, 1)
    samples = torch.tensor([0.5, 1.5, 3.0, -0.1, 99.0]).reshape(5, 1, 1)
    expected = (2 * abs(1 / 4 - 1 / 5) + abs(2 / 4 - 1 / 5)) / 3
    width = 1 / float(reference.std(correction=0))
    assert marginal_loss(samples, reference, bins=3) == pytest.approx(expected / width, rel=1e-6)


def test_w1_of_shifts_is_their_mean_in_standard_deviations() -> None:
    reference = normal(500, 2, 3) * torch.tensor([[1.0, 2.0, 5.0], [0.1, 0.2, 9.0]])
    shift = torch.tensor([[0.3, -2.0, 1.0], [0.0, 0.5, -4.0]])
    expected = float((shift.abs() / reference.std(0, correction=0)).mean())
    assert average_w1(reference + shift, reference) == pytest.approx(expected, rel=1e-12)


def test_w1_agrees_with_scipy_for_sets_of_different_sizes() -> None:
    x, y = normal(70, 2, 2), 3 * normal(50, 2, 2, seed=1).exp() + 1
    a, b = x.reshape(70, 4).numpy(), y.reshape(50, 4).numpy()
    expected = [stats.wasserstein_distance(a[:, j], b[:, j]) / b[:, j].std() for j in range(4)]
    assert average_w1(x, y) == pytest.approx(np.mean(expected), rel=1e-12)


def test_increment_w1_sees_slopes_and_no_shifts() -> None:
    reference = normal(500, 2, 4).cumsum(2) * torch.tensor([[1.0], [7.0]])
    slope = torch.tensor([[0.3], [-2.0]]).double()
    samples = reference + slope * torch.arange(4) + torch.tensor([[5.0], [-3.0]])
    spread = reference.diff().std(0, correction=0)
    expected = float((slope.abs() / spread).mean())
    assert increment_w1(samples, reference) == pytest.approx(expected, rel=1e-10)
    assert average_w1(samples, reference) > 1


def test_correlation_discrepancy_of_prescribed_correlations() -> None:
    def random_correlation(seed: int) -> Tensor:
        return torch.corrcoef(normal(6, 9, seed=seed)).reshape(2, 3, 2, 3)

    p, q = random_correlation(1), random_correlation(2)
    expected = float((p - q).abs().mean())
    assert expected > 0.1
    value = correlation_discrepancy(correlated(p, seed=3), correlated(q, seed=4))
    assert value == pytest.approx(expected, rel=1e-10)


def test_autocorrelation_discrepancy_of_ar1() -> None:
    x = correlated(blocks(powers(0.9, 5), powers(0.3, 5)), seed=1)
    y = correlated(blocks(powers(0.5, 5), powers(0.6, 5)), seed=2)
    lags = np.arange(1, 5)
    expected = np.mean([0.9**lags - 0.5**lags, 0.6**lags - 0.3**lags])
    assert autocorrelation_discrepancy(x, y) == pytest.approx(expected, rel=1e-10)


def test_autocorrelation_averages_over_the_dates_of_a_process_that_is_not_stationary() -> None:
    # Brownian motion at t = 1, ..., 4 has the correlation sqrt(s / t).
    t = torch.arange(1, 5, dtype=torch.float64)
    brownian = (torch.minimum(t[:, None], t) / torch.maximum(t[:, None], t)).sqrt()
    x, y = correlated(blocks(brownian), seed=1), correlated(blocks(powers(0.1, 4)), seed=2)
    at_lag = [np.mean([np.sqrt(s / (s + k)) for s in range(1, 5 - k)]) for k in (1, 2, 3)]
    expected = np.mean(np.array(at_lag) - 0.1 ** np.array([1, 2, 3]))
    assert autocorrelation_discrepancy(x, y) == pytest.approx(expected, rel=1e-10)


def test_only_the_correlation_discrepancy_sees_what_features_share() -> None:
    y = correlated(blocks(powers(0.7, 4), powers(0.7, 4)), seed=1)
    x = y[:, [0, 0]]
    assert autocorrelation_discrepancy(x, y) == pytest.approx(0, abs=1e-12)
    expected = float(powers(0.7, 4).mean()) / 2
    assert correlation_discrepancy(x, y) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("n", "k"), [(300, 300), (90, 300), (1, 30)])
def test_energy_distance_on_the_line_is_the_square_of_scipys(n: int, k: int) -> None:
    x, y = normal(n, 1, 1) + 0.5, 3 * normal(k, 1, 1, seed=1) - 2
    a, b = ((v.flatten() - y.mean()) / y.std(correction=0) for v in (x, y))
    expected = stats.energy_distance(a.numpy(), b.numpy()) ** 2
    assert energy_distance(x, y) == pytest.approx(expected, rel=1e-5)


def test_energy_distance_by_the_definition() -> None:
    x, y = normal(150, 2, 3) * 2 + 0.3, normal(70, 2, 3, seed=1).exp()
    a, b = (((v - y.mean(0)) / y.std(0, correction=0)).flatten(1) for v in (x, y))

    def mean(p: Tensor, q: Tensor) -> float:
        return float((p[:, None] - q).pow(2).sum(-1).sqrt().mean())

    expected = 2 * mean(a, b) - mean(a, a) - mean(b, b)
    assert energy_distance(x, y) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shift", [0.1, 1.0, 4.0])
def test_energy_distance_of_a_shifted_gaussian(shift: float) -> None:
    # X - Y is N(shift, 2) and X - X' is N(0, 2): means of folded normals.
    z = gaussian(2000).reshape(-1, 1, 1)
    s = np.sqrt(2)
    expected = 2 * stats.foldnorm.mean(shift / s, scale=s) - 2 * stats.halfnorm.mean(scale=s)
    assert energy_distance(5 * (z + shift), 5 * z) == pytest.approx(expected, rel=0.005)


def test_rounding_leaves_the_energy_distance_of_equal_sets_at_0_or_above() -> None:
    y = normal(700, 2, 25)
    values = [energy_distance(y.roll(37 * i, 0), y) for i in range(10)]
    assert min(values) == values[0] == 0
    assert max(values) < 1e-9


def test_floor_of_the_energy_distance() -> None:
    x, y = normal(400, 2, 25), normal(300, 2, 25, seed=1)
    mu = np.sqrt(2) * stats.chi.mean(50)
    assert energy_distance(x, y) == pytest.approx(mu * (1 / 400 + 1 / 300), rel=0.03)


def test_energy_distance_of_a_sample_far_away() -> None:
    # One of n at the distance M: 2 M / n - 2 M (n - 1) / n^2.
    y = normal(50, 1, 2)
    x = y.clone()
    x[7, 0, 0] = 1e30
    expected = 2e30 / float(y[:, 0, 0].std(correction=0)) / 50**2
    assert energy_distance(x, y) == pytest.approx(expected, rel=1e-4)


def test_tail_error_of_the_terminal_log_return() -> None:
    n = 50_000
    reference, samples = normal(n, 2, 2), normal(n, 2, 2, seed=1) + 50
    reference[:, 0, -1] = 0.2 * gaussian(n)
    samples[:, 0, -1] = 0.3 * gaussian(n) + 0.1
    q = stats.norm.ppf(0.99)
    expected = (abs(0.1 - 0.1 * q) + abs(0.1 + 0.1 * q)) / 2
    assert tail_error(samples, reference) == pytest.approx(expected, abs=1e-3)
    assert tail_error(samples, reference, levels=(0.5,)) == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize("metric", ALL)
def test_order_and_precision_of_the_samples_do_not_matter(metric: Metric) -> None:
    x, y = normal(200, 2, 4) / 4, normal(150, 2, 4, seed=1) / 3
    x, y = x.float().double(), y.float().double()
    value = metric(x, y)
    assert value > 0.01
    assert metric(x.flip(0).float(), y.roll(7, 0)) == pytest.approx(value, rel=1e-4)
    assert metric(y, y) == 0
    assert 0 <= metric(y.flip(0), y) < 1e-6


@pytest.mark.parametrize("metric", STANDARDISED)
def test_units_of_the_features_do_not_matter(metric: Metric) -> None:
    x, y = normal(200, 2, 4).cumsum(2), 2 * normal(150, 2, 4, seed=1).exp()
    scale, shift = torch.tensor([[100.0], [0.01]]), torch.tensor([[-3.0], [7.0]])
    value = metric(x * scale + shift, y * scale + shift)
    assert value == pytest.approx(metric(x, y), rel=1e-5)


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (normal(9, 2, 3), normal(9, 2, 4), r"got \(9, 2, 3\) and \(9, 2, 4\)"),
        (normal(9, 3, 3), normal(9, 2, 3), r"got \(9, 3, 3\) and \(9, 2, 3\)"),
        (normal(9, 6), normal(9, 6), r"series of shapes \(n, features, dates\)"),
        (normal(0, 2, 3), normal(9, 2, 3), r"series of shapes \(n, features, dates\)"),
        (normal(9, 2, 3), normal(0, 2, 3), r"series of shapes \(n, features, dates\)"),
        (normal(9, 2, 3).log(), normal(9, 2, 3), "samples must be finite"),
        (normal(9, 2, 3), normal(9, 2, 3) / 0, "reference must be finite"),
    ],
)
def test_what_is_no_pair_of_series_is_refused(
    metric: Metric, x: Tensor, y: Tensor, message: str
) -> None:
    with pytest.raises(SigdegError, match=message):
        metric(x, y)


def test_a_constant_coordinate_is_refused_where_it_has_no_meaning() -> None:
    x, y = normal(9, 2, 3), normal(9, 2, 3)
    x[:, 1, 0] = 0.1
    for metric in STANDARDISED:
        # Two constant dates: constant increments too.
        with pytest.raises(SigdegError, match="of the reference is constant at date index 0"):
            metric(y, torch.cat([x[..., :1], x[..., :1], x[..., 1:]], -1)[..., :3])
    for correlation in (autocorrelation_discrepancy, correlation_discrepancy):
        with pytest.raises(SigdegError, match="feature 1 of the samples is constant"):
            correlation(x, y)
    assert average_w1(x, y) > 0


@pytest.mark.parametrize("metric", [autocorrelation_discrepancy, increment_w1])
def test_a_single_date_has_no_lag(metric: Metric) -> None:
    with pytest.raises(SigdegError, match="at least 2 dates, got 1"):
        metric(normal(9, 2, 1), normal(9, 2, 1))


def test_bad_options_are_refused() -> None:
    x = normal(9, 2, 3)
    with pytest.raises(SigdegError, match="bins must be at least 1, got 0"):
        marginal_loss(x, x, bins=0)
    for levels in ((), (0.5, 1.1), (-0.1,), (float("nan"),)):
        with pytest.raises(SigdegError, match=r"numbers in \[0, 1\]"):
            tail_error(x, x, levels)
