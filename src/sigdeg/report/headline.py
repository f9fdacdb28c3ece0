"""The sentence at the top of a report, computed from its rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sigdeg.report.rows import Row, digits, value

__all__ = ["TOLERANCE", "Headline", "headline"]

TOLERANCE = 1.3


class Headline(NamedTuple):
    """What the run shows.

    Arguments:
        claim: Network calls, speed, and whether quality is kept.
        evidence: The figures behind it.
        row: The student it speaks of.
    """

    claim: str
    evidence: str
    row: Row


def headline(results: Mapping[str, Any]) -> Headline | None:
    """Choose the student to speak of and say what it does.

    The reference is the teacher's quality, or the floor's if that is worse: nobody can be asked to
    beat real data. Quality is kept within a factor of `TOLERANCE`. Of the students that serve one
    step count (of all, if none does) the one with the fewest calls that keeps quality is chosen; if
    none keeps it, the best one, and the sentence says how far off it is.

    Arguments:
        results: As `read_results` returns them.

    Returns:
        The headline, or None without a quality metric, a teacher or a student.
    """
    quality = results.get("quality")
    if not quality:
        return None
    key, lower = quality["metric"], quality.get("lower_is_better", True)
    rows = [row for row in results["rows"] if value(row, key) is not None and row.get("nfe")]
    students = [row for row in rows if row["method"] == "sig-deg"]
    students = [row for row in students if not row.get("elastic")] or students
    teachers = [row for row in rows if row["method"] == "teacher"]
    if not students or not teachers:
        return None
    floor = value({"metrics": results["floor"]}, key)

    def teacher_of(student: Row) -> Row:
        own = [row for row in teachers if row.get("teacher") == student.get("teacher")]
        return max(own or teachers, key=lambda row: row["nfe"])

    def off(student: Row) -> float:
        """How many times worse than the reference; below 1 is better."""
        references = [value(teacher_of(student), key) or 0.0, floor]
        ratios = [ratio(value(student, key) or 0.0, r, lower) for r in references if r is not None]
        return min(ratios)

    kept = [row for row in students if off(row) <= TOLERANCE]
    if kept:
        row = min(kept, key=lambda row: (row["nfe"], off(row)))
        verdict = "quality kept"
    else:
        row = min(students, key=off)
        verdict = f"quality {digits(off(row), 2)} times worse"
    teacher = teacher_of(row)
    calls = "1 network call" if row["nfe"] == 1 else f"{row['nfe']:,} network calls"
    # Against the teacher that the sentence names, not against what the table's speed-ups are of.
    speedup = (row.get("speedup") or 0) / (teacher.get("speedup") or 1)
    faster = f", {digits(speedup, 2)}× faster" if speedup else ""
    label = quality.get("label", key)
    evidence = (
        f"{label}: {short(value(row, key))} beside the teacher’s {short(value(teacher, key))}"
    )
    if floor is not None:
        evidence += f" (floor {short(floor)})"
    return Headline(
        f"{calls} instead of {teacher['nfe']:,}{faster}, {verdict}", evidence + ".", row
    )


def short(number: float | None) -> str:
    """Three significant digits, without zeros that say nothing."""
    text = digits(number or 0.0)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def ratio(own: float, reference: float, lower: bool) -> float:
    """How many times worse a value is than a reference."""
    worse, better = (own, reference) if lower else (reference, own)
    return worse / better if better > 0 else float("inf")
