"""Extractors: networks that turn images into features and class probabilities for metrics."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sigdeg.errors import SigdegError
from sigdeg.files import find_folder, load_weights, read_json
from sigdeg.metrics.inception import FIDInception
from sigdeg.metrics.inception_weights import load_inception
from sigdeg.networks import Classifier, build_network

__all__ = [
    "Activations",
    "ClassifierExtractor",
    "Extractor",
    "InceptionExtractor",
    "load_classifier",
]


class Activations(NamedTuple):
    """What a network makes of n images: features (n, d) and class probabilities (n, classes)."""

    features: Tensor
    probabilities: Tensor


class Extractor(ABC):
    """Features and class probabilities of images; a metric is comparable for one extractor only.

    Arguments:
        network: The network, on the device where it is to run.
        name: What results call it, such as "mnist".
        digest: The hexadecimal sha256 of its weights.
        batch: Images of one call of the network; results do not depend on it.
    """

    def __init__(self, network: nn.Module, name: str, digest: str, batch: int) -> None:
        if batch < 1:
            raise SigdegError(f"a batch needs at least 1 image, got {batch}")
        self.network, self.name, self.digest, self.batch = network, name, digest, batch

    @abstractmethod
    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (batch, d) and logits (batch, classes) of one batch on the network's device."""

    @torch.no_grad()
    def extract(self, images: Tensor) -> Activations:
        """Run the network once, in batches and without gradients.

        Arguments:
            images: Shape (n, c, h, w), in [-1, 1].

        Returns:
            Features and probabilities, in float64 on the CPU.

        Raises:
            SigdegError: If the images are not of such a shape, none, or not in [-1, 1].
        """
        check_images(images)
        like = next(self.network.parameters())
        outputs = [self.outputs(batch.to(like)) for batch in images.split(self.batch)]
        features, logits = (torch.cat(parts).cpu().double() for parts in zip(*outputs, strict=True))
        return Activations(features, logits.softmax(1))

    def features(self, images: Tensor) -> Tensor:
        """The features (n, d) that `extract` gives."""
        return self.extract(images).features

    def probabilities(self, images: Tensor) -> Tensor:
        """The class probabilities (n, classes) that `extract` gives."""
        return self.extract(images).probabilities


class ClassifierExtractor(Extractor):
    """The penultimate layer and the classes of a `sigdeg.networks.Classifier`.

    Arguments:
        network: The classifier.
        name: What results call it.
        batch: Images of one call of the network.
    """

    network: Classifier

    def __init__(self, network: Classifier, name: str = "mnist", batch: int = 256) -> None:
        super().__init__(network, name, weights_digest(network), batch)

    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(images)
        return features, self.network.head(features * self.network.scale)


class InceptionExtractor(Extractor):
    """The FID Inception-v3: 2048 features and 1008 classes, of grey or RGB images of any size.

    Published values are of images rounded to 8 bits; round samples likewise to compare with them.

    Arguments:
        network: The network.
        digest: The sha256 of its weights' file.
        batch: Images of one call of the network.
    """

    network: FIDInception

    def __init__(self, network: FIDInception, digest: str, batch: int = 32) -> None:
        super().__init__(network.eval(), "inception", digest, batch)

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        data_dir: str | Path | None = None,
        device: str | torch.device = "cpu",
        batch: int = 32,
    ) -> InceptionExtractor:
        """Load the published weights, from a file or a download; see `load_inception`."""
        network, digest = load_inception(path, data_dir=data_dir)
        return cls(network.to(device), digest, batch)

    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if images.shape[1] not in (1, 3):
            raise SigdegError(f"Inception takes images of 1 or 3 channels, got {images.shape[1]}")
        features, logits = self.network(images)
        return features, logits


def check_images(images: Tensor) -> None:
    """Refuse what is no set of images in [-1, 1]."""
    if images.ndim != 4 or not images.numel():
        raise SigdegError(f"expected images of shape (n, c, h, w), got {tuple(images.shape)}")
    low, high = (float(v) for v in images.aminmax())
    if not -1 <= low <= high <= 1:  # NaN too
        raise SigdegError(f"images must lie in [-1, 1], got values from {low:.4g} to {high:.4g}")


def weights_digest(network: nn.Module) -> str:
    """The sha256 over names, types, shapes and bytes of all weights, in the order of names."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def load_classifier(path: str | Path = "mnist-classifier") -> Classifier:
    """The classifier that comes with the package, or one from a folder of its form."""
    folder = find_folder(path)
    config, weights = read_json(folder / "config.json"), folder / "model.safetensors"
    network = build_network(config, weights)
    if not isinstance(network, Classifier):
        raise SigdegError(f"{folder} holds a {type(network).__name__}, not a Classifier")
    load_weights(network, weights, config=config)
    return network.eval()
