"""Which student the headline speaks of, and what it claims."""

from typing import Any

from sigdeg.report.headline import headline


def row(method: str, nfe: int, mean: float, **more: Any) -> dict[str, Any]:
    return {"method": method, "nfe": nfe, "metrics": {"fid": {"mean": mean}}} | more


def results(
    *rows: dict[str, Any], floor: float | None = None, lower: bool = True
) -> dict[str, Any]:
    return {
        "rows": list(rows),
        "floor": {} if floor is None else {"fid": {"mean": floor}},
        "quality": {"metric": "fid", "label": "FID", "lower_is_better": lower},
    }


def test_fewest_calls_that_keep_quality() -> None:
    teacher, ten, five, one = (
        row("teacher", 300, 10.0),
        row("sig-deg", 10, 9.0),
        row("sig-deg", 5, 12.9, speedup=58.4),
        row("sig-deg", 1, 13.1),
    )
    top = headline(results(teacher, ten, five, one, floor=2.0))
    assert top is not None
    assert top.row is five
    assert top.claim == "5 network calls instead of 300, 58× faster, quality kept"
    assert top.evidence == "FID: 12.9 beside the teacher’s 10 (floor 2)."


def test_speed_is_told_against_the_teacher_that_is_named() -> None:
    slow = {"method": "teacher", "nfe": 1000, "metrics": {}, "speedup": 1.0}
    teacher, student = row("teacher", 120, 1.0, speedup=8.0), row("sig-deg", 5, 1.0, speedup=160.0)
    top = headline(results(slow, teacher, student))
    assert top is not None
    assert top.claim == "5 network calls instead of 120, 20× faster, quality kept"


def test_no_claim_of_quality_that_is_lost() -> None:
    one, two = row("sig-deg", 1, 40.0), row("sig-deg", 2, 20.0)
    top = headline(results(row("teacher", 300, 10.0), one, two))
    assert top is not None
    assert top.row is two
    assert top.claim == "2 network calls instead of 300, quality 2.0 times worse"


def test_one_call_is_singular() -> None:
    top = headline(results(row("teacher", 1000, 10.0), row("sig-deg", 1, 10.0)))
    assert top is not None
    assert top.claim == "1 network call instead of 1,000, quality kept"


def test_nobody_is_asked_to_beat_the_floor() -> None:
    # A teacher luckier than real data: the floor is the fair reference.
    student = row("sig-deg", 5, 1.2)
    top = headline(results(row("teacher", 300, 0.5), student, floor=1.0))
    assert top is not None
    assert top.claim.endswith("quality kept")


def test_higher_may_be_better() -> None:
    good, bad = row("sig-deg", 5, 8.0), row("sig-deg", 1, 7.6)
    top = headline(results(row("teacher", 300, 10.0), good, bad, floor=11.0, lower=False))
    assert top is not None
    assert top.row is good


def test_elastic_students_speak_only_where_there_is_no_other() -> None:
    teacher, elastic = row("teacher", 300, 10.0), row("sig-deg", 1, 10.0, elastic=True)
    fixed = row("sig-deg", 5, 10.0)
    both, alone = headline(results(teacher, elastic, fixed)), headline(results(teacher, elastic))
    assert both is not None
    assert alone is not None
    assert both.row is fixed
    assert alone.row is elastic


def test_a_student_is_measured_by_its_own_teacher_at_full_length() -> None:
    top = headline(
        results(
            row("teacher", 300, 10.0, teacher="learned"),
            row("teacher", 20, 90.0, teacher="learned"),
            row("teacher", 500, 1.0, teacher="analytic"),
            row("sig-deg", 5, 11.0, teacher="learned"),
        )
    )
    assert top is not None
    assert top.claim == "5 network calls instead of 300, quality kept"


def test_diverged_students_are_passed_over() -> None:
    one, five = row("sig-deg", 1, float("nan")), row("sig-deg", 5, 10.0)
    top = headline(results(row("teacher", 300, 10.0), one, five))
    assert top is not None
    assert top.row is five


def test_no_headline_without_teacher_student_or_metric() -> None:
    teacher, student = row("teacher", 300, 10.0), row("sig-deg", 5, 10.0)
    assert headline(results(teacher)) is None
    assert headline(results(student)) is None
    assert headline(results(teacher, student) | {"quality": None}) is None
