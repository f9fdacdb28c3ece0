"""Bridges to diffusers: teachers from its pipelines, its schedulers as training-free solvers."""

from sigdeg.integrations.decoders import Decoder, find_decoder, load_decoder, save_decoder
from sigdeg.integrations.diffusers import Teacher, load_teacher, save_latent_pipeline
from sigdeg.integrations.solvers import SOLVERS, solver_grids, solver_sample, solver_times

__all__ = [
    "SOLVERS",
    "Decoder",
    "Teacher",
    "find_decoder",
    "load_decoder",
    "load_teacher",
    "save_decoder",
    "save_latent_pipeline",
    "solver_grids",
    "solver_sample",
    "solver_times",
]
