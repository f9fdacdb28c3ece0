"""The rows of `results.json`: reading them, naming them, writing their numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sigdeg.errors import SigdegError
from sigdeg.files import read_json
from sigdeg.report.style import METHODS
from sigdeg.schema import flag, listed, mapped, maybe, number, record, text

__all__ = [
    "Row",
    "arrange",
    "compact",
    "details",
    "digits",
    "metric_text",
    "read_results",
    "value",
]

Row = Mapping[str, Any]

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


def metric(value: Any, name: str) -> None:
    """A number, or a summary of several; null where a figure is not finite."""
    if isinstance(value, Mapping):
        record({"mean": maybe(number())}, {"std": maybe(number(0)), "n": maybe(number(0))})(
            value, name
        )
    else:
        maybe(number())(value, name)


AMOUNTS = ("steps", "order", "nfe", "seconds", "speedup", "params", "train_seconds", "teacher_nfe")
TEXTS = ("title", "summary", "experiment", "preset", "student")
ROWS = listed(
    record(
        {"method": text},
        {
            **dict.fromkeys(AMOUNTS, maybe(number(0))),
            **dict.fromkeys(("variant", "study", "teacher"), maybe(text)),
            "metrics": maybe(mapped(metric)),
            "equal_quality": maybe(
                record({"method": text, "nfe": number(0), "speedup": number(0)}, {})
            ),
            "teacher_steps": maybe(number(0)),
            "over": mapped(maybe(number(0))),
            "verdict": maybe(record({"says": text, "equal": flag, "failed": flag}, {})),
        },
    )
)
RESULTS = record(  # results.json, as far as the report reads it
    {"rows": ROWS},
    {
        "paper": maybe(ROWS),
        "floor": maybe(mapped(metric)),
        "quality": maybe(record({"metric": text}, {"label": text, "lower_is_better": flag})),
        "figures": maybe(listed(record({"file": text}, {"caption": text}))),
        "training": maybe(mapped(maybe(listed(listed(maybe(number()), 3))))),
        "example": maybe(record({}, {"classes": flag, "decoder": flag})),
        "warnings": maybe(listed(text)),
        "versions": maybe(mapped()),
        "hardware": maybe(mapped()),
        **dict.fromkeys(TEXTS, maybe(text)),
    },
)


def read_results(path: Path) -> dict[str, Any]:
    """Read `results.json` and check what the report needs of it.

    Returns:
        The results; `rows`, `paper` and `floor` exist, every metric is `{"mean", ...}`.

    Raises:
        SigdegError: If the file is missing, damaged or of another form.
    """
    results = read_json(path)
    if not isinstance(results.get("rows"), list):
        raise SigdegError(f"{path} has no list of rows")
    try:
        RESULTS(results, "")
    except SigdegError as error:
        raise SigdegError(f"{path} has a damaged entry: {error}") from None
    results["paper"] = results.get("paper") or []
    results["floor"] = summaries(results.get("floor") or {})
    for row in [*results["rows"], *results["paper"]]:
        row["metrics"] = summaries(row.get("metrics") or {})
    return results


def summaries(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Metrics as `{"mean", "std", "n"}`; a bare number, as a paper quotes it, is a mean."""
    whole = {}
    for key, given in metrics.items():
        if given is not None:
            whole[key] = dict(given) if isinstance(given, Mapping) else {"mean": given}
            mean = whole[key]["mean"]
            whole[key]["mean"] = math.nan if mean is None else float(mean)
    return whole


def value(row: Row, key: str) -> float | None:
    """The mean of a metric, or None where it is missing or not finite."""
    mean = row["metrics"].get(key, {}).get("mean", math.nan)
    return mean if math.isfinite(mean) else None


def details(row: Row, rows: Iterable[Row]) -> list[str]:
    """What a row is beyond its method, steps and order.

    Elastic students and noise heads are always named; preset, grid and q only where the rows of
    the method differ in them, the teacher where any rows do. A row of a study is told by its
    variant alone.
    """
    if row.get("variant"):
        return [row["variant"]]
    rows = list(rows)
    family = [other for other in rows if other["method"] == row["method"]]
    told = []
    if row.get("elastic"):
        told.append("elastic")
    if row.get("head") not in (None, False, "none"):
        head = row["head"]
        told.append(f"{head} noise" if isinstance(head, str) else "noise head")
    for key, form in DETAILS.items():
        others = rows if key == "teacher" else family
        if row.get(key) is not None and len({str(other.get(key)) for other in others}) > 1:
            form = "{}" if key == row["method"] else form
            told.append(form.format(row[key]))
    return told


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


def metric_text(summary: Mapping[str, Any] | None) -> tuple[str, str]:
    """Mean and standard deviation as text: the deviation has two digits, the mean as many places.

    Returns:
        The mean and the deviation; the latter is empty where there is none.
    """
    if summary is None:
        return "", ""
    if not math.isfinite(summary["mean"]):
        return "—", ""
    mean, std = summary["mean"], summary.get("std") or 0.0
    if std <= 0 or not math.isfinite(std) or summary.get("n") == 1:
        return digits(mean), ""
    if 0 < abs(mean) < 1e-4:
        return digits(mean), digits(std, 2)
    decimals = min(max(1 - math.floor(math.log10(std)), 0), 6)
    return f"{mean:,.{decimals}f}", f"{std:,.{decimals}f}"


def compact(number: float | None, units: Sequence[tuple[float, str]]) -> str:
    """A number in the largest unit it reaches, else in the last, e.g. 808k or 0.3 s."""
    if number is None:
        return ""
    size, unit = next((u for u in units if number >= u[0]), units[-1])
    return digits(number / size) + unit
