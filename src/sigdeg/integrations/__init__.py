"""Bridges to diffusers and transformers: teachers from what they save, solvers from schedulers."""

from sigdeg.integrations.diffusers import (
    as_teacher,
    load_guided,
    load_teacher,
    save_latent_pipeline,
)
from sigdeg.integrations.masked_lm import as_token_teacher, load_token_teacher
from sigdeg.integrations.models import load_model
from sigdeg.integrations.schedulers import Described, describe, from_scheduler
from sigdeg.integrations.solvers import SOLVERS, Solver, solver_grids

__all__ = [
    "SOLVERS",
    "Described",
    "Solver",
    "as_teacher",
    "as_token_teacher",
    "describe",
    "from_scheduler",
    "load_guided",
    "load_model",
    "load_teacher",
    "load_token_teacher",
    "save_latent_pipeline",
    "solver_grids",
]
