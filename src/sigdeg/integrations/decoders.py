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

    A diffusers model is given what its pipelines give it, $z\, s / f + m$ of latents z, with the
    `scaling_factor` f, the `latents_std` s, and the `latents_mean` or the `shift_factor` m of its
    configuration.

    Arguments:
        autoencoder: The autoencoder.

    Raises:
        SigdegError: If these are of another number of channels, or m is given twice.
    """

    factor: Tensor
    shift: Tensor

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        config: dict[str, Any] = {}
        if isinstance(autoencoder, Autoencoder):
            self.channels = autoencoder.latent_shape[0]
        else:
            config = network_config(autoencoder)["config"]
            self.channels = config["latent_channels"]
        means = [config.get(key) for key in ("latents_mean", "shift_factor")]
        if all(value not in (None, 0) for value in means):
            raise SigdegError("an autoencoder has a latents_mean or a shift_factor, not both")
        mean = next((value for value in means if value not in (None, 0)), 0.0)
        std = 1.0 if config.get("latents_std") is None else config["latents_std"]
        scale = config.get("scaling_factor") or 1.0
        for name, value in (("factor", self.spread(std) / scale), ("shift", self.spread(mean))):
            self.register_buffer(name, value, persistent=False)

    def spread(self, value: Any) -> Tensor:
        """A number, or one a channel, against latents."""
        try:
            return torch.tensor(value).float().expand(self.channels)[:, None, None]
        except (RuntimeError, TypeError, ValueError):
            raise SigdegError(
                f"latents_mean, latents_std and shift_factor are numbers, one a channel of "
                f"{self.channels}, got {value!r}"
            ) from None

    @torch.no_grad()
    def forward(self, latents: Tensor, batch_size: int = 250) -> Tensor:
        """Images (n, channels, height, width) of latents."""
        model: Any = self.autoencoder
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise SigdegError(
                f"this decoder takes latents of {self.channels} channels, got samples of shape "
                f"{tuple(latents.shape[1:])}"
            )
        parts = latents.split(batch_size)
        if isinstance(model, Autoencoder):
            return torch.cat([model.decode(part) for part in parts])
        factor, shift = self.factor.to(latents), self.shift.to(latents)
        return torch.cat([model.decode(part * factor + shift).sample for part in parts])


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
    if name == "VQModel":  # pipelines did not scale before it was a setting
        config.setdefault("scaling_factor", 1.0)
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

    It lies in the student's folder, or in that of a teacher beside it which the student's
    `config.json` names, as shipped models have it.

    Raises:
        SigdegError: If it is damaged, or not where it should be.
    """
    if (folder / "decoder").is_dir():
        return load_decoder(folder / "decoder")
    file = folder / "config.json"
    teacher = read_json(file).get("decoder") if file.is_file() else None
    if teacher is None:
        return None
    if not isinstance(teacher, str) or Path(teacher).name != teacher:
        raise SigdegError(f"{file} names a decoder that is no folder beside it: {teacher!r}")
    return load_decoder(folder.resolve().with_name(teacher) / "vqvae")


def save_decoder(decoder: Decoder, folder: Path) -> None:
    """Write an autoencoder as `load_decoder` reads it."""
    description = network_config(decoder.autoencoder)
    config = {"_class_name": description["class"], **description["config"]}
    save_model(folder, config, decoder.autoencoder.state_dict(), WEIGHTS)
