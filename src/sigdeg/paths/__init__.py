"""Teacher paths: what a student learns from, and what plans are measured on."""

from sigdeg.paths.batch import Batch
from sigdeg.paths.simulate import TeacherPaths, simulate
from sigdeg.paths.sources import CachedPaths, FreshPaths, PathSource, SharedPaths

__all__ = [
    "Batch",
    "CachedPaths",
    "FreshPaths",
    "PathSource",
    "SharedPaths",
    "TeacherPaths",
    "simulate",
]
