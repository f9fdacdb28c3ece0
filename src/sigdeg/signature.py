r"""Partial signatures of Brownian motion: the exact summary of a path that drives one step.

Over one step of length $h$ the coefficients of order $m$ are

$$ c_k = \int_0^h \varphi_k(u)\, dB_u, \qquad k = 0, \dots, m - 1, $$

with $\varphi_k(u) = \sqrt{(2k + 1) / h}\, P_k(2u/h - 1)$ the orthonormal shifted Legendre
polynomials. They are independent standard normals, so a signature is *drawn*, never simulated, and
they span exactly the iterated integrals with one Brownian letter and up to $m - 1$ time letters.
Order 2 is the paper's partial signature $(h, W, A)$.

References:
    Sig-DEG (arXiv 2508.16939), sections 2-3: partial signatures, Lemma 4.
    Foster, Lyons, Oberhauser, *An optimal polynomial approximation of Brownian motion* (2020).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from numpy.polynomial import legendre
from torch import Tensor

from sigdeg.errors import SigdegError, check_least
from sigdeg.rng import Generators, randn

__all__ = ["PartialSignature", "gauss_legendre", "legendre_basis", "restriction"]


@functools.cache
def gauss_legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss-Legendre quadrature on [0, 1], float64, shape (nodes,).

    Exact for polynomials of degree up to 2 * nodes - 1.
    """
    x, w = legendre.leggauss(nodes)
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2)


def legendre_basis(order: int, v: Tensor) -> Tensor:
    r"""Orthonormal shifted Legendre polynomials on [0, 1], $\sqrt{2k+1}\, P_k(2v - 1)$.

    Arguments:
        order: The number of polynomials $m$, degrees 0 to m - 1.
        v: Points in [0, 1], with shape (\*).

    Returns:
        The values, with shape (\*, order).
    """
    x = 2 * v - 1
    p = [torch.ones_like(x), x]
    for k in range(1, order - 1):
        p.append(((2 * k + 1) * x * p[k] - k * p[k - 1]) / (k + 1))
    scale = torch.arange(order, dtype=v.dtype, device=v.device).mul(2).add(1).sqrt()
    return torch.stack(p[:order], dim=-1) * scale


def restriction(order: int, left: Tensor | float, right: Tensor | float) -> Tensor:
    r"""How a path on a sub-interval enters the coefficients of the whole interval.

    The basis function $\varphi_k$ of [0, 1], restricted to [left, right], is a polynomial of degree
    $k$ and therefore a combination of the sub-interval's own $\psi_0, \dots, \psi_k$. With $c'$ the
    coefficients over the sub-interval, its contribution to the whole is $R c'$,

    $$ R_{kl} = \int_{left}^{right} \varphi_k \psi_l\, du, $$

    lower triangular. Over a partition of [0, 1], $\sum_j R_j R_j^\top = I$.

    Arguments:
        order: The number of coefficients $m$.
        left: Left end as a fraction of the whole interval, shape (\*).
        right: Right end, in (left, 1], shape (\*).

    Returns:
        The matrices in float64, with shape (\*, order, order).
    """
    left, right = (torch.as_tensor(b, dtype=torch.float64)[..., None] for b in (left, right))
    nodes, weights = gauss_legendre(order)  # the integrand has degree 2 * order - 2
    nodes, weights = nodes.to(left.device), weights.to(left.device)
    whole = legendre_basis(order, left + (right - left) * nodes)  # (*, nodes, k)
    part = legendre_basis(order, nodes)  # (nodes, l)
    product = torch.einsum("n,...nk,nl->...kl", weights, whole, part)
    return torch.tril(product * (right - left).sqrt()[..., None])


@dataclass(frozen=True)
class PartialSignature:
    r"""Partial signature of a Brownian path over one step.

    Arguments:
        dt: Length of the step $h > 0$, a scalar or with shape (batch,).
        coefficients: Legendre coefficients $c_k$, independent N(0, 1), shape (batch, order, \*).
    """

    dt: Tensor
    coefficients: Tensor

    @classmethod
    def sample(
        cls,
        dt: Tensor | float,
        shape: Sequence[int],
        order: int = 2,
        generator: Generators | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> PartialSignature:
        r"""Draw a signature exactly: no path is simulated.

        Arguments:
            dt: Length of the step, a scalar or with shape (batch,).
            shape: Shape of the state the path drives, (batch, \*).
            order: The number of coefficients per dimension, at least 1.
            generator: One generator, or a list with one generator a sample.
            dtype: Type of the coefficients.
            device: Device of the coefficients.

        Raises:
            SigdegError: If the order is below 1, dt is not positive or of another shape, or the
                generators do not match the batch.
        """
        check_least(order, 1, "order")
        batch, *rest = shape
        dt = torch.as_tensor(dt, dtype=torch.float64, device=device)
        if dt.shape not in ((), (batch,)) or not bool((dt > 0).all()):
            raise SigdegError("dt must be positive, a scalar or one value a sample")
        coefficients = randn((batch, order, *rest), generator, dtype, device)
        return cls(dt.to(coefficients), coefficients)

    @classmethod
    def from_increments(cls, dW: Tensor, dt: Tensor | float, order: int = 2) -> PartialSignature:
        r"""Signature of the piecewise linear path with the given increments, in linear time.

        Arguments:
            dW: Brownian increments over the fine steps, shape (batch, steps, \*).
            dt: Length of the fine steps, a scalar or with shape (steps,).
            order: The number of coefficients per dimension.

        Returns:
            The exact signature of the interpolated path. Its coefficients have slightly less than
            unit variance: the interpolation lacks the path's own fluctuation inside a step.

        Raises:
            SigdegError: If the order is below 1.
        """
        check_least(order, 1, "order")
        steps = dW.shape[1]
        dt = torch.as_tensor(dt, dtype=torch.float64, device=dW.device).expand(steps)
        ends = dt.cumsum(0)
        # A linear piece has only c'_0 = dW / sqrt(dt): one column of each restriction is needed.
        columns = restriction(order, (ends - dt) / ends[-1], (ends / ends[-1]).clamp(max=1))[..., 0]
        weights = (columns / dt.sqrt()[:, None]).to(dW)
        return cls(ends[-1].to(dW), torch.einsum("nk,bn...->bk...", weights, dW))

    @classmethod
    def fold(cls, parts: Sequence[PartialSignature]) -> PartialSignature:
        """Concatenate consecutive signatures, earliest first, in linear time (Chen's identity)."""
        if not parts:
            raise SigdegError("cannot concatenate an empty sequence of signatures")
        order = parts[0].order
        if any(part.order != order for part in parts):
            raise SigdegError(
                f"signatures of one order concatenate, got orders {[p.order for p in parts]}"
            )
        lengths = torch.stack(torch.broadcast_tensors(*(p.dt.double() for p in parts)))
        ends = lengths.cumsum(0)
        left, right = (ends - lengths) / ends[-1], ends / ends[-1]
        total = torch.zeros_like(parts[0].coefficients)
        for part, matrix in zip(parts, restriction(order, left, right), strict=True):
            total = total + part._mix(matrix)
        return cls(ends[-1].to(parts[0].dt), total)

    @staticmethod
    def concatenate(first: PartialSignature, second: PartialSignature) -> PartialSignature:
        r"""Signature of the path that follows `first`, then `second`.

        Linear and exact at every order and split point: $c = L c_{first} + R c_{second}$ with
        lower triangular $L$, $R$ and $L L^\top + R R^\top = I$. At order 2 this is Chen's identity
        $W = W_1 + W_2$, $A = A_1 + A_2 + h_2 W_1$.
        """
        return PartialSignature.fold((first, second))

    def _mix(self, matrix: Tensor) -> Tensor:
        """Apply a matrix of shape (order, order) or (batch, order, order) over the coefficients."""
        c = self.coefficients
        return (matrix.to(c) @ c.unsqueeze(-1).flatten(2)).reshape(c.shape)

    def _dt(self, power: float = 1.0) -> Tensor:
        """The step length, broadcast against a state of shape (batch, *)."""
        dt = self.dt**power
        return dt.reshape(dt.shape + (1,) * (self.coefficients.ndim - 2)) if dt.ndim else dt

    @property
    def order(self) -> int:
        """The number of coefficients per dimension."""
        return self.coefficients.shape[1]

    @property
    def W(self) -> Tensor:
        r"""Increment $W = B_h = \sqrt{h}\, c_0$, variance $h$, shape (batch, \*)."""
        return self._dt(0.5) * self.coefficients[:, 0]

    @property
    def levy_area(self) -> Tensor:
        r"""Space-time Levy area $H = A/h - W/2 = -\sqrt{h/12}\, c_1$, independent of $W$.

        Raises:
            SigdegError: If the order is 1.
        """
        if self.order < 2:
            raise SigdegError("the Levy area needs a signature of order 2 or more, got order 1")
        return -self._dt(0.5) / math.sqrt(12) * self.coefficients[:, 1]

    @property
    def time_integral(self) -> Tensor:
        r"""Time integral $A = \int_0^h B_u\, du = h (W/2 + H)$, variance $h^3/3$."""
        return self._dt() * (self.W / 2 + self.levy_area)

    def iterated_integral(self, before: int = 0, after: int = 0) -> Tensor:
        r"""Signature term of the word with one Brownian letter among time letters.

        $$ \int_0^h \frac{u^i}{i!} \frac{(h - u)^j}{j!}\, dB_u, \qquad i = before,\; j = after, $$

        the word $t^i\, W\, t^j$ of the time-augmented path. $(0, 0)$ is $W$ and $(0, 1)$ is $A$.

        Raises:
            SigdegError: If the order does not reach before + after + 1.
        """
        degree = before + after
        if degree >= self.order:
            raise SigdegError(
                f"a word with {degree} time letters needs order {degree + 1}, got {self.order}"
            )
        v, w = gauss_legendre(degree + 1)
        values = v**before * (1 - v) ** after / (math.factorial(before) * math.factorial(after))
        weights = (w * values) @ legendre_basis(degree + 1, v)
        terms = self.coefficients[:, : degree + 1].movedim(1, -1) @ weights.to(self.coefficients)
        return self._dt(degree + 0.5) * terms

    def truncate(self, order: int) -> PartialSignature:
        """The same path seen at a lower order: the first coefficients."""
        if not 1 <= order <= self.order:
            raise SigdegError(f"order must lie between 1 and {self.order}, got {order}")
        return PartialSignature(self.dt, self.coefficients[:, :order])
