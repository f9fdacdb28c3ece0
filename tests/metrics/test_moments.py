"""The variance score, the summary over draws, and what tells two summaries apart."""

from typing import Any

import numpy as np
import pytest
import torch

from sigdeg.datasets import GaussianMixture1D
from sigdeg.errors import SigdegError
from sigdeg.metrics import Summary, over_draws, variance_score, verdict


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


def test_over_draws_has_the_statistics_of_the_values() -> None:
    values = np.random.default_rng(0).normal(size=10)
    summary = over_draws(lambda x: x**2, lambda i: values[i], 10)
    assert summary["n"] == 10
    assert summary["mean"] == pytest.approx(np.mean(values**2))
    assert summary["std"] == pytest.approx(np.std(values**2, ddof=1))
    assert over_draws(float, lambda _: 3.0, 1) == {"mean": 3.0, "std": 0.0, "n": 1}


def test_no_draw_is_refused() -> None:
    with pytest.raises(SigdegError, match="at least 1 draw, got 0"):
        over_draws(float, float, 0)


def test_a_verdict_needs_two_standard_errors() -> None:
    # Standard errors of 3 / sqrt(9) = 1 and 2.25 / sqrt(9) = .75: of the difference 1.25.
    own, wide = Summary(mean=10.0, std=3.0, n=9), {"std": 2.25, "n": 9}
    for mean, found in ((12.4, "tie"), (12.6, "better"), (7.6, "tie"), (7.4, "worse")):
        other = Summary(mean=mean, **wide)
        assert verdict(own, other) == found
        swapped = {"better": "worse", "worse": "better", "tie": "tie"}[found]
        assert verdict(other, own) == verdict(own, other, lower_is_better=False) == swapped


def test_equal_laws_tie_in_nineteen_of_twenty_comparisons() -> None:
    draws = np.random.default_rng(0).normal(size=(2000, 2, 20))
    found = [
        verdict(*(Summary(mean=x.mean(), std=x.std(ddof=1), n=20) for x in pair)) for pair in draws
    ]
    assert found.count("tie") / 2000 == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("own", [{"std": 0.0, "n": 1}, {"std": 0.0, "n": 10_000}])
def test_no_verdict_rests_on_one_draw(own: Any) -> None:
    single, many = Summary(mean=1.0, **own), Summary(mean=9.0, std=0.1, n=5)
    assert verdict(single, many) is verdict(many, single) is None


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
