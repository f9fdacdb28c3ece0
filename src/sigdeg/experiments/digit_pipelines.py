"""Pipelines of digits, of standard classes of diffusers: asked for by their names, or by class.

An `AutoencoderKL` takes digits to latents of 4 x 8 x 8. A `UNet2DConditionModel` diffuses those in
a `StableDiffusionPipeline` whose prompts are names of digits, a `DiTTransformer2DModel` in a
`DiTPipeline`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from sigdeg.denoiser import NetworkDenoiser
from sigdeg.errors import extra
from sigdeg.experiments.mnist_networks import CLASSES, Objective, train_on
from sigdeg.integrations import describe
from sigdeg.rng import seeded
from sigdeg.training import TrainConfig, train_teacher

with extra("pipelines"):
    import diffusers
    import transformers

__all__ = [
    "KINDS",
    "NAMES",
    "ByClass",
    "ByName",
    "Kind",
    "crop",
    "encode",
    "make_scheduler",
    "make_tokenizer",
    "train_autoencoder",
    "train_denoiser",
]

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MARGIN = 2  # pixels added on each side: 32 can be halved, 28 only twice
LATENT = (4, 8, 8)
TOKENS = 4  # of a prompt: where it begins, a name, where it ends, and room for it to be padded
TEXT = 32  # numbers of a token's embedding
NO_CLASS = 1000  # what a `DiTPipeline` asks for where it asks for none
# Variance of a pixel in the evidence bound, about what the decoder leaves of it.
PIXEL_VARIANCE = 0.02
CHUNK = 500
SCALED = 5000  # images whose latents tell the scale


def make_autoencoder() -> Any:
    """A small `AutoencoderKL` of digits of 32 x 32 pixels."""
    return diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 16, 32),
        layers_per_block=1,
        latent_channels=LATENT[0],
        norm_num_groups=8,
        sample_size=28 + 2 * MARGIN,
        mid_block_add_attention=False,
    )


def evidence(network: Any, images: Tensor, noise: Tensor) -> Tensor:
    r"""The negative evidence bound (Kingma and Welling, 2014) a pixel, times twice its variance.

    $\|D(\mu + \varsigma \varepsilon) - x\|^2 / P + 2 s^2 \mathrm{KL} / P$ of P pixels of the
    variance $s^2$, the mean over the batch.
    """
    padded = pad(images)
    law = network.encode(padded).latent_dist
    decoded = network.decode(law.mean + law.std * noise).sample
    divergence: Tensor = law.kl().mean() / padded[0].numel()
    return F.mse_loss(decoded, padded) + 2 * PIXEL_VARIANCE * divergence


def pad(images: Tensor) -> Tensor:
    """Digits of 28 x 28 pixels as 32 x 32, black around them."""
    return F.pad(images, (MARGIN,) * 4, value=-1.0)


def crop(images: Tensor) -> Tensor:
    """The inverse of `pad`."""
    return images[..., MARGIN:-MARGIN, MARGIN:-MARGIN]


def train_autoencoder(
    images: Tensor, out_dir: Path, config: TrainConfig, **options: Any
) -> tuple[Any, Tensor]:
    """Train an autoencoder on images (n, 1, 28, 28) in [-1, 1]; returns it and its history.

    Its `scaling_factor` makes the deviation of latents 1.
    """

    def batch(rows: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        return images[rows], torch.randn((len(rows), *LATENT), generator=generator)

    objective = Objective(seeded(config.seed, make_autoencoder), evidence)
    options["label"] = "autoencoder"
    network, history = train_on((images,), objective, batch, out_dir, config, **options)
    network.register_to_config(scaling_factor=1.0)
    some = encode(network, images[:SCALED])
    network.register_to_config(scaling_factor=1 / float(some.std()))
    return network, history


@torch.no_grad()
def encode(network: Any, images: Tensor) -> Tensor:
    """Latents (n, 4, 8, 8) of images (n, 1, 28, 28), scaled, on the CPU."""
    scale: float = network.config.scaling_factor
    parts = images.split(CHUNK)
    means = [network.encode(pad(part).to(network.device)).latent_dist.mean.cpu() for part in parts]
    return torch.cat(means) * scale


def make_scheduler() -> Any:
    """The scheduler of both: DDIM, which predicts velocities."""
    return diffusers.DDIMScheduler(
        prediction_type="v_prediction",
        clip_sample=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def make_tokenizer() -> Any:
    """A tokenizer of CLIP that has a token for each name: merges build it letter by letter."""
    letters = sorted(set("".join(NAMES)))
    pairs: dict[tuple[str, str], None] = {}
    for name in NAMES:
        parts = [*name[:-1], f"{name[-1]}</w>"]
        while len(parts) > 1:
            pairs[parts[0], parts[1]] = None
            parts = [parts[0] + parts[1], *parts[2:]]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, pairs)]
    vocabulary = [*dict.fromkeys(words), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(
        vocab={word: i for i, word in enumerate(vocabulary)},
        merges=list(pairs),
        model_max_length=TOKENS,
    )


class Kind(ABC):
    """What is asked for, and how: the parts of a pipeline around its network."""

    @abstractmethod
    def network(self, **size: Any) -> nn.Module:
        """A denoiser of latents, its size as arguments of its class."""

    @abstractmethod
    def call(self, network: nn.Module, x: Tensor, timestep: Tensor, labels: Tensor) -> Any:
        """Call it with labels; the label behind the last class asks for none."""

    @abstractmethod
    def pipeline(self, network: nn.Module, autoencoder: Any, scheduler: Any) -> Any:
        """The pipeline."""

    @abstractmethod
    def ask(self, labels: Sequence[int]) -> dict[str, Any]:
        """What a call of the pipeline asks for."""


class ByName(Kind):
    """Digits asked for by their names: the text encoder is random and stays so.

    Arguments:
        seed: Of the text encoder.
    """

    def __init__(self, seed: int) -> None:
        self.tokenizer = make_tokenizer()
        config = transformers.CLIPTextConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=TEXT,
            intermediate_size=2 * TEXT,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        self.encoder: Any = seeded(seed, lambda: transformers.CLIPTextModel(config).eval())
        tokens = self.tokenizer(
            [*NAMES, ""], padding="max_length", max_length=TOKENS, return_tensors="pt"
        )
        with torch.no_grad():
            self.prompts: Tensor = self.encoder(tokens.input_ids).last_hidden_state

    def network(self, **size: Any) -> nn.Module:
        network: nn.Module = diffusers.UNet2DConditionModel(
            sample_size=LATENT[1],
            in_channels=LATENT[0],
            out_channels=LATENT[0],
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=TEXT,
            norm_num_groups=16,
            **size,
        )
        return network

    def call(self, network: nn.Module, x: Tensor, timestep: Tensor, labels: Tensor) -> Any:
        return network(x, timestep, self.prompts.to(x)[labels])

    def pipeline(self, network: nn.Module, autoencoder: Any, scheduler: Any) -> Any:
        return diffusers.StableDiffusionPipeline(
            vae=autoencoder,
            text_encoder=self.encoder,
            tokenizer=self.tokenizer,
            unet=network,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def ask(self, labels: Sequence[int]) -> dict[str, Any]:
        return {"prompt": [NAMES[label] for label in labels]}


class ByClass(Kind):
    """Digits asked for by their class."""

    def network(self, **size: Any) -> nn.Module:
        network: nn.Module = diffusers.DiTTransformer2DModel(
            sample_size=LATENT[1],
            in_channels=LATENT[0],
            out_channels=LATENT[0],
            num_embeds_ada_norm=NO_CLASS,
            **size,
        )
        return network.eval()  # in training it would withhold labels itself

    def call(self, network: nn.Module, x: Tensor, timestep: Tensor, labels: Tensor) -> Any:
        asked = torch.where(labels < CLASSES, labels, NO_CLASS)
        return network(x, timestep=timestep, class_labels=asked)

    def pipeline(self, network: nn.Module, autoencoder: Any, scheduler: Any) -> Any:
        return diffusers.DiTPipeline(transformer=network, vae=autoencoder, scheduler=scheduler)

    def ask(self, labels: Sequence[int]) -> dict[str, Any]:
        return {"class_labels": list(labels)}


# By what a preset calls them; made with a seed.
KINDS: dict[str, Callable[[int], Kind]] = {"names": ByName, "classes": lambda seed: ByClass()}


def train_denoiser(
    kind: Kind,
    network: nn.Module,
    latents: Tensor,
    labels: Tensor,
    out_dir: Path,
    config: TrainConfig,
    **options: Any,
) -> tuple[nn.Module, Tensor]:
    """Train a network on latents and labels, a tenth withheld; returns it and its history."""

    def call(network: nn.Module, x: Tensor, timestep: Tensor, condition: Mapping[str, Any]) -> Any:
        return kind.call(network, x, timestep, condition["class_labels"])

    told = describe(make_scheduler())
    denoiser = NetworkDenoiser(network, told.schedule, told.prediction, call=call)
    trained, history = train_teacher(
        denoiser, latents, out_dir, config, labels=labels, time_power=2.0, **options
    )
    return trained.network, history
