"""Inception-v3 as the FID uses it: TensorFlow's network of 2015, ported by pytorch-fid.

It differs from the common Inception-v3 in three points: average pools leave the padding out, the
last block pools by the maximum, and there are 1008 classes.

References:
    Szegedy et al., *Rethinking the Inception architecture* (2015).
    pytorch-fid (github.com/mseitzer/pytorch-fid), for the weights and the three points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FIDInception"]

Layer = tuple[int, int, int]  # channels, height and width of the kernel
Branches = dict[str, Sequence[Layer | tuple[Layer, Layer]]]  # a pair of layers is a fork


class Convolution(nn.Module):
    """A convolution without bias, batch normalisation and ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int],
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x))
        return y.relu_()


class Mixed(nn.ModuleDict):
    """An Inception block: branches of convolutions and one of pooling, concatenated.

    The layers of a branch are named NAME_1, NAME_2, ..., those of a fork NAME_2a and NAME_2b, a
    single one NAME.

    Arguments:
        inputs: Channels of the input.
        branches: The layers of each branch, in order.
        pooled: Channels of the convolution after the pool. With 0 there is none and the block
            halves the image: the last layer of each branch and the pool have stride 2.
        pool: "average" or "max".
    """

    def __init__(self, inputs: int, branches: Branches, pooled: int, pool: str) -> None:
        super().__init__()
        self.pool, self.halves = pool, not pooled
        self.routes: list[list[list[str]]] = []
        self.outputs = pooled or inputs
        for branch, stages in branches.items():
            channels, route = inputs, []
            for i, stage in enumerate(stages, 1):
                name = f"branch{branch}" + (f"_{i}" if len(stages) > 1 else "")
                fork = isinstance(stage[0], tuple)
                layers: Any = (
                    {name + "a": stage[0], name + "b": stage[1]} if fork else {name: stage}
                )
                stride = 2 if self.halves and i == len(stages) else 1
                for key, (width, *kernel) in layers.items():
                    padding = (kernel[0] // 2, kernel[1] // 2) if stride == 1 else (0, 0)
                    self[key] = Convolution(channels, width, tuple(kernel), stride, padding)
                route.append(list(layers))
                channels = sum(width for width, *_ in layers.values())
            self.routes.append(route)
            self.outputs += channels
        if pooled:
            self["branch_pool"] = Convolution(inputs, pooled, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for route in self.routes:
            y = x
            for names in route:
                y = torch.cat([self[name](y) for name in names], 1)
            parts.append(y)
        if self.halves:
            parts.append(F.max_pool2d(x, 3, 2))
        elif self.pool == "max":
            parts.append(self["branch_pool"](F.max_pool2d(x, 3, 1, padding=1)))
        else:
            mean = F.avg_pool2d(x, 3, 1, padding=1, count_include_pad=False)
            parts.append(self["branch_pool"](mean))
        return torch.cat(parts, 1)


def blocks() -> dict[str, tuple[Branches, int, str]]:
    """Name, branches, channels of the pooled branch and pool of each Inception block, in order."""
    a: Branches = {
        "1x1": [(64, 1, 1)],
        "5x5": [(48, 1, 1), (64, 5, 5)],
        "3x3dbl": [(64, 1, 1), (96, 3, 3), (96, 3, 3)],
    }
    b: Branches = {"3x3": [(384, 3, 3)], "3x3dbl": a["3x3dbl"]}
    d: Branches = {
        "3x3": [(192, 1, 1), (320, 3, 3)],
        "7x7x3": [(192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3)],
    }
    fork = ((384, 1, 3), (384, 3, 1))
    e: Branches = {
        "1x1": [(320, 1, 1)],
        "3x3": [(384, 1, 1), fork],
        "3x3dbl": [(448, 1, 1), (384, 3, 3), fork],
    }

    def c(n: int) -> Branches:
        return {
            "1x1": [(192, 1, 1)],
            "7x7": [(n, 1, 1), (n, 1, 7), (192, 7, 1)],
            "7x7dbl": [(n, 1, 1), (n, 7, 1), (n, 1, 7), (n, 7, 1), (192, 1, 7)],
        }

    return {
        "5b": (a, 32, "average"),
        "5c": (a, 64, "average"),
        "5d": (a, 64, "average"),
        "6a": (b, 0, "max"),
        "6b": (c(128), 192, "average"),
        "6c": (c(160), 192, "average"),
        "6d": (c(160), 192, "average"),
        "6e": (c(192), 192, "average"),
        "7a": (d, 0, "max"),
        "7b": (e, 192, "average"),
        "7c": (e, 192, "max"),
    }


class FIDInception(nn.Module):
    """The network, with the names of torchvision's and pytorch-fid's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, (3, 3), stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = Convolution(32, 64, (3, 3), padding=(1, 1))
        self.maxpool1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = Convolution(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = Convolution(80, 192, (3, 3))
        self.maxpool2 = nn.MaxPool2d(3, 2)
        channels = 192
        for name, block in blocks().items():
            mixed = Mixed(channels, *block)
            self.add_module(f"Mixed_{name}", mixed)
            channels = mixed.outputs
        self.fc = nn.Linear(channels, 1008)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (batch, 2048) and logits (batch, 1008) of images (batch, 1 or 3, h, w).

        Images are in [-1, 1] and resized to 299 × 299. The logits leave the bias of the last layer
        out, as the published code of the Inception Score does.
        """
        # Resizing in [0, 1] and scaling to [-1, 1] afterwards, as pytorch-fid does, is the same.
        x = F.interpolate(images, (299, 299), mode="bilinear", align_corners=False)
        x = x.expand(-1, 3, -1, -1)
        for layer in list(self.children())[:-1]:  # the last is fc
            x = layer(x)
        features = x.mean((2, 3))
        return features, F.linear(features, self.fc.weight)
