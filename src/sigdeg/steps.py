r"""Steps of the reverse SDE: everything that samples is one.

    x_s = step(x_t, t, s, noise, **condition)        s < t

The teacher's fine step is a step, a training-free scheme is a step, the student is a step; a
sampler is a step marched over a grid (`sigdeg.sampling`). Noise is data: it comes in as the partial
signature of the driving Brownian path, and no step draws any of its own.

In reverse time $u \in [0, h]$, $h = t - s$, the reverse SDE is

$$ dY = \mu(Y, t - u)\, du + g(t - u)\, dB_u, \qquad
   \mu(y, t) = -f(t) y + g(t)^2 \nabla \log p_t(y). $$

The noise is additive ($g$ depends on time alone), so Ito and Stratonovich agree.

A step *to time 0* is the final denoise: every training-free step then returns $E[x_0 | x_t]$,
because the score is singular where the noise ends. A grid that ends at 0 therefore spends its last
call there.

References:
    Sig-DEG (arXiv 2508.16939), Eqs. 5, 7, 18 and Remark 3.
    Foster, dos Reis, Strange, *High order splitting methods for SDEs* (ShARK; arXiv 2210.17543).
    Roessler, *Runge-Kutta methods for the strong approximation of SDEs* (SRA1; 2010).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from sigdeg.denoiser import Denoiser
from sigdeg.protocols import Step, Time
from sigdeg.response import exponential_coefficients, response, weigh
from sigdeg.rng import Generators
from sigdeg.schedule import Schedule, expand
from sigdeg.signature import PartialSignature

__all__ = [
    "EulerMaruyama",
    "Exponential",
    "GaussianStep",
    "ShARK",
    "Step",
    "StochasticTaylor",
    "Time",
]


class GaussianStep(nn.Module):
    r"""Base of the steps of the reverse SDE, driven by a partial signature.

    A step of one's own has a `schedule`, says the `order` it needs and how many network calls it
    takes (`nfe`), and advances the state in `forward(x, t, s, noise, **condition)`, see
    `sigdeg.protocols.Step`.
    """

    schedule: Schedule
    __call__: Callable[..., Tensor]

    @property
    def process(self) -> Schedule:
        """The schedule of the diffusion."""
        return self.schedule

    @property
    def order(self) -> int:
        """Order of the signature it needs at least."""
        return 1

    @property
    def nfe(self) -> int:
        """Network calls a step."""
        return 1

    def calls(self, t: float, s: float) -> int:
        """Network calls a sample of a step from t to s: `nfe`, and one for the final denoise."""
        return self.nfe if s > 0 else 1

    def noise(
        self,
        t: Time,
        s: Time,
        shape: Sequence[int],
        generator: Generators | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> PartialSignature:
        r"""Signature of the path over a step that drives states of a shape, (batch, \*)."""
        return PartialSignature.sample(t - s, shape, self.order, generator, dtype, device)


class DenoiserStep(GaussianStep):
    """Base of the training-free steps: holds the denoiser, handles the final denoise."""

    order: int = 1
    nfe: int = 1

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    @property
    def schedule(self) -> Schedule:  # type: ignore[override]  # found in the denoiser
        """The denoiser's schedule."""
        return self.denoiser.schedule

    def calls(self, t: float, s: float) -> int:
        """One a mean that it asks for, and those of guidance."""
        asked = self.looks_at(t, s) if s > 0 else (t,)
        return self.denoiser.calls(torch.tensor(asked, dtype=torch.float64))

    def looks_at(self, t: float, s: float) -> tuple[float, ...]:
        """Times at which a step to s > 0 calls the denoiser."""
        return (t,)

    def forward(
        self, x: Tensor, t: Time, s: Time, signature: PartialSignature, **condition: Any
    ) -> Tensor:
        """Advance the state, see `sigdeg.protocols.Step`."""
        t, s = (torch.as_tensor(v, dtype=torch.float64) for v in (t, s))
        last = s <= 0
        if bool(last.all()):
            return self.denoiser(x, t, **condition)
        # Where only some samples end, the others' arithmetic still has to stay finite there.
        moved = self.advance(x, t, torch.where(last, t / 2, s), signature, **condition)
        if not bool(last.any()):
            return moved
        return torch.where(expand(last, x).bool(), self.denoiser(x, t, **condition), moved)

    def advance(
        self, x: Tensor, t: Tensor, s: Tensor, signature: PartialSignature, **condition: Any
    ) -> Tensor:
        """The step itself, to s > 0."""
        raise NotImplementedError

    def drift(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        r"""Reverse drift $\mu(x, t)$, shape (batch, \*): one network call."""
        return self.denoiser.reverse_drift(x, t, **condition)


class EulerMaruyama(DenoiserStep):
    r"""Euler-Maruyama: $x_s = x_t + \mu h + g(t) W$.

    One call a step. Strong order 1.0, not 0.5 as Remark 3 has it: for additive noise
    Euler-Maruyama *is* the Milstein scheme. Its local error is $O(h^{3/2})$.
    """

    def advance(
        self, x: Tensor, t: Tensor, s: Tensor, signature: PartialSignature, **condition: Any
    ) -> Tensor:
        h, g = expand(t - s, x), expand(self.schedule.diffusion(t), x)
        return x + h * self.drift(x, t, **condition) + g * signature.W


class StochasticTaylor(DenoiserStep):
    r"""Stochastic Taylor scheme of the paper (Eqs. 7 and 18), by forward-mode differentiation.

    $$ x_s = x_t + \mu h + g W + g' (h W - A) + \frac{\partial \mu}{\partial y}[g A], $$

    $g' = \partial_u g(t - u)$. As printed it has local error $O(h^2)$ and strong order 1.0. With
    `complete=True` the missing term of the same size is added,

    $$ \tfrac{h^2}{2} \left( \partial_u \mu + \frac{\partial \mu}{\partial y}[\mu]
       + \tfrac{g^2}{2} \Delta \mu \right), $$

    which makes the strong order 1.5. The Laplacian costs two more derivatives for every feature of
    the state, so this variant is for small dimensions; and its nested derivatives exist only for
    networks whose operations have them (tanh has, SiLU has not).

    Arguments:
        denoiser: The denoiser; it must support `torch.func.jvp`.
        complete: Add the $h^2/2$ term.
    """

    order = 2

    def __init__(self, denoiser: Denoiser, complete: bool = False) -> None:
        super().__init__(denoiser)
        self.complete = complete

    def advance(
        self, x: Tensor, t: Tensor, s: Tensor, signature: PartialSignature, **condition: Any
    ) -> Tensor:
        h = expand(t - s, x)
        g, slope = jvp(self.schedule.diffusion, (t,), (torch.ones_like(t),))
        g, slope = expand(g, x), -expand(slope, x)  # reverse time runs against t
        W, A = signature.W, signature.time_integral

        def mu(y: Tensor, time: Tensor) -> Tensor:
            return self.drift(y, time, **condition)

        value, response_to_A = jvp(lambda y: mu(y, t), (x,), (g * A,))
        moved = x + value * h + g * W + slope * (h * W - A) + response_to_A
        if not self.complete:
            return moved
        _, along = jvp(mu, (x, t), (value, -torch.ones_like(t)))
        laplacian = torch.zeros_like(x)
        for i in range(x[0].numel()):
            e = torch.zeros_like(x).flatten(1)
            e[:, i] = 1
            e = e.reshape(x.shape)

            def along_e(y: Tensor, e: Tensor = e) -> Tensor:
                return jvp(lambda z: mu(z, t), (y,), (e,))[1]

            laplacian = laplacian + jvp(along_e, (x,), (e,))[1]
        return moved + h**2 / 2 * (along + g**2 / 2 * laplacian)


def jvp(
    function: Callable[..., Tensor], at: tuple[Tensor, ...], along: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Value and directional derivative, by forward mode."""
    # The fused attention kernels have no forward-mode rule; the plain one has.
    with sdpa_kernel(SDPBackend.MATH), ContiguousGroupNorm():
        # An expanded tensor shares its memory, which a dual number may not.
        at = tuple(v.contiguous() for v in at)
        result: Any = torch.func.jvp(function, at, along)
    return result[0], result[1]


class ContiguousGroupNorm(TorchFunctionMode):
    """Group norm on contiguous inputs: its forward-mode rule fails on what attention hands on."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is nn.functional.group_norm:
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))


class ShARK(DenoiserStep):
    r"""Shifted additive-noise Runge-Kutta on $(W, H)$: strong order 1.5 and no derivative.

    Two calls a step:

    $$ \begin{aligned}
       Y_1 &= x_t + g_t H, \qquad
       Y_2 = x_t + g_t H + \tfrac56 \left( h\, \mu(Y_1, t) + g_t W \right), \\
       x_s &= x_t + h \left( \tfrac25 \mu(Y_1, t) + \tfrac35 \mu(Y_2, t - \tfrac56 h) \right)
              + \tfrac12 (g_t + g_s) W + (g_t - g_s) H .
       \end{aligned} $$

    The last two terms are $\int g\, dB$ for $g$ linear in time over the step.
    """

    order = 2
    nfe = 2

    def looks_at(self, t: float, s: float) -> tuple[float, ...]:
        return t, t - 5 / 6 * (t - s)

    def advance(
        self, x: Tensor, t: Tensor, s: Tensor, signature: PartialSignature, **condition: Any
    ) -> Tensor:
        h = expand(t - s, x)
        g_t, g_s = (expand(self.schedule.diffusion(v), x) for v in (t, s))
        W, H = signature.W, signature.levy_area
        shifted = x + g_t * H
        first = self.drift(shifted, t, **condition)
        between = shifted + 5 / 6 * (h * first + g_t * W)
        second = self.drift(between, t - 5 / 6 * (t - s), **condition)
        drift = 2 / 5 * first + 3 / 5 * second
        return x + h * drift + (g_t + g_s) / 2 * W + (g_t - g_s) * H


class Exponential(DenoiserStep):
    r"""Exponential step: $x_s = a x_t + b\, E[x_0 | x_t] + \sum_k w_k c_k$. One call a step.

    At order 1 with `data_std` = 0 this is ancestral sampling (DDPM with the posterior variance,
    SDE-DPM-Solver++ of order 1). A higher order spreads the same variance over the path's
    coefficients as the linear response does; `data_std` > 0 makes the step exact for Gaussian data
    of that standard deviation. See `exponential_coefficients` and `response`.

    Arguments:
        denoiser: The denoiser.
        order: The number of coefficients it listens to.
        data_std: The data's standard deviation that the response assumes.
    """

    def __init__(self, denoiser: Denoiser, order: int = 1, data_std: float = 0.0) -> None:
        super().__init__(denoiser)
        self.order = order
        self.data_std = data_std

    def advance(
        self, x: Tensor, t: Tensor, s: Tensor, signature: PartialSignature, **condition: Any
    ) -> Tensor:
        a, b = (expand(v, x) for v in exponential_coefficients(self.schedule, t, s))
        w = response(self.schedule, t, s, self.order, self.data_std)
        return (
            a * x
            + b * self.denoiser(x, t, **condition)
            + weigh(w, signature.coefficients[:, : self.order])
        )
