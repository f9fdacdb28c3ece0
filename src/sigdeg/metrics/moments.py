"""Scores made of moments."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sigdeg.errors import SigdegError

__all__ = ["scalars", "variance_score"]


def variance_score(
    samples: Tensor | NDArray[np.floating], reference: Tensor | NDArray[np.floating]
) -> float:
    r"""The paper's variance score of 1DN, $|\mathrm{Var}(samples) - \mathrm{Var}(reference)|$.

    It is the absolute difference of the variances of the two empirical laws: 0 is best, and two
    sets of real data have a score above 0 too, the floor.

    Arguments:
        samples: Generated samples, with shape (n,) or (n, 1).
        reference: Real samples, with shape (k,) or (k, 1).

    Raises:
        SigdegError: If a set is empty, not one-dimensional or not finite.
    """
    return float(abs(scalars(samples).var() - scalars(reference).var()))


def scalars(samples: Tensor | NDArray[np.floating]) -> NDArray[np.float64]:
    """Finite samples of a one-dimensional law, with shape (n,) or (n, 1), as n float64 numbers."""
    values = torch.as_tensor(samples).detach().cpu().double()
    if values.ndim not in (1, 2) or values.numel() == 0 or values.numel() != len(values):
        raise SigdegError(f"expected samples of shape (n,) or (n, 1), got {tuple(values.shape)}")
    if not values.isfinite().all():
        raise SigdegError("samples must be finite, got NaN or infinity")
    return np.asarray(values.flatten().numpy())
