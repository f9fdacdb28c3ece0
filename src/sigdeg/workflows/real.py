"""Samples beside real images: Fréchet distance, KID, precision, recall and diversity."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sigdeg.datasets.images import load_images
from sigdeg.errors import SigdegError, check_choice
from sigdeg.metrics import (
    ClassifierExtractor,
    Extractor,
    InceptionExtractor,
    Statistics,
    diversity,
    frechet_distance,
    kernel_inception_distance,
    precision_recall,
)
from sigdeg.metrics.extractors import load_classifier
from sigdeg.metrics.images import MINIMUM
from sigdeg.results import Summary, summarise
from sigdeg.runs import fingerprint

__all__ = ["Features", "Real", "read_real"]

Features = Literal["inception", "mnist", "pixels"]
NAMES = {
    "inception": "features of the FID Inception",
    "mnist": "features of the MNIST classifier",
    "pixels": "pixels as they are",
}
LEAST = 8  # images: precision and recall look for third neighbours in each half


class Real:
    r"""Real images, to compare samples with; some are kept apart for what real images score.

    Arguments:
        images: Shape (k, channels, height, width), in [-1, 1].
        features: What images are compared by: `inception`, `mnist` (the shipped classifier's), or
            `pixels`, for small images that no such network knows.
        n: Samples of each set that is to be compared; of fewer than 2n images half are kept apart.
        device: Where to compute features.

    Raises:
        SigdegError: If there are too few images, or the network takes no such images.
    """

    def __init__(
        self, images: Tensor, features: Features, n: int, device: torch.device | str = "cpu"
    ) -> None:
        check_choice(features, get_args(Features), "features")
        if len(images) < LEAST:
            raise SigdegError(f"at least {LEAST} real images are needed, got {len(images)}")
        self.features, self.extractor = features, load_extractor(features, device)
        self.n = min(n, len(images) // 2)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        self.apart, self.images = images[order[: self.n]], images[order[self.n :]]
        self.see(images[:2])  # refuses what the network does not take

    def see(self, images: Tensor) -> Tensor:
        """Features of images, shape (n, d)."""
        images = images.clamp(-1, 1)
        if self.extractor is None:
            return images.flatten(1).double()
        return self.extractor.features(images)

    @cached_property
    def reference(self) -> tuple[Tensor, Statistics]:
        """Features of the real images, and their statistics."""
        features = self.see(self.images)
        return features, Statistics.of(features)

    def compare(self, samples: Tensor) -> dict[str, Summary]:
        """Metrics of the first n samples, a single draw."""
        seen, (real, statistics) = self.see(samples[: self.n]), self.reference
        precision, recall = precision_recall(real, seen)
        found = {
            "fid": frechet_distance(seen, statistics),
            "kid": kernel_inception_distance(seen, real),
            "precision": precision,
            "recall": recall,
            "diversity": diversity(seen),
        }
        return summarise([found])

    @cached_property
    def floor(self) -> dict[str, Summary]:
        """Metrics of real images that were kept apart."""
        return self.compare(self.apart)

    def describe(self) -> str:
        """What is compared, in words."""
        few = ""
        if min(self.n, len(self.images)) < MINIMUM:
            few = " The FID of so few is biased upwards: it compares within this table alone."
        return (
            f"FID, KID, precision, recall and diversity: {self.n:,} samples beside "
            f"{len(self.images):,} real images, by {NAMES[self.features]}.{few}"
        )


def read_real(
    data: tuple[str, Features, bool],
    shape: tuple[int, ...],
    n: int,
    device: torch.device | str = "cpu",
) -> tuple[Real, dict[str, Any]]:
    """Real images, and JSON values that tell them from others.

    Arguments:
        data: Where they are, what they are compared by, and whether to resize them.
        shape: Of one of them.
        n: Samples of each set that is to be compared.
        device: Where to compute features.

    Raises:
        SigdegError: If there are none of that shape, or as `Real` does.
    """
    place, features, resize = data
    images = load_images(place, shape, resize)
    told = {"data": fingerprint(images), "features": features}
    return Real(images, features, n, device), told


def load_extractor(features: Features, device: torch.device | str) -> Extractor | None:
    """The network that sees images, or None for pixels."""
    if features == "inception":
        return InceptionExtractor.load(device=device)
    if features == "mnist":
        return ClassifierExtractor(load_classifier().to(device))
    return None
