"""A teacher of one's own data in one line, in the data's own units."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sigdeg.codec import Standardise
from sigdeg.denoiser import NetworkDenoiser
from sigdeg.errors import SigdegError, reason
from sigdeg.model import Card, Model, as_model
from sigdeg.networks import ResidualMLP
from sigdeg.results import versions
from sigdeg.rng import seeded
from sigdeg.runs import fingerprint
from sigdeg.schedule import Schedule, VPLinear
from sigdeg.training import LEAST, TrainConfig, check_data
from sigdeg.training import train_teacher as train_denoiser

__all__ = ["train_teacher"]


def train_teacher(
    samples: Any,
    out: str | Path = "runs/teacher",
    *,
    network: nn.Module | None = None,
    schedule: Schedule | None = None,
    device: str | None = None,
    progress: bool = True,
    **options: Any,
) -> Model:
    r"""Train a teacher on vectors or series; the same call resumes an interrupted one.

    They are standardised element by element, and the model draws them in their own units: its codec
    remembers mean, deviation and covariance, so that a student knows them too.

    Arguments:
        samples: Array of shape (n, elements) or (n, features, dates), at least 20 of them.
        out: The run folder; the model goes to its `teacher/`, which `distill`, `sigdeg distill` and
            `sigdeg sample` read as they read the run folder.
        network: Called as `network(x, timestep)` on standardised vectors (default: `ResidualMLP`).
        schedule: The schedule (default: `VPLinear`).
        device: Where to compute (default: what accelerate finds).
        progress: Show a progress bar.
        options: Fields of `TrainConfig`.

    Returns:
        The teacher.

    Raises:
        SigdegError: If the samples are no such array or not finite, an option is unknown, or the
            folder holds another run.
    """
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    for name in options:
        if name not in known:
            raise SigdegError(f"unknown option {name!r}: choose from {', '.join(sorted(known))}")
    try:
        data = torch.as_tensor(samples)
    except (RuntimeError, TypeError, ValueError) as error:
        raise SigdegError(f"samples are no array of numbers: {reason(error)}") from None
    if data.ndim not in (2, 3) or 0 in data.shape[1:] or not data.dtype.is_floating_point:
        raise SigdegError(
            "samples have shape (n, elements) or (n, features, dates) and are no whole numbers, "
            f"got {tuple(data.shape)} of {data.dtype}; a network for images is trained elsewhere, "
            "as_teacher takes it"
        )
    check_data(data, LEAST)
    config, codec, out = TrainConfig(**options), Standardise.of(data), Path(out)
    states = codec.encode(data)
    size = states.shape[1]
    if network is None:
        network = seeded(config.seed, lambda: ResidualMLP(size, size))
    denoiser = NetworkDenoiser(network, schedule or VPLinear(), "edm", data_std=1.0)
    trained, _ = train_denoiser(denoiser, states, out, config, device=device, progress=progress)
    card = Card(
        name=out.resolve().name,
        fingerprint=fingerprint(data),
        seed=config.seed,
        configuration=dataclasses.asdict(config),
        versions=versions(),
    )
    model = dataclasses.replace(as_model(trained.eval(), (size,)), codec=codec, card=card)
    model.save_pretrained(out / "teacher")
    return model
