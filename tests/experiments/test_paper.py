"""The paper's numbers: they agree with each other, with the committed results and the README."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sigdeg.experiments import paper
from sigdeg.report.table import result_table, study_tables
from sigdeg.results import read_results

ROOT = Path(__file__).parents[2]
BY_RESULTS = {
    "mixture1d": paper.MIXTURE1D,
    "mnist": paper.MNIST,
    "mnist-half": paper.MNIST,
    "rbergomi": paper.RBERGOMI,
}


def find(rows: list[dict[str, Any]], table: int, **wanted: Any) -> dict[str, Any]:
    """The one row of a table with these values."""
    found = [
        row
        for row in rows
        if row["table"] == table and all(row.get(key) == value for key, value in wanted.items())
    ]
    assert len(found) == 1, (table, wanted)
    return found[0]


def mean(row: dict[str, Any], metric: str) -> float:
    return float(row["metrics"][metric]["mean"])


def teacher_of(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    more = {"steps": row["teacher_steps"]} if "teacher_steps" in row else {}
    return find(rows, row["table"], method="teacher", **more)


def test_every_table_is_whole() -> None:
    lengths = {
        name: {table: sum(row["table"] == table for row in rows) for table in range(1, 8)}
        for name, rows in BY_RESULTS.items()
    }
    assert lengths["mixture1d"] == {1: 3} | dict.fromkeys(range(2, 8), 0)
    assert lengths["mnist"] == {1: 0, 2: 8, 3: 0, 4: 5, 5: 5, 6: 0, 7: 6}
    assert lengths["rbergomi"] == {1: 0, 2: 0, 3: 4, 4: 0, 5: 0, 6: 9, 7: 6}


@pytest.mark.parametrize("name", BY_RESULTS)
def test_committed_results_quote_them(name: str) -> None:
    results = json.loads((ROOT / f"results/{name}.json").read_text())
    assert results["paper"] == BY_RESULTS[name]


def test_speed_ups_are_the_ratios_of_the_times() -> None:
    # As far as times of two digits tell: half a unit of the last one, or the deviation given.
    for rows in (paper.MIXTURE1D, paper.MNIST, paper.RBERGOMI):
        students = [row for row in rows if row["method"] == "sig-deg" and "speedup" in row]
        assert students
        for row in students:
            own, slow = (r["metrics"]["minutes"] for r in (row, teacher_of(row, rows)))
            error, slack = (summary.get("std", 0.005) for summary in (own, slow))
            least = (slow["mean"] - slack) / (own["mean"] + error)
            most = (slow["mean"] + slack) / (own["mean"] - error)
            assert least - 0.5 <= row["speedup"] <= most + 0.5


def test_one_student_in_several_tables_has_one_score() -> None:
    for steps, others in ((5, [(4, {"width": "full"}), (5, {"blocks": "full"})]), (10, [])):
        first = find(paper.MNIST, 2, steps=steps, teacher_steps=1500)
        for table, which in [*others, (7, {"q": 1, "steps": steps})]:
            again = find(paper.MNIST, table, **which)
            assert mean(again, "fid") == mean(first, "fid")
            assert mean(again, "inception_score") == mean(first, "inception_score")


def test_weights_of_table_6_follow_from_the_architecture_with_three_layers_a_block() -> None:
    """Appendix C.2.3 on 150 numbers (state, W and A of 50 coordinates) tells the misprints."""

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    def weights(blocks: int, width: int) -> int:
        square = linear(width, width)
        time, ends = linear(128, width) + square, linear(150, width) + square + linear(width, 50)
        return time + ends + blocks * 3 * square

    table = [row for row in paper.RBERGOMI if row["table"] == 6]
    for row in table:
        assert round(weights(row["blocks"], row["width"]), -3) == row["params"]


def test_reports_show_every_table_and_mix_no_conventions() -> None:
    for name in ("mixture1d", "mnist", "rbergomi"):
        results = read_results(ROOT / f"results/{name}.json")
        titles = {row["study"] for row in results["paper"] if "study" in row}
        tables = study_tables(results)
        assert titles <= tables.keys()
        for title in titles:
            number = re.search(r"Table (\d)", title)
            assert number
            quoted = [row for row in results["paper"] if row["table"] == int(number[1])]
            names = [(line.name, line.details, *line.cells[:1]) for line in tables[title].lines]
            assert len(set(names)) == len(names) == len(quoted), title  # each told from the others
            assert {line.kind for line in tables[title].lines} == {"paper"}
        main = [row for row in results["paper"] if "study" not in row]
        assert {row["table"] for row in main} == ({1} if name == "mixture1d" else set())
        own = {key for row in results["rows"] for key in row["metrics"]}
        shown = result_table({**results, "paper": main}, None)
        assert any(line.kind == "paper" for line in shown.lines) == bool(main)
        assert all(row["metrics"].keys() - {"minutes"} <= own for row in main)


def readme_column(heading: str) -> dict[tuple[str, str], str]:
    """The paper's column of a README table by the first two cells of a row, the first of equals."""
    lines = (ROOT / "README.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if heading in line)
    index = [cell.strip() for cell in lines[start].split("|")].index(heading)
    found: dict[tuple[str, str], str] = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.split("|")]
        found.setdefault((cells[1].partition(",")[0], cells[2]), cells[index])
    return found


def test_the_readme_quotes_table_1() -> None:
    column = readme_column("paper: W1, speed-up")
    for name, calls, row in (
        ("teacher", "301", find(paper.MIXTURE1D, 1, method="teacher")),
        *(("student", str(k), find(paper.MIXTURE1D, 1, steps=k)) for k in (10, 5)),
    ):
        assert column[name, calls] == f"{mean(row, 'w1_2000'):.2f}, {row['speedup']}"


def test_the_readme_quotes_table_2_of_either_teacher() -> None:
    column = readme_column("paper: FID over its teacher's, speed-up (teacher of 1,000; of 1,500)")
    for k in (10, 5, 1):
        cells = []
        for teacher in (1000, 1500):
            row = find(paper.MNIST, 2, steps=k, teacher_steps=teacher)
            over = mean(row, "fid") / mean(teacher_of(row, paper.MNIST), "fid")
            cells.append(f"{over:.2f}, {row['speedup']}")
        assert column["student", str(k)] == "; ".join(cells)


def test_the_readme_quotes_table_3() -> None:
    column = readme_column("paper: W1 over its teacher's, speed-up")
    slow = find(paper.RBERGOMI, 3, method="teacher")
    for k in (10, 5, 1):
        row = find(paper.RBERGOMI, 3, steps=k)
        over = f"{mean(row, 'w1') / mean(slow, 'w1'):.2f}" if "w1" in row["metrics"] else "—"
        assert column["student", str(k)] == f"{over}, {row['speedup']}"
