"""Training: one resumable job for students and teachers, its checkpoints."""

from sigdeg.training.config import TrainConfig
from sigdeg.training.data import (
    LEAST,
    check_data,
    check_labels,
    draw_labels,
    split_batches,
)
from sigdeg.training.devices import make_accelerator, resolve_device
from sigdeg.training.job import Job, Trained, claim, train
from sigdeg.training.teacher import train_teacher

__all__ = [
    "LEAST",
    "Job",
    "TrainConfig",
    "Trained",
    "check_data",
    "check_labels",
    "claim",
    "draw_labels",
    "make_accelerator",
    "resolve_device",
    "split_batches",
    "train",
    "train_teacher",
]
