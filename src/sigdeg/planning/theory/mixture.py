r"""The Gaussian-mixture regime: one student cannot stand for many steps, however long it trains.

On a mixture the posterior mean is a gated affine map, $E[x_0|z] = \sum_k r_k(z) m_k(z)$ with affine
experts $m_k$ and softmax gates of quadratic logits. One DDIM step is such a map with K experts, n
composed steps are one with up to $K^n$, so a student of K experts keeps an error at every merge. An
error made at time t is carried to the data by the teacher's own steps, each of which stretches by

$$ \Big| \frac{dz_{t-1}}{dz_t} \Big| = \Big| \frac{\sigma_{t-1}}{\sigma_t}
   + c_t \frac{\alpha_t}{\sigma_t^2} \mathrm{Cov}(x_0 | z_t) \Big|, \qquad
   c_t = \alpha_{t-1} - \alpha_t \frac{\sigma_{t-1}}{\sigma_t}. $$

The linear regime says to merge as much as possible, in the order of the spectrum; this one bounds
how long a merge may be: composites across the time where the modes split are the costly ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import least_squares
from scipy.special import softmax

from sigdeg.errors import SigdegError
from sigdeg.planning.spectrum import Floats
from sigdeg.planning.theory.operators import StepSchedule

__all__ = ["MixtureTeacher"]

POINTS = 2001  # of the grid that stands for z, evenly spaced over its marginal
REACH = 6.0  # standard deviations the grid reaches beyond the outermost means


@dataclass(frozen=True)
class MixtureTeacher:
    r"""Exact DDIM teacher of a one-dimensional Gaussian mixture.

    Arguments:
        schedule: The schedule of T steps.
        weights: Weights of the components, positive, with sum 1.
        means: Their means.
        stds: Their standard deviations, positive.

    Raises:
        SigdegError: If these are not a mixture.
    """

    schedule: StepSchedule
    weights: Sequence[float]
    means: Sequence[float]
    stds: Sequence[float]

    def __post_init__(self) -> None:
        if not len(self.weights) == len(self.means) == len(self.stds) > 0:
            raise SigdegError("a mixture needs as many weights as means and standard deviations")
        if min(*self.weights, *self.stds) <= 0 or abs(sum(self.weights) - 1) > 1e-9:
            raise SigdegError("weights must be positive with sum 1, standard deviations positive")

    def components(self, t: int) -> tuple[Floats, Floats]:
        r"""Means $\alpha_t \mu_k$ and variances $\alpha_t^2 s_k^2 + \sigma_t^2$, shape (K,)."""
        if not 0 <= t <= self.schedule.steps:
            raise SigdegError(f"t must lie in 0..{self.schedule.steps}, got {t}")
        a, s = self.schedule.alpha[t], self.schedule.sigma[t]
        return a * np.array(self.means), (a * np.array(self.stds)) ** 2 + s**2

    def log_joint(self, t: int, z: Floats) -> Floats:
        r"""$\log w_k N(z; \cdot)$ of every component at time t, shape (n, K)."""
        mean, variance = self.components(t)
        square = (z[:, None] - mean) ** 2 / variance
        return np.log(self.weights) - (square + np.log(2 * np.pi * variance)) / 2

    def grid(self, t: int) -> tuple[Floats, Floats]:
        """Evenly spaced points over the marginal at time t and their weights, with sum 1."""
        mean, variance = self.components(t)
        reach = REACH * np.sqrt(variance)
        z = np.linspace((mean - reach).min(), (mean + reach).max(), POINTS)
        density = np.exp(self.log_joint(t, z)).sum(1)
        return z, density / density.sum()

    def step(self, t: int, z: Floats) -> tuple[Floats, Floats]:
        """One DDIM step from t > 0 to t - 1 and its derivative, both with shape (n,)."""
        mean, variance = self.components(t)
        a, s = self.schedule.alpha, self.schedule.sigma
        if t == 0:
            raise SigdegError("a step starts at t = 1 or later")
        gate = softmax(self.log_joint(t, z), axis=1)
        stds = np.array(self.stds)
        expert = self.means + a[t] * stds**2 / variance * (z[:, None] - mean)
        denoised = (gate * expert).sum(1)
        spread = (gate * (stds**2 * s[t] ** 2 / variance + expert**2)).sum(1) - denoised**2
        keep = s[t - 1] / s[t]
        c = a[t - 1] - a[t] * keep
        return keep * z + c * denoised, keep + c * a[t] / s[t] ** 2 * spread

    def rollout(self, t: int, z: ArrayLike) -> tuple[Floats, Floats]:
        """All steps from t to 0 and the derivative of the whole, both with shape (n,)."""
        x = np.asarray(z, dtype=np.float64)
        slope = np.ones_like(x)
        for time in range(t, 0, -1):
            x, factor = self.step(time, x)
            slope = slope * factor
        return x, slope

    def amplification(self, t: int) -> tuple[float, float]:
        """How an error at time t arrives at the data: the largest and the RMS |dz_0 / dz_t|."""
        z, _ = self.grid(t)
        # Where the modes split the map is a cliff: space the points evenly along its graph.
        for _ in range(3):
            length = z + self.rollout(t, z)[0]
            z = np.interp(np.linspace(length[0], length[-1], POINTS), length, z)
        slope = self.rollout(t, z)[1]
        density = np.exp(self.log_joint(t, z)).sum(1)
        return float(slope.max()), float(np.sqrt(np.trapezoid(density * slope**2, z)))

    def misfit(self, t: int, experts: int) -> float:
        """Relative RMS error of the best student of some experts for all steps from t to 0.

        The student is a gated affine map like a step of the teacher, fitted by least squares over
        the marginal at time t from several starts: the best of these local minima, hence an upper
        bound. A fit to a few thousand samples looks far better for short merges, because hardly
        one of them falls between the modes, where the error is.

        Arguments:
            t: The number of steps merged.
            experts: The number of experts, at least that of the mixture.

        Raises:
            SigdegError: If there are fewer experts than components.
        """
        extra = experts - len(self.means)
        if extra < 0:
            raise SigdegError(f"at least {len(self.means)} experts are needed, got {experts}")
        z, weight = self.grid(t)
        target, slope = self.rollout(t, z)
        scale = np.sqrt(weight / (weight @ target**2))[:, None]
        unit = np.sqrt(weight @ z**2)
        u = z / unit
        basis = np.stack([np.ones_like(u), u, u**2], 1)

        def parts(parameters: Floats) -> tuple[Floats, Floats, Floats]:
            free, affine = np.split(parameters, [3 * (experts - 1)])
            logits = np.concatenate([np.zeros((3, 1)), free.reshape(3, -1)], 1)
            gates, values = softmax(basis @ logits, axis=1), basis[:, :2] @ affine.reshape(2, -1)
            return gates, values, (gates * values).sum(1)

        def residual(parameters: Floats) -> Floats:
            return np.asarray((parts(parameters)[2] - target) * scale[:, 0])

        def jacobian(parameters: Floats) -> Floats:
            gates, values, total = parts(parameters)
            logit = (gates * (values - total[:, None]))[:, None, 1:] * basis[:, :, None]
            affine = gates[:, None, :] * basis[:, :2, None]
            flat = (logit.reshape(len(z), -1), affine.reshape(len(z), -1))
            return np.concatenate(flat, axis=1) * scale

        # Starts: the teacher's own gate, and soft cuts of several widths around the steepest point.
        starts = []
        if extra == 0:
            starts.append(np.linalg.lstsq(basis, self.log_joint(t, z), rcond=None)[0])
        centre = u[slope.argmax()]
        for sharpness in (2.0, 8.0, 32.0):
            for width in (0.3, 1.0) if experts > 2 else (0.0,):
                cuts = centre + np.linspace(-width, width, experts - 1)
                rise = np.arange(experts) * sharpness
                shift = -sharpness * np.concatenate([[0.0], cuts.cumsum()])
                starts.append(np.stack([shift, rise, np.zeros(experts)]))
        best = np.inf
        for logits in starts:
            gates = softmax(basis @ logits, axis=1)
            design = (gates[:, None, :] * basis[:, :2, None]).reshape(len(z), -1) * scale
            affine = np.linalg.lstsq(design, target * scale[:, 0], rcond=None)[0]
            first = np.concatenate([(logits[:, 1:] - logits[:, :1]).ravel(), affine])
            fit = least_squares(
                residual, first, jacobian, method="lm", xtol=1e-15, ftol=1e-15, max_nfev=300
            )
            best = min(best, float(np.linalg.norm(residual(first))), float(np.sqrt(2 * fit.cost)))
        return best
