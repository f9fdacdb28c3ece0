"""Distil a pretrained diffusion model into a student of 1 to 10 network calls.

The core, in reading order: `signature`, `schedule`, `denoiser`, `steps`, `grids`, `sampling`,
`student`, `distillation`.

Names are imported when they are first asked for, each from its own module: the command line must
answer to Ctrl-C, and to bad arguments, before torch is there, and what only training needs is no
burden to sampling.
"""

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sigdeg.api import *  # noqa: F403  # they are listed there

__version__ = "0.1.0"


@cache
def homes() -> dict[str, str]:
    """The module of each public name, from `api.py`: read, as importing it imports them all."""
    lines = ast.parse(Path(__file__).with_name("api.py").read_text(encoding="utf-8")).body
    imports = (line for line in lines if isinstance(line, ast.ImportFrom) and line.module)
    return {name.name: str(line.module) for line in imports for name in line.names}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return [*homes()]
    if name.startswith("SigDEG") or name in ("ModelMixin", "SchedulerMixin"):
        # What a saved pipeline of a student names: diffusers looks for it here.
        return import_module("sigdeg.pipelines").served(name)
    if name not in homes():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(homes()[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *homes()]
