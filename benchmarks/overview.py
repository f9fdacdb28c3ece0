r"""The method in one figure, computed: the paper's Figure 1 for the mixture on the line.

    python -m benchmarks.overview

A teacher with the exact score walks a path from noise to data in 300 small steps. Their Brownian
path, folded into a partial signature of two numbers for each of five large steps, drives a student
of five calls, distilled here in a minute or two. Writes `docs/figures/overview.png`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor

from sigdeg.datasets import GaussianMixture1D
from sigdeg.denoiser import GaussianMixtureDenoiser
from sigdeg.distillation import distill
from sigdeg.grids import join_rows, refine
from sigdeg.networks import ResidualMLP
from sigdeg.report.series import save
from sigdeg.report.style import INK, MUTED, colour, use_style
from sigdeg.rng import seeded
from sigdeg.sampling import march
from sigdeg.schedule import VPLinear
from sigdeg.signature import PartialSignature
from sigdeg.steps import EulerMaruyama, Step
from sigdeg.student import SignatureStudent

__all__ = ["Walk", "draw", "main", "summarised", "walk"]

OUT = Path(__file__).parents[1] / "docs/figures/overview.png"
SCHEDULE, LAW = VPLinear(), GaussianMixture1D()
TEACHER = EulerMaruyama(GaussianMixtureDenoiser(LAW.means, LAW.stds, LAW.weights, SCHEDULE))
STEPS, REFINEMENT = 5, 60
SEED, PATHS, SHOWN = 123, 60, 0  # of the paths drawn, the noise of one is shown: it can be read
TINTS = (colour("student"), "#56b4e9")
COEFFICIENTS = ("$c_0$: where\nit goes", "$c_1$: how\nit bends")


class Walk(NamedTuple):
    """Teacher and student along the same Brownian paths, first axis the path.

    Arguments:
        fine: The teacher's times, shape (F + 1,).
        brownian: The Brownian paths there.
        teacher: The teacher's states there.
        coarse: The student's times, shape (K + 1,).
        signatures: One a large step.
        student: The student's states at its times.
    """

    fine: Tensor
    brownian: Tensor
    teacher: Tensor
    coarse: Tensor
    signatures: list[PartialSignature]
    student: Tensor


def walk(student: SignatureStudent, n: int, generator: Generator) -> Walk:
    """Draw n paths by the teacher, fold their noise, and let the student walk them too."""
    fine = join_rows(refine(SCHEDULE, student.grid(), REFINEMENT))
    start = SCHEDULE.prior_std * torch.randn(n, 1, generator=generator)
    noise = [PartialSignature.sample(h, start.shape, 2, generator) for h in -fine.diff()]
    signatures = [
        PartialSignature.fold(noise[k : k + REFINEMENT]) for k in range(0, len(noise), REFINEMENT)
    ]

    def states(step: Step, grid: Tensor, path: list[PartialSignature]) -> Tensor:
        seen = [start]
        march(step, start, grid, path, callback=lambda k, t, x: seen.append(x))
        return torch.stack(seen, dim=1)[..., 0]

    increments = torch.stack([start * 0, *(part.W for part in noise)], dim=1)[..., 0]
    with torch.no_grad():
        return Walk(
            fine,
            increments.cumsum(1),
            states(TEACHER, fine, noise),
            student.grid(),
            signatures,
            states(student, student.grid(), signatures),
        )


def summarised(signature: PartialSignature, share: Tensor) -> Tensor:
    r"""What two coefficients know of the path: $E[B_u | c_0, c_1]$, a parabola, at u = share h."""
    c0, c1 = signature.coefficients[:, :2, 0].unbind(1)
    root = signature.dt.sqrt()
    return root * (c0[:, None] * share + 3**0.5 * c1[:, None] * (share**2 - share))


def trained() -> SignatureStudent:
    """A student of five calls."""
    network = seeded(
        0, lambda: ResidualMLP(SignatureStudent.in_channels(1, 2), 1, width=128, blocks=3)
    )
    student = SignatureStudent(
        network, SCHEDULE, 1, 2, steps=(STEPS,), power=1.0, data_std=LAW.variance**0.5
    )
    with tempfile.TemporaryDirectory() as folder:
        result = distill(
            student,
            TEACHER,
            folder,
            paths=20_000,
            iterations=1500,
            learning_rate=4e-3,
            refinement=REFINEMENT,
            ema=0.99,
            device="cpu",
            progress=False,
        )
    return result.student


def draw(found: Walk, ends: tuple[Tensor, Tensor], path: Path) -> None:
    """The figure: noise, signatures, and the paths they drive.

    Arguments:
        found: Some paths; the noise of one of them is shown.
        ends: Many samples of the teacher and of the student.
        path: The PNG to write.
    """
    red, blue = colour("teacher"), colour("student")
    fine, coarse = found.fine.numpy(), found.coarse.numpy()
    with use_style():
        figure = Figure(figsize=(8.6, 7.4), layout="constrained")
        grid = figure.subplots(
            3, 2, width_ratios=[6, 1], height_ratios=[1.9, 1, 2.8], sharex="col", squeeze=False
        )
        (noise, spare), (bars, other), (paths, ends_of) = grid
        for axes in (spare, other):
            axes.set_axis_off()
        for axes in (noise, bars, paths):
            axes.grid(visible=False)
            for k in range(STEPS):
                shade = "#f4f6f9" if k % 2 == 0 else "white"
                axes.axvspan(coarse[k], coarse[k + 1], color=shade, zorder=-2, lw=0)

        brownian = found.brownian[SHOWN].numpy()
        noise.plot(fine, brownian, color=INK, lw=0.8, alpha=0.75, label="Brownian path")
        share = torch.linspace(0, 1, 60)
        for k, signature in enumerate(found.signatures):
            times = coarse[k] + (coarse[k + 1] - coarse[k]) * share.numpy()
            known = brownian[k * REFINEMENT] + summarised(signature, share)[SHOWN].numpy()
            noise.plot(
                times, known, color=blue, lw=2.2, label="" if k else "its mean,\ngiven $c_0, c_1$"
            )
            noise.plot(times[[0, -1]], known[[0, -1]], "o", color=blue, ms=4, clip_on=False)
            middle, width = (coarse[k] + coarse[k + 1]) / 2, 0.028
            for i, (tint, name) in enumerate(zip(TINTS, COEFFICIENTS, strict=True)):
                value = float(signature.coefficients[SHOWN, i, 0])
                at, side = middle + (0.5 - i) * 1.7 * width, 1 if value >= 0 else -1
                bars.bar(at, value, width, color=tint, label="" if k else name)
                bars.annotate(
                    f"{value:.1f}".replace("-", "\N{MINUS SIGN}"),
                    (at, value),
                    xytext=(0, 3 * side),
                    textcoords="offset points",
                    ha="center",
                    va="bottom" if side > 0 else "top",
                    fontsize=8,
                    color=MUTED,
                )
        bars.axhline(0, color="#b5bac2", lw=0.8)
        bars.set_ylim(-3.2, 3.2)
        bars.set_yticks([-2, 0, 2])

        paths.plot(fine, found.teacher.T.numpy(), color=red, lw=0.5, alpha=0.12)
        paths.plot(fine, found.teacher[SHOWN].numpy(), color=red, lw=1.1, label="teacher")
        more = {"mec": "white", "clip_on": False, "zorder": 5}
        paths.plot(
            coarse, found.student[SHOWN].numpy(), "o--", color=blue, lw=1.4, label="student", **more
        )
        x, edges = np.linspace(-4, 4, 400), np.linspace(-4, 4, 65)
        for samples, tint, look in zip(
            ends, (red, blue), ({"lw": 1.2}, {"fill": True, "alpha": 0.35}), strict=True
        ):
            heights, _ = np.histogram(samples.numpy(), edges, density=True)
            ends_of.stairs(heights, edges, orientation="horizontal", color=tint, **look)
        ends_of.plot(density(x), x, color=INK, lw=1.2, label="data")
        for axes, legend in ((noise, spare), (bars, other)):
            legend.legend(*axes.get_legend_handles_labels(), loc="center left")
        paths.legend(loc="lower left", ncols=2)
        ends_of.legend(loc="lower left")
        ends_of.set_axis_off()
        for axes in (paths, ends_of):
            axes.set_ylim(-4.4, 4)
        paths.set_xlim(1.0, 0.0)
        paths.set_xticks(coarse, [f"{t:g}" for t in coarse.round(2)])
        paths.set_xlabel("diffusion time, from noise (1) to data (0)")
        noise.set_title("1  The noise: a Brownian path, and what two numbers a step know of it")
        bars.set_title("2  The partial signature: these numbers, which can be drawn without a path")
        paths.set_title(
            "3  The teacher in 300 small steps, the student in 5 large ones, on that path"
        )
        ends_of.set_title("samples")
        save(figure, path)


def density(x: np.ndarray) -> np.ndarray:
    """Density of the law."""
    parts = zip(LAW.weights, LAW.means, LAW.stds, strict=True)
    return sum(
        w * np.exp(-(((x - m) / s) ** 2) / 2) / (s * np.sqrt(2 * np.pi)) for w, m, s in parts
    )


def main() -> None:
    """Distil a student, walk, draw."""
    student = trained()
    found = walk(student, PATHS, Generator().manual_seed(SEED))
    many = walk(student, 20_000, Generator().manual_seed(0))
    draw(found, (many.teacher[:, -1], many.student[:, -1]), OUT)


if __name__ == "__main__":
    main()
