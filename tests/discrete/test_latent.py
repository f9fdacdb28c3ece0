"""Latents: their laws, and how evenly strata cover them."""

import pytest
import scipy.stats
import torch

from sigdeg.discrete import Latent
from sigdeg.errors import SigdegError
from sigdeg.rng import seed_generators

KINDS = [Latent(), Latent("uniform", 3), Latent("gaussian", 2), Latent("categorical", 5)]


def strata(latent: Latent, batch: int, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = batch, count, latent.width
    uniform = torch.rand(*shape, generator=generator, dtype=torch.float64)
    order = torch.rand(*shape, generator=generator).argsort(1)
    return latent.stratified(uniform, order)


@pytest.mark.parametrize("latent", KINDS)
def test_latents_have_their_law(latent: Latent) -> None:
    drawn = latent.draw(4000, torch.Generator().manual_seed(0))
    assert drawn.shape == (4000, latent.width)
    if latent.kind == "categorical":
        counts = torch.bincount(drawn[:, 0], minlength=5)
        assert scipy.stats.chisquare(counts).pvalue > 1e-3
        return
    law = scipy.stats.uniform if latent.kind == "uniform" else scipy.stats.norm
    for column in drawn.double().T:
        assert scipy.stats.kstest(column, law.cdf).pvalue > 1e-3


@pytest.mark.parametrize("latent", KINDS)
def test_a_sample_has_its_latent_in_any_batch(latent: Latent) -> None:
    whole = latent.draw(4, seed_generators(range(4)))
    some = latent.draw(2, seed_generators(range(2, 4)))
    assert torch.equal(whole[2:], some)


def test_every_stratum_has_one_of_them() -> None:
    """Of M latents, sorted in any dimension, the i-th lies in [i / M, (i + 1) / M)."""
    found = strata(Latent("uniform", 2), 3, 8).double() * 8
    assert torch.equal(
        found.sort(1).values.floor()[..., 0], torch.arange(8.0).expand(3, 8).double()
    )
    assert torch.equal(
        found.sort(1).values.floor()[..., 1], torch.arange(8.0).expand(3, 8).double()
    )
    normal = strata(Latent("gaussian", 1), 3, 8).double()[..., 0]
    parts = (torch.special.ndtr(normal) * 8).sort(1).values.floor()
    assert torch.equal(parts, torch.arange(8.0).expand(3, 8).double())


def test_components_come_equally_often_in_strata() -> None:
    found = strata(Latent("categorical", 4), 6, 8)[..., 0]
    for row in found:
        assert torch.bincount(row, minlength=4).tolist() == [2] * 4


def test_one_latent_of_strata_has_the_law_of_one_alone() -> None:
    first = strata(Latent(), 4000, 2)[:, 0, 0]
    assert scipy.stats.kstest(first.double(), scipy.stats.uniform.cdf).pvalue > 1e-3


def test_ends_of_the_unit_interval_have_latents() -> None:
    ends = torch.tensor([[0.0], [1 - 2**-53]], dtype=torch.float64)
    assert Latent("gaussian").place(ends).isfinite().all()
    assert Latent("categorical", 3).place(ends)[:, 0].tolist() == [0, 2]
    assert float(Latent().place(ends).max()) < 1


def test_latents_that_cannot_be_are_refused() -> None:
    with pytest.raises(SigdegError, match="unknown latent 'poisson': choose from uniform"):
        Latent("poisson")  # type: ignore[arg-type]
    with pytest.raises(SigdegError, match="size of the latent must be at least 1, got 0"):
        Latent("gaussian", 0)
    with pytest.raises(SigdegError, match="size of the latent must be at least 2, got 1"):
        Latent("categorical", 1)
