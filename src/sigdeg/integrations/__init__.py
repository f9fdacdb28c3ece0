"""Bridges to other libraries: teachers from diffusers pipelines."""

from sigdeg.integrations.diffusers import Teacher, load_teacher

__all__ = ["Teacher", "load_teacher"]
