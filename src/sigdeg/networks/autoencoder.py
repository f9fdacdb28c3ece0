"""A small convolutional autoencoder: images to latents an eighth of their pixels, and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sigdeg.errors import SigdegError
from sigdeg.networks.call import Configured

__all__ = ["Autoencoder", "check_images"]


def check_images(images: Tensor, channels: int, size: int) -> None:
    """Refuse images of another shape."""
    if images.shape[1:] != (channels, size, size):
        raise SigdegError(
            f"this network takes images of shape {(channels, size, size)}, "
            f"got {tuple(images.shape[1:])}"
        )


class Block(nn.Module):
    """Residual block of two convolutions."""

    def __init__(self, width: int, groups: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(groups, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(groups, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


class Autoencoder(Configured):
    r"""Encoder $E$ and decoder $D$ with $D(E(x)) \approx x$; an image side shrinks fourfold.

    Full resolution is left by pixel unshuffling and reached by pixel shuffling: the convolutions
    see half of it at most, which makes decoding cost less than one call of a small U-Net. Images
    are padded to a multiple of eight pixels and cropped again, so 28 x 28 becomes 8 x 8.

    The latents are standardised, channel by channel, with the buffers `mean` and `std` of the
    encoder's output: a diffusion model is to see unit variance. Whoever trains it sets them.

    Arguments:
        channels: Channels of an image; values lie in [-1, 1].
        latent_channels: Channels of a latent.
        width: Channels at half resolution; twice as many at a quarter.
        size: Side of an image in pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, channels: int = 1, latent_channels: int = 4, width: int = 32, size: int = 28
    ) -> None:
        super().__init__(channels=channels, latent_channels=latent_channels, width=width, size=size)
        padded = 8 * math.ceil(size / 8)
        self.size, self.pad = size, (padded - size) // 2
        self.margin = (self.pad, padded - size - self.pad) * 2
        self.latent_shape = (latent_channels, padded // 4, padded // 4)
        deep = 2 * width
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * channels, width, 3, padding=1),
            Block(width),
            nn.Conv2d(width, deep, 3, stride=2, padding=1),
            Block(deep),
            nn.Conv2d(deep, latent_channels, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, deep, 3, padding=1),
            Block(deep),
            nn.Conv2d(deep, 4 * width, 3, padding=1),
            nn.PixelShuffle(2),
            Block(width),
            nn.Conv2d(width, 4 * channels, 3, padding=1),
            nn.PixelShuffle(2),
        )
        self.register_buffer("mean", torch.zeros(latent_channels, 1, 1))
        self.register_buffer("std", torch.ones(latent_channels, 1, 1))

    def encode(self, images: Tensor) -> Tensor:
        """Latents (batch, latent_channels, h, w) of images (batch, channels, size, size)."""
        return (self.raw(images) - self.mean) / self.std

    def raw(self, images: Tensor) -> Tensor:
        """The encoder's output before it is standardised."""
        check_images(images, self.config["channels"], self.size)
        latents: Tensor = self.encoder(nn.functional.pad(images, self.margin, value=-1.0))
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents, not clamped."""
        images: Tensor = self.decoder(latents)
        return images[..., self.pad : self.pad + self.size, self.pad : self.pad + self.size]

    def forward(self, images: Tensor) -> Tensor:
        """Reconstructions."""
        return self.decode(self.encode(images))
