"""Scores made of moments, and the summary of a metric over several draws."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Literal, TypedDict, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sigdeg.errors import SigdegError

__all__ = ["Summary", "Verdict", "over_draws", "scalars", "variance_score", "verdict"]

T = TypeVar("T")
Verdict = Literal["better", "tie", "worse"]


class Summary(TypedDict):
    """A metric over `n` draws: its mean and standard deviation, as `results.json` holds it."""

    mean: float
    std: float
    n: int


def over_draws(metric: Callable[[T], float], draw: Callable[[int], T], count: int) -> Summary:
    """Summarise a metric over independent draws.

    Arguments:
        metric: The metric of one draw.
        draw: Makes the draw of index 0, ..., count - 1; seed it with the index.
        count: The number of draws.

    Returns:
        The mean and the standard deviation (divisor count - 1; 0 for a single draw).

    Raises:
        SigdegError: If `count` is less than 1.
    """
    if count < 1:
        raise SigdegError(f"a metric needs at least 1 draw, got {count}")
    values = [float(metric(draw(i))) for i in range(count)]
    std = statistics.stdev(values) if count > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": std, "n": count}


def verdict(own: Summary, other: Summary, lower_is_better: bool = True) -> Verdict | None:
    r"""Whether a metric tells two samplers apart: within two standard errors it is a tie.

    The standard error of the difference of two means is
    $\sqrt{s_1^2 / n_1 + s_2^2 / n_2}$, and draws are taken as independent.

    Arguments:
        own: The metric of the sampler that is judged.
        other: That of the one it is compared with.
        lower_is_better: Whether the metric is a distance.

    Returns:
        What the first is beside the second; None where either has a single draw, or no deviation:
        nobody knows the error of that.
    """
    if min(own["n"], other["n"]) < 2 or min(own["std"], other["std"]) <= 0:
        return None
    error = (own["std"] ** 2 / own["n"] + other["std"] ** 2 / other["n"]) ** 0.5
    difference = own["mean"] - other["mean"]
    if abs(difference) <= 2 * error:
        return "tie"
    return "better" if (difference < 0) == lower_is_better else "worse"


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
    """Samples of a one-dimensional law, with shape (n,) or (n, 1), as n float64 numbers.

    Raises:
        SigdegError: If there is no sample, more than one number a sample, or NaN or infinity.
    """
    values = torch.as_tensor(samples).detach().cpu().double()
    if values.ndim not in (1, 2) or values.numel() == 0 or values.numel() != len(values):
        raise SigdegError(f"expected samples of shape (n,) or (n, 1), got {tuple(values.shape)}")
    if not values.isfinite().all():
        raise SigdegError("samples must be finite, got NaN or infinity")
    return np.asarray(values.flatten().numpy())
