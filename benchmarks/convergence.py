r"""Strong error of the training-free steps against their number, on one and the same path.

    python -m benchmarks.convergence

The law is 1DN (a mixture of two normals) with its exact score, the schedule VP-linear, the reverse
time from 1 to 0.1, everything in float64. The finest signatures are drawn once, the reference
marches over them, and every coarser grid sees their concatenation: all errors are pathwise. The
figure shows the strong error of Kloeden and Platen, $E |x_N - x_{ref}|$. The table adds the root
mean square, which rare paths that end at the other mode dominate: it is noisier, and its slopes are
lower at these step counts. Writes `docs/figures/convergence.png` and `results/convergence.json`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import NullLocator, ScalarFormatter
from torch import Generator, Tensor

from sigdeg.datasets.mixture import GaussianMixture1D
from sigdeg.denoiser import GaussianMixtureDenoiser
from sigdeg.files import atomic_write, save_json
from sigdeg.rng import randn
from sigdeg.sampling import march
from sigdeg.schedule import VPLinear
from sigdeg.signature import PartialSignature
from sigdeg.steps import EulerMaruyama, Exponential, ShARK, Step, StochasticTaylor

__all__ = ["STEPS", "Curve", "draw", "main", "study"]

ROOT = Path(__file__).parents[1]
START, END = 1.0, 0.1
STEPS = (8, 16, 32, 64, 128, 256, 512)
REFERENCE_STEPS = 8192
PATHS = 10_000
SEED = 0


@dataclass(frozen=True)
class Curve:
    """One step's errors, its expected slope and its look (Okabe-Ito colours)."""

    label: str
    order: float
    colour: str
    marker: str
    errors: list[float]
    rms: list[float]

    def slope(self) -> float:
        """Strong order seen over the last two doublings of the number of steps."""
        return math.log2(self.errors[-3] / self.errors[-1]) / 2


def uniform(steps: int) -> Tensor:
    """Uniform times from START down to END."""
    return torch.linspace(START, END, steps + 1, dtype=torch.float64)


@torch.no_grad()
def study(paths: int = PATHS, reference_steps: int = REFERENCE_STEPS) -> list[Curve]:
    """Errors of every step at every resolution, on the same paths."""
    law = GaussianMixture1D()
    denoiser = GaussianMixtureDenoiser(law.means, law.stds, law.weights, VPLinear())
    generator = Generator().manual_seed(SEED)
    start = torch.tensor(START, dtype=torch.float64)
    x = denoiser.schedule.alpha(start) * law.sample(paths, generator).double()
    x = x + denoiser.schedule.sigma(start) * randn(x.shape, generator, torch.float64)

    # The reference goes one step of the finest studied grid at a time: only that one is kept.
    fine, finest = uniform(reference_steps), max(STEPS)
    parts = reference_steps // finest
    kept, reference = [], x
    for first in range(0, reference_steps, parts):
        times = fine[first : first + parts + 1]
        path = [
            PartialSignature.sample(h, x.shape, 2, generator, torch.float64) for h in -times.diff()
        ]
        reference = march(ShARK(denoiser), reference, times, path)
        kept.append(PartialSignature.fold(path))

    def errors(step: Step) -> tuple[list[float], list[float]]:
        found = []
        for n in STEPS:
            parts = finest // n
            path = [PartialSignature.fold(kept[i : i + parts]) for i in range(0, finest, parts)]
            error = march(step, x, uniform(n), path) - reference
            found.append((float(error.abs().mean()), float(error.square().mean().sqrt())))
        mean, rms = map(list, zip(*found, strict=True))
        return mean, rms

    spread = math.sqrt(law.variance)
    steps: list[tuple[Step, str, float, str, str]] = [
        (StochasticTaylor(denoiser), "Stochastic Taylor, as printed", 1.0, "#E69F00", "s"),
        (EulerMaruyama(denoiser), "Euler-Maruyama", 1.0, "#000000", "o"),
        (Exponential(denoiser), "Exponential, order 1 (ancestral)", 1.0, "#CC79A7", "v"),
        (Exponential(denoiser, 2, spread), "Exponential, order 2, data std", 1.0, "#56B4E9", "^"),
        (
            StochasticTaylor(denoiser, complete=True),
            "Stochastic Taylor, complete",
            1.5,
            "#D55E00",
            "D",
        ),
        (ShARK(denoiser), "ShARK (2 calls a step)", 1.5, "#009E73", "P"),
    ]
    return [Curve(*look, *errors(step)) for step, *look in steps]


def spread_labels(heights: list[float], gap: float) -> list[float]:
    """Move sorted heights apart until neighbours keep the gap, their mean unchanged."""
    moved = sorted(heights)
    for _ in range(200):
        for i in range(len(moved) - 1):
            missing = gap - (moved[i + 1] - moved[i])
            if missing > 0:
                moved[i], moved[i + 1] = moved[i] - missing / 2, moved[i + 1] + missing / 2
    return moved


def draw(curves: list[Curve], path: Path) -> None:
    """The figure: error against steps, labels at the ends of the lines, slopes 1 and 1.5."""
    figure, axes = plt.subplots(figsize=(8.4, 4.8), layout="constrained")
    ordered = sorted(curves, key=lambda curve: curve.errors[-1])
    heights = spread_labels([math.log10(curve.errors[-1]) for curve in ordered], gap=0.17)
    for curve, height in zip(ordered, heights, strict=True):
        axes.plot(STEPS, curve.errors, color=curve.colour, marker=curve.marker, ms=5, lw=1.6)
        axes.annotate(
            f"{curve.label}: {curve.slope():.2f}",
            (STEPS[-1], curve.errors[-1]),
            xytext=(STEPS[-1] * 1.35, 10**height),
            color="0.1",
            va="center",
            fontsize=10,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": curve.colour,
                "lw": 1.2,
                "shrinkA": 2,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )
    n = np.array([STEPS[-3], STEPS[-1]], dtype=float)
    worst, best = ordered[-1].errors[-1], ordered[0].errors[-1]
    for order, at in ((1.0, 2.2 * worst), (1.5, best / 2.2)):
        y = at * (n / n[-1]) ** -order
        axes.plot(n, y, color="0.45", ls="--", lw=1.2)
        axes.annotate(
            f"slope {order:g}", (n[0], y[0]), xytext=(-5, 0), textcoords="offset points",
            color="0.35", ha="right", va="center", fontsize=10,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel=f"steps N from t = {START:g} to {END:g}")
    axes.set_title(
        "1DN, exact score, every step on the same paths; measured order after each name",
        fontsize=11,
        loc="left",
    )
    axes.set_ylabel(r"strong error  $E\,|x_N - x_\mathrm{ref}|$  at t = 0.1")
    axes.set_xticks(STEPS)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(color="0.9", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=160))
    plt.close(figure)


def main() -> None:
    """Run the study, write its table and its figure."""
    curves = study()
    rows = [
        {
            "step": curve.label,
            "strong_order": curve.order,
            "measured_order": round(curve.slope(), 3),
            "mean_absolute": [float(f"{error:.4g}") for error in curve.errors],
            "root_mean_square": [float(f"{error:.4g}") for error in curve.rms],
        }
        for curve in curves
    ]
    save_json(
        ROOT / "results/convergence.json",
        {
            "law": "1DN: equal mixture of N(-2, 0.5^2) and N(2, 0.5^2), exact score",
            "schedule": VPLinear().config(),
            "interval": [START, END],
            "paths": PATHS,
            "seed": SEED,
            "reference": {"step": "ShARK", "steps": REFERENCE_STEPS},
            "error": "of x_N against x_reference at the end, over the paths",
            "steps": list(STEPS),
            "rows": rows,
        },
    )
    draw(curves, ROOT / "docs/figures/convergence.png")
    for row in rows:
        print(f"{row['step']:34} order {row['measured_order']:.2f}  {row['mean_absolute']}")


if __name__ == "__main__":
    main()
