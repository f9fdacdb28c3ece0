"""Metrics of generated images: scores of their classes, and all of them against real images."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sigdeg.errors import SigdegError
from sigdeg.metrics.extractors import Activations, Extractor
from sigdeg.metrics.features import (
    Statistics,
    diversity,
    frechet_distance,
    kernel_inception_distance,
    nearest_neighbours,
    precision_recall,
)

__all__ = [
    "MINIMUM",
    "USUAL",
    "Reference",
    "ambiguous",
    "class_histogram",
    "feature_metrics",
    "image_metrics",
    "inception_score",
    "total_variation",
]

MINIMUM = 2_048  # Inception's features: the covariance of fewer images is far from full rank
USUAL = 10_000  # the FID of fewer images is biased upwards so much that few values compare


@dataclass(frozen=True)
class Reference:
    """What an extractor makes of real images, computed once.

    Arguments:
        features: Shape (n, d).
        probabilities: Shape (n, classes).
        extractor: The extractor's name.
        digest: The digest of its weights.
    """

    features: Tensor
    probabilities: Tensor
    extractor: str
    digest: str

    @classmethod
    def from_images(cls, images: Tensor, extractor: Extractor) -> Reference:
        """Extract from real images of shape (n, c, h, w) in [-1, 1].

        Raises:
            SigdegError: If the images are no such images.
        """
        return cls(*extractor.extract(images), extractor.name, extractor.digest)

    @cached_property
    def statistics(self) -> Statistics:
        """Mean and covariance of the features."""
        return Statistics.of(self.features)

    def describe(self) -> dict[str, str | int]:
        """Count of images, name and digest of the extractor, as `results.json` holds them."""
        return {"n": len(self.features), "extractor": self.extractor, "digest": self.digest}


def image_metrics(
    samples: Tensor,
    reference: Reference,
    extractor: Extractor,
    training: Tensor | None = None,
) -> dict[str, float]:
    r"""All metrics of generated images against real ones.

    Arguments:
        samples: Generated images of shape (n, c, h, w) in [-1, 1], n at least `MINIMUM`. Below
            `USUAL` a warning tells that the values are biased.
        reference: The real images, at least `MINIMUM`, seen by the same extractor.
        extractor: The extractor.
        training: Training images of shape (k, c, h, w); with them `nearest` is computed.

    Returns:
        `fid` (`frechet_distance`), `inception_score`, `kid` (`kernel_inception_distance`),
        `precision`, `recall`, `diversity` and, where asked, `nearest`: the mean Euclidean distance
        of pixels from a sample to its nearest training image.

    Raises:
        SigdegError: If there are too few images, they are no such images, or the reference is of
            another extractor.
    """
    if (extractor.name, extractor.digest) != (reference.extractor, reference.digest):
        raise SigdegError(
            f"the reference is of the extractor {reference.extractor} {reference.digest[:8]}, "
            f"not of {extractor.name} {extractor.digest[:8]}: values would mean nothing"
        )
    for name, count in (("generated", len(samples)), ("real", len(reference.features))):
        if count < MINIMUM:
            raise SigdegError(f"image metrics need at least {MINIMUM} {name} images, got {count}")
        if count < USUAL:
            warnings.warn(
                f"{count} {name} images: with fewer than {USUAL} the FID is biased upwards, compare"
                " it only with values of as many",
                stacklevel=2,
            )
    values = feature_metrics(extractor.extract(samples), reference)
    if training is not None:
        values["nearest"] = float(nearest_neighbours(samples, training).mean())
    return values


def feature_metrics(seen: Activations, reference: Reference) -> dict[str, float]:
    """What `image_metrics` computes, of images that the reference's extractor has seen already."""
    precision, recall = precision_recall(reference.features, seen.features)
    return {
        "fid": frechet_distance(seen.features, reference.statistics),
        "inception_score": inception_score(seen.probabilities),
        "kid": kernel_inception_distance(seen.features, reference.features),
        "precision": precision,
        "recall": recall,
        "diversity": diversity(seen.features),
    }


def ambiguous(probabilities: Tensor, least: float = 0.9) -> float:
    """Share of images whose most probable class has a probability below `least`.

    Arguments:
        probabilities: Class probabilities of shape (n, classes), n at least 1.
        least: The bound.

    Raises:
        SigdegError: If these are no probabilities.
    """
    p = probabilities.detach().cpu().double()
    if p.ndim != 2 or not len(p):
        raise SigdegError(f"expected probabilities of shape (n, classes), got {tuple(p.shape)}")
    check_probabilities(p)
    return float((p.amax(1) < least).double().mean())


def inception_score(probabilities: Tensor, splits: int = 10) -> float:
    r"""The Inception Score: 1 for images of one class or of no class, at most that of classes.

    $\exp \frac1n \sum_i \mathrm{KL}(p_i \| \bar p)$, with the mean $\bar p$ of the probabilities
    $p_i$, in each of `splits` consecutive parts, then the mean over the parts: images must be in
    random order. Source: Salimans et al., *Improved techniques for training GANs* (2016).

    Arguments:
        probabilities: Class probabilities of shape (n, classes), n at least `splits`.
        splits: The number of parts.

    Raises:
        SigdegError: If these are no probabilities, or fewer than parts.
    """
    p = probabilities.detach().cpu().double()
    if p.ndim != 2 or not 1 <= splits <= len(p):
        raise SigdegError(
            f"expected probabilities of shape (n, classes), n at least the {splits} splits, "
            f"got {tuple(p.shape)}"
        )
    check_probabilities(p)
    scores = []
    for part in p.tensor_split(splits):
        mean = part.mean(0)
        # The mean divergence is the entropy of the mean less the mean entropy.
        scores.append((entropy(mean) - entropy(part).mean()).exp())
    return float(torch.stack(scores).mean())


def class_histogram(labels: Tensor, classes: int) -> Tensor:
    """Share of each class, in float64 with shape (classes,).

    Arguments:
        labels: Whole numbers in 0, ..., classes - 1, with shape (n,), n at least 1.
        classes: The number of classes.

    Raises:
        SigdegError: If these are no such labels.
    """
    whole = not (labels.is_floating_point() or labels.is_complex())
    if labels.ndim != 1 or not whole or not len(labels):
        raise SigdegError(
            f"expected whole numbers of shape (n,) as labels, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise SigdegError(
            f"labels of {classes} classes lie in 0 to {classes - 1}, got {int(labels.min())} to "
            f"{int(labels.max())}"
        )
    return labels.cpu().long().bincount(minlength=classes).double() / len(labels)


def total_variation(p: Tensor, q: Tensor) -> float:
    r"""Total variation distance $\frac12 \sum_i |p_i - q_i|$ of two laws on the same classes.

    Raises:
        SigdegError: If these are not two laws of shape (classes,).
    """
    x, y = (v.detach().cpu().double() for v in (p, q))
    if x.ndim != 1 or x.shape != y.shape:
        raise SigdegError(
            f"expected two laws of one shape (classes,), got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    check_probabilities(torch.stack([x, y]))
    return float((x - y).abs().sum() / 2)


def check_probabilities(p: Tensor) -> None:
    """Refuse rows that are not of numbers of at least 0 with the sum 1."""
    if not (p.numel() and bool((p >= 0).all()) and bool(((p.sum(1) - 1).abs() < 1e-5).all())):
        raise SigdegError("probabilities must be at least 0 and sum to 1")


def entropy(p: Tensor) -> Tensor:
    """Shannon entropy over the last dimension."""
    return -torch.xlogy(p, p).sum(-1)
