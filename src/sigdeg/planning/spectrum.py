r"""The spectrum of data: all that the linear theory of planning asks of it.

Of samples x the spectrum is the eigenvalues of their covariance, $\lambda_k$, with how many
directions share each. Neighbouring eigenvalues are binned on a logarithmic scale, so that images of
a million pixels cost no more than 64 directions; the total variance is kept, and so is the tail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sigdeg.errors import SigdegError
from sigdeg.schema import maybe, whole

__all__ = ["Floats", "Spectrum", "covariance_eigenvalues"]

Floats = NDArray[np.float64]

BINS = 64
LARGEST = 4096  # rows of the largest matrix whose eigenvalues are taken: tens of seconds
ENOUGH = 1000  # samples for grids within a few per cent of those of the true covariance


@dataclass(frozen=True)
class Spectrum:
    r"""Variances of data along its principal axes.

    Arguments:
        eigenvalues: Variances $\lambda_k \ge 0$, shape (d,).
        multiplicity: How many directions share each, shape (d,).
        source: Where it comes from, in words.
        samples: Samples behind it; None where it was given.

    Raises:
        SigdegError: If an eigenvalue is negative or not finite, all are zero, or the
            multiplicities do not match.
    """

    eigenvalues: Floats
    multiplicity: Floats
    source: str = "eigenvalues"
    samples: int | None = None

    def __post_init__(self) -> None:
        values, shares = self.eigenvalues, self.multiplicity
        if values.ndim != 1 or not len(values):
            raise SigdegError(f"a spectrum is a row of eigenvalues, got shape {values.shape}")
        wrong = values[~(np.isfinite(values) & (values >= 0))]
        if len(wrong):
            raise SigdegError(f"eigenvalues must be finite and not negative, got {wrong[0]:g}")
        if not values.any():
            raise SigdegError("all eigenvalues are zero: the data do not vary")
        if shares.shape != values.shape or not (np.isfinite(shares) & (shares > 0)).all():
            raise SigdegError("multiplicity must give one positive number an eigenvalue")

    @classmethod
    def of_eigenvalues(
        cls,
        eigenvalues: ArrayLike,
        multiplicity: ArrayLike | None = None,
        source: str = "eigenvalues",
        samples: int | None = None,
    ) -> Spectrum:
        """From eigenvalues, largest first and at most 64 of them: neighbours share a bin.

        Raises:
            SigdegError: If they are no spectrum, see the class.
        """
        try:
            values = np.asarray(eigenvalues, dtype=np.float64)
            shares = (
                np.ones(values.shape) if multiplicity is None else np.array(multiplicity, float)
            )
        except (TypeError, ValueError):
            raise SigdegError(f"{source} holds something else than numbers") from None
        cls(values, shares)  # refuses what is none before it is sorted
        order = np.argsort(-values, kind="stable")
        return cls(*binned(values[order], shares[order]), source, samples)

    @classmethod
    def of_samples(cls, samples: ArrayLike, source: str = "samples") -> Spectrum:
        r"""From samples, shape (n, \*): the eigenvalues of their covariance.

        Raises:
            SigdegError: If there are fewer than two samples, or they are not finite.
        """
        x = np.asarray(samples)
        values = covariance_eigenvalues(x)
        return cls.of_eigenvalues(values, None, source, len(x))

    @classmethod
    def from_json(cls, saved: Any, source: str = "eigenvalues") -> Spectrum:
        """From a list of eigenvalues, or from what `to_json` gave.

        Raises:
            SigdegError: If it is neither.
        """
        if isinstance(saved, list):
            return cls.of_eigenvalues(saved, source=source)
        if not isinstance(saved, Mapping) or "eigenvalues" not in saved:
            raise SigdegError(f"{source} holds neither a list of eigenvalues nor a spectrum")
        maybe(whole(1, 2**53))(saved.get("samples"), "samples")
        return cls.of_eigenvalues(
            saved["eigenvalues"],
            saved.get("multiplicity"),
            str(saved.get("source", source)),
            saved.get("samples"),
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON values; `from_json` reads them."""
        return {
            "source": self.source,
            "samples": self.samples,
            "eigenvalues": self.eigenvalues.tolist(),
            "multiplicity": self.multiplicity.tolist(),
        }

    @property
    def directions(self) -> float:
        """The number of directions."""
        return float(self.multiplicity.sum())

    @property
    def variance(self) -> float:
        """Total variance, over all directions."""
        return float(self.multiplicity @ self.eigenvalues)

    @property
    def effective(self) -> float:
        r"""How many directions carry the variance, $(\sum \lambda)^2 / \sum \lambda^2$."""
        return self.variance**2 / float(self.multiplicity @ self.eigenvalues**2)

    def share(self, low: float = 0.0, high: float = np.inf) -> float:
        r"""Share of the directions with $low \le \lambda \le high$."""
        inside = (self.eigenvalues >= low) & (self.eigenvalues <= high)
        return float(self.multiplicity[inside].sum()) / self.directions

    def warnings(self) -> list[str]:
        """What to know before trusting it."""
        if self.samples is None or self.samples >= ENOUGH:
            return []
        return [
            f"only {self.samples:,} samples: small eigenvalues are too small, "
            f"give {ENOUGH:,} or more"
        ]


def binned(values: Floats, shares: Floats) -> tuple[Floats, Floats]:
    """Sorted eigenvalues in at most 64 bins, evenly spaced in the logarithm; zeros are one bin."""
    if len(values) <= BINS:
        return values, shares
    positive = values > 0
    logs = np.log(values[positive])
    width = (logs[0] - logs[-1]) / (BINS - 1) or 1.0
    label = np.full(len(values), BINS)
    label[positive] = np.minimum((logs[0] - logs) / width, BINS - 2).astype(int)
    # Bins are runs, because the values are sorted; their means keep the total variance.
    first = np.flatnonzero(np.diff(label, prepend=-1))
    count = np.add.reduceat(shares, first)
    return np.add.reduceat(shares * values, first) / count, count


def covariance_eigenvalues(samples: ArrayLike) -> Floats:
    r"""Eigenvalues of the covariance of samples, largest first.

    Arguments:
        samples: Samples, shape (n, \*), features flattened to d. Of more than 4,096 samples of more
            than as many features, evenly spaced ones are taken.

    Returns:
        Variances with shape (d,); zero where fewer samples than features say nothing.

    Raises:
        SigdegError: If there are fewer than two samples, or they are not finite.
    """
    try:
        x = np.asarray(samples, dtype=np.float64)
    except (TypeError, ValueError):
        raise SigdegError("samples must be numbers") from None
    if x.ndim < 1 or len(x) < 2 or x.size == 0:
        raise SigdegError(f"a spectrum needs at least two samples, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise SigdegError("samples must be finite, got NaN or infinity")
    x = x.reshape(len(x), -1)
    features = x.shape[1]
    if min(x.shape) > LARGEST:
        x = x[:: -(-len(x) // LARGEST)]
    x = x - x.mean(axis=0)
    # Of both products the smaller one, which has the same eigenvalues but for zeros.
    matrix = (x @ x.T if features > len(x) else x.T @ x) / (len(x) - 1)
    values = np.linalg.eigvalsh(matrix)[::-1].clip(0)
    values[values <= len(values) * np.finfo(float).eps * values[0]] = 0  # rounding, not variance
    return np.concatenate([values, np.zeros(features - len(values))])
