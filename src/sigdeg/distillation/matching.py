r"""Distribution matching: samples that follow the teacher's law, whatever their path.

The losses on paths compare a student with its teacher *given the path*. Where few coefficients of
it are seen, or many steps lie between, most of that comparison is noise, and what a viewer would
see at once, a stroke in two minds, hardly counts. The Kullback-Leibler divergence of the student's
samples x from the teacher's, both noised to $x_t = \alpha_t x + \sigma_t \varepsilon$, does not
look at paths. Its gradient is a difference of two scores,

$$ \nabla_\theta = E\left[ w \left( D_{critic}(x_t) - D_{teacher}(x_t) \right)
   \frac{\partial x}{\partial \theta} \right], \qquad
   w = \frac{d}{\| x - D_{teacher}(x_t) \|_1}, $$

up to positive weights of t, d the size of a sample. The *critic* starts as the teacher and is
trained beside the student to denoise the student's own samples.

References:
    Wang et al., *ProlificDreamer* (variational score distillation; 2023).
    Luo et al., *Diff-Instruct* (2023).
    Yin et al., *One-step diffusion with distribution matching distillation* (2024): the weight w,
    and a loss on pairs beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from sigdeg.denoiser import NetworkDenoiser
from sigdeg.errors import SigdegError
from sigdeg.guidance import Guidance
from sigdeg.networks import widen
from sigdeg.paths.batch import Part, integers, normals
from sigdeg.schedule import Schedule
from sigdeg.steps import GaussianStep
from sigdeg.student import maps

__all__ = ["Matching"]

NOISE_LEVELS = 1000


class Matching(nn.Module):
    """Divergence of samples from the teacher's law; see the module's docstring.

    Arguments:
        teacher: The teacher's step: its denoiser must be a network, guided or not.
        channels: Channels of the samples.
        levels: How many kinds of samples there are, one a step count of the student. The critic
            is told of which kind a sample is.
        like: The student's network: where it was widened, the critic is widened alike.

    Raises:
        SigdegError: If the teacher has no network to start a critic from.
    """

    rate_factor = 3.0  # a critic slower than the student goes round in circles with it

    def __init__(
        self, teacher: GaussianStep, channels: int, levels: int = 1, like: nn.Module | None = None
    ) -> None:
        super().__init__()
        denoiser: Any = getattr(teacher, "denoiser", None)
        own = denoiser.denoiser if isinstance(denoiser, Guidance) else denoiser
        if not isinstance(own, NetworkDenoiser):
            raise SigdegError("distribution matching needs a teacher whose denoiser is a network")
        self.levels = levels
        self.times = times_by_share(own.schedule)
        self.critic = NetworkDenoiser(
            LevelConditioned(own, channels, levels, like),
            own.schedule,
            own.prediction_type,
            own.clip,
            own.data_std,
            own.timesteps,
        ).train()
        # A function is no part of this module, and copies of the module share it.
        self.target: Callable[..., Tensor] = lambda *inputs, **given: denoiser(*inputs, **given)

    def forward(
        self,
        samples: Sequence[Tensor],
        conditions: Sequence[dict[str, Any]],
        generator: Generator | Part,
    ) -> tuple[Tensor, Tensor]:
        r"""A loss that has the divergence's gradient, and the critic's own.

        Of samples of each level, shape (n, \*), and what they were asked to be; noise and its
        levels come from a stream on the CPU, or the part of one that is for these samples.
        """
        critic, x = self.critic, torch.cat(list(samples))
        sizes = torch.tensor([len(part) for part in samples])
        level = torch.arange(len(samples)).repeat_interleave(sizes)
        condition = {key: torch.cat([c[key] for c in conditions]) for key in conditions[0]}
        chosen = integers(len(self.times), len(x), generator)
        t = self.times[chosen].to(x.device)
        noise = normals(len(x), x.shape[1:], generator, "cpu").to(x)
        clean, (alpha, sigma) = x.detach(), critic.scales(x, t)
        noised = critic.schedule.corrupt(clean, t, noise)
        told = nn.functional.one_hot(level, self.levels).to(x)
        own = critic(noised, t, told=told, **condition)
        with torch.no_grad():
            teacher = self.target(noised, t, **condition)
            scale = (clean - teacher).abs().flatten(1).mean(1).clamp(min=1e-6)
            slope = (own - teacher) / scale.reshape(-1, *[1] * (x.ndim - 1))
        # Weighted by the signal's share: what noise hides for good would drown the rest.
        denoising = (alpha**2 / (alpha**2 + sigma**2) * (own - clean) ** 2).mean()
        return (slope * x).mean(), denoising


def times_by_share(schedule: Schedule) -> Tensor:
    r"""Times that spread the signal's share, $\alpha / \sqrt{\alpha^2 + \sigma^2}$, evenly."""
    t = torch.linspace(schedule.t_max, schedule.t_min, 10 * NOISE_LEVELS, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    share = alpha / (alpha**2 + sigma**2).sqrt()
    even = torch.linspace(float(share[0]), float(share[-1]), NOISE_LEVELS, dtype=torch.float64)
    return t[torch.searchsorted(share, even).clamp(max=len(t) - 1)]


class LevelConditioned(nn.Module):
    """A network told, by constant maps, the kind of its samples; at first it does not listen."""

    def __init__(
        self, denoiser: NetworkDenoiser, channels: int, kinds: int, like: nn.Module | None
    ) -> None:
        super().__init__()
        self.network = widen(
            denoiser.network, channels, channels + kinds, call=denoiser.call, like=like
        )

    def forward(self, x: Tensor, timestep: Tensor, told: Tensor, **condition: Any) -> Any:
        return self.network(torch.cat([x, maps(told, x)], dim=1), timestep, **condition)
