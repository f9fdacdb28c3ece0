"""Training: one resumable job for students and teachers, its checkpoints."""

from sigdeg.training.config import TrainConfig
from sigdeg.training.devices import make_accelerator, resolve_device
from sigdeg.training.job import Job, Trained, claim, train
from sigdeg.training.teacher import LEAST, check_data, train_teacher

__all__ = [
    "LEAST",
    "Job",
    "TrainConfig",
    "Trained",
    "check_data",
    "claim",
    "make_accelerator",
    "resolve_device",
    "train",
    "train_teacher",
]
