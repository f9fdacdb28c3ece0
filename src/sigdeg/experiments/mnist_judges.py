"""What judges digits: two classifiers, whose features are compared with those of real images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sigdeg.datasets import load_mnist
from sigdeg.experiments.mnist_networks import CLASSES
from sigdeg.files import SHIPPED
from sigdeg.metrics import (
    Activations,
    ClassifierExtractor,
    Extractor,
    Reference,
    Statistics,
    ambiguous,
    class_histogram,
    feature_metrics,
    frechet_distance,
)
from sigdeg.metrics.extractors import load_classifier
from sigdeg.networks import Classifier, Mixer
from sigdeg.results import Summary, summarise
from sigdeg.rng import Stream, derive_generator

__all__ = ["EXTRACTORS", "Judges", "frechet_at_shares", "images", "shipped_extractor"]

# What judges by name: how it is built and where it comes from. Nothing is chosen with the second.
EXTRACTORS: dict[str, tuple[type[Classifier], str]] = {
    "mnist": (Classifier, "mnist-classifier"),
    "mnist-2": (Mixer, "mnist-classifier-2"),
}
# Training images that everything is chosen against; the tables are of the test images.
VALIDATION = 10_000

Labelled = tuple[Tensor, Tensor]  # images (n, 1, 28, 28) in [-1, 1] and their labels (n,)


def images(split: Any, data_dir: Path | None) -> Labelled:
    """MNIST as images (n, 1, 28, 28) in [-1, 1] and labels (n,)."""
    pixels, labels = load_mnist(split, data_dir)
    return torch.from_numpy(pixels)[:, None].float() / 127.5 - 1, torch.from_numpy(labels).long()


def shipped_extractor(name: str) -> ClassifierExtractor:
    """The classifier of that name that comes with the package."""
    return ClassifierExtractor(load_classifier(SHIPPED / EXTRACTORS[name][1]), name)


def frechet_at_shares(seen: Activations, reference: Reference, shares: Tensor) -> float:
    """The Fréchet distance of samples that count so much that each class has its real share.

    It tells how digits look whichever of them are drawn. Classes are the extractor's own.
    """
    classes = seen.probabilities.argmax(1)
    weighted = Statistics.of(seen.features, (shares / class_histogram(classes, CLASSES))[classes])
    return frechet_distance(weighted, reference.statistics)


class Judges:
    """Extractors, and what they make of real images.

    Arguments:
        extractors: Two of them; choices are made by the first.
        train: Training images and labels: choices are made against them.
        test: Test images and labels: tables are of them.
    """

    def __init__(self, extractors: Sequence[Extractor], train: Labelled, test: Labelled) -> None:
        self.extractors, self.train, self.labels = extractors, train[0], test[1]
        self.references = [Reference.from_images(test[0], e) for e in extractors]

    @cached_property
    def validation(self) -> Statistics:
        """The first features of training images."""
        return Statistics.of(self.extractors[0].features(self.train[:VALIDATION]))

    def describe(self) -> list[dict[str, Any]]:
        """Which they are, how often they are right on the test images and how often unsure."""
        return [
            reference.describe()
            | {
                "accuracy": float(
                    (reference.probabilities.argmax(1) == self.labels).double().mean()
                ),
                "ambiguous": ambiguous(reference.probabilities),
            }
            for reference in self.references
        ]

    def measure(self, pictures: Tensor) -> dict[str, Any]:
        """What is made of a set of images: metrics, those of the second extractor with `_2`.

        And class shares, by the first.
        """
        seen = [extractor.extract(pictures) for extractor in self.extractors]
        metrics: dict[str, float] = {}
        shares = class_histogram(self.labels, CLASSES)
        for end, activations, reference in zip(("", "_2"), seen, self.references, strict=True):
            values = feature_metrics(activations, reference)
            values["fid_shares"] = frechet_at_shares(activations, reference, shares)
            values["ambiguous"] = ambiguous(activations.probabilities)
            metrics |= {f"{key}{end}": value for key, value in values.items()}
        classes = class_histogram(seen[0].probabilities.argmax(1), CLASSES)
        return {"metrics": metrics, "classes": classes.tolist()}

    def score(self, pictures: Tensor) -> float:
        """What a choice goes by: the Fréchet distance, first features, to training images."""
        return frechet_distance(self.extractors[0].features(pictures), self.validation)

    def floor(self, n: int, draws: int, seed: int) -> dict[str, Summary]:
        """The metrics of training images, disjoint sets as large as a draw."""
        order = torch.randperm(
            len(self.train), generator=derive_generator(seed, Stream.MNIST_FLOOR)
        )
        parts = order.split(n)[:draws]
        return summarise([self.measure(self.train[rows])["metrics"] for rows in parts])
