"""The two networks around the diffusion of MNIST: its autoencoder and the metrics' classifier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from sigdeg.errors import extra
from sigdeg.networks import Autoencoder, Classifier, set_null_class
from sigdeg.rng import Stream, derive_generator, seeded
from sigdeg.runs import fingerprint
from sigdeg.training import Job, TrainConfig, train

__all__ = [
    "BATCH",
    "CLASSES",
    "Objective",
    "in_batches",
    "train_autoencoder",
    "train_classifier",
    "train_on",
    "unet",
]

BATCH = 250  # latents at a time: what stays in the cache
CLASSES = 10
HELD_OUT = 1000  # images behind the second loss curve, the last of the training split
# Of the latents while the autoencoder trains: what a diffusion gets wrong must not show.
NOISE = 0.2
SHIFT = 2  # pixels a digit moves by at most while the classifier trains

Batch = tuple[Tensor, Tensor]


class Objective(nn.Module):
    """A network in training, and its loss of a batch."""

    def __init__(self, network: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network: Any = network
        self.loss = loss

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss."""
        return {"loss": self.loss(self.network, *batch)}


def reconstruction(network: Autoencoder, images: Tensor, noise: Tensor) -> Tensor:
    r"""Square error of $D(z + 0.2 \varepsilon)$, with $z$ standardised over the batch."""
    raw = network.raw(images)
    std, mean = torch.std_mean(raw, dim=(0, 2, 3), keepdim=True)
    return nn.functional.mse_loss(network.decode((raw - mean) / std + NOISE * noise), images)


def classification(network: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy."""
    return nn.functional.cross_entropy(network(images), labels)


def unet(widths: tuple[int, ...], blocks: int = 1, classes: int | None = None) -> nn.Module:
    """The U-Net of the latents, attention at the middle resolution; a class more for none."""
    with extra("diffusers"):
        import diffusers

    network: nn.Module = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=blocks,
        block_out_channels=widths,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=16,
        num_class_embeds=None if classes is None else classes + 1,
    )
    if classes is not None:
        set_null_class(network, classes)
    return network


def in_batches(network: nn.Module, method: str, images: Tensor, size: int = 500) -> Tensor:
    """A method of a network on many images, without gradients."""
    with torch.no_grad():
        return torch.cat([getattr(network, method)(part) for part in images.split(size)])


def train_autoencoder(
    images: Tensor, out_dir: Path, config: TrainConfig, **options: Any
) -> tuple[Autoencoder, Tensor]:
    """Train the autoencoder on images (n, 1, 28, 28) in [-1, 1]; returns it and its history."""
    network = seeded(config.seed, Autoencoder)

    def batch(rows: Tensor, generator: Generator) -> Batch:
        shape = (len(rows), *network.latent_shape)
        return images[rows], torch.randn(shape, generator=generator)

    objective = Objective(network, reconstruction)
    options["label"] = "autoencoder"
    network, history = train_on((images,), objective, batch, out_dir, config, **options)
    raw = in_batches(network, "raw", images[:-HELD_OUT])
    std, mean = torch.std_mean(raw, dim=(0, 2, 3))
    network.mean.copy_(mean[:, None, None])
    network.std.copy_(std[:, None, None])
    return network, history


def train_classifier(
    images: Tensor,
    labels: Tensor,
    out_dir: Path,
    config: TrainConfig,
    kind: type[Classifier] = Classifier,
    **options: Any,
) -> tuple[Classifier, Tensor]:
    """Train a classifier on images and their labels (n,); returns it and its history."""
    network = seeded(config.seed, kind)

    def batch(rows: Tensor, generator: Generator) -> Batch:
        moves = torch.randint(-SHIFT, SHIFT + 1, (8, 2), generator=generator).tolist()
        parts = zip(images[rows].tensor_split(len(moves)), moves, strict=True)
        return torch.cat([x.roll(move, dims=(2, 3)) for x, move in parts]), labels[rows]

    objective = Objective(network, classification)
    options["label"] = "classifier"
    network, history = train_on((images, labels), objective, batch, out_dir, config, **options)
    features = in_batches(network, "features", images[:-HELD_OUT])
    network.scale.copy_(features.var(dim=0).mean().sqrt())
    return network, history


def train_on(
    data: tuple[Tensor, ...],
    objective: Objective,
    batch: Callable[[Tensor, Generator], Batch],
    out_dir: Path,
    config: TrainConfig,
    **options: Any,
) -> tuple[Any, Tensor]:
    """Train on batches that are made from rows of the data; returns network and history."""
    kept = len(data[0]) - HELD_OUT
    job = Job(
        objective,
        lambda g: batch(torch.randint(kept, (config.batch_size,), generator=g), g),
        batch(torch.arange(kept, len(data[0])), derive_generator(config.seed, Stream.HELD_OUT)),
        {
            **config.identity(),
            "network": fingerprint(objective),
            "data": [fingerprint(tensor) for tensor in data],
        },
    )
    trained = train(job, out_dir, config, **options)
    return trained.objective.network, trained.history
