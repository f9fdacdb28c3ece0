"""The one training there is: resumable to the bit, on a CPU, a GPU or several (by `torchrun`)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
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
from sigdeg.training.checkpoint import load_checkpoint, save_checkpoint
from sigdeg.training.config import TrainConfig, learning_rate
from sigdeg.training.devices import make_accelerator
from sigdeg.training.memory import check_networks, checkpoint_gradients, memory_used, reset_memory
from sigdeg.training.optimizer import make_optimizers
from sigdeg.training.weights import Average, copied, ema_update, fill, kept, whole

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
        objective: The objective with averaged weights, which lie where they did before; frozen ones
            are those of the objective that was given.
        history: Columns step, training loss, held-out loss; shape (points, 3).
        seconds: Time spent training, that before interruptions included.
        memory: Bytes in use at most: of a GPU's memory, or of this process where a CPU trains.
    """

    objective: M
    history: Tensor
    seconds: float
    memory: int


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

    A batch is a function of (seed, step), cut by process: any number of processes learn the same,
    and any number can go on. Parameters that need no gradient are frozen, see
    `sigdeg.training.weights`.

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
        The objective with averaged weights, the history, the time and the memory it took.

    Raises:
        SigdegError: If the folder holds another training, the device is not to be had, or the
            networks cannot be trained as `config` says.
        TrainingError: If the loss stops being finite; the last good checkpoint is kept.
    """
    check_networks(job.objective, config)
    accelerator = make_accelerator(config, out_dir, device)
    claim(accelerator, out_dir, job.identity, resume)
    state = Loop(job, out_dir, config, accelerator, spent)
    start_tracking(accelerator, config, progress)
    with tqdm(
        total=config.iterations,
        initial=state.first,
        desc=label,
        disable=not (progress and accelerator.is_main_process),
    ) as bar:
        for step in range(state.first, config.iterations):
            losses = state.step(step)
            bar.update()
            done = step + 1
            if done % LOG_EVERY == 0 or done == config.iterations:
                named = state.measure(losses, done)
                bar.set_postfix({name: f"{value:.4f}" for name, value in named.items()})
                accelerator.log({**named, "learning_rate": learning_rate(step, config)}, step=done)
            if done % config.checkpoint_every == 0 or done == config.iterations:
                state.save(done)
    for tracker in accelerator.trackers:  # end_training would end the process group as well
        tracker.finish()
    return state.trained()


class Loop(Generic[M]):
    """A training at work: what it learns with, and what a checkpoint of it holds."""

    def __init__(
        self,
        job: Job[M],
        out_dir: Path,
        config: TrainConfig,
        accelerator: Accelerator,
        spent: float,
    ) -> None:
        self.job, self.config, self.accelerator = job, config, accelerator
        self.place = accelerator.device
        self.objective = copied(job.objective)
        if config.gradient_checkpointing:
            checkpoint_gradients(self.objective)
        prepare: Callable[[M], None] = job.prepare or (lambda objective: None)
        if config.sharding == "fsdp" and accelerator.num_processes > 1:
            from sigdeg.training import sharding  # takes seconds to import

            sharding.shard(self.objective, accelerator)
            prepare = partial(sharding.gathered, work=prepare)
        else:
            self.objective.to(self.place)
        self.optimizers = make_optimizers(self.objective, config)
        self.checkpoint = out_dir / "checkpoints" / "last.safetensors"
        self.clock = self.checkpoint.with_name("seconds.json")
        self.run = seal(job.identity)["_digest"]
        if not self.checkpoint.exists():
            with accelerator.autocast():
                prepare(self.objective)
        self.average = Average(self.objective)
        self.history: list[list[float]] = []
        self.first, self.memory, self.before = 0, 0, spent
        self.began = time.perf_counter()
        if self.checkpoint.exists():
            self.resume()
        self.model: nn.Module = self.objective
        if config.sharding == "none":
            self.model, *self.optimizers = accelerator.prepare(self.objective, *self.optimizers)
        self.groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        self.held_out = send_to_device(job.held_out, self.place)
        reset_memory(self.place)

    def resume(self) -> None:
        """Go on where the last checkpoint was written."""
        self.first, extra = load_checkpoint(
            self.checkpoint, self.objective, self.average, self.optimizers, self.run
        )
        self.history = extra["history"].tolist()
        self.before, self.memory = read_clock(self.clock) if self.clock.exists() else (0.0, 0)

    def step(self, step: int) -> dict[str, Tensor]:
        """Learn from the batch of a step; returns the losses."""
        config, accelerator = self.config, self.accelerator
        # The last number is there because a process once had a batch of its own.
        generator = derive_generator(config.seed, Stream.BATCHES, step, 0)
        whole = self.job.batch(generator)
        own = self.job.share(whole, accelerator.process_index, accelerator.num_processes)
        for group in self.groups:
            group["lr"] = group["factor"] * learning_rate(step, config)
        with accelerator.autocast():
            losses: dict[str, Tensor] = self.model(send_to_device(own, self.place))
        check_finite(losses["loss"], step, self.checkpoint)
        # While all that the gradient needs is there.
        self.memory = max(self.memory, memory_used(self.place))
        self.model.zero_grad()
        accelerator.backward(losses["loss"])
        for group in self.groups:
            accelerator.clip_grad_norm_(group["params"], config.gradient_clip)
        for optimizer in self.optimizers:
            optimizer.step()
        ema_update(self.average, self.objective, min(config.ema, (1 + step) / (10 + step)))
        return losses

    @torch.no_grad()
    def measure(self, losses: Mapping[str, Tensor], done: int) -> dict[str, float]:
        """The losses over all processes, and that of averaged weights on what is held out."""
        named = {
            name: float(self.accelerator.reduce(value.detach(), "mean"))
            for name, value in losses.items()
        }
        with self.average.in_place():
            named["held_out"] = float(self.unseen_loss())
        self.history.append([done, named["loss"], named["held_out"]])
        return named

    @torch.no_grad()
    def save(self, done: int) -> None:
        """Write a checkpoint: the weights that are kept must be good ones."""
        check_finite(self.unseen_loss(), done, self.checkpoint)
        self.memory = max(self.memory, memory_used(self.place))
        extra = {"history": torch.tensor(self.history, dtype=torch.float64).reshape(-1, 3)}
        main = self.accelerator.is_main_process
        if main:  # beside the checkpoint: that is the same to the bit, time and memory are not
            save_json(self.clock, seal({"seconds": self.seconds(), "memory": self.memory}))
        weights = (self.objective, self.average, self.optimizers)
        save_checkpoint(self.checkpoint, *weights, extra, done, self.run, write=main)

    def unseen_loss(self) -> Tensor:
        """The loss on what is held out, of the weights as they are."""
        with self.accelerator.autocast():
            losses: dict[str, Tensor] = self.objective(self.held_out)
        return losses["loss"]

    def seconds(self) -> float:
        """The time it took so far."""
        return self.before + time.perf_counter() - self.began

    def trained(self) -> Trained[M]:
        """What came of it."""
        found, means = copied(self.job.objective), self.average.named(self.objective)
        state = kept(self.objective)
        for name, value in kept(found).items():
            fill(value, whole(means.get(name, state[name])))
        seconds = self.seconds() if self.first < self.config.iterations else self.before
        history = torch.tensor(self.history, dtype=torch.float64)
        return Trained(found.eval().requires_grad_(False), history, seconds, self.memory)


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


def read_clock(clock: Path) -> tuple[float, int]:
    """The time and the memory that a training took before it was interrupted."""
    try:
        found = unseal(read_json(clock), clock)
        record({"seconds": number(0)}, {"memory": number(0)})(found, "")
    except SigdegError as error:
        raise SigdegError(f"{error} in {clock}: delete it to count from 0") from None
    return float(found["seconds"]), int(found.get("memory", 0))


def check_finite(loss: Tensor, step: int, checkpoint: Path) -> None:
    """Stop a training that has diverged."""
    if not bool(torch.isfinite(loss)):
        kept = f"the last good checkpoint is kept in {checkpoint.parent}; "
        raise TrainingError(
            f"the loss is not finite at step {step}: {kept if checkpoint.exists() else ''}"
            "try a lower learning rate or full precision"
        )
