"""The tables of a report: what came out, beside the floor and the paper's rows; what it cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sigdeg.report.rows import arrange, compact, details, digits, metric_text
from sigdeg.report.style import look
from sigdeg.results import Results, Row

__all__ = ["Line", "Table", "cost_table", "metric_name", "result_table", "study_tables"]

NAMES = {
    "w1_exact": "W1, exact law",
    "w1_2000": "W1, 2,000 samples",
    "variance_2000": "Variance score, 2,000 samples",
    "w1": "W1",
    "sliced_w1": "Sliced W1",
    "off": "Off the modes",
    "least": "Smallest share of a mode",
    "missed": "Missed of the teacher",
    "iw1": "W1 of increments",
    "path": "Path error",
    "path_median": "Path error, median",
    "energy": "Energy distance",
    "tails": "Tail quantiles",
    "skew": "ATM skew",
    "fid": "FID",
    "fid_shares": "FID at real shares",
    "fid_train": "FID, training images",
    "ambiguous": "Ambiguous digits",
    "kid": "KID",
    "tv": "Total variation",
    "self_bleu": "Self-BLEU",
    "entropy": "Entropy of a text",
    "entropy_4": "Entropy of 4-grams",
    "distinct_4": "Distinct 4-grams",
    "bound": "Likelihood bound, nats a token",
}
SIZES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
DURATIONS = ((3600.0, " h"), (60.0, " min"), (1.0, " s"))
Column = Callable[[Row], tuple[str, str]]  # the text of a cell and of its deviation


def column(key: str, text: Callable[[Any], str]) -> Column:
    """A column of plain values; where a row has none the cell is empty."""
    return lambda row: ("" if (value := row.get(key)) is None else text(value), "")


KEYS = {
    "Steps": column("steps", "{:,}".format),
    "Order": column("order", "{:,}".format),
    "Calls": column("nfe", "{:,}".format),
}
SPEED = {
    "Seconds": column("seconds", digits),
    "Speed\N{NON-BREAKING HYPHEN}up": column("speedup", lambda times: f"{digits(times, 2)}×"),
    "Over an equal": column(
        "equal_quality",
        lambda equal: (
            f"{digits(equal['speedup'], 2)}× over {look(equal['method']).name}"
            f"{', ' + equal['teacher'] if equal.get('teacher') else ''} "
            f"with {equal['nfe']:,} calls"
        ),
    ),
}
RIVAL = {
    "At as many calls": column(
        "rival",
        lambda rival: ", ".join(
            f"{metric_name(key)}: {told['verdict'] or 'one draw'} ({look(told['method']).name})"
            for key, told in rival.items()
        ),
    )
}
COSTS = {
    "Weights": column("params", lambda n: compact(n, SIZES)),
    "Training time": column("train_seconds", lambda s: compact(s, DURATIONS)),
    "Teacher calls": column("teacher_nfe", lambda n: compact(n, SIZES)),
}


class Line(NamedTuple):
    """A row as text: kind `own`, `best`, `floor` or `paper`; cells are (text, deviation)."""

    kind: str
    name: str
    details: str
    colour: str
    cells: list[tuple[str, str]]


class Table(NamedTuple):
    """Titles of the columns after the first, and the lines."""

    titles: list[str]
    lines: list[Line]


def metric_name(key: str) -> str:
    """A metric's name as a reader knows it; that of a second extractor ends in `_2`."""
    if key.endswith("_2"):
        return f"{metric_name(key[:-2])}, second features"
    return NAMES.get(key, key.replace("_", " ").capitalize())


def metric_column(key: str) -> Column:
    """A column of one metric."""
    return lambda row: metric_text(row["metrics"].get(key))


def result_table(results: Results, best: Row | None) -> Table:
    """What came out.

    Arguments:
        results: As `read_results` returns them.
        best: The row the headline speaks of.

    Returns:
        Own rows by method, most calls first; then the floor; then the paper's rows.
    """
    own, paper, floor = results["rows"], results["paper"], results["floor"]
    rows: list[tuple[str, Row]] = [("best" if row is best else "own", row) for row in arrange(own)]
    if floor:
        rows.append(("floor", {"method": "Floor", "role": "floor", "metrics": floor}))
    rows += [("paper", row) for row in paper]

    return lay(rows, KEYS | metric_columns(rows, results) | RIVAL | SPEED | over_columns(own))


def study_tables(results: Results) -> dict[str, Table]:
    """Side tables by title: the rows that name a study, in their own order, with what they cost.

    Those of the paper have their steps and speed-ups too.
    """
    studies: dict[str, list[tuple[str, Row]]] = {}
    for kind, rows in (("own", results["rows"]), ("paper", results["paper"])):
        for row in rows:
            if study := row.get("study"):
                studies.setdefault(study, []).append((kind, row))
    columns = {key: COSTS[key] for key in ("Weights", "Teacher calls")}
    tables = {}
    for title, lines in studies.items():
        quoted = lines[0][0] == "paper"
        before, after = (KEYS, SPEED | columns) if quoted else ({}, columns)
        tables[title] = lay(lines, before | metric_columns(lines, results) | after)
    return tables


def metric_columns(rows: Sequence[tuple[str, Row]], results: Results) -> dict[str, Column]:
    """A column for every metric of more than the floor; an arrow marks the one that counts."""
    quality = results.get("quality") or {}
    arrow = " ↓" if quality.get("lower_is_better", True) else " ↑"
    return {
        metric_name(key) + (arrow if key == quality.get("metric") else ""): metric_column(key)
        for key in dict.fromkeys(k for kind, row in rows if kind != "floor" for k in row["metrics"])
    }


def over_columns(rows: Sequence[Row]) -> dict[str, Column]:
    """A column for every other speed-up that rows tell, by what it is over."""

    def over(name: str) -> Column:
        return lambda row: (f"{digits(x, 2)}×" if (x := row.get("over", {}).get(name)) else "", "")

    names = dict.fromkeys(name for row in rows for name in row.get("over", {}))
    return {f"Over {name}": over(name) for name in names}


def cost_table(results: Results) -> Table:
    """What it took to train the networks, for the rows that say so."""
    rows = [row for row in arrange(results["rows"]) if row.get("train_seconds") is not None]
    return lay([("own", row) for row in rows], KEYS | COSTS)


def lay(rows: Sequence[tuple[str, Row]], columns: Mapping[str, Column]) -> Table:
    """Write rows of given kinds into columns; a column nobody fills is left out."""
    filled = [title for title in columns if any(columns[title](row)[0] for _, row in rows)]
    lines = []
    for kind, row in rows:
        told = details(row, [other for k, other in rows if (k == "paper") == (kind == "paper")])
        told = ["real data against real data"] if kind == "floor" else told
        style = look(row["method"])
        cells = [columns[title](row) for title in filled]
        lines.append(Line(kind, style.name, ", ".join(told), style.colour, cells))
    return Table(filled, lines)
