"""Training: one resumable loop for students and teachers, its checkpoints."""

from sigdeg.training.loop import TrainConfig, fit, make_accelerator, resolve_device
from sigdeg.training.teacher import check_data, train_teacher

__all__ = [
    "TrainConfig",
    "check_data",
    "fit",
    "make_accelerator",
    "resolve_device",
    "train_teacher",
]
