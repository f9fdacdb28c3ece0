"""Bridges to diffusers: teachers from its pipelines, its schedulers as training-free solvers."""

from sigdeg.integrations.diffusers import Teacher, load_teacher
from sigdeg.integrations.solvers import SOLVERS, solver_grids, solver_sample

__all__ = ["SOLVERS", "Teacher", "load_teacher", "solver_grids", "solver_sample"]
