"""The sentence at the top of a report, computed from its rows."""

from __future__ import annotations

import math
from typing import NamedTuple

from sigdeg.report.rows import digits, value
from sigdeg.report.table import metric_name
from sigdeg.results import Results, Row, Summary, of_role, verdict

__all__ = ["Headline", "headline"]


class Headline(NamedTuple):
    """What the run shows.

    Arguments:
        claim: Network calls, speed, and what became of the quality.
        evidence: The figures behind it.
        row: The student it speaks of.
        kept: Whether the quality is kept.
    """

    claim: str
    evidence: str
    row: Row
    kept: bool


def headline(results: Results) -> Headline | None:
    """Choose the student to speak of and say what it does.

    A student that has been judged says what the verdict says. Of the others quality is kept by one
    that is not worse than its teacher by more than two standard errors (or than the floor, if the
    teacher is better: nobody can be asked to beat real data), and that is better than the untrained
    step, where there is one with as many calls. Nothing is kept on the evidence of one draw. Of the
    students that serve one step count (of all, if none does) the one with the fewest calls that
    keeps quality is chosen; if none keeps it, the one nearest to its teacher.

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
    students, teachers = of_role(rows, "student"), of_role(rows, "teacher")
    students = [row for row in students if not row.get("elastic")] or students
    if not students or not teachers:
        return None
    floor = results["floor"].get(key)

    def teacher_of(student: Row) -> Row:
        own = [row for row in teachers if row.get("teacher") == student.get("teacher")]
        return max(own or teachers, key=lambda row: (row.get("speedup") == 1, row["nfe"]))

    def off(student: Row) -> float:
        """How many times worse than its teacher; below 1 is better."""
        return ratio(value(student, key) or 0.0, value(teacher_of(student), key) or 0.0, lower)

    def learnt(student: Row) -> bool:
        """Whether it is better than the untrained step, where that was measured."""
        same = ("nfe", "teacher")
        return all(
            better(student["metrics"][key], row["metrics"][key], lower)
            for row in of_role(rows, "untrained")
            if all(row.get(k) == student.get(k) for k in same)
        )

    def says(student: Row) -> tuple[bool, str]:
        """Whether quality is kept, and what the claim ends with."""
        if told := student.get("verdict"):
            return told["equal"] and not told["failed"], told["says"]
        references = [teacher_of(student)["metrics"][key], *([floor] if floor else [])]
        found = [verdict(student["metrics"][key], other, lower) for other in references]
        if found[0] and not learnt(student):
            return False, "no better than the untrained step"
        if found[0] and {"tie", "better"} & set(found):
            return True, "quality kept"
        times = f"{digits(off(student), 2)} times"
        text = f"{times} the teacher’s {metric_name(key)}" if lower else f"quality {times} worse"
        return False, text if found[0] else f"{text}, in one draw"

    kept = [row for row in students if says(row)[0]]
    row = min(kept, key=lambda row: (row["nfe"], off(row))) if kept else min(students, key=off)
    teacher = teacher_of(row)
    calls = "1 network call" if row["nfe"] == 1 else f"{row['nfe']:,} network calls"
    # Against the teacher that the sentence names, not against what the table's speed-ups are of.
    speedup = (row.get("speedup") or 0) / (teacher.get("speedup") or 1)
    faster = f", {digits(speedup, 2)}× faster" if speedup else ""
    label = quality.get("label", key)
    evidence = f"{label}: {short(value(row, key))} beside "
    same = [other for other in of_role(rows, "untrained") if other["nfe"] == row["nfe"]]
    if row.get("verdict") and same:  # its teacher's own is the floor
        evidence += f"the untrained step’s {short(value(same[0], key))}"
        evidence += f" (floor {short(value(teacher, key))}, the teacher beside itself)"
    else:
        evidence += f"the teacher’s {short(value(teacher, key))}"
        evidence += "" if floor is None else f" (floor {short(floor['mean'])})"
    return Headline(
        f"{calls} instead of {teacher['nfe']:,}{faster}, {says(row)[1]}",
        evidence + ".",
        row,
        bool(kept),
    )


def better(own: Summary, other: Summary, lower: bool) -> bool:
    """Whether a metric is better by two standard errors; a single draw scatters as the own do."""
    spread = other["std"] if other["n"] > 1 else own["std"]
    error = math.hypot(own["std"] / max(own["n"], 1) ** 0.5, spread / max(other["n"], 1) ** 0.5)
    return (other["mean"] - own["mean"]) * (1 if lower else -1) > 2 * error


def short(number: float | None) -> str:
    """Three significant digits, without zeros that say nothing."""
    text = digits(number or 0.0)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def ratio(own: float, reference: float, lower: bool) -> float:
    """How many times worse a value is than a reference."""
    worse, better = (own, reference) if lower else (reference, own)
    return worse / better if better > 0 else float("inf")
