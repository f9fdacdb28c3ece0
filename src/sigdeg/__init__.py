"""Distil a pretrained diffusion model into a student of 1 to 10 network calls.

The core, in reading order: `signature`, `schedule`, `denoiser`, `steps`, `grids`, `sampling`,
`student`, `distillation`.

Names are imported when they are first asked for: the command line must answer to Ctrl-C, and to bad
arguments, before torch is there.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sigdeg.api import *  # noqa: F403  # they are listed there

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    return getattr(import_module("sigdeg.api"), name)


def __dir__() -> list[str]:
    return [*globals(), *__getattr__("__all__")]
