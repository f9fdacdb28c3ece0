"""Pathwise and sliced distances: closed forms."""

import math

import pytest
import torch

from sigdeg import SigdegError
from sigdeg.metrics import median_path_error, path_error, sliced_w1, w1_samples


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_path_error() -> None:
    """0 for the same samples, the shift over the spread, sqrt(2) for unrelated samples."""
    x, other = normal(50_000, 2), normal(50_000, 2, seed=1)
    assert path_error(x, x) == 0
    assert path_error(3 * x + 0.6, 3 * x) == pytest.approx(0.2, rel=0.01)
    assert path_error(other, x) == pytest.approx(math.sqrt(2), rel=0.01)
    with pytest.raises(SigdegError, match="two sets of one shape"):
        path_error(x, x[:10])


def test_the_median_is_not_moved_by_a_few_extreme_samples() -> None:
    x = normal(1001, 2)
    moved = x + 0.6
    moved[:10] += 100
    assert median_path_error(moved, x) == pytest.approx(0.6 / float(x.std()))
    assert path_error(moved, x) > 5
    with pytest.raises(SigdegError, match="two sets of one shape"):
        median_path_error(x, x[:10])


def test_sliced_w1_in_one_dimension_is_w1_over_the_spread() -> None:
    x, y = normal(400, 1), 2 * normal(300, 1, seed=1) + 1
    expected = w1_samples(x, y) / float(y.std(correction=0))
    assert sliced_w1(x, y) == pytest.approx(expected, rel=1e-9)


def test_sliced_w1_of_a_shift() -> None:
    """A shift by v moves projections by |<theta, v>|, on the plane 2 |v| / pi in the mean."""
    x = normal(1000, 2)
    moved = x + torch.tensor([3.0, 4.0])
    assert sliced_w1(x, x) == 0
    assert sliced_w1(moved, x, projections=2000) == pytest.approx(10 / math.pi, rel=0.05)
    assert sliced_w1(7 * moved, 7 * x) == pytest.approx(sliced_w1(moved, x), rel=1e-9)
    with pytest.raises(SigdegError, match="2 features and the reference 3"):
        sliced_w1(x, normal(10, 3))
