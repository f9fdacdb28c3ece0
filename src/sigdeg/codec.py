"""Codecs: from the states that a model diffuses to samples in the user's own units."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sigdeg.errors import SigdegError
from sigdeg.files import load_weights, read_json, read_tensors, save_model
from sigdeg.networks import Autoencoder, build_network, check_call, network_config

__all__ = [
    "Codec",
    "Decoder",
    "Identity",
    "Standardise",
    "check_decoder",
    "covariance_of",
    "find_codec",
    "load_decoder",
    "save_codec",
    "save_decoder",
]

KNOWN = ("Autoencoder", "AutoencoderKL", "AutoencoderTiny", "VQModel")
# Attention layers as the first versions of diffusers named them: many models on the hub still do.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
LARGEST = 1024  # elements of a sample whose covariance is kept
WEIGHTS = "diffusion_pytorch_model.safetensors"  # as diffusers names them


class Codec(Protocol):
    """What a model's states stand for."""

    def decode(self, states: Tensor) -> Tensor:
        r"""Samples, shape (n, \*), of states (n, \*shape)."""


@dataclass(frozen=True)
class Identity:
    """States that are the samples themselves."""

    def decode(self, states: Tensor) -> Tensor:
        """The states."""
        return states


def covariance_of(samples: Tensor) -> Tensor | None:
    r"""Covariance of samples (n, \*), shape (d, d); None if it is too large or they are too few."""
    size = samples[0].numel()
    if size > LARGEST or len(samples) <= 2 * size:
        return None
    return torch.cov(samples.flatten(1).double().T).reshape(size, size)


class Standardise(nn.Module):
    r"""Samples in units of their own, states of mean 0 and standard deviation 1, as vectors.

    $x = (y - \mu) / s$, element by element. What is the same in all samples has $s = 0$; its state
    is 0.

    Arguments:
        mean: $\mu$, with the shape of a sample.
        std: $s$, the same.
        covariance: That of the states, shape (d, d), where it is known: students start from it.

    Raises:
        SigdegError: If they have different shapes, or a deviation is negative or not finite.
    """

    mean: Tensor
    std: Tensor
    covariance: Tensor | None

    def __init__(self, mean: Tensor, std: Tensor, covariance: Tensor | None = None) -> None:
        super().__init__()
        finite = bool(mean.isfinite().all() and std.isfinite().all())
        if mean.shape != std.shape or not finite or bool((std < 0).any()):
            raise SigdegError(
                "mean and deviation have the shape of a sample, and no deviation is below 0, got "
                f"{tuple(mean.shape)} and {tuple(std.shape)}"
            )
        self.register_buffer("mean", mean.double())
        self.register_buffer("std", std.double())
        self.register_buffer("covariance", covariance)

    @classmethod
    def of(cls, samples: Tensor) -> Standardise:
        r"""The one that samples (n, \*) call for."""
        samples = samples.double()
        codec = cls(samples.mean(0), samples.std(0))
        codec.covariance = covariance_of(codec.encode(samples))
        return codec

    def encode(self, samples: Tensor) -> Tensor:
        r"""States (n, d) of samples (n, \*), in single precision."""
        std = self.std.where(self.std > 0, 1.0)
        return ((samples.double() - self.mean) / std).flatten(1).float()

    def decode(self, states: Tensor) -> Tensor:
        r"""Samples (n, \*) of states (n, d)."""
        whole = states.double().reshape(-1, *self.mean.shape)
        return (whole * self.std + self.mean).to(states.dtype)


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
        parts = (latents,) if latents.shape[0] <= batch_size else latents.split(batch_size)
        if isinstance(model, Autoencoder):
            return torch.cat([model.decode(part) for part in parts])
        factor, shift = self.factor.to(latents), self.shift.to(latents)
        return torch.cat([model.decode(part * factor + shift).sample for part in parts])

    def decode(self, states: Tensor) -> Tensor:
        """The same."""
        images: Tensor = self(states)
        return images


def load_decoder(folder: Path) -> Decoder:
    """Load an autoencoder saved by `save_decoder` or, as a part of a pipeline, by diffusers."""
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


def find_codec(folder: Path) -> Codec:
    """The codec of a model's folder: what lies in its `decoder`; without one the identity.

    A `config.json` says that there is one. It may name a folder beside its own as the `decoder`
    instead: that of the teacher's pipeline.
    """
    own, file = folder / "decoder", folder / "config.json"
    if own.is_dir():
        return load_units(own) if is_units(own) else load_decoder(own)
    teacher = read_json(file).get("decoder") if file.is_file() else None
    if teacher is None:
        return Identity()
    if teacher == own.name:
        raise SigdegError(f"{own} is missing: without it samples would be in other units")
    if not isinstance(teacher, str) or Path(teacher).name != teacher:
        raise SigdegError(f"{file} names a decoder that is no folder beside it: {teacher!r}")
    return load_decoder(folder.resolve().with_name(teacher) / "vqvae")


def is_units(folder: Path) -> bool:
    """Whether a folder holds a `Standardise`."""
    return read_json(folder / "config.json").get("_class_name") == Standardise.__name__


def load_units(folder: Path) -> Standardise:
    """Load a `Standardise`."""
    tensors = read_tensors(folder / WEIGHTS)[0]
    if not {"mean", "std"} <= set(tensors) <= {"mean", "std", "covariance"}:
        raise SigdegError(f"{folder / WEIGHTS} holds no mean and std")
    codec = Standardise(**tensors)
    load_weights(codec, folder / WEIGHTS, config=read_json(folder / "config.json"))
    return codec


def save_codec(codec: Codec, folder: Path) -> None:
    """Write a codec of this module into a model's folder, as `find_codec` reads it."""
    own = folder / "decoder"
    if isinstance(codec, Decoder):
        save_decoder(codec, own)
    elif isinstance(codec, Standardise):
        save_model(own, {"_class_name": Standardise.__name__}, codec.state_dict(), WEIGHTS)
    elif not isinstance(codec, Identity):
        raise SigdegError(f"a {type(codec).__name__} cannot be saved: a codec of this package can")
    elif own.exists():
        raise SigdegError(f"{own} is of another model: choose another folder")


def save_decoder(decoder: Decoder, folder: Path) -> None:
    """Write an autoencoder as `load_decoder` reads it."""
    description = network_config(decoder.autoencoder)
    config = {"_class_name": description["class"], **description["config"]}
    save_model(folder, config, decoder.autoencoder.state_dict(), WEIGHTS)
