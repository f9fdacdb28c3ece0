"""Results: summaries, what tells two apart, the arithmetic of tables, and the one file format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from sigdeg.errors import SigdegError
from sigdeg.results import (
    Summary,
    add_equal_quality,
    add_rivals,
    add_speed,
    make_row,
    read_results,
    role_of,
    save_results,
    summarise,
    verdict,
)


def test_a_summary_has_the_statistics_of_the_values() -> None:
    values = np.random.default_rng(0).normal(size=10)
    summary = summarise([{"a": x} for x in values])["a"]
    assert summary["n"] == 10
    assert summary["mean"] == pytest.approx(np.mean(values))
    assert summary["std"] == pytest.approx(np.std(values, ddof=1))
    assert summarise([{"a": 3.0}]) == {"a": {"mean": 3.0, "std": 0.0, "n": 1}}


def test_no_draw_is_refused() -> None:
    with pytest.raises(SigdegError, match="at least 1 draw, got 0"):
        summarise([])


def test_a_verdict_needs_two_standard_errors() -> None:
    # Standard errors of 3 / sqrt(9) = 1 and 2.25 / sqrt(9) = .75: of the difference 1.25.
    own, wide = Summary(mean=10.0, std=3.0, n=9), {"std": 2.25, "n": 9}
    for mean, found in ((12.4, "tie"), (12.6, "better"), (7.6, "tie"), (7.4, "worse")):
        other = Summary(mean=mean, **wide)
        assert verdict(own, other) == found
        swapped = {"better": "worse", "worse": "better", "tie": "tie"}[found]
        assert verdict(other, own) == verdict(own, other, lower_is_better=False) == swapped


def test_equal_laws_tie_in_nineteen_of_twenty_comparisons() -> None:
    draws = np.random.default_rng(0).normal(size=(2000, 2, 20))
    found = [
        verdict(*(Summary(mean=x.mean(), std=x.std(ddof=1), n=20) for x in pair)) for pair in draws
    ]
    assert found.count("tie") / 2000 == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("own", [{"std": 0.0, "n": 1}, {"std": 0.0, "n": 10_000}])
def test_no_verdict_rests_on_one_draw(own: Any) -> None:
    single, many = Summary(mean=1.0, **own), Summary(mean=9.0, std=0.1, n=5)
    assert verdict(single, many) is verdict(many, single) is None


def test_summary_over_draws() -> None:
    found = summarise([{"a": 1.0, "b": 5.0}, {"a": 3.0, "b": 5.0}])
    assert found["a"] == {"mean": 2.0, "std": pytest.approx(2**0.5), "n": 2}
    assert found["b"] == {"mean": 5.0, "std": 0.0, "n": 2}


def test_a_draw_may_tell_several_values() -> None:
    found = summarise([{"a": [1.0, 2.0], "b": 5.0}, {"a": [3.0, 4.0], "b": 7.0}])
    assert found["a"] == {"mean": 2.5, "std": pytest.approx((5 / 3) ** 0.5), "n": 4}
    assert found["b"]["n"] == 2


def judged(method: str, w1: float, iw1: float, n: int = 8, **more: Any) -> dict[str, Any]:
    """A row of two metrics, each with a standard error of .001."""
    metrics = {k: {"mean": v, "std": 0.001 * n**0.5, "n": n} for k, v in (("w1", w1), ("iw1", iw1))}
    base = {"method": method, "role": role_of(method), "metrics": metrics, "seconds": 2.0}
    return {**base, "nfe": 1, "grid": None, "study": None, **more}


def test_equal_quality_is_the_cheapest_that_is_no_worse() -> None:
    """Worse in one metric by three standard errors of the difference is no equal, by one it is."""
    rows = [
        judged("teacher", 0.01, 0.01, seconds=100.0),
        judged("unipc", 0.021, 0.0214, seconds=8.0, nfe=20),
        judged("ddim", 0.02, 0.0243, seconds=4.0),
        judged("sig-deg", 0.02, 0.02),
        judged("sig-deg", 0.005, 0.02),
        judged("sig-deg", 0.02, 0.02, study="factors"),
    ]
    add_equal_quality(rows, ("w1", "iw1"))
    equal = {"method": "unipc", "nfe": 20, "grid": None, "teacher": None, "speedup": 4.0}
    assert rows[3]["equal_quality"] == equal
    assert ["equal_quality" in r for r in rows] == [False, False, False, True, False, False]


def test_no_equal_is_claimed_where_a_rival_was_drawn_once() -> None:
    rows = [judged("teacher", 0.01, 0.01), judged("sig-deg", 0.02, 0.02)]
    add_equal_quality([*rows, judged("ddim", 0.5, 0.5, n=1)], ("w1", "iw1"))
    assert "equal_quality" not in rows[1]


def test_students_are_compared_with_the_best_of_as_many_calls() -> None:
    rows = [
        judged("sig-deg", 0.02, 0.02, nfe=10),
        judged("unipc", 0.021, 0.04, nfe=10),
        judged("ddim", 0.09, 0.01, nfe=10),
        judged("ddim", 0.01, 0.01, nfe=20),
        judged("dpm-solver++", 0.05, 0.015, nfe=9),  # guided ones may not spend all calls
        judged("sig-deg", 0.02, 0.02, nfe=5),
    ]
    add_rivals(rows, ("w1", "iw1"))
    assert rows[0]["rival"] == {
        "w1": {"method": "unipc", "verdict": "tie"},
        "iw1": {"method": "ddim", "verdict": "worse"},
    }
    assert ["rival" in row for row in rows] == [True, *5 * [False]]


def test_speed_is_told_over_the_teacher_first() -> None:
    rows: list[dict[str, Any]] = [{}, {}, {}]
    add_speed(rows, {0: 60.0, 1: 6.0, 2: 0.5}, teacher=1, over={"1,001 calls": 0})
    assert rows[2] == {"seconds": 0.5, "speedup": 12.0, "over": {"1,001 calls": 120.0}}
    assert rows[0]["speedup"] == 0.1


def test_a_student_is_told_by_its_role() -> None:
    """A new method that is trained has rivals and an equal; its name says nothing."""
    rows = [judged("teacher", 0.01, 0.01), judged("ddim", 0.02, 0.02, seconds=1.0)]
    rows.append(judged("new", 0.02, 0.02, role="student"))
    add_rivals(rows, ("w1",))
    add_equal_quality(rows, ("w1",))
    assert ["rival" in row for row in rows] == [False, False, True]
    assert rows[2]["equal_quality"]["method"] == "ddim"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    row = make_row("sig-deg", nn.Linear(2, 3), 5, {"w1": Summary(mean=0.5, std=0.1, n=4)}, order=2)
    assert row["params"] == 9
    save_results(tmp_path, {"rows": [row], "paper": [], "floor": {}}, "cpu")
    found = read_results(tmp_path / "results.json")
    assert found["rows"] == [row]
    assert row["role"] == "student"
    assert set(found["versions"] or {}) >= {"torch", "sigdeg"}


def test_old_files_say_no_role_and_papers_quote_bare_numbers(tmp_path: Path) -> None:
    methods = ("teacher", "sig-deg", "untrained", "unipc")
    rows: list[dict[str, Any]] = [{"method": method} for method in methods]
    paper = [{"method": "sig-deg", "metrics": {"fid": 3.5, "kid": None, "is": {"mean": None}}}]
    (tmp_path / "results.json").write_text(json.dumps({"rows": rows, "paper": paper}))
    found = read_results(tmp_path / "results.json")
    assert [row["role"] for row in found["rows"]] == ["teacher", "student", "untrained", "peer"]
    metrics = found["paper"][0]["metrics"]
    assert metrics["fid"] == {"mean": 3.5, "std": 0.0, "n": 0}
    assert list(metrics) == ["fid", "is"]
    assert found["floor"] == {}
