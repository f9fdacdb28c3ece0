"""What the page says, and what is refused."""

import ast
import base64
import html
import json
import math
import re
import shlex
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sigdeg import ResidualMLP, SignatureStudent, VPLinear, sample
from sigdeg.errors import SigdegError
from sigdeg.report import write_report
from sigdeg.report.html import usage
from sigdeg.report.rows import digits, metric_text
from sigdeg.report.table import metric_name


def rows_of(page: str) -> list[str]:
    """The text of each line of the first table."""
    table = page[page.index("<table>") : page.index("</table>")]
    lines = re.findall(r"<tr.*?</tr>", table, re.DOTALL)
    return [" ".join(re.sub(r"<[^>]+>", " ", line).split()) for line in lines]


def test_the_page_tells_the_whole_run(report: Path) -> None:
    page = report.read_text()
    assert "<h1>5 network calls instead of 301, 59× faster, quality kept</h1>" in page
    assert "0.0071 beside the teacher’s 0.0068 (floor 0.0065)" in page
    table = rows_of(page)
    assert table[0].startswith("Method Steps Order Calls W1, exact law ↓ W1, 2,000 samples")
    assert table[1].startswith("Teacher 300 301 0.00680 ± 0.00034 0.0508 ± 0.0081")
    # Students of one step count first, the elastic one after them, most calls first in each.
    assert [line.split(" 0.")[0] for line in table[2:8]] == [
        "Student 10 2 10",
        "Student 5 2 5",
        "Student 1 10 1",
        "Student elastic 4 4 4",
        "Student elastic 2 4 2",
        "Student elastic 1 4 1",
    ]
    assert [line.startswith("Untrained step") for line in table[8:11]] == [True] * 3
    assert table[14].startswith("Floor real data against real data 0.00650 ± 0.00032")
    assert table[15].startswith("Quoted from the paper")
    assert table[16:] == ["Teacher paper 300 0.560 20.0", "Student paper 5 0.570 7.0×"]
    assert "sigdeg 0.1.0, torch 2.6.0" in page
    assert "W1, exact law: n = 3 or 10" in page
    assert "seed 0" in page


def test_texts_stand_line_by_line(run: Path) -> None:
    """What is inside a text is shown as it is, but for its line ends."""
    file = run / "results.json"
    results = json.loads(file.read_text())
    results["texts"] = {"teacher, 64 calls": ["to be\nor <b>", "not"]}
    file.write_text(json.dumps(results))
    page = write_report(run).read_text()
    assert '<p class="note">teacher, 64 calls</p>' in page
    assert "to be⏎or &lt;b&gt;\nnot</pre>" in page
    results["texts"] = {"teacher": [3]}
    file.write_text(json.dumps(results))
    with pytest.raises(SigdegError, match=r"texts\.teacher\.0 must be"):
        write_report(run)


def test_the_page_is_one_file(report: Path) -> None:
    page = report.read_text()
    sources = re.findall(r'<img src="data:image/png;base64,([^"]+)"', page)
    rest = re.sub(r'"data:image/png;base64,[^"]+"', "", page)
    assert not re.search(r"https?:|//|<script|<link|url\(|@import", rest, re.IGNORECASE)
    names = ("quality", "trajectories", "histograms", "samples", "training")
    assert len(sources) == page.count("<img") == len(names)
    for source, name in zip(sources, names, strict=True):
        assert base64.b64decode(source) == (report.parent / f"figures/{name}.png").read_bytes()
        Image.open(BytesIO(base64.b64decode(source))).verify()


def test_the_same_run_gives_the_same_page(report: Path, run: Path) -> None:
    assert write_report(run) == run / "report.html"
    assert (run / "report.html").read_bytes() == report.read_bytes()
    assert sorted(path.name for path in run.iterdir()) == [
        "config.json",
        "figures",
        "report.html",
        "results.json",
    ]


def test_the_lines_of_use_draw_from_the_student(
    report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = report.read_text()
    match = re.search(r'<code class="python">(.*?)</code>', page, re.DOTALL)
    assert match
    code = html.unescape(match[1])
    assert len(code.splitlines()) == 3
    channels = SignatureStudent.in_channels(2, order=2)
    student = SignatureStudent(ResidualMLP(channels, 2, width=8), VPLinear(), 2, steps=(5,))
    student.save_pretrained(tmp_path / "student")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["x"].shape == (16, 2)
    own = sample(student.eval(), student.grid(5), (16, 2), seeds=range(16))
    assert torch.equal(names["x"], own)
    assert "sigdeg sample student -n 16 --steps 5 --seed 0" in page


def test_everything_but_the_rows_may_be_absent(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"rows": [{"method": "teacher", "steps": 300}]}')
    page = write_report(tmp_path).read_text()
    assert f"<h1>{tmp_path.name}</h1>" in page
    assert "<img" not in page
    assert rows_of(page) == ["Method Steps", "Teacher 300"]


def test_a_metric_of_the_floor_alone_has_no_column(tmp_path: Path) -> None:
    """Side tables may be of other data, whose floor the main one does not need."""
    rows = [{"method": "teacher", "steps": 300, "metrics": {"w1": {"mean": 0.5}}}]
    floor = {"w1": {"mean": 0.25}, "iw1": {"mean": 0.125}}
    (tmp_path / "results.json").write_text(json.dumps({"rows": rows, "floor": floor}))
    table = rows_of(write_report(tmp_path).read_text())
    assert table[0] == "Method Steps W1"
    assert table[-1] == "Floor real data against real data 0.250"


def test_text_of_a_run_is_text_on_the_page(tmp_path: Path) -> None:
    results = {"title": "<script>alert(1)</script>", "rows": [{"method": "<b>new</b>"}]}
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = write_report(tmp_path).read_text()
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;b&gt;new&lt;/b&gt;" in page


def test_rows_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"method": "teacher", "teacher": "learned", "grid": "uniform"},
        {"method": "teacher", "teacher": "analytic", "grid": "uniform"},
        {"method": "sig-deg", "grid": "power", "q": 1, "head": "gaussian"},
        {"method": "sig-deg", "grid": "uniform", "q": 1, "head": "none", "teacher": "learned"},
        {"method": "ddim", "grid": "uniform", "teacher": "analytic"},
    ]
    (tmp_path / "results.json").write_text(json.dumps({"rows": rows}))
    assert sorted(rows_of(write_report(tmp_path).read_text())[1:]) == [
        "DDIM analytic teacher",
        "Student gaussian noise, power grid",
        "Student learned teacher, uniform grid",
        "Teacher analytic",
        "Teacher learned",
    ]


@pytest.mark.parametrize(
    ("teacher", "text"), [("guided", "5.5× over UniPC, guided with 10 calls"), (None, "UniPC with")]
)
def test_an_equal_is_told_with_its_teacher(tmp_path: Path, teacher: str | None, text: str) -> None:
    equal = {"method": "unipc", "nfe": 10, "grid": "best of 9", "teacher": teacher, "speedup": 5.5}
    (tmp_path / "results.json").write_text(
        json.dumps({"rows": [{"method": "sig-deg", "steps": 1, "equal_quality": equal}]})
    )
    assert text in write_report(tmp_path).read_text()


def test_metrics_of_a_second_extractor_are_called_so() -> None:
    assert metric_name("fid_shares_2") == "FID at real shares, second features"
    assert metric_name("w1_2000") == "W1, 2,000 samples"


def test_rivals_and_further_speedups_have_columns(tmp_path: Path) -> None:
    rival = {
        "w1": {"method": "unipc", "verdict": "tie"},
        "iw1": {"method": "ddim", "verdict": "better"},
    }
    student = {"method": "sig-deg", "speedup": 12.0, "over": {"1,001 calls": 120.0}}
    rows = [{"method": "teacher", "speedup": 1.0, "over": {"1,001 calls": 10.0}}]
    results = {"rows": [*rows, student | {"rival": rival}]}
    (tmp_path / "results.json").write_text(json.dumps(results))
    title, teacher, own = rows_of(write_report(tmp_path).read_text())
    assert title == "Method At as many calls Speed‑up Over 1,001 calls"
    assert teacher == "Teacher 1.0× 10×"
    assert own == "Student W1: tie (UniPC), W1 of increments: better (DDIM) 12× 120×"


def entry(path: tuple[str | int, ...], value: Any) -> Any:
    """A case: one entry of the results replaced."""

    def change(run: Path) -> None:
        whole = place = json.loads((run / "results.json").read_text())
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        (run / "results.json").write_text(json.dumps(whole))

    name = path[-1] if isinstance(path[-1], str) else path[-2]
    return pytest.param(change, f"results.json has a damaged entry: .*{name}", id=f"{path}={value}")


def link_out(run: Path) -> None:
    """A figure's name stands, what it points to lies elsewhere."""
    secret = run.parent / "secret.png"
    (run / "figures/samples.png").replace(secret)
    (run / "figures/samples.png").symlink_to(secret)


def move_figures(run: Path) -> None:
    (run / "figures").rename(run.parent / "figures")
    (run / "figures").symlink_to(run.parent / "figures")


def name_figure(name: str) -> Callable[[Path], object]:
    def change(run: Path) -> None:
        whole = json.loads((run / "results.json").read_text())
        (run.parent / "secret.png").write_bytes((run / "figures/samples.png").read_bytes())
        whole["figures"][0]["file"] = name.format(run.parent)
        (run / "results.json").write_text(json.dumps(whole))

    return change


def test_what_is_to_be_copied_runs_nothing_else(run: Path) -> None:
    """Names with quotes and semicolons, as a stranger's results may have them."""
    whole = json.loads((run / "results.json").read_text())
    name = """a"); import os; os.system("id") #'; rm -rf ~"""
    whole["student"], whole["example"] = name, {"steps": "5; rm -rf ~"}
    python, shell = usage(whole)
    tree = ast.parse(python)
    loaded = next(node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    assert loaded.value == name
    assert len(tree.body) == 3
    assert shlex.split(shell) == [
        "sigdeg",
        "sample",
        name,
        *["-n", "16", "--seed", "0", "--out", "samples"],
    ]


def drop_bytes(run: Path) -> None:
    figure = run / "figures/samples.png"
    figure.write_bytes(figure.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "results.json").unlink(), "holds no readable results.json"),
        (
            lambda run: (run / "results.json").write_text('{"rows": ['),
            "holds no readable results.json",
        ),
        (
            lambda run: (run / "results.json").write_bytes(b"\xff\xfe"),
            "holds no readable results.json",
        ),
        (lambda run: (run / "results.json").write_text("[]"), "holds no JSON object"),
        (lambda run: (run / "results.json").write_text("{}"), "has no list of rows"),
        (lambda run: (run / "results.json").write_text('{"rows": [{}]}'), "has a damaged entry"),
        (
            lambda run: (run / "results.json").write_text(
                '{"rows": [{"method": "teacher", "metrics": {"fid": {"std": 1}}}]}'
            ),
            "has a damaged entry",
        ),
        (lambda run: (run / "config.json").write_text("{"), "holds no readable config.json"),
        (lambda run: (run / "figures/samples.png").unlink(), "samples.png is missing or damaged"),
        (drop_bytes, "samples.png is missing or damaged"),
        entry(("training",), math.nan),
        entry(("training", "teacher"), -1),
        entry(("versions",), True),
        entry(("example",), "abc"),
        entry(("title",), {"a": 1}),
        entry(("quality", "metric"), []),
        entry(("figures", 0, "file"), []),
        entry(("figures", 0, "caption"), 3),
        entry(("floor", "w1_exact"), "small"),
        entry(("paper", 0, "method"), None),
        *(
            entry(("rows", 0, key), bad)
            for key, bad in (
                ("steps", "abc"),
                ("nfe", []),
                ("nfe", -5),
                ("seconds", math.inf),
                ("speedup", {}),
                ("params", True),
                ("variant", 7),
                ("metrics", [1]),
            )
        ),
        *(
            entry(("rows", 0, "metrics", "w1_exact", key), bad)
            for key, bad in (("mean", math.nan), ("mean", "1"), ("n", [1]), ("std", {"a": 1}))
        ),
        (name_figure("../secret.png"), "figure .*secret.png lies outside of the run folder"),
        (name_figure("{}/secret.png"), "figure .*secret.png lies outside of the run folder"),
        (link_out, "figure .*samples.png lies outside of the run folder"),
        (move_figures, "figure .* lies outside of the run folder"),
    ],
)
def test_a_damaged_run_is_one_line_and_keeps_the_old_page(
    run: Path, damage: Callable[[Path], object], message: str
) -> None:
    (run / "report.html").write_text("old")
    damage(run)
    with pytest.raises(SigdegError, match=message) as caught:
        write_report(run)
    assert "\n" not in str(caught.value)
    assert (run / "report.html").read_text() == "old"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.0071234, "0.00712"), (12345.6, "12,346"), (295, "295"), (3.2e-7, "3.20e-07"), (0, "0")],
)
def test_digits(number: float, text: str) -> None:
    assert digits(number) == text


@pytest.mark.parametrize(
    ("summary", "text"),
    [
        ({"mean": 0.0071234, "std": 0.000331, "n": 3}, ("0.00712", "0.00033")),
        ({"mean": 12.345, "std": 1.26, "n": 3}, ("12.3", "1.3")),
        ({"mean": 1234.5, "std": 250, "n": 3}, ("1,234", "250")),
        ({"mean": 0.0071234, "std": 0.0, "n": 1}, ("0.00712", "")),
        ({"mean": 0.5, "std": 0.0, "n": 0}, ("0.500", "")),
        ({"mean": float("nan"), "std": 1.0, "n": 0}, ("—", "")),
        (None, ("", "")),
    ],
)
def test_a_metric_has_the_digits_its_deviation_allows(summary: Any, text: tuple[str, str]) -> None:
    assert metric_text(summary) == text
