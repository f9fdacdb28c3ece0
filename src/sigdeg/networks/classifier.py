"""Two small classifiers of other architectures: their penultimate layers are features of images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sigdeg.networks.autoencoder import check_images
from sigdeg.networks.call import Configured

__all__ = ["Classifier", "Mixer"]

SIZE = 28  # pixels a side: what their pooling is made for
PATCH = 4  # pixels a side of a token


class Classifier(Configured):
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
        super().__init__(channels=channels, classes=classes, features=features, width=width)
        body, last = self.body(channels, width)
        self.layers = nn.Sequential(
            *body,
            nn.Flatten(),
            nn.Linear(last, features),
            nn.SiLU(),  # with ReLU a quarter of the features die
        )
        self.head = nn.Linear(features, classes)
        self.register_buffer("scale", torch.ones(()))

    def body(self, channels: int, width: int) -> tuple[list[nn.Module], int]:
        """Layers down to one number a channel, and how many channels that is."""

        def layer(a: int, b: int, stride: int) -> list[nn.Module]:
            return [nn.Conv2d(a, b, 3, stride, padding=1), nn.GroupNorm(8, b), nn.SiLU()]

        layers = [
            *layer(channels, width, 1),
            *layer(width, width, 2),
            *layer(width, 2 * width, 1),
            *layer(2 * width, 2 * width, 2),
            *layer(2 * width, 2 * width, 1),
            nn.AvgPool2d(7),
        ]
        return layers, 2 * width

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


class Mixer(Classifier):
    """Patches of 4 x 4 pixels and two blocks of an MLP-Mixer (arXiv 2105.01601).

    A block mixes places by one small MLP and channels by another. Patches do not overlap, and
    there is no other convolution: it shares no layer with `Classifier` but the last two.
    """

    def __init__(
        self, channels: int = 1, classes: int = 10, features: int = 64, width: int = 40
    ) -> None:
        super().__init__(channels, classes, features, width)

    def body(self, channels: int, width: int) -> tuple[list[nn.Module], int]:
        """Patches as tokens, mixed, and their mean."""
        places = (SIZE // PATCH) ** 2
        layers: list[nn.Module] = [Patches(channels, width)]
        for _ in range(2):
            layers += [Mix(width, places, 48, across=True), Mix(width, width, 2 * width)]
        return [*layers, nn.LayerNorm(width), nn.AdaptiveAvgPool2d((1, None))], width


class Patches(nn.Module):
    """Images as tokens (batch, places, width)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, width, PATCH, PATCH)

    def forward(self, images: Tensor) -> Tensor:
        """Tokens of images (batch, channels, 28, 28)."""
        tokens: Tensor = self.project(images).flatten(2)
        return tokens.mT


class Mix(nn.Module):
    """x + f(x) with an MLP f on each token's channels, or `across` tokens on each channel."""

    def __init__(self, width: int, size: int, hidden: int, across: bool = False) -> None:
        super().__init__()
        self.across = across
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(size, hidden), nn.SiLU(), nn.Linear(hidden, size))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (batch, places, width) of the same shape."""
        y = self.norm(x)
        mixed: Tensor = self.mlp(y.mT).mT if self.across else self.mlp(y)
        return x + mixed
