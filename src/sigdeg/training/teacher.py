r"""Teachers of our own: denoising score matching in the network's own output."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from sigdeg.denoiser import NetworkDenoiser
from sigdeg.networks import class_labels, set_null_class
from sigdeg.prediction import network_target
from sigdeg.runs import fingerprint
from sigdeg.schedule import expand
from sigdeg.training.config import TrainConfig
from sigdeg.training.data import (
    LEAST,
    check_data,
    check_labels,
    draw_labels,
    split_batches,
)
from sigdeg.training.job import Job, train

__all__ = ["train_teacher"]

HELD_OUT = 1024
Drawn = tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]  # as DenoisingObjective takes it


class DenoisingObjective(nn.Module):
    r"""Mean square error of the network's output at times spread evenly over the batch.

    Stratified times, $t_i = t_{min} + (t_{max} - t_{min}) ((i + U_i) / n)^p$, take most of the
    variance out of the loss.
    """

    def __init__(self, denoiser: NetworkDenoiser, time_power: float) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.time_power = time_power

    def forward(self, batch: Drawn) -> dict[str, Tensor]:
        """Loss for clean data, noise (batch, *), positions in [0, 1] (batch,) and conditions."""
        clean, noise, position, condition = batch
        schedule = self.denoiser.schedule
        t = schedule.t_min + (schedule.t_max - schedule.t_min) * position**self.time_power
        alpha, sigma = expand(schedule.alpha(t), clean), expand(schedule.sigma(t), clean)
        kind, std = self.denoiser.prediction_type, self.denoiser.data_std
        target = network_target(clean, noise, alpha, sigma, kind, std)
        output = self.denoiser.output(schedule.corrupt(clean, t, noise), t, **condition)
        return {"loss": nn.functional.mse_loss(output, target)}


def train_teacher(
    denoiser: NetworkDenoiser,
    data: Tensor,
    out_dir: str | Path,
    config: TrainConfig | None = None,
    *,
    labels: Tensor | None = None,
    unlabelled: float = 0.1,
    time_power: float = 1.0,
    device: str | None = None,
    progress: bool = True,
    **options: Any,
) -> tuple[NetworkDenoiser, Tensor]:
    r"""Train a denoiser on clean data; the same call resumes an interrupted one.

    Arguments:
        denoiser: The denoiser to train; it is left untouched.
        data: Clean data, shape (n, \*); the last twentieth is held out.
        out_dir: Folder for checkpoints.
        config: How to train; single fields can be given as keywords instead.
        labels: Class of each sample, shape (n,), for a network that takes `class_labels`.
        unlabelled: Share of samples whose class is withheld, which classifier-free guidance needs:
            their label is one more than the largest.
        time_power: Exponent p of the times, see `DenoisingObjective`: 1 is uniform, 2 dwells near
            the data, where small networks have most to learn.
        device: Where to compute (default: what accelerate finds).
        progress: Show a progress bar.
        options: Fields of `TrainConfig`.

    Returns:
        The denoiser with averaged weights, and the history (step, training loss, held-out loss).
    """
    config = dataclasses.replace(config or TrainConfig(), **options)
    check_data(data, LEAST)
    check_labels(labels, len(data))
    if labels is not None and unlabelled and class_labels(denoiser.network) is not None:
        denoiser = copy.deepcopy(denoiser)
        set_null_class(denoiser.network, int(labels.max()) + 1)
    identity = {
        **config.identity(),
        "time_power": time_power,
        "network": fingerprint(denoiser),
        "data": fingerprint(data),
    }
    if labels is not None:
        identity |= {"labels": fingerprint(labels), "unlabelled": unlabelled}

    def draw(rows: Tensor, generator: Generator) -> Drawn:
        clean, n = data[rows], len(rows)
        noise = torch.randn(clean.shape, generator=generator)
        position = (torch.arange(n) + torch.rand(n, generator=generator, dtype=torch.float64)) / n
        condition = draw_labels(labels, rows, unlabelled, generator)
        return clean, noise, position, condition

    batch, unseen = split_batches(len(data), HELD_OUT, config, draw)
    job = Job(DenoisingObjective(denoiser, time_power), batch, unseen, identity)
    trained = train(job, Path(out_dir), config, device=device, progress=progress, label="teacher")
    return trained.objective.denoiser, trained.history
