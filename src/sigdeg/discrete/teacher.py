"""Teachers of our own: products that learn the clean tokens from noised ones."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor, nn

from sigdeg.discrete.denoiser import NetworkTokenDenoiser
from sigdeg.discrete.likelihood import check_sequences, step_divergence
from sigdeg.errors import SigdegError, check_choice
from sigdeg.runs import fingerprint
from sigdeg.training import (
    LEAST,
    Job,
    TrainConfig,
    check_data,
    check_labels,
    draw_labels,
    split_batches,
    train,
)

__all__ = ["Weighting", "train_teacher"]

Weighting = Literal["nelbo", "plain"]
FINE = 1000  # steps of the chain whose likelihood is bounded
HELD_OUT = 256
Drawn = tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]  # as TokenObjective takes it


class TokenObjective(nn.Module):
    r"""Loss of a product in nats a token, at times spread evenly over the batch.

    | weighting | loss at time t |
    |---|---|
    | `nelbo` | $\frac{1}{h D} \sum_d KL(q(x_s^d \mid x_0^d, x_t^d) \,\|\, p^d_{s \mid t})$ |
    | `plain` | $-\frac1D \sum_d \log p^d(x_0^d \mid x_t)$ |

    $s = \max(t - h, 0)$ and $h = 10^{-3}$: the first is the bound of `sigdeg.discrete.likelihood`,
    for an absorbing process cross-entropy at the masks, over the share of them that is to be
    expected. Both are least at the exact marginals, at any time; they differ in where a network
    that cannot have all of them errs.
    """

    def __init__(self, denoiser: NetworkTokenDenoiser, weighting: Weighting) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.weighting = weighting

    def forward(self, batch: Drawn) -> dict[str, Tensor]:
        """Loss for clean tokens, uniform numbers (both (batch, D)), times and conditions."""
        clean, uniform, t, condition = batch
        process = self.denoiser.process
        x = process.corrupt(clean, t, uniform)
        log_p = self.denoiser(x, t, **condition)
        if self.weighting == "plain":
            return {"loss": -log_p.gather(2, clean[..., None]).mean()}
        s = (t - 1 / FINE).clamp(min=0)
        return {"loss": FINE * step_divergence(process, clean, log_p, x, t, s).mean()}


def train_teacher(
    denoiser: NetworkTokenDenoiser,
    data: Tensor,
    out_dir: str | Path,
    config: TrainConfig | None = None,
    *,
    labels: Tensor | None = None,
    unlabelled: float = 0.1,
    weighting: Weighting = "nelbo",
    device: str | None = None,
    progress: bool = True,
    **options: Any,
) -> tuple[NetworkTokenDenoiser, Tensor]:
    r"""Train a product on clean sequences; the same call resumes an interrupted one.

    Arguments:
        denoiser: The denoiser to train; it is left untouched.
        data: Clean tokens, int64, shape (n, D); the last twentieth is held out.
        out_dir: Folder for checkpoints.
        config: How to train; single fields can be given as keywords instead.
        labels: Class of each sequence, shape (n,), for a network that takes `class_labels`.
        unlabelled: Share of sequences whose class is withheld, which guidance needs: their label is
            one more than the largest.
        weighting: How times are weighted, see `TokenObjective`.
        device: Where to compute (default: what accelerate finds).
        progress: Show a progress bar.
        options: Fields of `TrainConfig`.

    Returns:
        The denoiser with averaged weights, and the history (step, training loss, held-out loss).

    Raises:
        SigdegError: If data is no sequences of the process's tokens, there are too few, labels do
            not fit, or the folder holds another run.
    """
    config = dataclasses.replace(config or TrainConfig(), **options)
    check_choice(weighting, get_args(Weighting), "weighting")
    if denoiser.latent is not None:
        raise SigdegError("a mixture has a latent: it is distilled, or trained without a teacher")
    check_sequences(data, denoiser.process, denoiser.length)
    check_data(data, LEAST)
    check_labels(labels, len(data))
    identity = {
        **config.identity(),
        "weighting": weighting,
        "network": fingerprint(denoiser),
        "data": fingerprint(data),
    }
    if labels is not None:
        identity |= {"labels": fingerprint(labels), "unlabelled": unlabelled}

    def draw(rows: Tensor, generator: Generator) -> Drawn:
        clean, n = data[rows], len(rows)
        uniform = torch.rand(clean.shape, generator=generator, dtype=torch.float64)
        t = 1 - (torch.arange(n) + torch.rand(n, generator=generator, dtype=torch.float64)) / n
        condition = draw_labels(labels, rows, unlabelled, generator)
        return clean, uniform, t, condition

    batch, unseen = split_batches(len(data), HELD_OUT, config, draw)
    learner = copy.deepcopy(denoiser).train().requires_grad_(True)
    job = Job(TokenObjective(learner, weighting), batch, unseen, identity)
    trained = train(job, Path(out_dir), config, device=device, progress=progress, label="teacher")
    return trained.objective.denoiser, trained.history
