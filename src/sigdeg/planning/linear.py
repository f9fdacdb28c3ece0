r"""The reverse SDE of Gaussian data on fine steps, and what a coarse step loses of it.

Data with covariance eigenvalues $\lambda_k$ make the reverse SDE linear and one scalar recursion a
direction. On N equal fine steps, $t_j = j h$ and $n_j^2 = \alpha_j^2 \lambda + \sigma_j^2$,

$$ z_{j-1} = A_j z_j + b_j \xi_j, \qquad
   z_l = A_{l,r} z_r + \sum_{j=l+1}^r \kappa_j \xi_j, \qquad
   \kappa_j = b_j \prod_{l<i<j} A_i . $$

A coarse step from $t_r$ to $t_l$ that sees the path through its signature of order m knows the
projections of the noise on the polynomials of degree below m, so the best it can do keeps the
projections $c_k$ of $\kappa$ on the orthonormal discrete Legendre polynomials in j, and loses the
variance

$$ R = Q - \sum_{k<m} c_k^2, \qquad Q = \sum_j \kappa_j^2 . $$

Order 1 sees the increment W, order 2 the increment and the time integral. (The polynomials here
run in t, a signature's in reverse time: odd coefficients have the other sign.)

References:
    Sig-DEG (arXiv 2508.16939), section 2: partial signatures.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike

from sigdeg.errors import SigdegError, check_choice, check_least
from sigdeg.planning.spectrum import Floats
from sigdeg.schedule import Schedule, VPLinear

__all__ = ["FineSDE", "FineStep", "LinearStudent", "StepStatistics"]

FineStep = Literal["exact", "euler"]


class StepStatistics(NamedTuple):
    r"""Coarse steps of the fine SDE, d directions each.

    Arguments:
        A: Gain $A_{l,r}$ of the state, shape (\*, d).
        c: Projections $c_k$ of the noise kernel, shape (\*, order, d).
        Q: Variance of the noise, shape (\*, d).
        R: Variance lost to a signature of this order, shape (\*, d).
    """

    A: Floats
    c: Floats
    Q: Floats
    R: Floats


@dataclass(frozen=True)
class LinearStudent:
    r"""A student whose coarse step is $z_l = a z_r + \sum_k w_k c_k$, trained by gradient descent.

    Regression on the teacher's state is a gradient flow: after time s (learning rate times steps)
    a parameter has kept the share $\gamma$ of its starting value,

    $$ a = A + \gamma_r (a_{start} - A), \quad \gamma_r = e^{-2 s n_r^2}, \qquad
       w_k = c_k + e^{-2 s} (w_{k, start} - c_k) . $$

    Arguments:
        order: Order of the signature it sees, at least 1.
        budget: Training time s of every coarse step; infinite is the converged student.
        start: `warm` starts as the ancestral coarse step, `zero` as the identity without noise.
        residual_noise: Add fresh noise of the lost variance R: a converged step then has the
            teacher's law.

    Raises:
        SigdegError: If the order is below 1, the budget is negative or the start is unknown.
    """

    order: int = 2
    budget: float = math.inf
    start: Literal["warm", "zero"] = "warm"
    residual_noise: bool = False

    def __post_init__(self) -> None:
        """Refuse what is not a student."""
        check_least(self.order, 1, "order")
        check_least(self.budget, 0, "the training budget")
        check_choice(self.start, ("warm", "zero"), "start")


class FineSDE:
    r"""The linear reverse SDE of Gaussian data, one direction an eigenvalue.

    Fine steps are exact in law, $A_j = (\alpha_j / \alpha_{j-1}) n_{j-1}^2 / n_j^2$ and
    $b_j^2 = n_{j-1}^2 - A_j^2 n_j^2$, or Euler-Maruyama. The state starts with variance
    $n_N^2$.

    Arguments:
        eigenvalues: Variances $\lambda_k \ge 0$ of the data, shape (d,).
        steps: The number of fine steps N, uniform in t from `t_max` to 0.
        schedule: The schedule, VP-linear by default.
        kind: The fine step, `exact` or `euler`.
        multiplicity: How many directions share each eigenvalue, shape (d,); 1 by default.

    Attributes:
        times: Fine times $t_0 = 0 < \dots < t_N$, shape (N + 1,).
        A: Gain of each fine step, shape (N, d).
        b: Noise of each fine step, shape (N, d).
        variance: The teacher's own variance at the fine times, shape (N + 1, d).

    Raises:
        SigdegError: If the eigenvalues are not finite and non-negative, the multiplicities do not
            match them, there is no fine step, or the kind is unknown.
    """

    def __init__(
        self,
        eigenvalues: ArrayLike,
        steps: int = 512,
        schedule: Schedule | None = None,
        kind: FineStep = "exact",
        multiplicity: ArrayLike | None = None,
    ) -> None:
        values = np.asarray(eigenvalues, dtype=np.float64)
        if values.ndim != 1 or not len(values) or not (np.isfinite(values) & (values >= 0)).all():
            raise SigdegError("eigenvalues must be a list of finite numbers, none below 0")
        shares = np.ones(len(values)) if multiplicity is None else np.asarray(multiplicity, float)
        if shares.shape != values.shape or not (np.isfinite(shares) & (shares > 0)).all():
            raise SigdegError("multiplicity must give one positive number an eigenvalue")
        check_least(steps, 1, "steps")
        check_choice(kind, get_args(FineStep), "kind")
        self.eigenvalues, self.multiplicity, self.steps = values, shares, steps
        schedule = schedule or VPLinear()
        self.times = schedule.t_max * np.arange(steps + 1) / steps
        t = torch.from_numpy(self.times)
        self.alpha = schedule.alpha(t).numpy()
        self.sigma = schedule.sigma(t).numpy()
        self.noise_to_signal = (self.sigma / self.alpha) ** 2
        # n^2 / alpha^2: with it nothing below is a difference of nearly equal numbers.
        m = values + self.noise_to_signal[:, None]
        alpha = self.alpha[:, None]
        self.variance = alpha**2 * m
        if kind == "exact":
            ratio = m[:-1] / m[1:]
            self.A = alpha[:-1] / alpha[1:] * ratio
            self.b = alpha[:-1] * np.sqrt(ratio * np.diff(self.noise_to_signal)[:, None])
            return
        h = float(self.times[1])
        f, g = (q(t[1:]).numpy()[:, None] for q in (schedule.drift, schedule.diffusion))
        self.A = 1 - h * (f + g**2 / self.variance[1:])
        self.b = np.broadcast_to(math.sqrt(h) * g, self.A.shape)
        for j in range(steps, 0, -1):
            self.variance[j - 1] = self.A[j - 1] ** 2 * self.variance[j] + self.b[j - 1] ** 2

    def stats(self, left: int, right: int, order: int = 2) -> StepStatistics:
        r"""Statistics of the coarse step from $t_r$ to $t_l$, see `StepStatistics`.

        Arguments:
            left: Fine index l of its end, nearer to the data.
            right: Fine index r of its start.
            order: Order of the signature.

        Raises:
            SigdegError: If not 0 <= left < right <= N, or the order is below 1.
        """
        if not 0 <= left < right <= self.steps:
            raise SigdegError(
                f"a step needs 0 <= left < right <= {self.steps}, got {left} and {right}"
            )
        check_least(order, 1, "order")
        row = self._row(left, right, order, discrete_legendre(order, right - left))
        return StepStatistics(*(value[-1] for value in row))

    def _row(self, left: int, right: int, order: int, basis: Floats) -> StepStatistics:
        """Statistics of the steps to `left` from left + 1, ..., right, by cumulative sums."""
        gain = np.cumprod(self.A[left:right], axis=0)
        kappa = self.b[left:right].copy()
        kappa[1:] *= gain[:-1]
        j = np.arange(1, right - left + 1)[:, None]
        moments = np.stack([np.cumsum(kappa * j**p, axis=0) for p in range(order)], axis=1)
        c = basis[: right - left] @ moments
        Q = np.cumsum(kappa**2, axis=0)
        return StepStatistics(gain, c, Q, np.maximum(Q - (c**2).sum(axis=1), 0))

    def _student_row(
        self,
        left: int,
        right: int,
        student: LinearStudent,
        basis: Floats,
    ) -> tuple[Floats, Floats]:
        """Squared gain and noise variance of a student's steps to `left`, see `_row`."""
        a, c, _, lost = self._row(left, right, student.order, basis)
        if student.budget < math.inf:
            start_a, start_c = np.ones_like(a), np.zeros_like(c)
            if student.start == "warm":
                after = slice(left + 1, right + 1)
                kept = (self.noise_to_signal[left] / self.noise_to_signal[after])[:, None]
                mean = self.eigenvalues / (self.eigenvalues + self.noise_to_signal[after, None])
                scale = self.alpha[left] / self.alpha[after, None]
                start_a = scale * (kept + (1 - kept) * mean)
                start_c[:, 0] = self.sigma[left] * np.sqrt(1 - kept)
            # The regression's own curvature: the teacher's variance at the input time.
            a = a + np.exp(-2 * student.budget * self.variance[left + 1 : right + 1]) * (
                start_a - a
            )
            c = c + math.exp(-2 * student.budget) * (start_c - c)
        noise = (c**2).sum(axis=1)
        return a**2, noise + lost if student.residual_noise else noise

    def student_table(self, student: LinearStudent) -> tuple[Floats, Floats]:
        """Squared gain and noise variance of a student's every coarse step.

        Returns:
            Two arrays with shape (N + 1, N + 1, d), entry [l, r] for l < r, zero elsewhere.
        """
        basis = discrete_legendre(student.order, self.steps)
        shape = (self.steps + 1, self.steps + 1, len(self.eigenvalues))
        gain, noise = np.zeros(shape), np.zeros(shape)
        for left in range(self.steps):
            gain[left, left + 1 :], noise[left, left + 1 :] = self._student_row(
                left, self.steps, student, basis
            )
        return gain, noise

    def student_variance(
        self, points: Sequence[int], student: LinearStudent | None = None
    ) -> Floats:
        r"""Variance $V_0$ of a student's samples, from $V_l = a^2 V_r + \sum_k w_k^2$, shape (d,).

        Arguments:
            points: Fine indices of the coarse times, increasing from 0 to N.
            student: The student, converged and of order 2 by default.

        Raises:
            SigdegError: If the points do not increase from 0 to N.
        """
        grid, student = [int(p) for p in points], student or LinearStudent()
        if sorted(set(grid)) != grid or len(grid) < 2 or (grid[0], grid[-1]) != (0, self.steps):
            raise SigdegError(f"grid points must increase from 0 to {self.steps}, got {grid}")
        basis = discrete_legendre(student.order, self.steps)
        variance: Floats = self.variance[-1]
        for left, right in zip(grid[-2::-1], grid[:0:-1], strict=True):
            gain, noise = self._student_row(left, right, student, basis)
            variance = gain[-1] * variance + noise[-1]
        return variance

    def distance(self, variance: Floats) -> Floats:
        r"""$W_2 = (\sum_k (\sqrt{V_k} - \sqrt{V_k^*})^2)^{1/2}$ to the teacher's samples.

        Of Gaussian samples of variances V, shape (\*, d), the distances have shape (\*).
        """
        square: Floats = (np.sqrt(variance) - np.sqrt(self.variance[0])) ** 2 @ self.multiplicity
        return np.sqrt(square)

    def w2(self, points: Sequence[int], student: LinearStudent | None = None) -> float:
        """Exact Wasserstein-2 distance of a student's samples, see `student_variance`."""
        return float(self.distance(self.student_variance(points, student)))


@functools.cache
def discrete_legendre(order: int, longest: int) -> Floats:
    r"""From moments to projections on orthonormal polynomials over the points 1, ..., m.

    Row m - 1 is the lower triangular matrix that takes $\sum_{j \le m} j^p \kappa_j$, p < order, to
    $\sum_j \varphi_k(j) \kappa_j$; shape (longest, order, order). Polynomials of degree m or more
    vanish on m points.
    """
    matrices = np.zeros((longest, order, order))
    for m in range(1, longest + 1):
        kept = min(m, order)
        powers = np.vander(np.arange(1, m + 1) / m, kept, increasing=True)
        triangle = np.linalg.qr(powers, mode="r")
        triangle = triangle * np.sign(np.diag(triangle))[:, None]
        scale = float(m) ** -np.arange(kept)
        matrices[m - 1, :kept, :kept] = np.linalg.inv(triangle).T * scale
    return matrices
