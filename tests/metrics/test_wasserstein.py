"""Exact W1 against laws where it is known, quadrature and independent libraries."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from scipy import integrate, stats

from sigdeg.datasets import GaussianMixture1D
from sigdeg.errors import SigdegError
from sigdeg.metrics import variance_score, w1_exact, w1_samples
from sigdeg.results import summarise

MIXTURE = GaussianMixture1D()
NORMAL = GaussianMixture1D(means=(0.0,), stds=(1.0,), weights=(1.0,))


@dataclass(frozen=True)
class Uniform:
    """The uniform law on [low, low + 1], flat on both sides, in closed form."""

    low: float = 0.0

    @property
    def mean(self) -> float:
        """The centre."""
        return self.low + 0.5

    def cdf(self, x: ArrayLike) -> np.ndarray:
        """The line, between two constants."""
        return np.clip(np.asarray(x) - self.low, 0, 1)

    def quantile(self, p: ArrayLike) -> np.ndarray:
        """The line."""
        return self.low + np.asarray(p)

    def integrated_cdf(self, x: ArrayLike) -> np.ndarray:
        """A parabola, then a line of slope 1."""
        x = np.asarray(x) - self.low
        return np.clip(x, 0, 1) ** 2 / 2 + np.maximum(x - 1, 0)


def quantiles(law: GaussianMixture1D | Uniform, n: int) -> np.ndarray:
    """The n midpoint quantiles, the sample of size n nearest to the law."""
    return law.quantile((np.arange(n) + 0.5) / n)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ([0.5], 1 / 4),  # E|U - 1/2|
        ([0.0], 1 / 2),  # E|U|
        ([3.0], 5 / 2),  # outside the support: 3 - E U
        ([-1.0], 3 / 2),
        ([0.25, 0.75], 1 / 8),
        ([0.0, 1.0], 1 / 4),
        ([0.5, 0.5, 0.5], 1 / 4),  # ties are one heavier mass
        ([2.0, 3.0], 2.0),
    ],
)
def test_point_masses_against_the_uniform_law(x: list[float], expected: float) -> None:
    assert w1_exact(np.array(x), Uniform()) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("shift", [-3.0, -0.2, 0.4, 7.5])
@pytest.mark.parametrize("law", [MIXTURE, NORMAL, Uniform()], ids=["mixture", "normal", "uniform"])
def test_a_shifted_law_is_at_the_distance_of_the_shift(
    law: GaussianMixture1D | Uniform, shift: float
) -> None:
    # n midpoints stand in for the shifted law: the triangle inequality bounds the difference.
    x = quantiles(law, 4000)
    assert w1_exact(x + shift, law) == pytest.approx(abs(shift), abs=w1_exact(x, law))
    assert w1_exact(x, law) < 1e-3


def test_normal_scale_in_closed_form() -> None:
    # W1(N(0, s^2), N(0, 1)) = |s - 1| E|Z|.
    x = 1.7 * quantiles(NORMAL, 100_000)
    assert w1_exact(x, NORMAL) == pytest.approx(0.7 * np.sqrt(2 / np.pi), abs=1e-4)


@pytest.mark.parametrize("law", [MIXTURE, NORMAL], ids=["mixture", "normal"])
@pytest.mark.parametrize("n", [1, 2, 30])
def test_agrees_with_quadrature(law: GaussianMixture1D, n: int) -> None:
    x = np.sort(np.random.default_rng(n).normal(0.3, 2.0, n))
    # Quadrature has to be told of the jumps, and of the kinks where F crosses a step.
    kinks = np.concatenate([x, law.quantile(np.arange(1, n) / n), [-15.0, 15.0]])
    kinks.sort()

    def gap(y: float) -> float:
        return abs(np.searchsorted(x, y, side="right") / n - float(law.cdf(y)))

    pieces = itertools.pairwise(kinks)
    total = sum(integrate.quad(gap, a, b, epsabs=1e-13, limit=100)[0] for a, b in pieces)
    assert w1_exact(x, law) == pytest.approx(total, abs=1e-9)


def test_agrees_with_scipy_on_a_fine_discretisation_of_the_law() -> None:
    x = np.random.default_rng(0).normal(0.0, 2.0, 500)
    fine = quantiles(MIXTURE, 50_000)
    expected = stats.wasserstein_distance(x, fine)
    assert w1_exact(x, MIXTURE) == pytest.approx(expected, abs=w1_exact(fine, MIXTURE))


@pytest.mark.parametrize(("n", "floor"), [(2_000, 0.0461), (100_000, 0.00652)])
def test_sampling_floor_of_the_mixture(n: int, floor: float) -> None:
    # For large n, E W1 = sqrt(2 / (pi n)) int sqrt(F (1 - F)) dx.
    spread = integrate.quad(
        lambda x: np.sqrt(MIXTURE.cdf(x) * (1 - MIXTURE.cdf(x))), -6, 6, limit=200
    )[0]
    expected = np.sqrt(2 / (np.pi * n)) * spread
    assert expected == pytest.approx(floor, rel=0.002)
    generator = torch.Generator().manual_seed(0)
    sets = (MIXTURE.sample(n, generator) for _ in range(40))
    draws = summarise([{"w1": w1_exact(x, MIXTURE)} for x in sets])["w1"]
    assert draws["mean"] == pytest.approx(expected, abs=3 * draws["std"] / np.sqrt(40))


@pytest.mark.parametrize(
    ("n", "w1", "variance"),
    [(2_000, (0.065, 0.034), (0.052, 0.039)), (24, (0.58, 0.32), (0.52, 0.40))],
)
def test_distance_of_two_real_sets(
    n: int, w1: tuple[float, float], variance: tuple[float, float]
) -> None:
    # What a perfect sampler scores in Table 1 of Sig-DEG, whose rows look like n = 24.
    generator = torch.Generator().manual_seed(1)
    pairs = MIXTURE.sample(1000 * n, generator).reshape(500, 2, n)
    for (mean, std), metric in ((w1, w1_samples), (variance, variance_score)):
        found = summarise([{"": metric(*pair)} for pair in pairs])[""]
        assert found["mean"] == pytest.approx(mean, abs=4 * std / np.sqrt(len(pairs)))
        assert found["std"] == pytest.approx(std, rel=0.1)


def test_order_and_shape_do_not_matter() -> None:
    x = MIXTURE.sample(100, torch.Generator().manual_seed(0))
    assert w1_exact(x, MIXTURE) == w1_exact(x.flip(0)[:, 0].numpy(), MIXTURE)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (50, 50), (50, 73), (2000, 3)])
def test_between_samples_agrees_with_scipy(n: int, k: int) -> None:
    rng = np.random.default_rng(n + k)
    a, b = rng.normal(size=n), rng.normal(1.0, 2.0, size=k)
    expected = stats.wasserstein_distance(a, b)
    assert w1_samples(a, b) == pytest.approx(expected, rel=1e-12)
    assert w1_samples(b, torch.from_numpy(a).unsqueeze(1)) == pytest.approx(expected, rel=1e-12)


def test_between_samples_is_a_distance_that_sees_shifts() -> None:
    a = np.random.default_rng(0).normal(size=301)
    assert w1_samples(a, a) == 0
    assert w1_samples(a + 2.5, a) == pytest.approx(2.5, rel=1e-12)


@pytest.mark.parametrize("x", [np.zeros(0), np.zeros((3, 2)), np.array([0.0, np.nan])])
def test_what_is_not_a_sample_of_numbers_is_refused(x: np.ndarray) -> None:
    with pytest.raises(SigdegError, match=r"shape \(n,\)|must be finite"):
        w1_exact(x, MIXTURE)
    with pytest.raises(SigdegError, match=r"shape \(n,\)|must be finite"):
        w1_samples(np.zeros(3), x)
