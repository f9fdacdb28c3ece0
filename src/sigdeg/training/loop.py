"""The training loop: resumable to the bit, on a CPU, a GPU or several (by `accelerate launch`)."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, ProjectConfiguration
from torch import Generator, Tensor, nn
from tqdm.auto import tqdm

from sigdeg.errors import SigdegError, TrainingError, check_least, reason
from sigdeg.files import read_json, save_json, seal, unseal
from sigdeg.rng import Stream, derive_generator
from sigdeg.schema import number, record
from sigdeg.training.checkpoint import ema_update, load_checkpoint, save_checkpoint

__all__ = [
    "TrainConfig",
    "fit",
    "learning_rate",
    "make_accelerator",
    "resolve_device",
]

M = TypeVar("M", bound=nn.Module)
LOG_EVERY = 100
DEFAULT_TRACKER = "tensorboard"


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Arguments:
        iterations: Optimiser steps.
        batch_size: Samples a step and process.
        learning_rate: Peak rate of Adam: linear warm-up, then cosine to zero.
        warmup: Warm-up steps.
        ema: Decay of the averaged weights, which are the ones that are kept.
        gradient_clip: Bound on the gradient norm.
        seed: Seed of everything that is drawn.
        checkpoint_every: Steps between checkpoints.
        mixed_precision: Passed on to accelerate.
        tracker: Passed on to accelerate (tensorboard, wandb ...); none logs nothing, and so does
            tensorboard where it is not installed.
    """

    iterations: int = 2000
    batch_size: int = 1024
    learning_rate: float = 2e-3
    warmup: int = 100
    ema: float = 0.999
    gradient_clip: float = 1.0
    seed: int = 0
    checkpoint_every: int = 500
    mixed_precision: Literal["no", "bf16"] = "no"
    tracker: str = DEFAULT_TRACKER

    def __post_init__(self) -> None:
        self.at_least(1, "iterations", "batch_size", "checkpoint_every")
        self.at_least(0, "warmup", "seed")
        if not (self.learning_rate > 0 and self.gradient_clip > 0 and 0 <= self.ema < 1):
            raise SigdegError(
                "learning_rate and gradient_clip must be positive, and ema must lie in [0, 1)"
            )

    def at_least(self, least: int, *names: str) -> None:
        """Refuse fields below a bound, and whole numbers that are none."""
        whole = {field.name for field in fields(self) if field.type == "int"}
        for name in names:
            value = getattr(self, name)
            if name in whole and (isinstance(value, bool) or not isinstance(value, Integral)):
                raise SigdegError(f"{name} must be a whole number, got {value!r:.60}")
            check_least(value, least, name)


class Fitted(NamedTuple, Generic[M]):
    """What training gives back.

    Arguments:
        objective: The objective with averaged weights, on the CPU.
        history: Columns step, training loss, held-out loss; shape (points, 3).
        seconds: Time spent training, that before interruptions included.
    """

    objective: M
    history: Tensor
    seconds: float


def learning_rate(step: int, config: TrainConfig) -> float:
    """Learning rate at a step, a function of the step alone: nothing of it needs to be saved."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.iterations - config.warmup)
    return config.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def resolve_device(device: str | None) -> str:
    """The device asked for, or the best there is.

    Raises:
        SigdegError: If it is neither cpu nor cuda, or there is no such GPU.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise SigdegError(f"unknown device {device!r}: choose cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise SigdegError("no GPU is to be seen here: use --device cpu")
    return device


def make_accelerator(config: TrainConfig, out_dir: Path, device: str | None) -> Accelerator:
    """Accelerate's view of the machine, with trackers that write to `out_dir/events`.

    Raises:
        SigdegError: If the device or the tracker is unknown.
    """
    AcceleratorState._reset_state()  # a process may train twice, in another precision each time
    cpu = resolve_device(device) == "cpu"
    installed = [str(kind) for kind in get_available_trackers()]
    tracker = None if config.tracker == "none" else config.tracker
    if tracker in LoggerType.list() and tracker not in ("all", *installed):
        if tracker != DEFAULT_TRACKER:
            raise SigdegError(
                f"tracker {tracker!r} is not installed: choose from none, {', '.join(installed)}"
            )
        tracker = None
    try:
        return Accelerator(
            cpu=cpu,
            mixed_precision=config.mixed_precision,
            log_with=tracker,
            project_config=ProjectConfiguration(str(out_dir), str(out_dir / "events")),
        )
    except ValueError as error:
        raise SigdegError(f"tracker {config.tracker!r}: {error}") from None


def fit(
    objective: M,
    draw: Callable[[Generator], Any],
    held_out: Any,
    config: TrainConfig,
    accelerator: Accelerator,
    out_dir: Path,
    prepare: Callable[[M], None] | None = None,
    progress: bool = True,
    label: str = "train",
    spent: float = 0.0,
    identity: Mapping[str, Any] | None = None,
) -> Fitted[M]:
    r"""Minimise a loss. A batch is a function of (seed, step, process), hence resumable anywhere.

    Arguments:
        objective: Module whose forward maps a batch to the loss. The parameters of a module with a
            `rate_factor` learn so many times as fast.
        draw: Makes a batch from a generator.
        held_out: A batch that training never sees, for the second loss curve.
        config: How to train.
        accelerator: From `make_accelerator`.
        out_dir: `checkpoints/last.safetensors` goes here.
        prepare: Called on the objective once, at the very start of a training.
        progress: Show a bar with rate, time left and losses.
        label: What the bar says.
        spent: Seconds that preparing a new training took, added to its time.
        identity: What tells this run from any other: its checkpoints go on with no other.

    Returns:
        The objective with averaged weights, the history and the time it took.

    Raises:
        TrainingError: If the loss stops being finite; the last good checkpoint is kept.
    """
    objective = copy.deepcopy(objective).to(accelerator.device)
    optimizer = torch.optim.Adam(parameter_groups(objective), lr=config.learning_rate)
    checkpoint = out_dir / "checkpoints" / "last.safetensors"
    clock = checkpoint.with_name("seconds.json")
    run = seal(identity or {})["_digest"]
    if prepare is not None and not checkpoint.exists():
        prepare(objective)
    average = copy.deepcopy(objective).requires_grad_(False)
    began, before = time.perf_counter(), spent
    modules: dict[str, nn.Module] = {"objective": objective, "average": average}
    history: list[list[float]] = []
    first = 0
    if checkpoint.exists():
        first, extra = load_checkpoint(checkpoint, modules, optimizer, run)
        history = extra["history"].tolist()
        before = read_seconds(clock) if clock.exists() else 0.0
    model, optimizer = accelerator.prepare(objective, optimizer)
    main = accelerator.is_main_process
    if config.tracker != "none":
        if not accelerator.log_with and progress and main:
            told = "training curves are not logged: pip install 'sigdeg[track]' for tensorboard"
            tqdm.write(told, file=sys.stderr)
        try:
            accelerator.init_trackers("sigdeg")
        except Exception as error:  # no login, no connection: whatever the tracker makes of it
            raise TrainingError(f"tracker {config.tracker!r}: {reason(error)}") from None
    with tqdm(
        total=config.iterations, initial=first, desc=label, disable=not (progress and main)
    ) as bar:
        for step in range(first, config.iterations):
            generator = derive_generator(
                config.seed, Stream.BATCHES, step, accelerator.process_index
            )
            for group in optimizer.param_groups:
                group["lr"] = group["factor"] * learning_rate(step, config)
            batch = draw(generator)
            with accelerator.autocast():
                loss = model(batch)
            check_finite(loss, step, checkpoint)
            optimizer.zero_grad()
            accelerator.backward(loss)
            for group in optimizer.param_groups:
                accelerator.clip_grad_norm_(group["params"], config.gradient_clip)
            optimizer.step()
            ema_update(average, objective, min(config.ema, (1 + step) / (10 + step)))
            bar.update()
            done = step + 1
            if done % LOG_EVERY == 0 or done == config.iterations:
                with torch.no_grad():
                    history.append([done, float(loss), float(average(held_out))])
                values = dict(zip(("loss", "held_out"), history[-1][1:], strict=True))
                bar.set_postfix({name: f"{value:.4f}" for name, value in values.items()})
                accelerator.log({**values, "learning_rate": learning_rate(step, config)}, step=done)
            if done % config.checkpoint_every and done != config.iterations:
                continue
            with torch.no_grad():  # the weights that are kept must be good ones
                check_finite(objective(held_out), done, checkpoint)
            if main:
                extra = {"history": torch.tensor(history, dtype=torch.float64).reshape(-1, 3)}
                # Beside the checkpoint: that is the same to the bit, time is not.
                save_json(clock, seal({"seconds": before + time.perf_counter() - began}))
                save_checkpoint(checkpoint, modules, optimizer, extra, done, run)
    for tracker in accelerator.trackers:  # end_training would end the process group as well
        tracker.finish()
    seconds = before + (time.perf_counter() - began if first < config.iterations else 0.0)
    return Fitted(average.cpu().eval(), torch.tensor(history, dtype=torch.float64), seconds)


def read_seconds(clock: Path) -> float:
    """The time that a training took before it was interrupted."""
    try:
        found = unseal(read_json(clock), clock)
        record({"seconds": number(0)}, {})(found, "")
    except SigdegError as error:
        raise SigdegError(f"{error} in {clock}: delete it to count from 0") from None
    return float(found["seconds"])


def parameter_groups(objective: nn.Module) -> list[dict[str, Any]]:
    """Parameters with the factor on their learning rate: that of the module they are part of."""
    factors = dict.fromkeys(objective.parameters(), 1.0)
    for module in objective.modules():
        factor: Any = getattr(module, "rate_factor", None)
        if factor is not None:
            factors |= dict.fromkeys(module.parameters(), factor)
    return [
        {"params": [p for p, own in factors.items() if own == factor], "factor": factor}
        for factor in dict.fromkeys(factors.values())
    ]


def check_finite(loss: Tensor, step: int, checkpoint: Path) -> None:
    """Stop a training that has diverged."""
    if not bool(torch.isfinite(loss)):
        kept = f"the last good checkpoint is kept in {checkpoint.parent}; "
        raise TrainingError(
            f"the loss is not finite at step {step}: {kept if checkpoint.exists() else ''}"
            "try a lower learning rate or full precision"
        )
