"""The rows of results in words: their order, their names, their numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from sigdeg.report.style import METHODS
from sigdeg.results import Row, Summary

__all__ = ["arrange", "compact", "details", "digits", "metric_text", "value"]

# What tells two rows of one method apart, and how it is said.
DETAILS = {
    "teacher": "{} teacher",
    "preset": "{} preset",
    "grid": "{} grid",
    "q": "q = {}",
    "teacher_steps": "teacher of {:,} steps",
    "blocks": "blocks: {}",
    "width": "width: {}",
}


def value(row: Row, key: str) -> float | None:
    """The mean of a metric, or None where it is missing or not finite."""
    summary = row["metrics"].get(key)
    return summary["mean"] if summary and math.isfinite(summary["mean"]) else None


def details(row: Row, rows: Iterable[Row]) -> list[str]:
    """What a row is beyond its method, steps and order.

    Elastic students and noise heads are always named; preset, grid and q only where the rows of
    the method differ in them, the teacher where any rows do. A grid that validation chose is a
    result, not what tells a row. A row of a study is told by its variant alone.
    """
    if variant := row.get("variant"):
        return [variant]
    rows = list(rows)
    family = [other for other in rows if other["method"] == row["method"]]
    words = []
    if row.get("elastic"):
        words.append("elastic")
    if (head := row.get("head")) not in (None, False, "none"):
        words.append(f"{head} noise" if isinstance(head, str) else "noise head")
    for key, form in DETAILS.items():
        others = rows if key == "teacher" else family
        entry = None if key == "grid" and row.get("tried") else row.get(key)
        if entry is not None and len({str(other.get(key)) for other in others}) > 1:
            words.append(str(entry) if key == row["method"] else form.format(entry))
    return words


def arrange(rows: Sequence[Row]) -> list[Row]:
    """Rows by method, variant and order, most calls first: teacher, students, then the others."""
    methods = list(METHODS)

    def place(row: Row) -> tuple[Any, ...]:
        known = methods.index(row["method"]) if row["method"] in METHODS else len(methods)
        calls = row.get("nfe") or row.get("steps") or 0
        variant = bool(row.get("elastic")), details(row, rows), row.get("order") or 0
        return known, row["method"], *variant, -calls

    return sorted(rows, key=place)


def digits(number: float, significant: int = 3) -> str:
    """A number with so many significant digits, thousands apart, no exponent from 1e-4 on."""
    if number == 0 or not math.isfinite(number):
        return "0" if number == 0 else "—"
    if not 1e-4 <= abs(number) < 1e9:
        return f"{number:.{significant - 1}e}"
    decimals = significant - 1 - math.floor(math.log10(abs(number)))
    return f"{number:,.{max(decimals, 0)}f}"


def metric_text(summary: Summary | None) -> tuple[str, str]:
    """Mean and standard deviation as text: the deviation has two digits, the mean as many places.

    Returns:
        The mean and the deviation; the latter is empty where there is none.
    """
    if summary is None:
        return "", ""
    if not math.isfinite(summary["mean"]):
        return "—", ""
    mean, std = summary["mean"], summary["std"]
    if std <= 0 or not math.isfinite(std) or summary["n"] == 1:
        return digits(mean), ""
    if 0 < abs(mean) < 1e-4:
        return digits(mean), digits(std, 2)
    decimals = min(max(1 - math.floor(math.log10(std)), 0), 6)
    return f"{mean:,.{decimals}f}", f"{std:,.{decimals}f}"


def compact(number: float, units: Sequence[tuple[float, str]]) -> str:
    """A number in the largest unit it reaches, else in the last, e.g. 808k or 0.3 s."""
    size, unit = next((u for u in units if number >= u[0]), units[-1])
    return digits(number / size) + unit
