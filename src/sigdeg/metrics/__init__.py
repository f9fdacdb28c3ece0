"""Distances between what a sampler draws and what it should draw."""

from sigdeg.metrics.extractors import (
    Activations,
    ClassifierExtractor,
    Extractor,
    InceptionExtractor,
)
from sigdeg.metrics.features import (
    Statistics,
    diversity,
    frechet_distance,
    kernel_inception_distance,
    nearest_neighbours,
    precision_recall,
)
from sigdeg.metrics.images import (
    Reference,
    ambiguous,
    class_histogram,
    feature_metrics,
    image_metrics,
    inception_score,
    total_variation,
)
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
from sigdeg.metrics.text import (
    distinct,
    ngram_entropy,
    own_entropy,
    self_bleu,
    text_metrics,
    validity,
)
from sigdeg.metrics.wasserstein import Law, variance_score, w1_exact, w1_samples

__all__ = [
    "Activations",
    "ClassifierExtractor",
    "Extractor",
    "InceptionExtractor",
    "Law",
    "Reference",
    "Statistics",
    "ambiguous",
    "atm_skew",
    "autocorrelation_discrepancy",
    "average_w1",
    "class_histogram",
    "correlation_discrepancy",
    "distinct",
    "diversity",
    "energy_distance",
    "feature_metrics",
    "frechet_distance",
    "image_metrics",
    "implied_volatility",
    "inception_score",
    "increment_w1",
    "kernel_inception_distance",
    "marginal_loss",
    "median_path_error",
    "nearest_neighbours",
    "ngram_entropy",
    "own_entropy",
    "path_error",
    "precision_recall",
    "self_bleu",
    "skew_error",
    "sliced_w1",
    "smile",
    "tail_error",
    "text_metrics",
    "total_variation",
    "validity",
    "variance_score",
    "w1_exact",
    "w1_samples",
]
