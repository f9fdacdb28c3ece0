"""Where a training computes: the device, the processes, and what accelerate makes of them."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, ProjectConfiguration

from sigdeg.errors import SigdegError
from sigdeg.training.config import DEFAULT_TRACKER, TrainConfig

__all__ = ["make_accelerator", "resolve_device"]


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
        SigdegError: If the device or the tracker is unknown, fewer processes came than were asked
            for, or they cannot share a batch evenly.
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
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=config.mixed_precision,
            log_with=tracker,
            project_config=ProjectConfiguration(str(out_dir), str(out_dir / "events")),
        )
    except ValueError as error:
        raise SigdegError(f"tracker {config.tracker!r}: {error}") from None
    check_processes(accelerator.num_processes, config.batch_size)
    return accelerator


def check_processes(count: int, batch_size: int) -> None:
    """Refuse fewer processes than were asked for, and a batch that they cannot share evenly."""
    asked = int(os.environ.get("WORLD_SIZE") or 1)
    if count < asked:
        raise SigdegError(
            f"{asked} processes were asked for and {count} came: start them by torchrun"
        )
    # On CPUs `accelerate launch` names the place where processes meet, and then starts only one.
    meets = {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys()
    if count == 1 and meets and "LOCAL_RANK" not in os.environ:
        raise SigdegError(
            "accelerate launch was asked for several processes and started one, as it does on CPUs:"
            " start them by torchrun --nproc-per-node N"
        )
    if batch_size % count:
        raise SigdegError(
            f"{count} processes cannot share a batch of {batch_size:,} evenly: make batch_size a "
            f"multiple of {count}"
        )
