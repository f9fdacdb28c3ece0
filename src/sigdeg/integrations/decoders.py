"""Decoders: from the latents a model diffuses to images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sigdeg.errors import SigdegError
from sigdeg.files import load_weights, read_json, save_model
from sigdeg.networks import Autoencoder, build_network, check_call, network_config

__all__ = ["Decoder", "check_decoder", "find_decoder", "load_decoder", "save_decoder"]

KNOWN = ("Autoencoder", "AutoencoderKL", "AutoencoderTiny", "VQModel")
# Attention layers as the first versions of diffusers named them: many models on the hub still do.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
WEIGHTS = "diffusion_pytorch_model.safetensors"  # as diffusers names them


class Decoder(nn.Module):
    r"""The decoding half of an autoencoder, of this package or of diffusers.

    A diffusers model is given latents divided by its `scaling_factor`, as its pipelines do.

    Arguments:
        autoencoder: The autoencoder.
    """

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    @torch.no_grad()
    def forward(self, latents: Tensor, batch_size: int = 250) -> Tensor:
        """Images (n, channels, height, width) of latents."""
        model: Any = self.autoencoder
        parts = latents.split(batch_size)
        if isinstance(model, Autoencoder):
            return torch.cat([model.decode(part) for part in parts])
        scale = getattr(model.config, "scaling_factor", None) or 1.0
        return torch.cat([model.decode(part / scale).sample for part in parts])


def load_decoder(folder: Path) -> Decoder:
    """Load an autoencoder saved by `save_decoder` or, as a part of a pipeline, by diffusers.

    Raises:
        SigdegError: If it is missing, damaged or of another class.
    """
    saved = read_json(folder / "config.json")
    name = saved.get("_class_name")
    if name not in KNOWN:
        raise SigdegError(f"{folder} holds a {name}, a decoder is one of {', '.join(KNOWN)}")
    config = {key: value for key, value in saved.items() if not key.startswith("_")}
    autoencoder = build_network({"class": name, "config": config}, folder / WEIGHTS)
    load_weights(autoencoder, folder / WEIGHTS, modern, saved)
    return Decoder(autoencoder).eval().requires_grad_(False)


def check_decoder(decoder: Decoder, shape: tuple[int, ...], folder: Path) -> None:
    """Refuse a decoder of other latents than those of a shape, before any are drawn."""
    try:
        check_call(decoder, torch.zeros(1, *shape))
    except SigdegError as error:
        raise SigdegError(f"{folder} holds no decoder of these samples: {error}") from None


def modern(name: str) -> str:
    """The present name of a weight."""
    return re.sub(rf"(?<=\.)({'|'.join(OLD_NAMES)})(?=\.)", lambda m: OLD_NAMES[m[0]], name)


def find_decoder(folder: Path) -> Decoder | None:
    """The decoder of a student's folder, or None where its samples are images themselves.

    It lies in the student's folder; shipped models share that of their teacher.
    """
    folder = folder.resolve()  # the current folder has a name only then
    for place in (folder / "decoder", folder.with_name(f"{folder.name}-teacher") / "vqvae"):
        if place.is_dir():
            return load_decoder(place)
    return None


def save_decoder(decoder: Decoder, folder: Path) -> None:
    """Write an autoencoder as `load_decoder` reads it."""
    description = network_config(decoder.autoencoder)
    config = {"_class_name": description["class"], **description["config"]}
    save_model(folder, config, decoder.autoencoder.state_dict(), WEIGHTS)
