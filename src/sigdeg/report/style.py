"""One look for every figure: a method has the same name, colour and marker everywhere.

The colours are those of Okabe and Ito, completed by the muted scheme of Tol: both stay apart for
colour-blind readers. Teacher red, student blue and data green are the roles that meet most often.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import matplotlib

__all__ = ["DPI", "INK", "METHODS", "Look", "colour", "look", "use_style"]

DPI = 192  # two device pixels a CSS pixel: text is as large as the page's, and sharp
INK = "#25292e"
MUTED = "#6b7280"


class Look(NamedTuple):
    """How a method is shown."""

    name: str
    colour: str
    marker: str


METHODS = {
    "teacher": Look("Teacher", "#d55e00", "o"),
    "sig-deg": Look("Student", "#0072b2", "o"),
    "untrained": Look("Untrained step", "#9aa0a8", "s"),
    "taylor": Look("Stochastic Taylor", "#e69f00", "^"),
    "ddim": Look("DDIM", "#cc79a7", "v"),
    "dpm-solver++": Look("DPM-Solver++", "#56b4e9", "D"),
    "sde-dpm-solver++": Look("SDE-DPM-Solver++", "#332288", "P"),
    "unipc": Look("UniPC", "#882255", "X"),
    "di4c": Look("Di4C", "#44aa99", "h"),
    "product": Look("Product", "#999933", "p"),
    "data": Look("Data", "#009e73", "o"),
}
ALIASES = {"student": "sig-deg", "real": "data", "exact": "data"}

STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "savefig.dpi": DPI,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same figure on every machine
    "font.size": 9.5,
    "text.color": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelsize": 9.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": "#b5bac2",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e8eaee",
    "grid.linewidth": 0.8,
    "xtick.color": "#b5bac2",
    "ytick.color": "#b5bac2",
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 1.8,
    "lines.markersize": 6.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def use_style() -> AbstractContextManager[None]:
    """The style of the figures, as a context: global settings are as before after it."""
    return matplotlib.rc_context(STYLE)


def look(label: str) -> Look:
    """The look of a method, found by the beginning of a label such as "teacher, 300 steps"."""
    text = label.lower()
    for name in sorted([*METHODS, *ALIASES], key=len, reverse=True):
        if text.startswith(name):
            return METHODS[ALIASES.get(name, name)]
    return Look(label, INK, "o")


def colour(label: str) -> str:
    """The colour of a method, found by the beginning of a label such as "student, 5 steps"."""
    return look(label).colour
