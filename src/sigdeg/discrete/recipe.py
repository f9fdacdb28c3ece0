"""What is asked for where nobody says: settings and latents by the length of the sequences."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import nn

from sigdeg.discrete.config import DiscreteConfig
from sigdeg.discrete.denoiser import GuidedTokens, TokenDenoiser
from sigdeg.discrete.latent import Latent
from sigdeg.discrete.model import TokenModel
from sigdeg.errors import SigdegError

__all__ = ["configure", "default_latent", "reveals"]

SHORT = 16  # positions up to which a student learns from single ones that are revealed
KINDS: dict[str, dict[str, Any]] = {  # what is not said here is as in `DiscreteConfig`
    "short": {
        "iterations": 3000,
        "batch_size": 8,
        "learning_rate": 4e-3,
        "optimizer": "muon",
        "ema": 0.995,
        "latents": 32,
        "start": 0.25,
    },
    "long": {"learning_rate": 1e-3},
}


def configure(teacher: TokenModel, elastic: bool = False, **options: Any) -> DiscreteConfig:
    """How to distil a teacher: by the length of its sequences, but for options that are given.

    A student of short ones, with masks, learns from single positions that are revealed. Each of
    its few items has many targets; what keeps it from the teacher's law is the noise in them, so
    the loss on data, of a single target, weighs little. Where it learns from longer steps it may
    take that loss to tell its latents apart at all.
    """
    short = teacher.denoiser.length <= SHORT
    single = short and reveals(teacher.denoiser) and not elastic
    told = {**KINDS["short" if short else "long"], "single": single, **options}
    known = {field.name for field in fields(DiscreteConfig)}
    if unknown := [name for name in options if name not in known]:
        raise SigdegError(f"unknown option {unknown[0]!r}: there are {', '.join(sorted(known))}")
    return DiscreteConfig(**{"alpha": 0.1 if told["single"] else 1.0, **told})


def reveals(denoiser: TokenDenoiser) -> bool:
    """Whether single positions can be revealed: what is not masked is kept as it is."""
    while isinstance(denoiser, GuidedTokens):
        denoiser = denoiser.denoiser
    kept = getattr(denoiser, "parameterisation", "masked") == "masked"
    return kept and denoiser.process.mask is not None


def default_latent(teacher: TokenModel, network: nn.Module | None) -> Latent:
    """The latent that a student's network is made for, or its teacher hears, or by the length.

    Components of learned weights for short sequences; the paper's uniform number for long ones.
    """
    told = getattr(network, "config", {}).get("latent")
    if told is not None:
        return Latent(**told)
    short = teacher.denoiser.length <= SHORT
    return teacher.denoiser.latent or (Latent("weighted", 32) if short else Latent())
