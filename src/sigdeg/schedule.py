r"""Noise schedules: two scalars of time say everything.

A schedule maps a time $t \in [0, 1]$, data at 0 and noise at 1, to $(\alpha_t, \sigma_t)$ with
$x_t = \alpha_t x_0 + \sigma_t \varepsilon$. The forward SDE $dX = f(t) X dt + g(t) dW$ follows:

$$ f = \frac{d \log \alpha_t}{dt}, \qquad
   g^2 = \frac{d \sigma_t^2}{dt} - 2 f \sigma_t^2 = -2 \sigma_t^2 \frac{d \lambda_t}{dt},
   \qquad \lambda_t = \log \frac{\alpha_t}{\sigma_t}. $$

References:
    Song et al., *Score-based generative modeling through SDEs* (arXiv 2011.13456).
    Karras et al., *Elucidating the design space* (arXiv 2206.00364).
    Kingma et al., *Variational diffusion models* (arXiv 2107.00630).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sigdeg.errors import SigdegError
from sigdeg.rng import Generators, randn
from sigdeg.schema import listed, number

__all__ = [
    "EDM",
    "Cosine",
    "DiscreteVP",
    "RectifiedFlow",
    "Schedule",
    "VEGeometric",
    "VPLinear",
    "expand",
    "schedule_from_config",
]


def expand(scalar: Tensor, x: Tensor) -> Tensor:
    r"""Broadcast a scalar or a (batch,) tensor against a state (batch, \*), in its type."""
    scalar = scalar.to(x) if scalar.ndim else scalar.to(x.dtype)
    return scalar.reshape(scalar.shape + (1,) * (x.ndim - 1)) if scalar.ndim else scalar


class Schedule(ABC):
    """Abstract schedule. The reverse SDE is integrated over [t_min, t_max], inside [0, 1].

    A schedule of one's own needs what is abstract here. As a dataclass of numbers it is saved and
    loaded like those of the package, once its module is imported; of any other kind the object is
    to be given to what loads.
    """

    kinds: ClassVar[dict[str, type[Schedule]]] = {}  # by the name of the class

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        known = Schedule.kinds.setdefault(cls.__name__, cls)
        if known.__module__ == cls.__module__:  # defined anew, in a notebook or by dataclass(slots)
            Schedule.kinds[cls.__name__] = cls

    @property
    @abstractmethod
    def t_min(self) -> float:
        """Where the reverse SDE ends; the step from there to 0 is the final denoise."""

    @property
    @abstractmethod
    def t_max(self) -> float:
        """Where sampling starts from pure noise."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        r"""Signal scale $\alpha_t$, with the shape of `t`."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        r"""Noise scale $\sigma_t$, with the shape of `t`."""

    @abstractmethod
    def drift(self, t: Tensor) -> Tensor:
        r"""Linear drift $f(t) = d \log \alpha_t / dt$ of the forward SDE."""

    @abstractmethod
    def diffusion(self, t: Tensor) -> Tensor:
        r"""Diffusion coefficient $g(t)$ of the forward SDE."""

    def log_snr(self, t: Tensor) -> Tensor:
        r"""Log signal-to-noise ratio $\lambda_t = \log(\alpha_t / \sigma_t)$, decreasing in t."""
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))

    def time_at(self, log_snr: Tensor) -> Tensor:
        r"""The time at which the log-SNR has a value: the inverse of `log_snr`, with its shape.

        Found by bisection in [0, t_max]; the schedules of this package have it in closed form.
        """
        low, high = torch.zeros_like(log_snr), torch.full_like(log_snr, self.t_max)
        for _ in range(60):
            middle = (low + high) / 2
            noisier = self.log_snr(middle) < log_snr
            high, low = middle.where(noisier, high), low.where(noisier, middle)
        return high

    def timestep(self, t: Tensor) -> Tensor:
        """The time in the units that the network was trained with (default: t itself)."""
        return t

    @property
    def prior_std(self) -> float:
        r"""Standard deviation of the noise that sampling starts from, $\sigma_{t_{max}}$."""
        return float(self.sigma(torch.tensor(self.t_max, dtype=torch.float64)))

    def prior(
        self,
        shape: Sequence[int],
        generator: Generators | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        r"""What sampling starts from: $\sigma_{t_{max}} \varepsilon$, shape (batch, \*)."""
        return self.prior_std * randn(shape, generator, dtype, device)

    def corrupt(self, clean: Tensor, t: Tensor, noise: Tensor | Generators | None = None) -> Tensor:
        r"""Noised data $x_t = \alpha_t x_0 + \sigma_t \varepsilon$.

        Arguments:
            clean: Data $x_0$, shape (batch, \*).
            t: The time, a scalar or with shape (batch,).
            noise: $\varepsilon$ itself, or what draws it.
        """
        if not isinstance(noise, Tensor):
            noise = randn(clean.shape, noise, clean.dtype, clean.device)
        return expand(self.alpha(t), clean) * clean + expand(self.sigma(t), clean) * noise

    def config(self) -> dict[str, Any]:
        """The fields of a dataclass as JSON values; `schedule_from_config` rebuilds it.

        Of a schedule that is none they are a few of its values, to know it again by.
        """
        kind = type(self).__name__
        if dataclasses.is_dataclass(self) and Schedule.kinds[kind] is type(self):
            return {"kind": kind, **dataclasses.asdict(self)}
        return self.values()

    def values(self) -> dict[str, Any]:
        r"""The name, and a few values of $\alpha$ and $\sigma$."""
        t = torch.linspace(self.t_max, self.t_min, 5, dtype=torch.float64)
        alpha, sigma = self.alpha(t).tolist(), self.sigma(t).tolist()
        return {"kind": type(self).__name__, "alpha": alpha, "sigma": sigma}

    def __repr__(self) -> str:
        return str(self.config())

    def equals(self, other: Schedule) -> bool:
        r"""Whether another has the same $\alpha$ and $\sigma$ at the same times."""
        t = torch.linspace(self.t_max, self.t_min, 65, dtype=torch.float64)
        ends = [abs(self.t_max - other.t_max), abs(self.t_min - other.t_min)]
        return max(ends) < 1e-9 and all(
            torch.allclose(own(t), its(t), rtol=1e-6, atol=1e-9)
            for own, its in ((self.alpha, other.alpha), (self.sigma, other.sigma))
        )


@dataclass(frozen=True)
class VPLinear(Schedule):
    r"""Variance preserving, linear rate $\beta(t) = \beta_0 + t (\beta_1 - \beta_0)$.

    $\log \alpha_t = -\tfrac12 \int_0^t \beta$, $\sigma_t^2 = 1 - \alpha_t^2$, $f = -\beta / 2$,
    $g = \sqrt{\beta}$. With the defaults this is the DDPM schedule in continuous time.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -(self.beta_min * t / 2 + (self.beta_max - self.beta_min) * t**2 / 4)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self._log_alpha(t)))

    def drift(self, t: Tensor) -> Tensor:
        return -(self.beta_min + t * (self.beta_max - self.beta_min)) / 2

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.sqrt(self.beta_min + t * (self.beta_max - self.beta_min))

    def time_at(self, log_snr: Tensor) -> Tensor:
        # -2 log alpha = log(1 + exp(-2 lambda)) is beta_min t + (beta_max - beta_min) t^2 / 2.
        value = torch.logaddexp(torch.zeros_like(log_snr), -2 * log_snr)
        slope = torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * value)
        return 2 * value / (self.beta_min + slope)


@dataclass(frozen=True)
class Cosine(Schedule):
    r"""Cosine: $\alpha_t = \cos(\pi t / 2)$, $\sigma_t = \sin(\pi t / 2)$.

    With the offset $o$ of Nichol and Dhariwal (arXiv 2102.09672)
    $\alpha_t = \cos\theta_t / \cos\theta_0$ at
    $\theta_t = \tfrac{\pi}{2} \tfrac{t + o}{1 + o}$, and $\sigma_t^2 = 1 - \alpha_t^2$.
    $f = -\dot\theta \tan \theta_t$ is infinite at $t = 1$, hence `t_max` < 1; $g^2 = -2 f$.
    """

    t_min: float = 1e-3
    t_max: float = 0.995
    offset: float = 0.0

    def _angle(self, t: Tensor | float) -> Any:
        return math.pi / 2 * (t + self.offset) / (1 + self.offset)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(self._angle(t)) / math.cos(self._angle(0.0))

    def sigma(self, t: Tensor) -> Tensor:
        angle, first = self._angle(t), self._angle(0.0)
        squared = torch.sin(angle - first) * torch.sin(angle + first)  # without cancellation
        return squared.clamp(min=0).sqrt() / math.cos(first)

    def drift(self, t: Tensor) -> Tensor:
        return -math.pi / 2 / (1 + self.offset) * torch.tan(self._angle(t))

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.sqrt(math.pi / (1 + self.offset) * torch.tan(self._angle(t)))

    def time_at(self, log_snr: Tensor) -> Tensor:
        first = self._angle(0.0)
        tangent = torch.exp(-log_snr).hypot(log_snr.new_tensor(math.sin(first))) / math.cos(first)
        time = (1 + self.offset) * 2 / math.pi * torch.atan(tangent) - self.offset
        return time.clamp(min=0)


@dataclass(frozen=True)
class EDM(Schedule):
    r"""Variance exploding, in the time of Karras et al.: $\sigma_t = \sigma_{max} t^\rho$.

    $\alpha_t = 1$ and $t_{min} = (\sigma_{min} / \sigma_{max})^{1/\rho}$. A uniform grid on
    [t_min, 1] is exactly their $\rho$-spaced grid of noise levels. Networks see
    $\log(\sigma) / 4$.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    @property
    def t_min(self) -> float:
        """Time at which the noise is `sigma_min`."""
        return float((self.sigma_min / self.sigma_max) ** (1 / self.rho))

    @property
    def t_max(self) -> float:
        """Time at which the noise is `sigma_max`."""
        return 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_max * t**self.rho

    def drift(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.sigma_max * torch.sqrt(2 * self.rho * t ** (2 * self.rho - 1))

    def time_at(self, log_snr: Tensor) -> Tensor:
        return (torch.exp(-log_snr) / self.sigma_max) ** (1 / self.rho)

    def timestep(self, t: Tensor) -> Tensor:
        return torch.log(self.sigma(t)) / 4


@dataclass(frozen=True)
class VEGeometric(Schedule):
    r"""Variance exploding, $\sigma_t = \sigma_{min} (\sigma_{max} / \sigma_{min})^t$ (Song et al.).

    $\alpha_t = 1$, $g = \sigma_t \sqrt{2 \log(\sigma_{max} / \sigma_{min})}$; at $t = 0$ there is
    no noise. Networks see $\sigma$.
    """

    sigma_min: float = 0.01
    sigma_max: float = 1348.0
    t_min: float = 1e-5
    t_max: float = 1.0

    @property
    def _rate(self) -> float:
        """Derivative of log sigma."""
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.where(t > 0, self.sigma_min * torch.exp(self._rate * t), 0)

    def drift(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.sigma(t) * math.sqrt(2 * self._rate)

    def time_at(self, log_snr: Tensor) -> Tensor:
        return ((-log_snr - math.log(self.sigma_min)) / self._rate).clamp(min=0)

    def timestep(self, t: Tensor) -> Tensor:
        return self.sigma(t)


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    r"""Straight paths: $\alpha_t = 1 - \sigma_t$, $\sigma_t = k t / (1 + (k - 1) t)$, shift $k$.

    With $k = 1$, $f = -1 / (1 - t)$ and $g^2 = 2 t / (1 - t)$, infinite at $t = 1$: `t_max` is 1
    only for the exponential step, which needs neither there. A shift (SD3, Flux) spends more of a
    uniform grid at high noise. Networks see a time that goes from `clean` at the data to
    `timesteps` at pure noise, linear in sigma.
    """

    shift: float = 1.0
    timesteps: float = 1.0
    t_min: float = 1e-3
    t_max: float = 0.999
    clean: float = 0.0

    def sigma(self, t: Tensor) -> Tensor:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - t) / (1 + (self.shift - 1) * t)

    def _rate(self, t: Tensor) -> Tensor:
        """Derivative of sigma."""
        return self.shift / (1 + (self.shift - 1) * t) ** 2

    def drift(self, t: Tensor) -> Tensor:
        return -self._rate(t) / self.alpha(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.sqrt(2 * self.sigma(t) * self._rate(t) / self.alpha(t))

    def time_at(self, log_snr: Tensor) -> Tensor:
        return 1 / (1 + self.shift * torch.exp(log_snr))

    def timestep(self, t: Tensor) -> Tensor:
        return self.clean + (self.timesteps - self.clean) * self.sigma(t)


@dataclass(frozen=True)
class DiscreteVP(Schedule):
    r"""Variance preserving, given at N integer timesteps by $\bar\alpha_i = \alpha^2$.

    Timestep $i$ is time $t = (i + 1) / N$. Between timesteps the log-SNR is interpolated linearly,
    below the first it is extrapolated, and $t = 0$ is clean data. Hence
    $f = \sigma^2 d\lambda/dt$, $g^2 = -2 \sigma^2 d\lambda/dt$.

    Arguments:
        log_snrs: $\lambda$ at the timesteps, strictly decreasing, N >= 2 values.
    """

    log_snrs: tuple[float, ...]

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor, least: float = 1.0) -> DiscreteVP:
        r"""From the table of diffusers' schedulers; a terminal SNR of zero is kept just above it.

        Arguments:
            alphas_cumprod: $\bar\alpha$ at the timesteps, shape (N,).
            least: What stands for a zero at their end, half the value before it at most. A small
                one is nearer to what the network was trained with, and makes the drift of the last
                interval steep.
        """
        a = alphas_cumprod.double().clamp(max=1 - 2.0**-24)
        # Some schedulers write 2^-24 for zero, which may lie above the value before it.
        if len(a) > 1 and not 0 < float(a[-1]) < float(a[-2]):
            a[-1] = min(least, float(a[-2]) / 2)
        return cls(tuple((torch.log(a / (1 - a)) / 2).tolist()))

    def __post_init__(self) -> None:
        if len(self.log_snrs) < 2 or not bool((self._table.diff() < 0).all()):
            raise SigdegError("a discrete schedule needs at least 2 strictly decreasing log-SNRs")

    @functools.cached_property
    def _table(self) -> Tensor:
        return torch.tensor(self.log_snrs, dtype=torch.float64)

    @property
    def alphas_cumprod(self) -> Tensor:
        r"""$\bar\alpha = \alpha^2$ at the timesteps, shape (N,)."""
        return torch.sigmoid(2 * self._table)

    @property
    def t_min(self) -> float:
        """Time of the first timestep, 1 / N."""
        return 1 / len(self.log_snrs)

    @property
    def t_max(self) -> float:
        """Time of the last timestep."""
        return 1.0

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Log-SNR and its slope in t."""
        table = self._table.to(t.device)
        position = t.double() * len(table) - 1
        left = position.floor().clamp(0, len(table) - 2).long()
        slope = table[left + 1] - table[left]
        return table[left] + slope * (position - left), slope * len(table)

    def log_snr(self, t: Tensor) -> Tensor:
        value, _ = self._segment(t)
        return torch.where(t > 0, value, torch.inf).to(t.dtype)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(2 * self.log_snr(t)).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-2 * self.log_snr(t)).sqrt()

    def drift(self, t: Tensor) -> Tensor:
        return self.sigma(t) ** 2 * self._segment(t)[1].to(t.dtype)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.sigma(t) * torch.sqrt(-2 * self._segment(t)[1]).to(t.dtype)

    def time_at(self, log_snr: Tensor) -> Tensor:
        table, value = self._table.to(log_snr.device), log_snr.double()
        left = (torch.searchsorted(-table, -value) - 1).clamp(0, len(table) - 2)
        position = left + (value - table[left]) / (table[left + 1] - table[left])
        return ((position + 1) / len(table)).clamp(0, 1).to(log_snr.dtype)

    def timestep(self, t: Tensor) -> Tensor:
        return t * len(self.log_snrs) - 1


def schedule_from_config(config: dict[str, Any], own: Schedule | None = None) -> Schedule:
    """Rebuild a schedule from `Schedule.config()`.

    Arguments:
        config: What `config` gave.
        own: The schedule, where it is a class of your own that is no dataclass.

    Raises:
        SigdegError: If the kind is unknown, a parameter does not belong to it, or the schedule that
            is given is another one.
    """
    parameters = dict(config)
    kind = parameters.pop("kind", None)
    if own is not None:
        told = own.values() if "alpha" in config else own.config()
        close = {key: same_numbers(told.get(key), value) for key, value in config.items()}
        if not all(close.values()) or told.keys() != config.keys():
            raise SigdegError(f"the schedule that is given is not the {kind} that was saved")
        return own
    if kind not in Schedule.kinds or "alpha" in config:
        raise SigdegError(
            f"unknown schedule {kind!r}: choose from {', '.join(Schedule.kinds)}, or pass the "
            "object where it is a class of your own (schedule=...)"
        )
    try:
        for name, value in parameters.items():
            if isinstance(value, list):
                listed(number())(value, name)
                parameters[name] = tuple(value)
            else:
                number()(value, name)
        schedule = Schedule.kinds[kind](**parameters)
    except (TypeError, ValueError) as error:
        raise SigdegError(f"schedule {kind}: {error}") from None
    return schedule


def same_numbers(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal, numbers up to rounding."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same_numbers, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
    return bool(one == other)
