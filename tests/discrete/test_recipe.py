"""What is asked for where nobody says."""

from __future__ import annotations

import torch

from sigdeg.discrete import (
    Absorbing,
    DiscreteConfig,
    ExactDenoiser,
    Latent,
    NetworkTokenDenoiser,
    Uniform,
    as_token_model,
)
from sigdeg.discrete.recipe import configure, default_latent
from sigdeg.networks import TokenMLP

BITS = torch.tensor([[0, 0], [1, 1]])
TEACHER = as_token_model(ExactDenoiser(BITS, torch.ones(2), Absorbing(2)))


def test_defaults_are_those_of_the_kind_of_sequences() -> None:
    """Single positions where that can be, and what is given wins."""
    law = torch.zeros(1, 17).long(), torch.ones(1)
    long = as_token_model(ExactDenoiser(*law, Absorbing(2)))
    unmasked = as_token_model(ExactDenoiser(BITS, torch.ones(2), Uniform(2)))
    everywhere = NetworkTokenDenoiser(TokenMLP(2, 3, 8, 1), Absorbing(2), 2, "all")
    heard = TokenMLP(2, 3, 8, 1, latent={"kind": "uniform", "size": 1})
    assert configure(TEACHER).single
    assert configure(TEACHER).latents == 32
    assert configure(TEACHER, latents=4).latents == 4
    for other in (long, unmasked, as_token_model(everywhere)):
        assert not configure(other).single
    assert not configure(TEACHER, elastic=True).single
    assert configure(TEACHER).alpha == 0.1
    assert configure(TEACHER, single=False).alpha == 1.0
    assert configure(TEACHER, alpha=0.5).alpha == 0.5
    assert configure(long).batch_size == DiscreteConfig().batch_size
    assert default_latent(TEACHER, None) == Latent("weighted", 32)
    assert default_latent(long, None) == Latent()
    assert default_latent(TEACHER, heard) == Latent()
