"""Distances between what a sampler draws and what it should draw."""

from sigdeg.metrics.moments import Summary, over_draws, variance_score
from sigdeg.metrics.options import atm_skew, implied_volatility, skew_error, smile
from sigdeg.metrics.paths import median_path_error, path_error, sliced_w1
from sigdeg.metrics.series import (
    autocorrelation_discrepancy,
    average_w1,
    correlation_discrepancy,
    energy_distance,
    increment_w1,
    marginal_loss,
    tail_error,
)
from sigdeg.metrics.wasserstein import Law, w1_exact, w1_samples

__all__ = [
    "Law",
    "Summary",
    "atm_skew",
    "autocorrelation_discrepancy",
    "average_w1",
    "correlation_discrepancy",
    "energy_distance",
    "implied_volatility",
    "increment_w1",
    "marginal_loss",
    "median_path_error",
    "over_draws",
    "path_error",
    "skew_error",
    "sliced_w1",
    "smile",
    "tail_error",
    "variance_score",
    "w1_exact",
    "w1_samples",
]
