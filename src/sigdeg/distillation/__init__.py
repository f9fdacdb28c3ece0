"""Distillation: teacher paths, the loss on them, and `distill`."""

from sigdeg.distillation.config import DistillConfig
from sigdeg.distillation.distill import distill
from sigdeg.distillation.judgement import Verdict, judge, replay
from sigdeg.distillation.objective import Objective
from sigdeg.distillation.regression import Distilled
from sigdeg.paths import Batch, CachedPaths, FreshPaths, SharedPaths, TeacherPaths, simulate

__all__ = [
    "Batch",
    "CachedPaths",
    "DistillConfig",
    "Distilled",
    "FreshPaths",
    "Objective",
    "SharedPaths",
    "TeacherPaths",
    "Verdict",
    "distill",
    "judge",
    "replay",
    "simulate",
]
