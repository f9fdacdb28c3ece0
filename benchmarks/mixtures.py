"""The picture of discrete diffusion: what a product loses in few calls, what a mixture is made of.

    python -m benchmarks.mixtures

Two tokens of 16 symbols whose law is two moons. The laws that are drawn are exact: no samples.
Writes `docs/figures/discrete.png`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from sigdeg.datasets.problems import TokenLaw, load_problem
from sigdeg.discrete import (
    Absorbing,
    Ancestral,
    ExactDenoiser,
    Latent,
    as_token_model,
    distill,
    uniform_grid,
)
from sigdeg.discrete.exact import joint_law, sampler_law, total_variation
from sigdeg.networks import TokenMLP
from sigdeg.report.series import save
from sigdeg.report.style import INK, MUTED, colour, use_style
from sigdeg.rng import seeded

__all__ = ["Shown", "components", "draw", "main", "study"]

OUT = Path(__file__).parents[1] / "docs/figures/discrete.png"
COMPONENTS = 5


class Shown(NamedTuple):
    """What is drawn: laws of two tokens, each (S, S).

    Arguments:
        law: The law itself.
        teacher: The teacher's by its calls.
        student: The student's in one call.
        parts: Of some of its latents: a product each.
    """

    law: Tensor
    teacher: dict[int, Tensor]
    student: Tensor
    parts: Tensor


def components(student: Ancestral, latents: Tensor) -> Tensor:
    """Laws of two tokens given each latent, in one step from masks, shape (n, S, S)."""
    x = student.process.prior((len(latents), 2))
    first, second = student.laws(x, 1.0, 0.0, latents, {}).exp().unbind(1)
    return first[:, :, None] * second[:, None]


@torch.no_grad()
def shown(law: TokenLaw, teacher: Ancestral, student: Ancestral) -> Shown:
    """The laws of a teacher and its student, without the mask."""
    x, n = student.process.prior((1, 2)), law.tokens
    heaviest = student.denoiser.log_weights(x, torch.tensor(1.0))[0].topk(COMPONENTS).indices
    return Shown(
        joint_law(law.support, law.weights, n),
        {calls: sampler_law(teacher, uniform_grid(calls))[:n, :n] for calls in (1, 4)},
        sampler_law(student, uniform_grid(1))[:n, :n],
        components(student, heaviest[:, None])[:, :n, :n],
    )


def study(out: Path, iterations: int = 3000) -> Shown:
    """Distil the exact teacher of two moons, and take the laws of both."""
    law = load_problem("moons16")
    teacher = as_token_model(ExactDenoiser(law.support, law.weights, Absorbing(law.tokens)))
    told = {"kind": "weighted", "size": 32}
    student = distill(
        teacher,
        network=seeded(0, lambda: TokenMLP(2, law.tokens + 1, width=64, timed=False, latent=told)),
        latent=Latent("weighted", 32),
        out=out,
        single=True,
        latents=32,
        batch_size=8,
        start=0.25,
        learning_rate=4e-3,
        warmup=100,
        ema=0.995,
        iterations=iterations,
        progress=False,
    )
    assert isinstance(teacher.step, Ancestral)
    assert isinstance(student.step, Ancestral)
    return shown(law, teacher.step, student.step)


def draw(found: Shown, path: Path) -> None:
    """Write the picture as a PNG."""
    panels = [("The law", found.law, colour("data"))]
    for calls, drawn in found.teacher.items():
        panels.append((title("Teacher", calls, drawn, found.law), drawn, colour("teacher")))
    panels.append((title("Student", 1, found.student, found.law), found.student, colour("student")))
    with use_style():
        figure = Figure(figsize=(9.6, 5.3))
        for k, (name, law, tint) in enumerate(panels):
            axes = figure.add_axes((0.02 + 0.248 * k, 0.47, 0.215, 0.39))
            panel(axes, law, tint)
            axes.set_title(name, size=9, loc="left")
        figure.text(0.02, 0.95, "Two tokens, drawn at once or in turn", **HEADING)
        figure.text(0.02, 0.385, "What the student is made of", **HEADING)
        told = "products, as the teacher’s one call: one of 32 is drawn, here the five likeliest"
        figure.text(0.345, 0.386, told, size=9, color=MUTED)
        for k, part in enumerate(found.parts):
            axes = figure.add_axes((0.02 + 0.198 * k, 0.03, 0.165, 0.3))
            panel(axes, part, colour("student"))
        save(figure, path)


HEADING = {"weight": "bold", "size": 12, "color": INK}


def title(name: str, calls: int, drawn: Tensor, law: Tensor) -> str:
    """A panel's title: calls, and the total variation to the law."""
    off = total_variation(drawn, law)
    return f"{name}, {calls} call{'s' * (calls > 1)}: TV {off:.3f}"


def panel(axes: Axes, law: Tensor, tint: str) -> None:
    """A law of two tokens as shades of a colour."""
    shades = LinearSegmentedColormap.from_list("law", ["white", tint])
    axes.imshow(np.sqrt(law.T.numpy()), origin="lower", cmap=shades, aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(True)


def main() -> None:
    """Train and draw."""
    draw(study(Path("runs/discrete-figure")), OUT)


if __name__ == "__main__":
    main()
