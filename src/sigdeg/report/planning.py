"""Plots of planned distillation: quality grid by grid, and predictions beside what was reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sigdeg.report.plots import log_axis, save, small_multiples
from sigdeg.report.style import INK, use_style
from sigdeg.results import Row

__all__ = ["grids_plot", "prediction_plot"]

GRIDS = {  # colour and marker
    "planned": ("#0072b2", "o"),
    "measured": ("#44aa99", "H"),
    "measured, relative cost": ("#117733", "<"),
    "measured, plain cost": ("#332288", "P"),
    "uniform": ("#9aa0a8", "s"),
    "power 1.5": ("#e69f00", "^"),
    "power 2": ("#cc79a7", "v"),
    "power 3": ("#56b4e9", "D"),
    "spectrum": ("#d55e00", "X"),
}
PLANS = {
    "vanilla": "#0072b2",
    "progressive": "#e69f00",
    "consistency": "#cc79a7",
    "boot": "#d55e00",
    "hybrid": "#009e73",
}
MARKERS = ("o", "^", "s", "D")


def grids_plot(
    panels: Mapping[str, tuple[Sequence[Row], str, str]], floor: Mapping[str, Any], path: Path
) -> None:
    """Quality on every grid by step count, one panel a set of students; bars are deviations.

    Arguments:
        panels: For each title the rows, each with a `grid`, the metric's key and its label.
        floor: The metrics between two sets of real data, drawn as dashed lines.
        path: The PNG to write.
    """
    with use_style():
        figure, grid = small_multiples(len(panels), 3.9)
        handles: dict[str, Any] = {}
        for axes, (title, (rows, key, label)) in zip(grid, panels.items(), strict=True):
            counts = sorted({row["steps"] for row in rows})
            names = [name for name in GRIDS if any(row["grid"] == name for row in rows)]
            for i, name in enumerate(names):
                own = {row["steps"]: row["metrics"][key] for row in rows if row["grid"] == name}
                shift = 0.64 * ((i + 0.5) / len(names) - 0.5)
                tint, mark = GRIDS[name]
                handles[name] = axes.errorbar(
                    [counts.index(k) + shift for k in own],
                    [summary["mean"] for summary in own.values()],
                    [summary["std"] for summary in own.values()],
                    fmt=mark,
                    color=tint,
                    ecolor=tint,
                    elinewidth=1.2,
                    label=name,
                )
            if key in floor:
                handles["floor"] = axes.axhline(
                    floor[key]["mean"], color=INK, linestyle=(0, (4, 3)), linewidth=1.1
                )
            log_axis(axes, "y")
            axes.grid(visible=False, axis="x")
            axes.set_xticks(range(len(counts)), [f"{k} steps" for k in counts])
            axes.set_xlim(-0.5, len(counts) - 0.5)
            axes.set_ylabel(label)
            axes.set_title(title)
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
        save(figure, path)


def prediction_plot(panels: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Achieved over predicted W2, both logarithmic, with the identity; one panel a spectrum.

    Arguments:
        panels: For each title rows with the metrics `w2` and `w2_predicted`, a `plan` and a
            training time `s`.
        path: The PNG to write.
    """
    with use_style():
        figure, grid = small_multiples(len(panels), 4.5)
        handles: dict[str, Any] = {}
        for axes, (title, rows) in zip(grid, panels.items(), strict=True):
            marks = dict(zip(sorted({row["s"] for row in rows}), MARKERS, strict=False))
            for row in rows:
                name = row["plan"].partition("-")[0]
                x, y = (row["metrics"][key] for key in ("w2_predicted", "w2"))
                axes.errorbar(x["mean"], y["mean"], y["std"], fmt="none", ecolor=PLANS[name])
                (point,) = axes.plot(
                    x["mean"],
                    y["mean"],
                    marks[row["s"]],
                    color=PLANS[name],
                    # The best hybrid may be vanilla or BOOT itself: it must not hide them.
                    mfc="none" if name == "hybrid" else PLANS[name],
                    ms=10 if name == "hybrid" else 6,
                )
                if marks[row["s"]] == MARKERS[0]:
                    handles["best hybrid" if name == "hybrid" else name] = point
            for s, mark in marks.items():
                (handles[f"s = {s:g}"],) = axes.plot([], [], mark, color=INK, mfc="none")
            axes.axline((1, 1), (2, 2), color=INK, linewidth=0.9, zorder=0)
            for which in ("x", "y"):
                log_axis(axes, which)
            axes.set_aspect("equal")
            axes.set_xlabel("predicted W2")
            axes.set_ylabel("achieved W2")
            axes.set_title(title)
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
        save(figure, path)
