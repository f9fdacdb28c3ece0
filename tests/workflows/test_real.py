"""Samples beside real images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sigdeg.errors import SigdegError
from sigdeg.workflows.real import Real


def pictures(n: int, seed: int, brightness: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (brightness + 0.2 * torch.randn(n, 1, 4, 4, generator=generator)).clamp(-1, 1)


def test_other_real_images_score_as_the_floor() -> None:
    real = Real(pictures(1000, 0), "pixels", 400)
    assert (len(real.apart), len(real.images)) == (400, 600)
    same, brighter = real.compare(pictures(500, 1)), real.compare(pictures(500, 1, 0.2))
    assert same["fid"]["mean"] == pytest.approx(real.floor["fid"]["mean"], abs=0.01)
    # The squared distance of the means: 16 pixels, each 0.2 brighter.
    assert brighter["fid"]["mean"] == pytest.approx(16 * 0.2**2, rel=0.1)
    assert abs(same["kid"]["mean"]) < 0.01 < brighter["kid"]["mean"]
    assert same["precision"]["mean"] > 0.6 > 0.3 > brighter["precision"]["mean"]
    assert same["diversity"]["mean"] == pytest.approx(real.floor["diversity"]["mean"], rel=0.05)
    assert {summary["n"] for summary in same.values()} == {1}  # one draw: no deviation is known
    words = real.describe()
    assert "400 samples beside 600 real images, by pixels as they are" in words
    assert "biased upwards" in words


def test_the_classifier_that_comes_with_the_package() -> None:
    digits = torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    real = Real(digits, "mnist", 100)
    assert (len(real.apart), len(real.images)) == (10, 10)
    assert np.isfinite(real.floor["fid"]["mean"])
    with pytest.raises(SigdegError, match=r"takes images of shape \(1, 28, 28\), got \(3"):
        Real(digits.expand(-1, 3, -1, -1), "mnist", 100)


def test_too_few_images_and_unknown_features() -> None:
    with pytest.raises(SigdegError, match="at least 8 real images are needed, got 7"):
        Real(pictures(7, 0), "pixels", 4)
    with pytest.raises(SigdegError, match="choose from inception, mnist, pixels"):
        Real(pictures(8, 0), "colour", 4)  # type: ignore[arg-type]
