"""The mixture's law against quadrature, an independent root finder and its own samples."""

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats

from sigdeg.datasets import GaussianMixture, GaussianMixture1D, mixture_split
from sigdeg.errors import SigdegError

PAPER = GaussianMixture1D()
SKEWED = GaussianMixture1D(means=(-3.0, 0.5, 4.0), stds=(0.2, 1.0, 0.7), weights=(0.2, 0.5, 0.3))
LAWS = pytest.mark.parametrize("law", [PAPER, SKEWED], ids=["paper", "skewed"])
X = np.linspace(-6, 7, 27)


def density(law: GaussianMixture1D, x: float) -> float:
    """The mixture's density, from scipy's normal laws."""
    return float(np.dot(law.weights, stats.norm.pdf(x, law.means, law.stds)))


@LAWS
def test_cdf_integrates_the_density(law: GaussianMixture1D) -> None:
    below = [integrate.quad(lambda y: density(law, y), -12, x, limit=200)[0] for x in X]
    np.testing.assert_allclose(law.cdf(X), below, atol=1e-8)


@LAWS
def test_integrated_cdf_is_the_integral_of_the_cdf(law: GaussianMixture1D) -> None:
    below = [integrate.quad(law.cdf, -12, x, limit=200, epsabs=1e-12)[0] for x in X]
    np.testing.assert_allclose(law.integrated_cdf(X), below, atol=1e-10)


@LAWS
def test_quantile_agrees_with_a_root_finder(law: GaussianMixture1D) -> None:
    p = np.concatenate([[1e-6, 1e-3], np.linspace(0.02, 0.98, 49), [1 - 1e-3, 1 - 1e-6]])
    roots = [optimize.brentq(lambda x, t=t: law.cdf(x) - t, -9, 9, xtol=1e-14) for t in p]
    np.testing.assert_allclose(law.quantile(p), roots, atol=1e-10)
    np.testing.assert_allclose(law.cdf(law.quantile(p)), p, rtol=1e-13)


@LAWS
def test_moments_agree_with_quadrature(law: GaussianMixture1D) -> None:
    mean = integrate.quad(lambda x: x * density(law, x), -12, 12, limit=200)[0]
    variance = integrate.quad(lambda x: (x - mean) ** 2 * density(law, x), -12, 12, limit=200)[0]
    assert law.mean == pytest.approx(mean, abs=1e-8)
    assert law.variance == pytest.approx(variance, abs=1e-7)


def test_paper_mixture_in_closed_form() -> None:
    assert PAPER.mean == 0
    assert PAPER.variance == pytest.approx(4.25)
    assert PAPER.quantile(0.5) == pytest.approx(0, abs=1e-10)
    np.testing.assert_array_equal(PAPER.quantile([0.0, 1.0]), [-np.inf, np.inf])
    np.testing.assert_allclose(PAPER.cdf(X) + PAPER.cdf(-X), 1, rtol=1e-15)


def test_shapes_follow_the_argument() -> None:
    p = np.full((2, 3), 0.3)
    assert PAPER.quantile(p).shape == PAPER.cdf(p).shape == PAPER.integrated_cdf(p).shape == (2, 3)
    assert PAPER.quantile(0.3).shape == PAPER.cdf(0.3).shape == ()


@LAWS
def test_samples_follow_the_law(law: GaussianMixture1D) -> None:
    x = law.sample(50_000, torch.Generator().manual_seed(0))
    assert x.shape == (50_000, 1)
    assert x.dtype == torch.float32
    assert stats.kstest(x[:, 0].numpy(), law.cdf).pvalue > 0.01


def test_split_is_the_papers_and_is_seeded() -> None:
    split = mixture_split(seed=3)
    assert [len(part) for part in split] == [7_900, 100, 2_000]
    # The three parts are disjoint pieces of one draw, in order.
    drawn = PAPER.sample(10_000, torch.Generator().manual_seed(3))
    assert torch.cat(split).equal(drawn)
    assert not mixture_split(seed=4).test.equal(split.test)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"means": (0.0,)}, "one length"),
        ({"stds": (0.5, 0.0)}, "stds must be positive"),
        ({"weights": (0.5, 0.4)}, "sum to 1"),
        ({"weights": (1.5, -0.5)}, ">= 0"),
    ],
)
def test_what_is_not_a_law_is_refused(
    arguments: dict[str, tuple[float, ...]], message: str
) -> None:
    with pytest.raises(SigdegError, match=message):
        GaussianMixture1D(**arguments)


NEEDLES = GaussianMixture(
    torch.tensor([[0.0, 0.0], [2.0, 1.0]]),
    torch.tensor([[[1.0, 0.9], [0.9, 1.0]], [[0.04, 0.0], [0.0, 0.25]]]),
    torch.tensor([0.7, 0.3]),
)


def test_a_mixture_in_the_plane_has_the_moments_of_its_samples() -> None:
    x = NEEDLES.sample(200_000, torch.Generator().manual_seed(0)).double()
    means, weights = NEEDLES.means.double(), NEEDLES.weights.double()
    centre = weights @ means
    spread = torch.einsum("k,ki,kj->ij", weights, means - centre, means - centre)
    within = torch.einsum("k,kij->ij", weights, NEEDLES.covariances.double())
    torch.testing.assert_close(x.mean(0), centre, atol=0.01, rtol=0)
    torch.testing.assert_close(torch.cov(x.T), spread + within, atol=0.02, rtol=0)


def test_a_projection_is_the_law_of_projected_samples() -> None:
    x = NEEDLES.sample(50_000, torch.Generator().manual_seed(1))
    u = torch.tensor([0.6, -0.8])
    law = NEEDLES.along(u)
    assert stats.kstest((x @ u).numpy(), law.cdf).pvalue > 0.01
    assert law.mean == pytest.approx(0.3 * (2 * 0.6 - 0.8))


def test_shares_and_what_is_off_every_mode() -> None:
    x = NEEDLES.sample(50_000, torch.Generator().manual_seed(2))
    assert NEEDLES.shares(x).tolist() == pytest.approx([0.7, 0.3], abs=0.006)
    # Beyond 4 deviations in the plane: exp(-8), though one mode's outskirts lie in the other.
    assert NEEDLES.off(x) < 2 * np.exp(-8) + 1e-4
    between = torch.tensor([[1.2, -1.0], [4.5, 4.5], [2.0, 1.5], [0.5, 0.4]])
    assert NEEDLES.off(between) == 0.5
