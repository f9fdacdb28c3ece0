r"""Denoisers: every network, whatever it predicts, becomes the posterior mean $E[x_0 | x_t]$.

The conversion happens once, here. The rest of the library knows only the mean; the score is
$\nabla \log p_t(x) = (\alpha_t E[x_0 | x_t = x] - x) / \sigma_t^2$ (Tweedie).
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sigdeg.errors import SigdegError, check_choice
from sigdeg.schedule import Schedule, expand

__all__ = [
    "AutoGuidance",
    "ClassifierFreeGuidance",
    "Denoiser",
    "GaussianDenoiser",
    "GaussianMixtureDenoiser",
    "Guidance",
    "NetworkDenoiser",
    "Prediction",
    "Timesteps",
    "check_timesteps",
    "network_target",
    "network_time",
    "posterior_mean",
    "scale_input",
    "unwrap",
    "wide",
]

Prediction = Literal["epsilon", "v_prediction", "sample", "score", "flow", "edm"]
Timesteps = Literal["continuous", "integer"]
MIN_TIMESTEPS = 8  # a schedule of fewer does not count them: EDM's run from -1.6 to 1.1


def posterior_mean(
    output: Tensor,
    x: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    prediction: Prediction,
    data_std: float = 0.5,
) -> Tensor:
    r"""Convert a network's output to $E[x_0 | x_t]$.

    | prediction | the output $F$ | $E[x_0 \mid x_t]$ |
    |---|---|---|
    | `epsilon` | $E[\varepsilon \mid x_t]$ | $(x - \sigma F) / \alpha$ |
    | `v_prediction` | $\alpha \varepsilon - \sigma x_0$ | $(\alpha x - \sigma F) / q^2$ |
    | `sample` | $x_0$ | $F$ |
    | `score` | $\nabla \log p_t$ | $(x + \sigma^2 F) / \alpha$ |
    | `flow` | $\varepsilon - x_0$ | $(x - \sigma F) / (\alpha + \sigma)$ |
    | `edm` | preconditioned | $(\alpha v x + \sigma n \sqrt v F) / n^2$ |

    with $q^2 = \alpha^2 + \sigma^2$ and $n^2 = \alpha^2 v + \sigma^2$. `edm` is the preconditioning
    of Karras et al. for any $\alpha$: with data of variance $v$ the network sees $x / n$ and
    predicts unit variance at every time.

    Arguments:
        output: The network's output, shape (batch, \*).
        x: The state, shape (batch, \*).
        alpha: Signal scale, broadcast against `x`.
        sigma: Noise scale, broadcast against `x`.
        prediction: What the network predicts.
        data_std: $\sqrt v$, the data's standard deviation that `edm` assumes.
    """
    match prediction:
        case "epsilon":
            return (x - sigma * output) / alpha
        case "v_prediction":
            return (alpha * x - sigma * output) / (alpha**2 + sigma**2)
        case "sample":
            return output
        case "score":
            return (x + sigma**2 * output) / alpha
        case "flow":
            return (x - sigma * output) / (alpha + sigma)
        case "edm":
            n2 = alpha**2 * data_std**2 + sigma**2
            return (alpha * data_std**2 * x + sigma * data_std * n2.sqrt() * output) / n2
    raise SigdegError(f"unknown prediction {prediction!r}: choose from {get_args(Prediction)}")


def network_target(
    clean: Tensor,
    noise: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    prediction: Prediction,
    data_std: float = 0.5,
) -> Tensor:
    r"""What a network of a kind is trained to predict, given $x_0$ and $\varepsilon$.

    The output whose `posterior_mean` is $x_0$ itself, see the table there.
    """
    match prediction:
        case "epsilon":
            return noise
        case "v_prediction":
            return alpha * noise - sigma * clean
        case "sample":
            return clean
        case "score":
            return -noise / sigma
        case "flow":
            return noise - clean
        case "edm":
            n2 = alpha**2 * data_std**2 + sigma**2
            return (sigma * clean - alpha * data_std**2 * noise) / (data_std * n2.sqrt())
    raise SigdegError(f"unknown prediction {prediction!r}: choose from {get_args(Prediction)}")


def scale_input(
    x: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction, data_std: float = 0.5
) -> Tensor:
    """The state as the network sees it: scaled to unit variance for `edm`, as it is otherwise."""
    return x / (alpha**2 * data_std**2 + sigma**2).sqrt() if prediction == "edm" else x


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


class NetworkDenoiser(Denoiser):
    r"""A network as a denoiser.

    Arguments:
        network: Called as `network(x, timestep, **condition)`. A diffusers output object or a tuple
            is unwrapped; of twice as many channels as `x` has (a learned variance) half go.
        schedule: The schedule it was trained with.
        prediction_type: What it predicts, see `posterior_mean`.
        clip: Clamp the mean to [-clip, clip], as diffusers' `clip_sample` does for pixel models.
        data_std: The data's standard deviation, for `edm` only.
        timesteps: `integer` gives the network whole timesteps, the nearest, in int64: a table or an
            embedding of them takes no others.

    Raises:
        SigdegError: If the prediction type or the kind of timesteps is unknown, or the schedule
            has no whole timesteps.
    """

    # Not an attribute of every instance: caches made before there was a choice stay valid.
    timesteps: Timesteps = "continuous"

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction_type: Prediction = "epsilon",
        clip: float | None = None,
        data_std: float = 0.5,
        timesteps: Timesteps = "continuous",
    ) -> None:
        super().__init__(schedule)
        check_timesteps(schedule, timesteps)
        if timesteps != self.timesteps:
            self.timesteps = timesteps
        check_choice(prediction_type, get_args(Prediction), "prediction type")
        self.network = network
        self.prediction_type: Prediction = prediction_type
        self.clip = clip
        self.data_std = data_std

    def scales(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        r"""$\alpha_t$ and $\sigma_t$, broadcast against a state."""
        t = torch.as_tensor(t, dtype=torch.float64)
        return expand(self.schedule.alpha(t), x), expand(self.schedule.sigma(t), x)

    def output(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        r"""What the network itself says, shape (batch, \*)."""
        scaled = scale_input(x, *self.scales(x, t), self.prediction_type, self.data_std)
        timestep = network_time(self.schedule, t, x, self.timesteps)
        try:
            output = self.network(scaled, timestep, **condition)
        except (RuntimeError, IndexError) as error:
            if timestep.is_floating_point() and re.search(
                "(?i)types?: long|must be long", str(error)
            ):
                raise SigdegError(
                    "the network looks its timesteps up in a table: give NetworkDenoiser "
                    'timesteps="integer"'
                ) from error
            raise
        output = unwrap(output)
        channels = x.shape[1]
        if output.shape not in (x.shape, (len(x), 2 * channels, *x.shape[2:])):
            raise SigdegError(
                f"the network makes {tuple(output.shape[1:])} of a state of shape "
                f"{tuple(x.shape[1:])}: it must be the same, or, with a learned variance, twice as "
                "many channels"
            )
        return output[:, :channels]

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        return self.to_mean(self.output(x, t, **condition), x, t)

    def to_mean(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The mean, clipped at the very end."""
        alpha, sigma = self.scales(x, t)
        mean = posterior_mean(output, x, alpha, sigma, self.prediction_type, self.data_std)
        return mean if self.clip is None else mean.clamp(-self.clip, self.clip)


def network_time(schedule: Schedule, t: Tensor | float, x: Tensor, timesteps: Timesteps) -> Tensor:
    """The times as the network of a state is told them, shape (batch,)."""
    timestep = schedule.timestep(torch.as_tensor(t, dtype=torch.float64))
    if timesteps == "integer":  # rounded before anything else; below the first there is none
        timestep = timestep.round().clamp(min=0).long()
        return timestep.to(x.device).expand(x.shape[0])
    return timestep.to(x.device, wide(x)).expand(x.shape[0])


def check_timesteps(schedule: Schedule, timesteps: str) -> None:
    """Refuse an unknown kind of timesteps, and whole ones of a schedule that has none.

    Raises:
        SigdegError: In both cases.
    """
    check_choice(timesteps, get_args(Timesteps), "timesteps")
    ends = torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)
    first, last = schedule.timestep(ends).tolist()
    if timesteps == "integer" and last - first < MIN_TIMESTEPS:
        raise SigdegError(
            f"the timesteps of this {type(schedule).__name__} run from {first:.4g} to {last:.4g}: "
            "integer ones need a schedule that counts them, such as from_scheduler gives"
        )


def wide(x: Tensor) -> torch.dtype:
    """Type for timesteps: half precision would round 999 to 1000."""
    return torch.promote_types(x.dtype, torch.float32)


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


class Guidance(Denoiser):
    r"""Abstract: $F_{other} + w (F - F_{other})$, which goes further where another differs.

    $F$ is what the denoisers predict, so the means are guided by the same rule; where one clips,
    what guidance has made of them is clipped, as diffusers does it: they are not clipped before.

    At high noise the two differ in which mode they expect, and guidance shifts the shares of the
    modes; what it gains, it gains later. `until` keeps it from there (Kynkäänniemi et al.,
    *Applying guidance in a limited interval improves sample and distribution quality*, 2024).

    Arguments:
        denoiser: The denoiser that is guided.
        scale: The guidance scale $w$; 1 is the denoiser itself.
        until: The time above which there is none, and one call less.
    """

    def __init__(self, denoiser: Denoiser, scale: float, until: float = 1.0) -> None:
        if not 0 < until <= 1:
            raise SigdegError(f"guidance must end at a time in (0, 1], got {until}")
        super().__init__(denoiser.schedule)
        self.denoiser = denoiser
        self.scale = scale
        self.until = until

    def calls(self, t: Tensor) -> int:
        """Two where guided."""
        return t.numel() + int((t <= self.until).sum())

    def output(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """The guided output."""
        guided = torch.as_tensor(t) <= self.until
        if not bool(guided.any()):
            return self.denoiser.output(x, t, **condition)
        output, other = self.both(x, t, condition)
        moved = other + self.scale * (output - other)
        return moved if bool(guided.all()) else torch.where(expand(guided, x).bool(), moved, output)

    def to_mean(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """As the denoiser that is guided does it."""
        return self.denoiser.to_mean(output, x, t)

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        return self.to_mean(self.output(x, t, **condition), x, t)

    @abstractmethod
    def both(self, x: Tensor, t: Tensor, condition: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Outputs of the denoiser and of the other one."""


class ClassifierFreeGuidance(Guidance):
    r"""Guidance by classes: $D_\emptyset + w (D_c - D_\emptyset)$.

    Convention: $w = 1$ is the conditional model, $w = 0$ the unconditional one (diffusers' scale).
    Both are computed in one call of twice the batch.

    Arguments:
        denoiser: Conditional denoiser.
        scale: The guidance scale $w$.
        unconditional: The condition that stands for none, each a tensor with batch size 1.
        until: The time above which there is none.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float,
        unconditional: dict[str, Tensor],
        until: float = 1.0,
    ) -> None:
        super().__init__(denoiser, scale, until)
        self.unconditional = unconditional

    def both(self, x: Tensor, t: Tensor, condition: dict[str, Any]) -> tuple[Tensor, Tensor]:
        if set(condition) != set(self.unconditional):
            raise SigdegError(
                f"guidance needs the conditions {sorted(self.unconditional)}, "
                f"got {sorted(condition)}"
            )
        n = x.shape[0]
        both = {
            key: torch.cat([value, self.unconditional[key].to(value).expand_as(value)])
            for key, value in condition.items()
        }
        t = torch.as_tensor(t)
        t = t if t.ndim == 0 else torch.cat([t, t])
        output = self.denoiser.output(torch.cat([x, x]), t, **both)
        return output[:n], output[n:]


class AutoGuidance(Guidance):
    r"""Guidance by a denoiser's weaker version: $D_{weak} + w (D - D_{weak})$.

    One of the same data that is smaller, or was trained for less long, errs where the good one
    does, only more: away from it lies what both were after, no classes needed. $w = 1$ is the
    denoiser itself.

    Arguments:
        denoiser: The denoiser.
        weak: The weaker one, of the same noise levels, that predicts the same.
        scale: The guidance scale $w$; 1.5 to 2 is usual.
        until: The time above which there is none.

    Raises:
        SigdegError: If one predicts another quantity than the other.

    Reference:
        Karras et al., *Guiding a diffusion model with a bad version of itself* (2024).
    """

    def __init__(
        self, denoiser: Denoiser, weak: Denoiser, scale: float, until: float = 1.0
    ) -> None:
        super().__init__(denoiser, scale, until)
        kinds = [getattr(d, "prediction_type", "sample") for d in (denoiser, weak)]
        if kinds[0] != kinds[1]:
            raise SigdegError(
                f"the weaker version predicts {kinds[1]}, this one {kinds[0]}: what guides and "
                "what is guided must be the same quantity"
            )
        self.weak = weak

    def both(self, x: Tensor, t: Tensor, condition: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return self.denoiser.output(x, t, **condition), self.weak.output(x, t, **condition)


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
