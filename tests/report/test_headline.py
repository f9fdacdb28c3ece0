"""Which student the headline speaks of, and what it claims: no more than is known."""

from typing import Any

import pytest

from sigdeg.report.headline import Headline, headline
from sigdeg.results import role_of


def row(method: str, nfe: int, mean: float, std: float = 0.1, **more: Any) -> dict[str, Any]:
    metrics = {"fid": {"mean": mean, "std": std, "n": 4}}
    return {"method": method, "role": role_of(method), "nfe": nfe, "metrics": metrics} | more


def results(
    *rows: dict[str, Any], floor: float | None = None, lower: bool = True
) -> dict[str, Any]:
    return {
        "rows": list(rows),
        "floor": {} if floor is None else {"fid": {"mean": floor, "std": 0.1, "n": 4}},
        "quality": {"metric": "fid", "label": "FID", "lower_is_better": lower},
    }


def told(*rows: dict[str, Any], **options: Any) -> Headline:
    found = headline(results(*rows, **options))
    assert found is not None
    return found


def test_fewest_calls_that_keep_quality() -> None:
    ten, five = row("sig-deg", 10, 9.0), row("sig-deg", 5, 10.1, speedup=58.4)
    top = told(row("teacher", 300, 10.0), ten, five, row("sig-deg", 1, 10.2), floor=2.0)
    assert top.row is five
    assert top.kept
    assert top.claim == "5 network calls instead of 300, 58× faster, quality kept"
    assert top.evidence == "FID: 10.1 beside the teacher’s 10 (floor 2)."


@pytest.mark.parametrize(("std", "kept"), [(0.1, False), (0.8, True)])
def test_within_two_standard_errors_it_is_kept(std: float, kept: bool) -> None:
    """The error of the difference of two means of four draws is std / sqrt(2)."""
    top = told(row("teacher", 300, 10.0, std), row("sig-deg", 5, 11.0, std))
    assert top.kept == kept
    assert top.claim.endswith("quality kept" if kept else "1.1 times the teacher’s FID")


def test_one_draw_is_no_evidence() -> None:
    one = row("sig-deg", 5, 10.0)
    one["metrics"]["fid"]["n"] = 1
    top = told(row("teacher", 300, 10.0), one)
    assert not top.kept
    assert top.claim.endswith("1.0 times the teacher’s FID, in one draw")


@pytest.mark.parametrize("n", [4, 1])
def test_the_untrained_step_has_to_be_beaten(n: int) -> None:
    """A single draw of it is taken to scatter as the student does."""
    rows = [row("teacher", 300, 10.0), row("sig-deg", 5, 10.0)]
    for mean, kept in ((10.1, False), (9.0, False), (12.0, True)):
        untrained = row("untrained", 5, mean)
        untrained["metrics"]["fid"] |= {"n": n, "std": 0.0 if n == 1 else 0.1}
        top = told(*rows, untrained, row("untrained", 10, 1.0))
        assert top.kept == kept
        assert top.claim.endswith("quality kept" if kept else "no better than the untrained step")


def test_a_verdict_speaks_for_itself() -> None:
    worse = {"says": "1.8 times the teacher's distance", "equal": False, "failed": True}
    equal = {"says": "as good as the teacher", "equal": True, "failed": False}
    teacher, untrained = row("teacher", 300, 2.0), row("untrained", 5, 9.0)
    top = told(teacher, row("sig-deg", 5, 3.6, verdict=worse), untrained)
    assert not top.kept
    assert top.claim == "5 network calls instead of 300, 1.8 times the teacher's distance"
    assert top.evidence == (
        "FID: 3.6 beside the untrained step’s 9 (floor 2, the teacher beside itself)."
    )
    ten = row("sig-deg", 10, 2.1, verdict=equal)
    top = told(teacher, row("sig-deg", 5, 2.0, verdict=worse), ten)
    assert top.row is ten
    assert top.claim.endswith("as good as the teacher")
    idle = {"says": "no better than the untrained step", "equal": True, "failed": True}
    assert not told(teacher, row("sig-deg", 5, 2.0, verdict=idle)).kept


def test_speed_is_told_against_the_teacher_that_is_named() -> None:
    slow = {"method": "teacher", "role": "teacher", "nfe": 1000, "metrics": {}, "speedup": 1.0}
    teacher, student = row("teacher", 120, 1.0, speedup=8.0), row("sig-deg", 5, 1.0, speedup=160.0)
    top = told(slow, teacher, student)
    assert top.claim == "5 network calls instead of 120, 20× faster, quality kept"


def test_the_teacher_is_the_one_that_was_learned_from() -> None:
    longer, own = row("teacher", 1000, 1.0, speedup=0.1), row("teacher", 120, 2.0, speedup=1.0)
    top = told(longer, own, row("sig-deg", 5, 2.0, speedup=20.0))
    assert top.claim == "5 network calls instead of 120, 20× faster, quality kept"


def test_no_claim_of_quality_that_is_lost() -> None:
    one, two = row("sig-deg", 1, 40.0), row("sig-deg", 2, 20.0)
    top = told(row("teacher", 300, 10.0), one, two)
    assert top.row is two
    assert top.claim == "2 network calls instead of 300, 2.0 times the teacher’s FID"


def test_one_call_is_singular() -> None:
    top = told(row("teacher", 1000, 10.0), row("sig-deg", 1, 10.0))
    assert top.claim == "1 network call instead of 1,000, quality kept"


def test_nobody_is_asked_to_beat_the_floor() -> None:
    # A teacher luckier than real data: the floor is the fair reference.
    top = told(row("teacher", 300, 0.5), row("sig-deg", 5, 1.1), floor=1.0)
    assert top.claim.endswith("quality kept")


def test_higher_may_be_better() -> None:
    good, bad = row("sig-deg", 5, 10.0), row("sig-deg", 1, 7.6)
    assert told(row("teacher", 300, 10.0), good, bad, floor=11.0, lower=False).row is good
    top = told(row("teacher", 300, 10.0), bad, lower=False)
    assert top.claim.endswith("quality 1.3 times worse")


def test_elastic_students_speak_only_where_there_is_no_other() -> None:
    teacher, elastic = row("teacher", 300, 10.0), row("sig-deg", 1, 10.0, elastic=True)
    fixed = row("sig-deg", 5, 10.0)
    assert told(teacher, elastic, fixed).row is fixed
    assert told(teacher, elastic).row is elastic


def test_a_student_is_measured_by_its_own_teacher_at_full_length() -> None:
    top = told(
        row("teacher", 300, 10.0, teacher="learned"),
        row("teacher", 20, 90.0, teacher="learned"),
        row("teacher", 500, 1.0, teacher="analytic"),
        row("sig-deg", 5, 10.1, teacher="learned"),
    )
    assert top.claim == "5 network calls instead of 300, quality kept"


def test_diverged_students_are_passed_over() -> None:
    one, five = row("sig-deg", 1, float("nan")), row("sig-deg", 5, 10.0)
    assert told(row("teacher", 300, 10.0), one, five).row is five


def test_no_headline_without_teacher_student_or_metric() -> None:
    teacher, student = row("teacher", 300, 10.0), row("sig-deg", 5, 10.0)
    assert headline(results(teacher)) is None
    assert headline(results(student)) is None
    assert headline(results(teacher, student) | {"quality": None}) is None
