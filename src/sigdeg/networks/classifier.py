"""A small convolutional classifier, whose penultimate layer serves as features of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sigdeg.networks.autoencoder import check_images

__all__ = ["Classifier"]

SIZE = 28  # pixels a side: what its average pooling is made for


class Classifier(nn.Module):
    r"""Four convolutions, average pooling, a layer of features and one of classes.

    Arguments:
        channels: Channels of an image.
        classes: The number of classes.
        features: Size of the penultimate layer.
        width: Channels of the first convolution.
    """

    scale: Tensor

    def __init__(
        self, channels: int = 1, classes: int = 10, features: int = 64, width: int = 24
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "channels": channels,
            "classes": classes,
            "features": features,
            "width": width,
        }

        def layer(a: int, b: int, stride: int) -> list[nn.Module]:
            return [nn.Conv2d(a, b, 3, stride, padding=1), nn.GroupNorm(8, b), nn.SiLU()]

        self.layers = nn.Sequential(
            *layer(channels, width, 1),
            *layer(width, width, 2),
            *layer(width, 2 * width, 1),
            *layer(2 * width, 2 * width, 2),
            *layer(2 * width, 2 * width, 1),
            nn.AvgPool2d(7),
            nn.Flatten(),
            nn.Linear(2 * width, features),
            nn.SiLU(),  # with ReLU a quarter of the features die
        )
        self.head = nn.Linear(features, classes)
        self.register_buffer("scale", torch.ones(()))

    def features(self, images: Tensor) -> Tensor:
        """Penultimate activations (batch, features), divided by the buffer `scale`."""
        check_images(images, self.config["channels"], SIZE)
        activations: Tensor = self.layers(images)
        return activations / self.scale

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, channels, 28, 28) in [-1, 1]."""
        check_images(images, self.config["channels"], SIZE)
        logits: Tensor = self.head(self.layers(images))
        return logits
