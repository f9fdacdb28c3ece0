r"""The mixture student: a product given its latent, a law of any kind over it.

    p(x_0 | x_t) = E_lambda prod_d p^d(x_0^d | x_t, lambda)

One call a step, as for its teacher: each sample draws one latent. Averaging probabilities over
latents before drawing would make a product of it again.

Reference:
    Hayakawa et al., *Distillation of discrete diffusion through dimensional correlations* (2025).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sigdeg.discrete.denoiser import NetworkTokenDenoiser, Parameterisation
from sigdeg.discrete.latent import Latent
from sigdeg.discrete.process import DiscreteProcess
from sigdeg.errors import SigdegError

__all__ = ["MixtureStudent"]


class MixtureStudent(NetworkTokenDenoiser):
    r"""A network of tokens that hears a latent.

    Arguments:
        network: Called as `network(x, t, latent=..., **condition)`, with `step=...` if `elastic`.
        process: The process.
        length: Positions D.
        latent: The law of its latent.
        elastic: Whether it is told where the step ends: the budget of steps is an input then.
        parameterisation: As its teacher's, see `NetworkTokenDenoiser`.
    """

    latent: Latent

    def __init__(
        self,
        network: nn.Module,
        process: DiscreteProcess,
        length: int,
        latent: Latent,
        elastic: bool = False,
        parameterisation: Parameterisation = "masked",
    ) -> None:
        super().__init__(network, process, length, parameterisation)
        self.latent = latent
        self.elastic = elastic

    def forward(
        self, x: Tensor, t: Tensor, latent: Tensor | None = None, **condition: Any
    ) -> Tensor:
        if latent is None or latent.shape != (len(x), self.latent.width):
            got = "none" if latent is None else f"shape {tuple(latent.shape)}"
            raise SigdegError(
                f"a mixture student is given a latent a sample, shape ({len(x)}, "
                f"{self.latent.width}), got {got}"
            )
        if self.elastic:
            step = condition.get("step", 0.0)
            time = torch.as_tensor(step, dtype=torch.float32, device=x.device)
            condition["step"] = time.expand(len(x))
        return super().forward(x, t, latent, **condition)
