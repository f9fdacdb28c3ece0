"""Discrete diffusion, distilled to a few steps by mixtures (Di4C).

In reading order: `process`, `latent`, `denoiser`, `student`, `steps`, `orders`, `model`, `exact`,
`likelihood`, `teacher`, `losses`, `objective`, `recipe`, `distill`, `recognition`.
"""

from sigdeg.discrete.codec import Characters, GreyLevels, Subwords, TextCodec
from sigdeg.discrete.config import DiscreteConfig
from sigdeg.discrete.denoiser import (
    ExactDenoiser,
    GuidedTokens,
    NetworkTokenDenoiser,
    TokenDenoiser,
)
from sigdeg.discrete.distill import distill
from sigdeg.discrete.latent import Latent
from sigdeg.discrete.likelihood import nelbo
from sigdeg.discrete.model import TokenModel, as_token_model, uniform_grid
from sigdeg.discrete.orders import Confidence, Halton, RandomOrder
from sigdeg.discrete.process import Absorbing, DiscretisedGaussian, RateMatrix, Uniform
from sigdeg.discrete.steps import Ancestral, Hybrid, TauLeaping, TokenStep
from sigdeg.discrete.student import MixtureStudent
from sigdeg.discrete.teacher import train_teacher

__all__ = [
    "Absorbing",
    "Ancestral",
    "Characters",
    "Confidence",
    "DiscreteConfig",
    "DiscretisedGaussian",
    "ExactDenoiser",
    "GreyLevels",
    "GuidedTokens",
    "Halton",
    "Hybrid",
    "Latent",
    "MixtureStudent",
    "NetworkTokenDenoiser",
    "RandomOrder",
    "RateMatrix",
    "Subwords",
    "TauLeaping",
    "TextCodec",
    "TokenDenoiser",
    "TokenModel",
    "TokenStep",
    "Uniform",
    "as_token_model",
    "distill",
    "nelbo",
    "train_teacher",
    "uniform_grid",
]
