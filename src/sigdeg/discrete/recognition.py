r"""Mixtures of many positions: a network recognises the latent behind a sequence.

Of M latents that are drawn the one that happens to fit a sequence best tells at most $\log M$ nats
of it, and where positions are many it alone learns. A picture's latent has more to tell. A
recognition network $q(\lambda | x_0, x_t)$ says which latent to learn with, so that one is enough:

$$ -\log p(x_0 | x_t) \le E_q \Big[ -\sum_d \log p^d(x_0^d | x_t, \lambda) \Big]
   + KL(q(\lambda | x_0, x_t) \,\|\, \mu). $$

The bound is sharp where q is the posterior, whatever the number of positions. It learns from data;
of its teacher it has the weights that it starts with.

Reference:
    Xie et al., *Variational autoencoding discrete diffusion* (arXiv 2505.17384).
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from sigdeg.discrete.likelihood import check_sequences
from sigdeg.discrete.process import Absorbing
from sigdeg.discrete.student import MixtureStudent
from sigdeg.errors import SigdegError, check_least
from sigdeg.runs import fingerprint
from sigdeg.training import LEAST, Job, TrainConfig, check_data, split_batches, train

__all__ = ["RecognitionObjective", "Seen", "train_mixture"]

HELD_OUT = 256
LEAST_MASKED = 0.1  # where hardly a mask is left the divergence would be all there is


class Seen(NamedTuple):
    """What a step of training draws.

    Arguments:
        clean: Clean tokens, shape (batch, D).
        t: Times, shape (batch,).
        uniform: Numbers in [0, 1) behind the noised tokens, shape (batch, D).
        normal: Normal numbers behind the latents, shape (batch, size).
    """

    clean: Tensor
    t: Tensor
    uniform: Tensor
    normal: Tensor


class RecognitionObjective(nn.Module):
    """The bound of the module's docstring, in nats a token: `nll`, `kl` and their sum.

    For an absorbing process in nats a mask that is to be expected, of a tenth of the tokens or
    more: late steps, which have few masks, then count as the first do, and a student keeps what
    its teacher knew of them.

    Arguments:
        student: The mixture, with a Gaussian latent.
        recognition: Called as `recognition(clean, x)`; gives mean and log-variance of the latent,
            each (batch, size).
    """

    def __init__(self, student: MixtureStudent, recognition: nn.Module) -> None:
        super().__init__()
        self.student, self.recognition = student, recognition

    def forward(self, batch: Seen) -> dict[str, Tensor]:
        """The losses, means over the batch."""
        x = self.student.process.corrupt(batch.clean, batch.t, batch.uniform)
        mean, log_variance = self.recognition(batch.clean, x)
        latent = mean + (log_variance / 2).exp() * batch.normal
        log_p = self.student(x, batch.t, latent).gather(2, batch.clean[..., None])
        counted = log_p.new_full((len(x),), batch.clean.shape[1])
        process = self.student.process
        if isinstance(process, Absorbing):
            counted = counted * (1 - process.alpha(batch.t)).clamp(min=LEAST_MASKED).to(counted)
        nll = -(log_p.sum((1, 2)) / counted).mean()
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        kl = (divergence / counted).mean()
        return {"loss": nll + kl, "nll": nll, "kl": kl}


def train_mixture(
    student: MixtureStudent,
    recognition: nn.Module,
    data: Tensor,
    out_dir: str | Path,
    config: TrainConfig | None = None,
    *,
    start: float = 0.25,
    device: str | None = None,
    progress: bool = True,
    **options: Any,
) -> tuple[MixtureStudent, Tensor]:
    r"""Train a mixture on clean sequences; the same call resumes an interrupted one.

    Arguments:
        student: The mixture to train, its network's weights those of a teacher as a rule; it is
            left untouched.
        recognition: The network that recognises latents, see `RecognitionObjective`.
        data: Clean tokens, int64, shape (n, D); the last twentieth is held out.
        out_dir: Folder for checkpoints.
        config: How to train; single fields can be given as keywords instead.
        start: Share of the items at time 1, where sampling starts; the others' times are spread
            evenly.
        device: Where to compute (default: what accelerate finds).
        progress: Show a progress bar.
        options: Fields of `TrainConfig`.

    Returns:
        The student with averaged weights, and the history (step, training loss, held-out loss).

    Raises:
        SigdegError: If the latent is not Gaussian, data is no sequences of the process's tokens or
            too few, or the folder holds another run.
    """
    config = dataclasses.replace(config or TrainConfig(), **options)
    if student.latent.kind != "gaussian":
        raise SigdegError(f"latents are recognised where gaussian, got {student.latent.kind} ones")
    check_least(start, 0, "start")
    check_least(-start, -1, "minus start")
    check_sequences(data, student.process, student.length)
    check_data(data, LEAST)
    identity = {
        **config.identity(),
        "start": start,
        "student": fingerprint(student),
        "recognition": fingerprint(recognition),
        "data": fingerprint(data),
    }

    def draw(rows: Tensor, generator: Generator) -> Seen:
        n = len(rows)
        uniform = torch.rand(n, student.length + 2, generator=generator, dtype=torch.float64)
        t = 1 - (torch.arange(n) + uniform[:, 0]) / n
        t = torch.where(uniform[:, 1] < start, 1.0, t)
        normal = torch.randn(n, student.latent.size, generator=generator)
        return Seen(data[rows], t, uniform[:, 2:], normal)

    batch, unseen = split_batches(len(data), HELD_OUT, config, draw)
    learner = copy.deepcopy(RecognitionObjective(student, recognition))
    job = Job(learner.train().requires_grad_(True), batch, unseen, identity)
    trained = train(job, Path(out_dir), config, device=device, progress=progress, label="student")
    return trained.objective.student, trained.history
