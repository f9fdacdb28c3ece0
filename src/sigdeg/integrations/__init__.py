"""Bridges to diffusers: teachers from its pipelines, its schedulers as training-free solvers."""

from sigdeg.integrations.diffusers import (
    as_teacher,
    load_guided,
    load_teacher,
    save_latent_pipeline,
)
from sigdeg.integrations.models import load_model
from sigdeg.integrations.solvers import SOLVERS, Solver, solver_grids

__all__ = [
    "SOLVERS",
    "Solver",
    "as_teacher",
    "load_guided",
    "load_model",
    "load_teacher",
    "save_latent_pipeline",
    "solver_grids",
]
