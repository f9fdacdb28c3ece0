"""Pictures of planning: plans as trees, the phase diagram, grids, and spectra."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray
from torch import Tensor

from sigdeg.planning.plans import Plan, fold, plan_steps
from sigdeg.planning.spectrum import Spectrum
from sigdeg.planning.theory.phase import Phase
from sigdeg.report.plots import PLAIN, WIDTH, save, small_multiples
from sigdeg.report.style import INK, METHODS, MUTED, use_style
from sigdeg.schedule import Schedule

__all__ = ["phase_plot", "plans_plot", "spectrum_plot", "times_plot"]

BLUE, GREEN, ORANGE = "#0072b2", "#009e73", "#d55e00"
TINTS = ListedColormap(["#bcd8ea", "#bfe3d5", "#f5d3b8"])  # BOOT, mixed, vanilla
FEW_LEAVES = 12  # up to here every leaf has its number
GAINS = (1, 1.5, 2, 3, 5, 10, 20, 50, 100)


def plans_plot(
    plans: Mapping[str, Plan], path: Path, best: str | None = None, notes: Mapping[str, str] = {}
) -> None:
    """Plans as trees, one panel each: leaves are the teacher's steps, every bracket one merge.

    The best is in colour; notes are written after a plan's name.
    """
    with use_style():
        figure, panels = small_multiples(len(plans), 2.3)
        for axes, (name, plan) in zip(panels, plans.items(), strict=True):
            chosen = name == best
            draw_tree(axes, plan, BLUE if chosen else MUTED)
            axes.set_title(
                ", ".join([name, *filter(None, [notes.get(name)])]),
                color=BLUE if chosen else INK,
                weight="bold" if chosen else "normal",
            )
        save(figure, path)


def draw_tree(axes: Axes, plan: Plan, tint: str) -> None:
    """A dendrogram; the data are on the left, and merges stand above those they follow."""
    steps = plan_steps(plan)
    thin = 1.6 if steps <= FEW_LEAVES else max(0.15, min(0.9, 40 / steps))

    def bracket(children: list[tuple[float, float]], _: int) -> tuple[float, float]:
        height = 1 + max(h for _, h in children)
        for x, below in children:
            axes.plot([x, x], [below, height], color=tint, linewidth=thin)
        left, right = children[0][0], children[-1][0]
        axes.plot([left, right], [height, height], color=tint, linewidth=thin)
        return (left + right) / 2, height

    # The place of an operator and its height; none is higher than the last.
    place, top = fold(plan, lambda t: (float(t), 0.0), bracket)
    top = max(top, 1.0)
    axes.plot([place] * 2, [top, 1.08 * top], color=tint, linewidth=thin)
    axes.plot(
        np.arange(1, steps + 1), np.zeros(steps), "o", color=INK, markersize=min(3, 150 / steps)
    )
    if steps <= FEW_LEAVES:
        axes.set_xticks(range(1, steps + 1))
    else:
        axes.set_xticks([1, *range(steps // 4, steps + 1, steps // 4)])
    axes.tick_params(length=0)
    axes.set_xlim(0.3, steps + 0.7)
    axes.set_ylim(-0.08 * top, 1.1 * top)
    axes.yaxis.set_major_locator(NullLocator())
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xlabel("teacher step, from the data")


def phase_plot(phase: Phase, path: Path) -> None:
    """Which plan is best, and what choosing it gains, over the variance and the training time."""
    with use_style():
        figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        x, y = phase.eigenvalues, phase.times
        kind = phase.kind
        left.pcolormesh(x, y, kind.T, cmap=TINTS, vmin=-0.5, vmax=2.5, rasterized=True)
        # Not between the windows: some plans happen to hit the teacher there, on a thin ridge.
        over_vanilla = np.ma.masked_where(
            (kind == 1) | np.isnan(phase.gain()), phase.gain("vanilla")
        )
        levels = [g for g in (1.1, 1.5, 2.0, 3.0) if over_vanilla.max() > g]
        if levels:
            drawn = left.contour(x, y, over_vanilla.T, levels, colors=[BLUE], linewidths=0.9)
            # Inline labels would cut long gaps into lines whose points lie far apart.
            labels = left.clabel(drawn, inline=False, fmt=lambda g: f"{g:g}×", fontsize=8)
            for label in labels:
                label.set_bbox({"facecolor": TINTS(0), "edgecolor": "none", "pad": 1})
        middle = float(np.sqrt(y[0] * y[-1]))
        for value, name, tint in ((0, "BOOT", BLUE), (1, "mixed", GREEN), (2, "vanilla", ORANGE)):
            inside = x[(kind == value).mean(axis=1) > 0.5]
            if len(inside) < 2:
                continue
            narrow = np.log(inside[-1] / inside[0]) < 0.15 * np.log(x[-1] / x[0])
            left.text(
                float(np.sqrt(inside[0] * inside[-1])),
                middle if narrow else y[0] ** 0.82 * y[-1] ** 0.18,
                name,
                color=tint,
                weight="bold",
                ha="center",
                va="center",
                rotation=90 if narrow else 0,
            )
        left.set_title("Best plan; lines: gain over one-shot")
        # Steps, not a gradient: they can be read off, and take a third of the file.
        gain = np.nan_to_num(phase.gain(), nan=1.0).clip(1)
        image = right.contourf(
            x, y, gain.T, GAINS, cmap="viridis", norm=LogNorm(1, GAINS[-1]), extend="max"
        )
        bar = figure.colorbar(image, ax=right, pad=0.02, ticks=GAINS)
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}×"))
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.outline.set_visible(False)
        right.set_title("Gain over the worst canonical plan")
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.grid(visible=False)
            axes.set_xlim(x[0], x[-1])
            axes.set_ylim(y[0], y[-1])
            axes.xaxis.set_major_formatter(PLAIN)
            axes.yaxis.set_major_formatter(PLAIN)
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_minor_locator(NullLocator())
            axes.set_xlabel("variance λ of the data")
            for window, symbol in zip(phase.windows, ("λ$_B$", "λ$_V$"), strict=True):
                if x[0] < window < x[-1]:
                    dark = INK if axes is left else "white"
                    axes.axvline(window, color=dark, linestyle=(0, (4, 3)), linewidth=1.1)
                    axes.text(
                        window,
                        y[0] * (y[-1] / y[0]) ** 0.03,
                        f" {symbol}" if symbol == "λ$_V$" else f"{symbol} ",
                        color=dark,
                        ha="left" if symbol == "λ$_V$" else "right",
                    )
        left.set_ylabel("training time s")
        save(figure, path)


def times_plot(grids: Mapping[str, Tensor], schedule: Schedule | None, path: Path) -> None:
    """Grids of times, a row each and the one to use first, over time.

    With a schedule also over the log-SNR; the final 0 has no finite ratio and is left out there.
    """
    with use_style():
        figure = Figure(figsize=(WIDTH, 1.1 + 0.42 * len(grids)), layout="constrained")
        panels = figure.subplots(1, 1 if schedule is None else 2, sharey=True, squeeze=False)[0]
        left, right = panels[0], panels[-1]
        for row, times in enumerate(grids.values()):
            tint = BLUE if row == 0 else MUTED
            options = {"color": tint, "markersize": 5.5, "linewidth": 1.0, "marker": "o"}
            if schedule is not None:
                inner = times[times > 0].double()
                ratio = schedule.log_snr(inner).clamp(min=-8).numpy()
                left.plot(ratio, np.full(len(inner), row), **options)
            right.plot(times.numpy(), np.full(len(times), row), **options)
        left.set_yticks(range(len(grids)), list(grids))
        left.get_yticklabels()[0].set(color=BLUE, weight="bold")
        left.set_ylim(len(grids) - 0.5, -0.5)
        if schedule is not None:
            left.set_xlabel("log signal-to-noise ratio  (data →)")
        right.set_xlabel("time t  (data →)")
        right.invert_xaxis()
        for axes in panels:
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="y", length=0)
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        save(figure, path)


def spectrum_plot(spectrum: Spectrum, windows: tuple[float, float], path: Path) -> None:
    r"""Eigenvalues over their rank, both logarithmic, with the windows $\lambda_B, \lambda_V$.

    Zero eigenvalues are told in the title.
    """
    with use_style():
        figure = Figure(figsize=(WIDTH * 0.62, 3.4), layout="constrained")
        axes = figure.subplots()
        shown = spectrum.eigenvalues > 0
        values, count = spectrum.eigenvalues[shown], spectrum.multiplicity[shown]
        last = np.cumsum(count)
        edges: NDArray[np.float64] = np.concatenate([[0.5], last + 0.5])
        axes.stairs(values, edges, color=METHODS["data"].colour, linewidth=1.8, baseline=None)
        axes.plot(np.sqrt((last - count + 1) * last), values, "o", color=GREEN, markersize=3.5)
        axes.set_xscale("log")
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, windows[0] / 2), max(high, windows[1] * 2))
        for window, symbol, tint in zip(windows, ("λ$_B$", "λ$_V$"), (BLUE, ORANGE), strict=True):
            axes.axhline(window, color=tint, linestyle=(0, (4, 3)), linewidth=1.1)
            axes.annotate(
                symbol,
                (1, window),
                xycoords=("axes fraction", "data"),
                xytext=(4, 0),
                textcoords="offset points",
                color=tint,
                va="bottom" if symbol == "λ$_V$" else "top",
                annotation_clip=False,
            )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PLAIN)
            axis.set_minor_locator(NullLocator())
        zeros = float(spectrum.multiplicity[~shown].sum())
        constant = f", {zeros:,.0f} of them without variance" if zeros else ""
        axes.set_title(f"Directions: {spectrum.directions:,.0f}{constant}")
        axes.set_xlabel("principal axis")
        axes.set_ylabel("variance λ")
        save(figure, path)
