r"""Denoisers: every network, whatever it predicts, becomes the posterior mean $E[x_0 | x_t]$.

The conversion happens once, here. The rest of the library knows only the mean; the score is
$\nabla \log p_t(x) = (\alpha_t E[x_0 | x_t = x] - x) / \sigma_t^2$ (Tweedie).
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sigdeg.errors import SigdegError, check_choice
from sigdeg.networks import Call, Function, call_network
from sigdeg.prediction import Preconditioning, Prediction, preconditioning
from sigdeg.schedule import Schedule, expand

__all__ = [
    "CalledNetwork",
    "Denoiser",
    "GaussianDenoiser",
    "GaussianMixtureDenoiser",
    "NetworkDenoiser",
    "Timesteps",
    "unwrap",
]

Timesteps = Literal["continuous", "integer", "time"]
MIN_TIMESTEPS = 8  # a schedule of fewer does not count them: EDM's run from -1.6 to 1.1


class Denoiser(nn.Module):
    r"""Abstract posterior mean $D(x, t) = E[x_0 | x_t = x]$ of a diffusion with a schedule."""

    schedule: Schedule
    __call__: Callable[..., Tensor]

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        r"""Posterior mean.

        Arguments:
            x: State, shape (batch, \*).
            t: Time in (0, 1], a scalar or with shape (batch,).
            condition: Passed on to the network (class labels, embeddings ...).
        """

    def output(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        r"""What guidance acts on: a network's own output (default: the mean), shape (batch, \*)."""
        return self(x, t, **condition)

    def to_mean(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The mean that an output, guided or not, stands for."""
        return output

    def calls(self, t: Tensor) -> int:
        """Network calls a sample that the means at the times t cost."""
        return t.numel()

    def score(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        r"""Score $\nabla \log p_t(x)$, shape (batch, \*)."""
        alpha, sigma = expand(self.schedule.alpha(t), x), expand(self.schedule.sigma(t), x)
        return (alpha * self(x, t, **condition) - x) / sigma**2

    def reverse_drift(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        r"""Drift $-f(t) x + g(t)^2 \nabla \log p_t(x)$ of the reverse SDE in reverse time."""
        f, g = expand(self.schedule.drift(t), x), expand(self.schedule.diffusion(t), x)
        return -f * x + g**2 * self.score(x, t, **condition)


class CalledNetwork(nn.Module):
    r"""A network and how it is called: what it is told of a state, and what its output means.

    The one boundary between networks and everything else, of a denoiser and of a student: for a
    state $x$ at a time $t$ the network is given $c_{in} x$ and its own timestep, and the mean is
    $c_{skip} x + c_{out} F$ (`sigdeg.prediction`), clipped.

    Arguments:
        network: Called as `network(x, timestep, **condition)`, the timestep by its name where that
            is not the second argument. A diffusers output object or a tuple is unwrapped; of twice
            as many channels as `x` has (a learned variance) half go. A function is a network that
            cannot be trained: an ONNX session, say, with its inputs and outputs turned to tensors.
        schedule: The schedule it was trained with.
        prediction_type: What it predicts, see `sigdeg.prediction`.
        clip: Clamp the mean to [-clip, clip], as diffusers' `clip_sample` does for pixel models.
        data_std: The data's standard deviation, for `edm` and `edm_v` only.
        timesteps: `integer` gives the network whole timesteps, the nearest, in int64: a table or an
            embedding of them takes no others. `time` gives it the time in [0, 1] itself, whatever
            the schedule counts.
        call: How the network is called, where that is different: a function of the network, its
            input, timestep and condition.

    Raises:
        SigdegError: If the prediction type or the kind of timesteps is unknown, or the schedule
            has no whole timesteps.
    """

    # No attributes of every instance: caches made before there was a choice stay valid.
    timesteps: Timesteps = "continuous"
    call: Call | None = None

    def __init__(
        self,
        network: nn.Module | Callable[..., Any],
        schedule: Schedule,
        prediction_type: Prediction = "epsilon",
        clip: float | None = None,
        data_std: float = 0.5,
        timesteps: Timesteps = "continuous",
        call: Call | None = None,
    ) -> None:
        nn.Module.__init__(self)
        check_timesteps(schedule, timesteps)
        if timesteps != self.timesteps:
            self.timesteps = timesteps
        check_choice(prediction_type, get_args(Prediction), "prediction type")
        if clip is not None and not clip > 0:
            raise SigdegError(f"clip must be above 0, got {clip}")
        self.schedule = schedule
        self.network = network if isinstance(network, nn.Module) else Function(network)
        self.prediction_type: Prediction = prediction_type
        self.clip = clip
        self.data_std = data_std
        if call is not None:
            self.call = call

    def scales(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        r"""$\alpha_t$ and $\sigma_t$, broadcast against a state."""
        t = torch.as_tensor(t, dtype=torch.float64)
        return expand(self.schedule.alpha(t), x), expand(self.schedule.sigma(t), x)

    def preconditioning(self, x: Tensor, t: Tensor | float) -> Preconditioning:
        """What stands around the network at a time, broadcast against a state."""
        return preconditioning(*self.scales(x, t), self.prediction_type, self.data_std)

    def timestep(self, x: Tensor, t: Tensor | float) -> Tensor:
        """The times as the network of a state is told them, shape (batch,)."""
        t = torch.as_tensor(t, dtype=torch.float64)
        timestep = t if self.timesteps == "time" else self.schedule.timestep(t)
        if self.timesteps == "integer":  # rounded first of all; below the first there is none
            return timestep.round().clamp(min=0).long().to(x.device).expand(x.shape[0])
        # In half precision 999 would be 1000.
        wide = torch.promote_types(x.dtype, torch.float32)
        return timestep.to(x.device, wide).expand(x.shape[0])

    def answer(
        self, inputs: Tensor, timestep: Tensor, shape: torch.Size, condition: Mapping[str, Any]
    ) -> Tensor:
        r"""What the network says of a state of a shape, without a learned variance."""
        try:
            output = unwrap((self.call or call_network)(self.network, inputs, timestep, condition))
        except (RuntimeError, IndexError) as error:
            if timestep.is_floating_point() and re.search(
                "(?i)types?: long|must be long", str(error)
            ):
                raise SigdegError(
                    "the network looks its timesteps up in a table: give NetworkDenoiser "
                    'timesteps="integer"'
                ) from error
            raise
        if output.shape not in (shape, (shape[0], 2 * shape[1], *shape[2:])):
            raise SigdegError(
                f"the network makes {tuple(output.shape[1:])} of a state of shape "
                f"{tuple(shape[1:])}: it must be the same, or, with a learned variance, twice as "
                "many channels"
            )
        return output[:, : shape[1]]

    def mean(self, output: Tensor, x: Tensor, around: Preconditioning) -> Tensor:
        """The posterior mean that an output stands for, clipped at the very end."""
        mean = around.mean(output, x)
        return mean if self.clip is None else mean.clamp(-self.clip, self.clip)


class NetworkDenoiser(CalledNetwork, Denoiser):
    """A network as a denoiser: see `CalledNetwork` for the arguments."""

    def output(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        r"""What the network itself says, shape (batch, \*)."""
        scaled = self.preconditioning(x, t).scale(x)
        return self.answer(scaled, self.timestep(x, t), x.shape, condition)

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        around = self.preconditioning(x, t)
        output = self.answer(around.scale(x), self.timestep(x, t), x.shape, condition)
        return self.mean(output, x, around)

    def to_mean(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The mean, clipped at the very end."""
        return self.mean(output, x, self.preconditioning(x, t))


def check_timesteps(schedule: Schedule, timesteps: str) -> None:
    """Refuse an unknown kind of timesteps, and whole ones of a schedule that has none."""
    if not isinstance(schedule, Schedule):
        raise SigdegError(
            f"a network is told its schedule, such as VPLinear(), got {schedule!r:.60}"
        )
    check_choice(timesteps, get_args(Timesteps), "timesteps")
    ends = torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)
    first, last = schedule.timestep(ends).tolist()
    if timesteps == "integer" and abs(last - first) < MIN_TIMESTEPS:
        raise SigdegError(
            f"the timesteps of this {type(schedule).__name__} run from {first:.4g} to {last:.4g}: "
            "integer ones need a schedule that counts them, such as from_scheduler gives"
        )


def unwrap(output: Any) -> Tensor:
    """The tensor inside a diffusers output, a tuple, or the tensor itself."""
    if isinstance(output, Tensor):
        return output
    try:
        tensor = output[0]
    except (TypeError, LookupError):
        tensor = None
    if not isinstance(tensor, Tensor):
        raise SigdegError(
            "a network must give a tensor, a tuple that begins with one or an output of diffusers, "
            f"got a {type(output).__name__}"
        )
    return tensor


class GaussianDenoiser(Denoiser):
    r"""Exact denoiser of Gaussian data $N(\mu, \mathrm{diag}(s^2))$.

    $E[x_0 | x_t] = \mu + \frac{\alpha_t s^2}{\alpha_t^2 s^2 + \sigma_t^2} (x_t - \alpha_t \mu)$.

    Arguments:
        mean: $\mu$, broadcast against a sample.
        std: $s$, broadcast against a sample.
        schedule: The schedule.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor | float, std: Tensor | float, schedule: Schedule) -> None:
        super().__init__(schedule)
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float64))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        t = torch.as_tensor(t)
        alpha, sigma = expand(self.schedule.alpha(t), x), expand(self.schedule.sigma(t), x)
        mean, variance = self.mean.to(x), self.std.to(x) ** 2
        return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)


class GaussianMixtureDenoiser(Denoiser):
    r"""Exact denoiser of a mixture $\sum_k w_k N(\mu_k, \Sigma_k)$.

    With responsibilities
    $r_k(x) \propto w_k N(x; \alpha \mu_k, \alpha^2 \Sigma_k + \sigma^2 I)$ the mean is
    $\sum_k r_k(x) m_k(x)$, $m_k$ the posterior mean of component $k$.

    Arguments:
        means: $\mu_k$, shape (components,) for scalar data or (components, features).
        stds: $s_k$ of components with $\Sigma_k = s_k^2 I$, shape (components,); or the covariances
            $\Sigma_k$ themselves, shape (components, features, features).
        weights: $w_k$, shape (components,), normalised here.
        schedule: The schedule.

    Raises:
        SigdegError: If the shapes do not fit.
    """

    means: Tensor
    variances: Tensor
    directions: Tensor | None
    log_weights: Tensor

    def __init__(
        self,
        means: Tensor | Sequence[float],
        stds: Tensor | Sequence[float],
        weights: Tensor | Sequence[float],
        schedule: Schedule,
    ) -> None:
        super().__init__(schedule)
        means, stds, weights = (
            torch.as_tensor(v, dtype=torch.float64) for v in (means, stds, weights)
        )
        if means.ndim == 1:
            means = means[:, None]
        if not len(means) == len(stds) == len(weights):
            raise SigdegError(
                f"a mixture needs as many means, stds and weights, "
                f"got {len(means)}, {len(stds)}, {len(weights)}"
            )
        n, features = means.shape
        if stds.shape not in ((n,), (n, features, features)):
            raise SigdegError(
                f"stds of {n} components in {features} dimensions have shape ({n},), or, as "
                f"covariances, ({n}, {features}, {features}), got {tuple(stds.shape)}"
            )
        variances, directions = stds**2, None
        if stds.ndim == 3:
            variances, directions = torch.linalg.eigh(stds)
            variances = variances.T  # components last, as below
        if bool((variances < 0).any()) or not torch.allclose(
            stds, stds.mT if stds.ndim == 3 else stds
        ):
            raise SigdegError("covariances must be symmetric and positive")
        self.register_buffer("means", means)
        self.register_buffer("variances", variances)
        self.register_buffer("directions", directions)
        self.register_buffer("log_weights", torch.log(weights / weights.sum()))

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        t = torch.as_tensor(t)
        alpha, sigma = (
            expand(s(t), x)[..., None] for s in (self.schedule.alpha, self.schedule.sigma)
        )
        means, own, log_weights = (v.to(x) for v in (self.means, self.variances, self.log_weights))
        # components on the last axis: residual (batch, features, k), variance (batch or 1, *, k)
        variance = alpha**2 * own + sigma**2
        residual = x[..., None] - alpha * means.T
        U = None if self.directions is None else self.directions.to(x)
        if U is not None:
            residual = torch.einsum("bik,kij->bjk", residual, U)
        density = residual**2 / variance + torch.log(2 * math.pi * variance)
        posterior = alpha * own / variance * residual
        if U is not None:
            posterior = torch.einsum("bjk,kij->bik", posterior, U)
        shares = torch.softmax(log_weights - density.sum(-2, keepdim=True) / 2, dim=-1)
        return (shares * (means.T + posterior)).sum(-1)
