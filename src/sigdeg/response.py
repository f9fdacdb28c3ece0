r"""The linear response: what a coarse step makes of the path that drives it.

Where the posterior mean is known, or linear in the state, the reverse SDE can be solved in closed
form: `exponential_coefficients` are the weights of state and mean, `response` those of the path's
coefficients. `LinearResponse` keeps them for the steps of a sampler, as numbers for data of one
standard deviation, as matrices for data of a covariance.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sigdeg.errors import SigdegError
from sigdeg.schedule import Schedule
from sigdeg.signature import gauss_legendre, legendre_basis

__all__ = ["LinearResponse", "exponential_coefficients", "remember", "response", "weigh"]

CACHED = 64  # steps whose response is kept
V = TypeVar("V")


def exponential_coefficients(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    r"""Weights of state and mean in the exact transition with $E[x_0 | \cdot]$ held fixed.

    $$ x_s = a x_t + b\, E[x_0 | x_t] + \sigma_s \sqrt{1 - r^2}\, \xi, \qquad
       a = \frac{\alpha_t \sigma_s^2}{\alpha_s \sigma_t^2}, \quad b = \alpha_s (1 - r^2), \quad
       r = e^{\lambda_t - \lambda_s}. $$

    Arguments:
        schedule: The schedule.
        t: Start, float64, shape () or (batch,).
        s: End, may be 0 (then a = 0 and b = 1).

    Returns:
        $a$ and $b$, with the shape of t and s.
    """
    r2 = torch.exp(2 * (schedule.log_snr(t) - schedule.log_snr(s)))
    a = schedule.alpha(t) * schedule.sigma(s) ** 2 / (schedule.alpha(s) * schedule.sigma(t) ** 2)
    return a, schedule.alpha(s) * (1 - r2)


def response(
    schedule: Schedule,
    t: Tensor,
    s: Tensor,
    order: int,
    data_std: float | Tensor = 0.0,
    nodes: int = 64,
    until: Tensor | None = None,
) -> Tensor:
    r"""Linear response of one coarse step to the coefficients of its path.

    For Gaussian data of variance $v$ the reverse SDE is linear and
    $x_s = \Phi x_t + \int_0^h \kappa(u)\, dB_u$ with, at $\tau = t - u$ and
    $n_\tau^2 = \alpha_\tau^2 v + \sigma_\tau^2$,

    $$ \kappa(u) = g(\tau) \frac{\alpha_\tau n_s^2}{\alpha_s n_\tau^2}, \qquad
       \int_0^h \kappa^2 = n_s^2 - \frac{\alpha_t^2 n_s^4}{\alpha_s^2 n_t^2} . $$

    The weights are the projections $w_k = \int \kappa \varphi_k$, scaled so that
    $\sum_k w_k^2 = \int \kappa^2$: the step has the right law at every order. With $v = 0$ the mean
    is held fixed, $\int \kappa^2 = \sigma_s^2 (1 - r^2)$, the noise of ancestral sampling; at order
    1 that is all there is.

    Arguments:
        schedule: The schedule.
        t: Start, float64, shape () or (batch,).
        s: End, below t, shape () or (batch,).
        order: The number of coefficients.
        data_std: $\sqrt v$, the data's standard deviation, or those of d directions, shape (d,).
        nodes: Quadrature nodes, clustered at s where the response is steep.
        until: A time between t and s: the response of the state there, to the same coefficients of
            the whole step. They tell of the path up to it in part, so these are the projections as
            they are, not scaled.

    Returns:
        The weights $w_k$ in float64, with shape (\*, order) or (\*, d, order).
    """
    variance = torch.as_tensor(data_std, dtype=torch.float64, device=t.device) ** 2
    end = s if until is None else until
    if variance.ndim:
        t, s, end = t[..., None], s[..., None], end[..., None]

    def moments(time: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        alpha = schedule.alpha(time)
        return alpha, alpha**2 * v + schedule.sigma(time) ** 2

    alpha_end, n2_end = moments(end, variance)
    alpha_t, n2_t = moments(t, variance)
    total = (n2_end - (alpha_t * n2_end / alpha_end) ** 2 / n2_t).clamp(min=0).sqrt()
    if order == 1 and until is None:  # one coefficient has it all
        return total[..., None]
    v, weights = (q.to(t.device) for q in gauss_legendre(nodes))
    power = 4  # tau = end + (t - end) v^4
    tau = end[..., None] + (t - end)[..., None] * v**power
    alpha_tau, n2_tau = moments(tau, variance[..., None] if variance.ndim else variance)
    kappa = schedule.diffusion(tau) * alpha_tau * n2_end[..., None]
    kappa = kappa / (alpha_end[..., None] * n2_tau) * weights * power * v ** (power - 1)
    if until is not None:
        basis = legendre_basis(order, (t[..., None] - tau) / (t - s)[..., None])
        projected: Tensor = torch.einsum("...n,...nk->...k", kappa, basis)
        return projected * ((t - end) / (t - s).sqrt())[..., None]
    w: Tensor = torch.einsum("...n,nk->...k", kappa, legendre_basis(order, 1 - v**power))
    scale: Tensor = total / w.norm(dim=-1).clamp(min=torch.finfo(w.dtype).tiny)
    return w * scale[..., None]


def weigh(weights: Tensor, parts: Tensor) -> Tensor:
    r"""Weighted sum $\sum_k w_k c_k$ of parts (batch, k, \*), weights (k,) or (batch, k)."""
    # A product and a sum, not an einsum: that would be done in half precision under autocast.
    return (weights.to(parts).reshape(weights.shape + (1,) * (parts.ndim - 2)) * parts).sum(1)


class LinearResponse(nn.Module):
    r"""Weights of a step's linear part, exact for Gaussian data and so all there is to know of it.

    Numbers $w_k$ for data of one standard deviation, matrices $U \operatorname{diag}(w_k) U^\top$
    for data of covariance $U \Lambda U^\top$. A look-ahead takes the mean of what is to come from
    part-way, and leaves the noise of a fixed mean.

    Arguments:
        schedule: The schedule.
        order: The number of coefficients.
        data_std: The data's standard deviation.
        lookahead: Fraction of a step's way after which the mean is asked for.
        size: Numbers of a sample.
        covariance: The data's covariance over all of them, shape (size, size), in place of
            `data_std`.
    """

    directions: Tensor | None
    stds: Tensor | None
    factored = False  # no attribute of every instance: what was fingerprinted stays so

    def __init__(
        self,
        schedule: Schedule,
        order: int,
        data_std: float = 0.0,
        lookahead: float = 0.0,
        size: int = 1,
        covariance: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.order = order
        self.data_std = data_std
        self.lookahead = lookahead
        self.size = size
        self._weights: dict[tuple[Any, ...], Tensor] = {}
        self._times: dict[tuple[Any, ...], Tensor] = {}
        self.register_buffer("directions", None)  # U and the square root of Lambda, in float64
        self.register_buffer("stds", None)
        if covariance is not None:
            self.set_covariance(covariance)

    def set_data_std(self, std: float) -> None:
        """Take another standard deviation of the data."""
        self.data_std = std
        self._weights.clear()

    def set_covariance(self, covariance: Tensor) -> None:
        """Take the data's covariance over all elements of a sample, shape (size, size).

        Raises:
            SigdegError: If samples have another size.
        """
        if covariance.shape != (self.size, self.size):
            raise SigdegError(
                f"a covariance has shape ({self.size}, {self.size}), got {tuple(covariance.shape)}"
            )
        variances, self.directions = torch.linalg.eigh(covariance.double())
        self.stds = variances.clamp(min=0).sqrt()
        self._weights.clear()

    def factor(self) -> None:
        """Keep directions and numbers $w_k$, in place of the matrices that a step makes of them.

        It takes more time and less room. Directions are in single precision from now on.
        """
        if self.directions is not None:
            self.directions, self.factored = self.directions.float(), True
            self._weights.clear()

    def make_room(self) -> None:
        """Buffers for a covariance that is to be read from a file."""
        self.directions = torch.zeros(self.size, self.size, dtype=torch.float64)
        self.stds = torch.zeros(self.size, dtype=torch.float64)

    def looks_at(self, t: Tensor, s: Tensor) -> Tensor:
        """The time at which the mean is asked for, float64."""
        if not self.lookahead:
            return t
        if t.ndim:
            first, rows = distinct(t, s)
            return self._look(t[first], s[first])[rows]
        return self._look(t, s)

    def _look(self, t: Tensor, s: Tensor) -> Tensor:
        """The time of each of some different steps, or of one; kept for the next batch."""
        key = *told(t, s), t.device
        if key in self._times:
            return self._times[key]

        def share(time: Tensor) -> Tensor:
            return torch.sigmoid(2 * self.schedule.log_snr(time)).sqrt()

        target = torch.lerp(share(t), share(s), self.lookahead)
        # By bisection: the last digits of another inverse would change what saved students draw.
        late, early = t, s
        for _ in range(40):
            middle = (late + early) / 2
            noisier = share(middle) < target
            late, early = middle.where(noisier, late), early.where(noisier, middle)
        return remember(self._times, key, middle)

    def noise(self, c: Tensor, t: Tensor, s: Tensor) -> Tensor:
        r"""What a step adds for its path, $\sum_k w_k c_k$, in full precision, see `state`."""
        return self._combine(c, t, s)

    def state(self, parts: Tensor, t: Tensor, s: Tensor, at: Tensor) -> Tensor:
        r"""Where Gaussian data are at a time part-way, $\Phi x_t + \sum_k w'_k c_k$.

        Arguments:
            parts: State at time t, then the coefficients of the whole step, shape
                (batch, 1 + order, \*).
            t: Start, float64, shape () or (batch,).
            s: End.
            at: The time between them.
        """
        return self._combine(parts, t, s, at)

    def _combine(self, parts: Tensor, t: Tensor, s: Tensor, at: Tensor | None = None) -> Tensor:
        """Weighted sum of coefficients; with `at` of the state before them too."""
        with torch.autocast(parts.device.type, enabled=False):
            if not t.ndim:
                key = *told(t, s), at is None, parts.dtype, parts.device
                w = self._weights.get(key)
                if w is None:  # kept for the next batch
                    w = self.weights(t.cpu(), s.cpu(), None if at is None else at.cpu())
                    if w.ndim == 2 and self.directions is not None and not self.factored:
                        # one matrix for all parts
                        U = self.directions.cpu()
                        w = torch.einsum("id,dk,jd->kij", U, w, U).flatten(0, 1)
                    w = remember(self._weights, key, w.to(parts))
                if w.ndim == 1:
                    return weigh(w, parts)
                if self.factored:
                    return self._along(w[None], parts)
                return (parts.flatten(1) @ w).reshape(parts.shape[0], *parts.shape[2:])
            # A batch knows few different steps, the next one the same: each costs a quadrature.
            first, rows = distinct(t, s)
            key = *told(t[first], s[first]), at is None, parts.dtype, parts.device
            w = self._weights.get(key)
            if w is None:
                known = None if at is None else at[first]
                w = self.weights(t[first], s[first], known).to(parts)
                remember(self._weights, key, w)
            w = w[rows]
            if w.ndim == 2 or self.directions is None:
                return weigh(w, parts)
            return self._along(w, parts)

    def _along(self, w: Tensor, parts: Tensor) -> Tensor:
        """Weighted sum in the data's directions, weights (batch or 1, size, k).

        U comes first in the second product: a graph of it then holds U once, not transposed too.
        """
        assert self.directions is not None
        U = self.directions.to(parts)
        along = (parts.flatten(2) @ U * w.transpose(1, 2)).sum(1)
        return (U @ along.T).T.reshape(parts.shape[0], *parts.shape[2:])

    def weights(self, t: Tensor, s: Tensor, at: Tensor | None = None) -> Tensor:
        r"""Weights of the coefficients: (\*, order), or (\*, size, order) in the data's directions.

        With `at` those of the state there, of which the first is of the state at the start.
        """
        stds = torch.tensor(self.data_std, dtype=torch.float64) if self.stds is None else self.stds
        stds = stds.to(t.device)
        if at is None:
            still = torch.zeros((), dtype=torch.float64)  # data of one point: a fixed mean
            return response(self.schedule, t, s, self.order, still if self.lookahead else stds)
        if self.stds is None and not self.data_std:
            raise SigdegError(
                "a student that looks ahead needs the data's covariance or a data_std: distil it, "
                "or give one"
            )
        w = response(self.schedule, t, s, self.order, stds, until=at)
        if stds.ndim:
            t, at = t[..., None], at[..., None]
        alpha, alpha_at = self.schedule.alpha(t), self.schedule.alpha(at)
        before = alpha**2 * stds**2 + self.schedule.sigma(t) ** 2
        after = alpha_at**2 * stds**2 + self.schedule.sigma(at) ** 2
        carried = alpha * after / (alpha_at * before)
        return torch.cat([carried[..., None], w], dim=-1)


def told(t: Tensor, s: Tensor) -> tuple[float, ...]:
    """One step, or several, as a key."""
    if not t.ndim:
        return 0, float(t), float(s)  # which a trace knows, but not what they are stacked to
    return t.ndim, *torch.stack([t, s]).flatten().tolist()


def distinct(t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """The different steps of a batch: the number of one sample of each, and which each sample has.

    By one time after the other: sorting pairs takes ten times as long.
    """
    which = torch.zeros_like(t, dtype=torch.long)
    for time in (t, s):
        values, own = time.unique(return_inverse=True)
        which = which * len(values) + own
    found, rows = which.unique(return_inverse=True)
    numbers = torch.arange(len(rows), device=rows.device)
    return torch.empty_like(found).scatter_(0, rows, numbers), rows


def remember(cache: dict[Any, V], key: Any, value: V) -> V:
    """Keep a value, of few; it is handed back."""
    if len(cache) >= CACHED:
        cache.clear()
    cache[key] = value
    return value
