"""The figures of time-series experiments: paths, marginals, trajectories in diffusion time.

They are the views of Sig-DEG (arXiv 2508.16939), Figures 5 to 9, in the colours and by the
rules of `sigdeg.report.plots`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from sigdeg.errors import SigdegError
from sigdeg.report.plots import PLAIN, WIDTH, Array, Floats, log_axis, numbers, save
from sigdeg.report.style import INK, colour, use_style

__all__ = ["diffusion_plot", "marginals_plot", "paths_plot"]

LINES = 16  # paths drawn in one panel: it is a quarter as wide as the page, more are a blot
COLUMNS = 5  # of the marginals
BINS = 40
SMALL = 8  # points: text of crowded panels
COLOURS = 48  # of a picture


def paths_plot(panels: Mapping[str, Array], times: Array, names: Sequence[str], path: Path) -> None:
    """Paths of positive processes over time: a row a process, a column a label, logarithmic.

    Arguments:
        panels: For each label its paths, positive, shape (n, len(names), dates); the first 16 are
            drawn, all enter the median and the band from the 5% to the 95% quantile of each date.
        times: The dates, shape (dates,).
        names: The processes, price and variance say.
        path: The PNG to write.

    Raises:
        SigdegError: If paths have another shape or are not positive and finite.
    """
    t = numbers(times)
    given = {k: finite(k, x, len(names), t.size) for k, x in panels.items()}
    for label, x in given.items():
        if x.min() <= 0:
            raise SigdegError(f"paths of {label!r} must be positive for a logarithmic axis")
    with use_style():
        figure, grid = panel_grid(given, len(names), len(given), 2.3, sharex=True, sharey="row")
        for column, (label, x) in zip(grid.T, given.items(), strict=True):
            column[0].set_title(label, fontsize=SMALL + 1)
            column[-1].set_xlabel("t")
            for i, axes in enumerate(column):
                tint = colour(label)
                low, median, high = np.quantile(x[:, i], [0.05, 0.5, 0.95], axis=0)
                axes.fill_between(t, low, high, color=tint, alpha=0.2, lw=0)
                axes.plot(t, x[:LINES, i].T, color=tint, alpha=0.6, lw=0.5)
                axes.plot(t, median, color=INK, lw=1.2)
        for axes, name in zip(grid[:, 0], names, strict=True):
            axes.set_ylabel(name)
            log_axis(axes, "y")
        few_ticks(grid[0, 0])
        figure.align_ylabels(grid[:, 0])
        band = Patch(color=INK, alpha=0.2, lw=0, label="5% to 95%")
        middle = Line2D([], [], color=INK, lw=1.2, label="median")
        figure.legend(handles=[band, middle], loc="outside upper right", ncols=2)
        save(figure, path, COLOURS)


def marginals_plot(samples: Mapping[str, Array], times: Array, path: Path) -> None:
    """Histograms of every date of a process, a panel a date, the labels over one another.

    Bins follow the quantiles of the first label, which is filled: what others have beyond them is
    left out, and counts as mass that is missing.

    Arguments:
        samples: For each label its values, shape (n, dates).
        times: The dates, shape (dates,).
        path: The PNG to write.

    Raises:
        SigdegError: If values have another shape or are not finite.
    """
    t = numbers(times)
    given = {k: finite(k, x, t.size) for k, x in samples.items()}
    with use_style():
        rows = -(-t.size // COLUMNS)
        figure, grid = panel_grid(given, rows, COLUMNS, 1.3)
        first = next(iter(given.values()))
        for axes in grid.flat[t.size :]:
            axes.set_axis_off()
        for i, (axes, date) in enumerate(zip(grid.flat, t, strict=False)):
            # Outliers would squeeze everything else into one bar.
            low, high = np.quantile(first[:, i], [0.01, 0.99])
            margin = 0.1 * (high - low) or 1.0
            edges = np.linspace(low - margin, high + margin, BINS + 1)
            for (label, x), dash in zip(given.items(), dashes(given), strict=True):
                density = np.histogram(x[:, i], edges)[0] / (len(x) * (edges[1] - edges[0]))
                look: dict[str, Any] = {"color": colour(label), "label": label}
                look |= {"fill": True, "alpha": 0.35} if x is first else {"ls": dash, "lw": 1.0}
                axes.stairs(density, edges, **look)
            axes.set_title(f"t = {date:.3g}", fontsize=SMALL, pad=2)
            axes.tick_params(labelsize=SMALL, length=2)
            few_ticks(axes)
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 4))
        save(figure, path, COLOURS)


def diffusion_plot(
    panels: Mapping[str, tuple[Array, Array]], dimensions: Sequence[str], path: Path
) -> None:
    """Chosen coordinates of samples over diffusion time: a row a coordinate, a column a label.

    Arguments:
        panels: For each label the times, shape (T,), and the states, shape
            (n, T, len(dimensions)); the first 16 samples are drawn.
        dimensions: The names of the coordinates.
        path: The PNG to write.

    Raises:
        SigdegError: If states have another shape or are not finite.
    """
    given = {}
    for label, (times, states) in panels.items():
        t = numbers(times)
        given[label] = (t, finite(label, states, t.size, len(dimensions)))
    with use_style():
        shape = (len(dimensions), len(given))
        figure, grid = panel_grid(given, *shape, 1.0, sharex=True, sharey="row")
        for column, (label, (t, x)) in zip(grid.T, given.items(), strict=True):
            column[0].set_title(label, fontsize=SMALL + 1)
            column[-1].set_xlabel("diffusion time")
            few = "o" if t.size <= 12 else ""
            for i, axes in enumerate(column):
                look = {"color": colour(label), "alpha": 0.5, "lw": 0.5, "ms": 2.4, "mew": 0}
                axes.plot(t, x[:LINES, :, i].T, few + "-", **look)
        for axes, name in zip(grid[:, 0], dimensions, strict=True):
            axes.set_ylabel(name.replace(", ", "\n"), fontsize=SMALL)
        for axes in grid.flat:
            axes.tick_params(labelsize=SMALL, length=2)
        few_ticks(grid[0, 0])
        grid[0, 0].invert_xaxis()  # noise on the left
        figure.align_ylabels(grid[:, 0])
        save(figure, path, COLOURS)


def finite(label: str, values: Array, *shape: int) -> Floats:
    """The values of a label as NumPy, if they are n > 0 finite arrays of the shape."""
    x = numbers(values)
    if x.shape[1:] != shape or not x.size:
        wanted = ", ".join(["n", *map(str, shape)])
        raise SigdegError(f"values of {label!r} must have shape ({wanted}), got {x.shape}")
    if not np.isfinite(x).all():
        raise SigdegError(f"values of {label!r} must be finite, got NaN or infinity")
    return x


def panel_grid(
    given: Mapping[str, Any], rows: int, columns: int, height: float, **shared: Any
) -> tuple[Figure, NDArray[Any]]:
    """A figure of rows and columns of axes, each row as high as told, in inches."""
    if not given or not rows:
        raise SigdegError("a figure needs at least one label and one panel, got none")
    figure = Figure(figsize=(WIDTH, height * rows + 0.5), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def dashes(labels: Iterable[str]) -> list[str]:
    """A dash for each label: labels of one colour, students say, stay apart."""
    left = {colour(label): cycle(("-", "--", ":", "-.")) for label in labels}
    return [next(left[colour(label)]) for label in labels]


def few_ticks(axes: Axes) -> None:
    """An x axis that reads 0, 0.5, 1: narrow panels have no room for more."""
    axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(PLAIN)
