"""The sentence at the top of a report, computed from its rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
    key = quality["metric"]
    rows = [row for row in results["rows"] if value(row, key) is not None and row.get("nfe")]
    students, teachers = of_role(rows, "student"), of_role(rows, "teacher")
    students = [row for row in students if not row.get("elastic")] or students
    if not students or not teachers:
        return None
    lower, floor = quality.get("lower_is_better", True), results["floor"].get(key)
    run = Compared(key, lower, teachers, of_role(rows, "untrained"), floor)
    kept = [row for row in students if run.says(row)[0]]
    row = min(kept or students, key=lambda row: (row["nfe"] if kept else 0, run.off(row)))
    teacher = run.teacher_of(row)
    calls = "1 network call" if row["nfe"] == 1 else f"{row['nfe']:,} network calls"
    # Against the teacher that the sentence names, not against what the table's speed-ups are of.
    speedup = (row.get("speedup") or 0) / (teacher.get("speedup") or 1)
    faster = f", {digits(speedup, 2)}× faster" if speedup else ""
    claim = f"{calls} instead of {teacher['nfe']:,}{faster}, {run.says(row)[1]}"
    return Headline(claim, f"{quality.get('label', key)}: {run.evidence(row)}.", row, bool(kept))


@dataclass(frozen=True)
class Compared:
    """Students beside their teachers, the untrained step and the floor, in one metric."""

    key: str
    lower: bool
    teachers: list[Row]
    untrained: list[Row]
    floor: Summary | None

    def teacher_of(self, student: Row) -> Row:
        """The teacher that it learned from: where there are several, that of the speed-ups."""
        own = [row for row in self.teachers if row.get("teacher") == student.get("teacher")]
        return max(own or self.teachers, key=lambda row: (row.get("speedup") == 1, row["nfe"]))

    def off(self, student: Row) -> float:
        """How many times worse than its teacher; below 1 is better."""
        pair = student, self.teacher_of(student)
        own, reference = (row["metrics"][self.key]["mean"] for row in pair)
        worse, better = (own, reference) if self.lower else (reference, own)
        return worse / better if better > 0 else math.inf

    def learnt(self, student: Row) -> bool:
        """Whether it is better than the untrained step, where that was measured."""
        return all(
            better(student["metrics"][self.key], row["metrics"][self.key], self.lower)
            for row in self.untrained
            if row["nfe"] == student["nfe"] and row.get("teacher") == student.get("teacher")
        )

    def says(self, student: Row) -> tuple[bool, str]:
        """Whether quality is kept, and what the claim ends with."""
        if judged := student.get("verdict"):
            return judged["equal"] and not judged["failed"], judged["says"]
        own, teacher = (row["metrics"][self.key] for row in (student, self.teacher_of(student)))
        references = [teacher, *([self.floor] if self.floor else [])]
        found = [verdict(own, other, self.lower) for other in references]
        if found[0] and not self.learnt(student):
            return False, "no better than the untrained step"
        if found[0] and {"tie", "better"} & set(found):
            return True, "quality kept"
        times = f"{digits(self.off(student), 2)} times"
        name = metric_name(self.key)
        text = f"{times} the teacher’s {name}" if self.lower else f"quality {times} worse"
        return False, text if found[0] else f"{text}, in one draw"

    def evidence(self, student: Row) -> str:
        """The student's figure, and those of what it is compared with."""
        own, teacher = (short(value(r, self.key)) for r in (student, self.teacher_of(student)))
        same = [row for row in self.untrained if row["nfe"] == student["nfe"]]
        if student.get("verdict") and same:  # its teacher's own is the floor
            untrained = short(value(same[0], self.key))
            return (
                f"{own} beside the untrained step’s {untrained} (floor {teacher}, the teacher "
                "beside itself)"
            )
        floor = f" (floor {short(self.floor['mean'])})" if self.floor else ""
        return f"{own} beside the teacher’s {teacher}{floor}"


def better(own: Summary, other: Summary, lower: bool) -> bool:
    """Whether a metric is better by two standard errors; a single draw scatters as the own do."""
    spread = other["std"] if other["n"] > 1 else own["std"]
    error = math.hypot(own["std"] / max(own["n"], 1) ** 0.5, spread / max(other["n"], 1) ** 0.5)
    return (other["mean"] - own["mean"]) * (1 if lower else -1) > 2 * error


def short(number: float | None) -> str:
    """Three significant digits, without zeros that say nothing."""
    text = digits(number or 0.0)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
