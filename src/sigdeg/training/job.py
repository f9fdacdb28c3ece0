"""The one training there is: resumable to the bit, on a CPU, a GPU or several (by `torchrun`)."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import recursively_apply, send_to_device
from torch import Generator, Tensor, nn
from tqdm.auto import tqdm

from sigdeg.errors import SigdegError, TrainingError, reason
from sigdeg.files import read_json, save_json, seal, unseal
from sigdeg.rng import Stream, derive_generator
from sigdeg.runs import claim_folder
from sigdeg.schema import number, record
from sigdeg.training.checkpoint import ema_update, load_checkpoint, save_checkpoint
from sigdeg.training.config import TrainConfig, learning_rate
from sigdeg.training.devices import make_accelerator
from sigdeg.training.optimizer import make_optimizers

__all__ = ["Job", "Trained", "claim", "train"]

M = TypeVar("M", bound=nn.Module)
LOG_EVERY = 100


def rows_of(batch: Any, process: int, processes: int) -> Any:
    """The part of a batch that one of some processes learns from: as many rows of each tensor."""

    def cut(value: Tensor) -> Tensor:
        return value.tensor_split(processes)[process]

    return recursively_apply(cut, batch)


@dataclass(frozen=True)
class Job(Generic[M]):
    r"""What is trained, and on what.

    Arguments:
        objective: Module whose forward maps a batch to losses by name: `loss` is minimised, all of
            them are logged. The parameters of a module with a `rate_factor` learn so many times as
            fast.
        batch: Makes a batch, of all processes together, from the generator of a step.
        held_out: A batch that training never sees, for the second loss curve.
        identity: JSON values that tell this training from any other.
        prepare: Called on the objective once, at the very start of a training.
        share: The part of a batch that a process learns from, by its number and the number of
            processes. The mean of their losses has to be the loss of the whole.
    """

    objective: M
    batch: Callable[[Generator], Any]
    held_out: Any
    identity: Mapping[str, Any]
    prepare: Callable[[M], None] | None = None
    share: Callable[[Any, int, int], Any] = rows_of


class Trained(NamedTuple, Generic[M]):
    """What training gives back.

    Arguments:
        objective: The objective with averaged weights, on the CPU.
        history: Columns step, training loss, held-out loss; shape (points, 3).
        seconds: Time spent training, that before interruptions included.
    """

    objective: M
    history: Tensor
    seconds: float


def claim(
    accelerator: Accelerator, out_dir: Path, identity: Mapping[str, Any], resume: bool = True
) -> None:
    """Make a folder the run's own, or refuse one that is another's, see `claim_folder`."""
    if accelerator.is_main_process:
        claim_folder(out_dir, "config.json", dict(identity), resume)
    accelerator.wait_for_everyone()


def train(
    job: Job[M],
    out_dir: Path,
    config: TrainConfig,
    *,
    resume: bool = True,
    device: str | None = None,
    progress: bool = True,
    label: str = "train",
    spent: float = 0.0,
) -> Trained[M]:
    r"""Minimise a loss; the same call goes on with an interrupted training.

    A batch is a function of (seed, step), cut by process: any number of processes learn the same.

    Arguments:
        job: What to train.
        out_dir: `config.json`, `checkpoints/last.safetensors` and `events/` go here.
        config: How to train.
        resume: Go on with what the folder holds of this very training.
        device: Where to compute (default: what accelerate finds).
        progress: Show a bar with rate, time left and losses.
        label: What the bar says.
        spent: Seconds that preparing a new training took, added to its time.

    Returns:
        The objective with averaged weights, the history and the time it took.

    Raises:
        SigdegError: If the folder holds another training, or the device is not to be had.
        TrainingError: If the loss stops being finite; the last good checkpoint is kept.
    """
    accelerator = make_accelerator(config, out_dir, device)
    claim(accelerator, out_dir, job.identity, resume)
    place, main = accelerator.device, accelerator.is_main_process
    objective = copy.deepcopy(job.objective).to(place)
    optimizers = make_optimizers(objective, config)
    checkpoint = out_dir / "checkpoints" / "last.safetensors"
    clock = checkpoint.with_name("seconds.json")
    run = seal(job.identity)["_digest"]
    if job.prepare is not None and not checkpoint.exists():
        job.prepare(objective)
    average = copy.deepcopy(objective).requires_grad_(False)
    began, before = time.perf_counter(), spent
    modules: dict[str, nn.Module] = {"objective": objective, "average": average}
    history: list[list[float]] = []
    first = 0
    if checkpoint.exists():
        first, extra = load_checkpoint(checkpoint, modules, optimizers, run)
        history = extra["history"].tolist()
        before = read_seconds(clock) if clock.exists() else 0.0
    model, *optimizers = accelerator.prepare(objective, *optimizers)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    start_tracking(accelerator, config, progress)
    held_out = send_to_device(job.held_out, place)
    with tqdm(
        total=config.iterations, initial=first, desc=label, disable=not (progress and main)
    ) as bar:
        for step in range(first, config.iterations):
            # The last number is there because a process once had a batch of its own.
            generator = derive_generator(config.seed, Stream.BATCHES, step, 0)
            whole = job.batch(generator)
            own = job.share(whole, accelerator.process_index, accelerator.num_processes)
            for group in groups:
                group["lr"] = group["factor"] * learning_rate(step, config)
            with accelerator.autocast():
                losses = model(send_to_device(own, place))
            check_finite(losses["loss"], step, checkpoint)
            model.zero_grad()
            accelerator.backward(losses["loss"])
            for group in groups:
                accelerator.clip_grad_norm_(group["params"], config.gradient_clip)
            for optimizer in optimizers:
                optimizer.step()
            ema_update(average, objective, min(config.ema, (1 + step) / (10 + step)))
            bar.update()
            done = step + 1
            if done % LOG_EVERY == 0 or done == config.iterations:
                named = {
                    name: float(accelerator.reduce(value.detach(), "mean"))
                    for name, value in losses.items()
                }
                with torch.no_grad():
                    named["held_out"] = float(average(held_out)["loss"])
                history.append([done, named["loss"], named["held_out"]])
                bar.set_postfix({name: f"{value:.4f}" for name, value in named.items()})
                named["learning_rate"] = learning_rate(step, config)
                accelerator.log(named, step=done)
            if done % config.checkpoint_every and done != config.iterations:
                continue
            with torch.no_grad():  # the weights that are kept must be good ones
                check_finite(objective(held_out)["loss"], done, checkpoint)
            if main:
                extra = {"history": torch.tensor(history, dtype=torch.float64).reshape(-1, 3)}
                # Beside the checkpoint: that is the same to the bit, time is not.
                save_json(clock, seal({"seconds": before + time.perf_counter() - began}))
                save_checkpoint(checkpoint, modules, optimizers, extra, done, run)
    for tracker in accelerator.trackers:  # end_training would end the process group as well
        tracker.finish()
    seconds = before + (time.perf_counter() - began if first < config.iterations else 0.0)
    return Trained(average.cpu().eval(), torch.tensor(history, dtype=torch.float64), seconds)


def start_tracking(accelerator: Accelerator, config: TrainConfig, progress: bool = False) -> None:
    """Start the trackers that were asked for, or say that there are none."""
    if config.tracker == "none":
        return
    if not accelerator.log_with and progress and accelerator.is_main_process:
        told = "training curves are not logged: pip install 'sigdeg[track]' for tensorboard"
        tqdm.write(told, file=sys.stderr)
    try:
        accelerator.init_trackers("sigdeg")
    except Exception as error:  # no login, no connection: whatever the tracker makes of it
        raise TrainingError(f"tracker {config.tracker!r}: {reason(error)}") from None


def read_seconds(clock: Path) -> float:
    """The time that a training took before it was interrupted."""
    try:
        found = unseal(read_json(clock), clock)
        record({"seconds": number(0)}, {})(found, "")
    except SigdegError as error:
        raise SigdegError(f"{error} in {clock}: delete it to count from 0") from None
    return float(found["seconds"])


def check_finite(loss: Tensor, step: int, checkpoint: Path) -> None:
    """Stop a training that has diverged."""
    if not bool(torch.isfinite(loss)):
        kept = f"the last good checkpoint is kept in {checkpoint.parent}; "
        raise TrainingError(
            f"the loss is not finite at step {step}: {kept if checkpoint.exists() else ''}"
            "try a lower learning rate or full precision"
        )
