"""Training: one resumable loop for students and teachers, its checkpoints and its folders."""

from sigdeg.training.folder import claim_folder, fingerprint, keep, kept
from sigdeg.training.loop import (
    TrainConfig,
    derive_generator,
    fit,
    make_accelerator,
    resolve_device,
    seeded,
)
from sigdeg.training.teacher import check_data, train_teacher

__all__ = [
    "TrainConfig",
    "check_data",
    "claim_folder",
    "derive_generator",
    "fingerprint",
    "fit",
    "keep",
    "kept",
    "make_accelerator",
    "resolve_device",
    "seeded",
    "train_teacher",
]
