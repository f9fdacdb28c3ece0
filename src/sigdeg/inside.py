"""A frozen denoiser inside a network: what it is known to say, and a small correction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sigdeg.denoiser import Denoiser
from sigdeg.prediction import preconditioning
from sigdeg.schedule import expand

__all__ = ["Corrected"]


class Corrected(nn.Module):
    r"""A denoiser D that stays as it is, and a network F beside it that is trained.

    $$ D(x, t) + c_{out} F(c_{in} x, y, t), $$

    with $c_{in}$ and $c_{out}$ of `edm` (`sigdeg.prediction`): the correction is of the size of
    what a posterior mean leaves open, so nothing near the data. Where F starts at zero the whole
    starts as the denoiser, whatever that is: an exact law, a guided one, a function.

    Arguments:
        denoiser: D; its parameters, if any, are not trained.
        network: F, called as `network(inputs, t)`, t in [0, 1].
        channels: Channels of the state, which come first in the inputs; all others are for F.
        data_std: The data's standard deviation, to the order of magnitude.
    """

    def __init__(
        self, denoiser: Denoiser, network: nn.Module, channels: int, data_std: float = 1.0
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.network = network
        self.channels = channels
        self.data_std = data_std

    def train(self, mode: bool = True) -> Corrected:
        """Of the network alone."""
        super().train(mode)
        self.denoiser.eval()
        return self

    def forward(self, inputs: Tensor, timestep: Tensor, **condition: Any) -> Tensor:
        r"""The mean, of inputs (batch, in_channels, \*) and times (batch,) in [0, 1]."""
        x, schedule = inputs[:, : self.channels], self.denoiser.schedule
        alpha, sigma = (f(timestep.double()) for f in (schedule.alpha, schedule.sigma))
        scales = expand(alpha, x), expand(sigma, x)
        around = preconditioning(*scales, "edm", self.data_std)
        told = torch.cat([around.scale(x), inputs[:, self.channels :]], dim=1)
        correction: Tensor = around.mean(self.network(told, timestep), torch.zeros_like(x))
        mean: Tensor = self.denoiser(x, timestep, **condition)
        return mean + correction
