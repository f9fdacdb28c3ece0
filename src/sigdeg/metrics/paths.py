"""Pathwise and sliced distances between samples of any shape."""

from __future__ import annotations

import torch
from torch import Tensor

from sigdeg.errors import SigdegError
from sigdeg.metrics.wasserstein import w1_columns

__all__ = ["median_path_error", "path_error", "sliced_w1"]


def path_error(samples: Tensor, reference: Tensor) -> float:
    r"""Root mean square distance of samples to their counterparts, over the reference's spread.

    $\sqrt{\mathrm{mean} (x_i - y_i)^2} / \mathrm{std}(y)$, where $x_i$ and $y_i$ were driven by the
    same Brownian path: 0 is the same sample, $\sqrt 2$ an unrelated one of the same law.

    Arguments:
        samples: Shape (n, \*).
        reference: Shape (n, \*), n at least 2.
    """
    check_counterparts(samples, reference)
    return float((samples - reference).pow(2).mean().sqrt() / reference.std())


def check_counterparts(samples: Tensor, reference: Tensor) -> None:
    """Refuse sets whose samples do not stand for each other."""
    if samples.shape != reference.shape or len(samples) < 2:
        raise SigdegError(
            f"a path error needs two sets of one shape and at least 2 samples, got "
            f"{tuple(samples.shape)} and {tuple(reference.shape)}"
        )


def median_path_error(samples: Tensor, reference: Tensor) -> float:
    r"""The median over samples of what `path_error` is the root mean square of.

    Where the law has heavy tails a few extreme samples make up most of the mean square: beside it,
    the median tells how closely the usual sample is followed. Arguments as there.
    """
    check_counterparts(samples, reference)
    errors = (samples - reference).pow(2).flatten(1).mean(1).sqrt()
    return float(errors.median() / reference.std())


def sliced_w1(samples: Tensor, reference: Tensor, projections: int = 500, seed: int = 0) -> float:
    r"""Sliced Wasserstein-1 distance: the mean W1 over random directions of unit length.

    Arguments:
        samples: Shape (n, \*).
        reference: Shape (k, \*).
        projections: The number of directions.
        seed: Seed of the directions.

    Returns:
        The distance, divided by the mean spread of the reference over directions, so that data of
        any scale and dimension compare.
    """
    x, y = (v.detach().cpu().flatten(1).double() for v in (samples, reference))
    if x.shape[1] != y.shape[1]:
        raise SigdegError(f"samples have {x.shape[1]} features and the reference {y.shape[1]}")
    directions = torch.randn(
        x.shape[1], projections, generator=torch.Generator().manual_seed(seed), dtype=x.dtype
    )
    directions /= directions.norm(dim=0)
    p, q = (x @ directions).numpy(), (y @ directions).numpy()
    return float(w1_columns(p, q).mean() / q.std(axis=0).mean())
