"""The variance score."""

import pytest
import torch

from sigdeg.datasets import GaussianMixture1D
from sigdeg.errors import SigdegError
from sigdeg.metrics import variance_score


def test_variance_score_of_point_masses() -> None:
    # Variance 1 against variance 9, whatever the means and the sample counts.
    a, b = torch.tensor([-1.0, 1.0]), torch.tensor([[97.0], [103.0], [97.0], [103.0]])
    assert variance_score(a, b) == variance_score(b, a) == 8
    assert variance_score(a + 5, a) == 0


def test_variance_score_sees_the_spread_of_the_mixture() -> None:
    draw = torch.Generator().manual_seed(0)
    law, wide = GaussianMixture1D(), GaussianMixture1D(means=(-3.0, 3.0))
    score = variance_score(wide.sample(200_000, draw), law.sample(200_000, draw))
    assert score == pytest.approx(wide.variance - law.variance, abs=0.05)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (torch.zeros(0), "shape"),
        (torch.zeros(3, 2), "shape"),
        (torch.tensor(1.0), "shape"),
        (torch.tensor([0.0, torch.nan]), "finite"),
        (torch.tensor([0.0, torch.inf]), "finite"),
    ],
)
def test_what_is_not_a_sample_of_numbers_is_refused(samples: torch.Tensor, message: str) -> None:
    with pytest.raises(SigdegError, match=message):
        variance_score(samples, torch.zeros(3))
