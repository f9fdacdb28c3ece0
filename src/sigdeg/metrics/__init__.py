"""Distances between what a sampler draws and what it should draw."""

from sigdeg.metrics.moments import Summary, over_draws, variance_score
from sigdeg.metrics.paths import path_error, sliced_w1
from sigdeg.metrics.wasserstein import Law, w1_exact, w1_samples

__all__ = [
    "Law",
    "Summary",
    "over_draws",
    "path_error",
    "sliced_w1",
    "variance_score",
    "w1_exact",
    "w1_samples",
]
