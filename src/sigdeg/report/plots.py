"""The plots of reports and experiments: each writes one PNG, atomically, and keeps no state.

Colours follow the labels, see `sigdeg.report.style.look`: "teacher, 300 steps" is the teacher's red
in every figure. Figures are `Figure` objects on Agg: no display, no pyplot.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from sigdeg.errors import SigdegError
from sigdeg.files import atomic_write
from sigdeg.pictures import sheet
from sigdeg.report.rows import arrange, details, value
from sigdeg.report.style import INK, colour, look, use_style
from sigdeg.results import Row, Summary

__all__ = [
    "histogram_plot",
    "image_grid",
    "quality_plot",
    "scatter_plot",
    "training_plot",
    "trajectories_plot",
]

Array = ArrayLike | Tensor
Floats = NDArray[np.float64]

WIDTH = 8.6  # inches: the page's column
LINES = 200  # paths drawn in one panel; more are a blot
BESIDE = 7  # entries of a legend that stands beside its axes
PLAIN = FuncFormatter(lambda number, _: f"{number:g}".replace("-", "\N{MINUS SIGN}"))


def quality_plot(
    rows: Sequence[Row], floor: dict[str, Summary] | None, quality: Mapping[str, Any], path: Path
) -> None:
    """Quality against network calls, both logarithmic: one line a method and variant.

    Arguments:
        rows: Rows of `results.json`; those without the metric or without `nfe` are left out.
        floor: The metrics between two sets of real data, drawn as a dashed line.
        quality: `{"metric", "label", "lower_is_better"}`.
        path: The PNG to write.
    """
    key, lower = quality["metric"], quality.get("lower_is_better", True)
    series: dict[tuple[str, str], list[Row]] = {}
    for row in arrange(rows):
        if value(row, key) is not None and row.get("nfe"):
            told = [f"order {row['order']}"] if row.get("order") else []
            label = ", ".join([look(row["method"]).name, *told, *details(row, rows)])
            series.setdefault((row["method"], label), []).append(row)
    least = value({"method": "floor", "role": "floor", "metrics": floor or {}}, key)
    lowest = math.inf if least is None else least
    with use_style():
        figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
        axes = figure.subplots()
        dashes = {method: cycle(("-", "--", "-.", ":")) for method, _ in series}
        markers = {method: cycle((look(method).marker, "D", "^", "s", "v")) for method, _ in series}
        for (method, label), points in series.items():
            calls = [row["nfe"] for row in points]
            means = [row["metrics"][key]["mean"] for row in points]
            deviations = [row["metrics"][key]["std"] for row in points]
            dash, mark, tint = next(dashes[method]), next(markers[method]), colour(method)
            top = 4 if points[0]["role"] == "student" else 3  # students lie on top
            axes.plot(calls, means, mark, ls=dash, color=tint, mec="white", label=label, zorder=top)
            axes.errorbar(calls, means, deviations, fmt="none", ecolor=tint, elinewidth=1.2)
            lowest = min(lowest, *means)
        if least is not None:
            axes.axhline(least, color=INK, linestyle=(0, (4, 3)), linewidth=1.1, label="Floor")
        log_axis(axes, "x")
        if lowest > 0:
            log_axis(axes, "y")
        axes.set_xlabel("network calls a sample (NFE)")
        axes.set_title(f"{quality.get('label', key)} ({'lower' if lower else 'higher'} is better)")
        if len(series) <= BESIDE:
            figure.legend(loc="outside right upper")
        else:  # beside the axes a long legend would leave no room for them
            figure.set_figheight(4.4 + 0.1 * len(series))
            figure.legend(loc="outside lower left", ncols=2)
        save(figure, path)


def training_plot(training: Mapping[str, Sequence[Sequence[float | None]]], path: Path) -> None:
    """Training and held-out loss on a logarithmic axis if they can be, one panel a network.

    Arguments:
        training: For each label the points (step, loss, held-out loss or None).
        path: The PNG to write.
    """
    with use_style():
        figure, panels = small_multiples(len(training), 2.6)
        for axes, (label, points) in zip(panels, training.items(), strict=True):
            points = [(*point, None)[:3] for point in points]
            for column, tint, name in ((1, colour(label), "training"), (2, INK, "held out")):
                known = np.array([(p[0], p[column]) for p in points if p[column] is not None])
                if len(known):
                    axes.plot(*known.T, color=tint, linewidth=1.3, label=name)
            log_axis(axes, "y")
            axes.set_title(label)
            axes.set_xlabel("step")
            if axes.lines:
                axes.legend(loc="best", frameon=True, edgecolor="none", framealpha=0.8)
        save(figure, path)


def trajectories_plot(panels: Mapping[str, tuple[Array, Array]], path: Path) -> None:
    """One-dimensional paths over diffusion time, and the law of their ends beside them.

    Arguments:
        panels: For each label the times, shape (T,), and the paths, shape (n, T); the first 200 are
            drawn, all enter the histogram.
        path: The PNG to write.
    """
    given = {label: (numbers(t), numbers(x)) for label, (t, x) in panels.items()}
    for label, (times, paths) in given.items():
        if paths.ndim != 2 or times.shape != paths.shape[1:]:
            raise SigdegError(
                f"paths of {label!r} must have shape (n, {times.size}), got {paths.shape}"
            )
    with use_style():
        columns = panel_columns(len(given))
        lines = -(-len(given) // columns)
        figure = Figure(figsize=(WIDTH, 2.7 * lines), layout="constrained")
        grid = figure.subplots(
            lines, 2 * columns, sharey=True, squeeze=False, width_ratios=[4, 1] * columns
        )
        cells = grid.reshape(-1, 2)
        for pair in cells[len(given) :]:
            for axes in pair:
                axes.set_axis_off()
        for (axes, side), (label, (times, paths)) in zip(cells, given.items(), strict=False):
            tint = colour(label)
            few = "o" if times.size <= 12 else ""
            axes.plot(
                times, paths[:LINES].T, few + "-", color=tint, alpha=0.22, lw=0.7, ms=1.8, mew=0
            )
            axes.set_xlim(times.max(), times.min())
            axes.set_title(label)
            axes.set_xlabel("diffusion time")
            ends = paths[np.isfinite(paths[:, -1]), -1]
            side.hist(ends, bins=60, density=True, orientation="horizontal", color=tint)
            side.set_axis_off()
        save(figure, path)


def histogram_plot(
    samples: Mapping[str, Array], pdf: Callable[[Floats], ArrayLike] | None, path: Path
) -> None:
    """Histograms of one-dimensional samples, one panel a method, with the true density over them.

    Arguments:
        samples: For each label its samples, of any shape.
        pdf: The true density of an array of points, or None.
        path: The PNG to write.
    """
    given = {label: numbers(x).ravel() for label, x in samples.items()}
    pooled = np.concatenate(list(given.values()))
    # Outliers would squeeze everything else into one bar.
    low, high = np.quantile(pooled[np.isfinite(pooled)], [0.0005, 0.9995])
    margin = 0.1 * (high - low) or 1.0
    x = np.linspace(low - margin, high + margin, 400)
    with use_style():
        figure, panels = small_multiples(len(given), 2.3, share=True)
        for axes, (label, values) in zip(panels, given.items(), strict=True):
            edges = np.linspace(x[0], x[-1], 61)
            counts, _ = np.histogram(values, edges)
            density = counts / (len(values) * (edges[1] - edges[0]))
            axes.stairs(density, edges, fill=True, color=colour(label), alpha=0.75)
            if pdf is not None:
                axes.plot(x, np.asarray(pdf(x)), color=INK, linewidth=1.2, label="true density")
            axes.set_title(label)
        if pdf is not None:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right")
        save(figure, path)


def scatter_plot(samples: Mapping[str, Array], path: Path) -> None:
    """Samples in the plane, one panel a method, all on the axes of the first.

    Arguments:
        samples: For each label its samples, shape (n, 2).
        path: The PNG to write.
    """
    given = {label: numbers(x) for label, x in samples.items()}
    low, high = np.quantile(next(iter(given.values())), [0.001, 0.999], axis=0)
    centre, half = (low + high) / 2, 0.6 * (high - low).max()
    with use_style():
        figure, panels = small_multiples(len(given), 2.6, share=True)
        for axes, (label, x) in zip(panels, given.items(), strict=True):
            axes.plot(*x.T, ".", color=colour(label), alpha=0.35, ms=2, mew=0)
            axes.set_xlim(centre[0] - half, centre[0] + half)
            axes.set_ylim(centre[1] - half, centre[1] + half)
            axes.set_aspect("equal")
            axes.set_title(label)
        save(figure, path)


def image_grid(
    images: Sequence[Array],
    path: Path,
    columns: int = 8,
    titles: Sequence[str] | None = None,
) -> None:
    r"""Grids of images side by side: sample i of every set stands at the same place.

    Arguments:
        images: The sets, teacher and student say, each of the shape (n, height, width) or
            (n, channels, height, width) with 1 or 3 channels; values beyond [0, 1] are clipped.
        path: The PNG to write.
        columns: Images a line in each grid.
        titles: One a set.

    Raises:
        SigdegError: If a set has another shape, or titles do not match the sets.
    """
    titles = [""] * len(images) if titles is None else titles
    if len(titles) != len(images) or not len(images):
        raise SigdegError(f"{len(titles)} titles were given for {len(images)} sets of images")
    sheets = [sheet(numbers(one), columns) for one in images]
    with use_style():
        # Placed by hand, in inches: a layout engine would leave uneven margins around the sheets.
        gap, head = 0.3, 0.35 if any(titles) else 0.0
        width = (WIDTH - gap) / max(len(sheets), 2)
        tall = width * max(s.shape[0] / s.shape[1] for s in sheets)
        total, high = (width + gap) * len(sheets) - gap, tall + head
        figure = Figure(figsize=(total, high))
        for i, (picture, title) in enumerate(zip(sheets, titles, strict=True)):
            box = (i * (width + gap) / total, 0.0, width / total, tall / high)
            axes = figure.add_axes(box, anchor="NW")
            axes.imshow(picture, interpolation="nearest", vmin=0, vmax=1)
            axes.set_title(title, color=colour(title))
            axes.set_axis_off()
        save(figure, path)


def numbers(x: Array) -> Floats:
    """A tensor of any device, an array or a list, as NumPy."""
    return torch.as_tensor(x).detach().cpu().double().numpy()


def panel_columns(n: int) -> int:
    """Columns for n panels: none lonely where it can be helped."""
    return min(n, 3) if n % 3 != 1 else min(n, 2)


def small_multiples(n: int, height: float, share: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of n panels, each as high as told, in inches."""
    columns = panel_columns(n)
    lines = -(-n // columns)
    figure = Figure(figsize=(WIDTH, height * lines), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=share, sharey=share, squeeze=False).ravel()
    for axes in grid[n:]:
        axes.set_axis_off()
    return figure, list(grid[:n])


def log_axis(axes: Axes, which: str) -> None:
    """A logarithmic axis that reads 0.02, 0.05, 0.1 and so on instead of powers of ten.

    It stays linear where data are negative, and where they span less than a factor of 5: a
    logarithm would leave no ticks.
    """
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_data_interval()
    if low < 0 or high < 5 * low:
        return
    (axes.set_xscale if which == "x" else axes.set_yscale)("log", nonpositive="clip")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(PLAIN)


def save(figure: Figure, path: Path, colours: int | None = None) -> None:
    """Write a PNG whose bytes depend on nothing but the figure.

    Thin translucent lines in all of their colours take five times as much as in 48. Median cut and
    a step of k-means chooses those: octrees and maximal coverage give wide bands a wrong hue.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    if colours is not None:
        image = Image.open(drawn).convert("RGB").quantize(colours, Image.Quantize.MEDIANCUT, 1)
        drawn = io.BytesIO()
        image.save(drawn, "png", optimize=True)
    atomic_write(Path(path), lambda temporary: temporary.write_bytes(drawn.getvalue()))
