r"""The mixture student: a product given its latent, a law of any kind over it.

    p(x_0 | x_t) = E_lambda prod_d p^d(x_0^d | x_t, lambda)

One call a step, as for its teacher: each sample draws one latent. Averaging probabilities over
latents before drawing would make a product of it again.

With a `weighted` latent the expectation is a sum over K components,

    p(x_0 | x_t) = sum_k w_k(x_t) prod_d p^d(x_0^d | x_t, k)

whose weights the network learns, too. It is exact in training, and drawing stays one call: the
latent's number falls on a component before the network hears which.

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
            For a `weighted` latent it has `log_weights(x, t, **condition)`, (batch, K), as well.
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
        if latent.kind == "weighted" and getattr(network, "mixing", None) is None:
            raise SigdegError(
                f"{type(network).__name__} has no weights of components: take another latent"
            )
        self.latent = latent
        self.elastic = elastic

    def told(self, x: Tensor, condition: dict[str, Any]) -> dict[str, Any]:
        """What the network is told beside the latent."""
        if not self.elastic:
            return condition
        time = torch.as_tensor(condition.get("step", 0.0), dtype=torch.float32, device=x.device)
        return {**condition, "step": time.expand(len(x))}

    def log_weights(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        if self.latent.kind != "weighted":
            return super().log_weights(x, t, **condition)
        time = torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(len(x))
        weigh: Any = self.network.log_weights
        found: Tensor = weigh(x, time, **self.told(x, condition))
        return found

    def forward(
        self, x: Tensor, t: Tensor, latent: Tensor | None = None, **condition: Any
    ) -> Tensor:
        if latent is None or latent.shape != (len(x), self.latent.width):
            got = "none" if latent is None else f"shape {tuple(latent.shape)}"
            raise SigdegError(
                f"a mixture student is given a latent a sample, shape ({len(x)}, "
                f"{self.latent.width}), got {got}"
            )
        heard = self.hear(x, t, latent, **condition)
        return super().forward(x, t, heard, **self.told(x, condition))
