"""The package in one drawing: how a teacher becomes a student, and where each part lives.

    python -m benchmarks.architecture

Writes `docs/figures/architecture.png`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from sigdeg.report.series import save
from sigdeg.report.style import INK, MUTED, colour, use_style

__all__ = ["ROOMS", "Room", "draw", "main"]

OUT = Path(__file__).parents[1] / "docs/figures/architecture.png"
WIDTH, HEIGHT, GAP = 3.0, 2.5, 1.15


class Room(NamedTuple):
    """A box of the drawing.

    Arguments:
        title: What it is called.
        does: What it does, in lines.
        files: Where it lives below `src/sigdeg`.
        tint: Its colour.
        hands: What it hands on, above the arrow.
    """

    title: str
    does: str
    files: str
    tint: str
    hands: str


RED, BLUE, GREY = colour("teacher"), colour("student"), "#8a93a0"
ROOMS = (
    Room(
        "Teacher",
        "a model: step, grid,\ncodec, conditions, card.\nIts step calls a denoiser,\nguided or not",
        "model.py  steps.py\ndenoiser.py  guidance.py",
        RED,
        "marched in\nsmall steps",
    ),
    Room(
        "Paths",
        "states at a few times, and\nthe signature of the\nBrownian path between\neach two of them",
        "paths/\nsignature.py  grids.py",
        GREY,
        "a batch:\nseed, step",
    ),
    Room(
        "Objective",
        "named losses of a batch;\none job trains any of\nthem, and goes on\nwhere it was stopped",
        "distillation/\ntraining/",
        GREY,
        "gradients",
    ),
    Room(
        "Student",
        "a step, too: inputs,\nnetwork, outputs, around\nits teacher’s network and\n"
        "exact linear part",
        "student.py  response.py\nnetworks/",
        BLUE,
        "1 to 10\ncalls",
    ),
    Room(
        "Model",
        "again: one folder that\nsample, evaluate, distill\nand Python read; teacher\n"
        "of the next student",
        "model.py  codec.py\nconditions.py",
        BLUE,
        "",
    ),
)
FLOORS = (
    ("cli", "what is typed"),
    ("workflows  experiments", "what commands do; benchmarks"),
    ("pipelines  distillation  planning  integrations  metrics  discrete", "the wings"),
    ("paths  training  datasets  report", "what wings share"),
    ("signature  schedule  denoiser  steps  student  sampling  model  networks", "the core"),
    ("errors  files  rng  runs  schema  results", "the ground"),
)


def draw(path: Path) -> None:
    """Write the drawing as a PNG."""
    right = len(ROOMS) * WIDTH + (len(ROOMS) - 1) * GAP
    with use_style():
        figure = Figure(figsize=(11, 6.9))
        axes = figure.add_axes((0.015, 0.01, 0.97, 0.98))
        axes.set_axis_off()
        axes.set_xlim(-0.1, right + 0.1)
        axes.set_ylim(-7.72, HEIGHT + 0.95)
        axes.text(0, HEIGHT + 0.5, "From teacher to student", **HEADING)
        for k, room in enumerate(ROOMS):
            left = k * (WIDTH + GAP)
            box(axes, left, 0, WIDTH, HEIGHT, room.tint)
            middle = left + WIDTH / 2
            axes.text(middle, HEIGHT - 0.36, room.title, weight="bold", size=10.5, **CENTRED)
            axes.text(middle, 1.33, room.does, size=7.6, linespacing=1.35, color=INK, **CENTRED)
            axes.text(middle, 0.33, room.files, size=6.8, color=MUTED, family=MONO, **CENTRED)
            if room.hands:
                arrow(axes, (left + WIDTH + 0.08, 1.25), (left + WIDTH + GAP - 0.08, 1.25))
                axes.text(left + WIDTH + GAP / 2, 1.75, room.hands, size=7, color=MUTED, **CENTRED)
        box(axes, 0, -1.12, right, 0.72, "#c9a227")
        axes.text(
            right / 2,
            -0.76,
            "sampling.py: the same loop marches teacher and student.  "
            "noise = step.noise(t, s, …),  x = step(x, t, s, noise)",
            size=8.4,
            color=INK,
            **CENTRED,
        )
        box(axes, 0, -1.98, right, 0.72, colour("di4c"))
        axes.text(
            right / 2,
            -1.62,
            "discrete/: the same rooms for tokens.  A process of its own in place of the schedule, "
            " noise = uniform numbers and a latent in place of signatures",
            size=8.4,
            color=INK,
            **CENTRED,
        )
        box(axes, 0, -2.84, right, 0.72, BLUE)
        axes.text(
            right / 2,
            -2.48,
            "pipelines/: the same for any pipeline of diffusers.  Its own call is the loop, its "
            "scheduler the step; the student is the pipeline again",
            size=8.4,
            color=INK,
            **CENTRED,
        )
        axes.text(0, -3.72, "Floors: nothing imports what stands above it", **HEADING)
        for k, (names, what) in enumerate(FLOORS):
            low = -4.62 - 0.6 * k
            box(axes, 0, low, right, 0.5, GREY)
            axes.text(0.25, low + 0.25, names, size=7.6, family=MONO, color=INK, va="center")
            axes.text(
                right - 0.25, low + 0.25, what, size=7.8, color=MUTED, ha="right", va="center"
            )
        save(figure, path)


MONO = "DejaVu Sans Mono"
CENTRED = {"ha": "center", "va": "center"}
HEADING = {"weight": "bold", "size": 12, "color": INK}


def box(axes: Axes, x: float, y: float, width: float, height: float, tint: str) -> None:
    """A rounded box."""
    style = {"boxstyle": "round,pad=0,rounding_size=0.12", "lw": 1.1}
    for face, alpha in ((tint, 0.09), ("none", 0.9)):
        patch = FancyBboxPatch((x, y), width, height, fc=face, ec=tint, alpha=alpha, **style)
        axes.add_patch(patch)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """An arrow."""
    look = {"arrowstyle": "-|>", "color": INK, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=end, xytext=start, arrowprops=look)


def main() -> None:
    """Draw it."""
    draw(OUT)


if __name__ == "__main__":
    main()
