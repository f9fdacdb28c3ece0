"""The documentation: its code runs, its numbers are recomputed, what it points at exists."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from sigdeg import EulerMaruyama, GaussianMixtureDenoiser, PartialSignature, VPLinear
from sigdeg.cli import main
from sigdeg.datasets import GaussianMixture1D
from sigdeg.grids import fine_grid
from sigdeg.response import response
from sigdeg.signature import restriction

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LAW, SCHEDULE = GaussianMixture1D(), VPLinear()

every_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}"
)


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def table(page: Path, heading: str) -> dict[str, list[str]]:
    """Rows of the table whose first column has a heading, by their first cell."""
    rows = re.search(
        rf"^\| {heading} \|.*\n\|[-|]+\|\n((?:\|.*\|\n)+)", page.read_text(), re.MULTILINE
    )
    assert rows, f"{page.name} has no table of {heading}"
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in rows[1].splitlines()]
    return {first: rest for first, *rest in cells}


# What README says of its ten lines: the student is as near to the law as that.
CLOSE = """
import torch
from sigdeg.datasets import GaussianMixture1D
from sigdeg.metrics import w1_exact

generator = torch.Generator().manual_seed(1)
many = student.sample(100_000, generator=generator)
assert w1_exact(many, GaussianMixture1D()) < 0.03
"""


# And the page on tokens of its own: the total variations of both laws.
NEAR = """
from sigdeg.discrete import uniform_grid
from sigdeg.discrete.exact import joint_law, sampler_law, total_variation

truth = joint_law(letters.encode(words), torch.ones(6), 8)
off = [total_variation(sampler_law(m.step, uniform_grid(1)), truth) for m in (teacher, student)]
assert round(off[0], 2) == 0.66
assert off[1] < 0.03, off
"""


@pytest.mark.parametrize(
    "name",
    ["README.md", "docs/architecture.md", "docs/devices.md"]
    + [
        pytest.param(f"docs/{page}.md", marks=pytest.mark.slow)
        for page in ("discrete", "rough-bergomi", "tutorial")
    ],
)
def test_code_runs_as_written(name: str, tmp_path: Path) -> None:
    # In a Python of its own, as a reader would run it. Text after code is its output.
    pattern = r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?"
    found = re.findall(pattern, (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)
    code = "".join(f"{source}\nprint(chr(0))\n" for source, _ in found)
    code += {"README.md": CLOSE, "docs/discrete.md": NEAR}.get(name, "")
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    for printed, (_, shown) in zip(run.stdout.split("\0\n"), found, strict=False):
        if shown:
            assert_same_but_for_digits(printed, shown)


def assert_same_but_for_digits(printed: str, shown: str) -> None:
    number = r"-?\d[\d,]*\.?\d*"
    assert re.sub(number, "#", printed) == re.sub(number, "#", shown)
    values, expected = (
        [float(v.replace(",", "")) for v in re.findall(number, text)] for text in (printed, shown)
    )
    assert values == pytest.approx(expected, rel=0.5, abs=0.05)


@every_page
def test_commands_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell = r"^```(?:console|bash|sh)\n(.*?)^```$"
    for content in re.findall(shell, page.read_text(), re.MULTILINE | re.DOTALL):
        for command, rest in re.findall(
            r"^(?:\$ )?sigdeg (plan \w+|\w+)(.*)$", content, re.MULTILINE
        ):
            with pytest.raises(SystemExit, match=r"^0$"):
                main([*command.split(), "--help"])
            text = capsys.readouterr().out
            for option in re.findall(r"(?<=\s)--?[a-zA-Z][a-z0-9-]*", rest):
                assert re.search(rf"{option}\b", text), f"sigdeg {command} has no {option}"


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(file), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, target


@every_page
def test_formulas_in_the_text_end_on_their_line(page: Path) -> None:
    # Not every renderer joins the lines of one that does not.
    for line in re.sub(r"`[^`]*`", "", prose(page)).splitlines():
        assert line.count("$") % 2 == 0, line


@every_page
def test_code_that_is_named_exists(page: Path) -> None:
    path = r"`((?:src|tests|docs|benchmarks|results)/[\w./-]*)(?:::(\w+))?`"
    members = r"(?: \(((?:`[^`]+`[, ]*)+))?"
    for name, test, inside in re.findall(path + members, prose(page)):
        file = ROOT / name
        if name.startswith("results/"):  # written by a full run of what has the same name
            places = ("src/sigdeg/experiments", "benchmarks")
            made = any((ROOT / place / f"{file.stem}.py").exists() for place in places)
            assert made or file.exists(), name
            continue
        assert file.exists(), name
        wanted = {*re.findall(r"`(\w+)", inside), *filter(None, [test])}
        if wanted:
            nodes = list(ast.walk(ast.parse(file.read_text())))
            known = {getattr(n, key, None) for n in nodes for key in ("name", "id", "arg")}
            assert wanted <= known, f"{name} has no {wanted - known}"


def test_the_map_has_every_numbered_piece_of_the_paper() -> None:
    found: dict[str, set[int]] = {}
    for line in (ROOT / "docs/paper-map.md").read_text().splitlines():
        kind = ""
        for part in line.split("|")[1].split(",") if line.startswith("| ") else ():
            named = re.fullmatch(r"(?:([A-Z][a-z]+?)s?\.? )?(\d+)(?:-(\d+))?", part.strip())
            if named and (kind := named[1] or kind):
                found.setdefault(kind, set()).update(
                    range(int(named[2]), int(named[3] or named[2]) + 1)
                )
    # The last of each in the paper; statements of all kinds share one count.
    statements = ("Theorem", "Remark", "Lemma", "Definition", "Example")
    assert set().union(*(found[kind] for kind in statements)) == set(range(1, 18))
    for kind, last in (("Eq", 30), ("Table", 7), ("Figure", 9), ("Algorithm", 1)):
        assert found[kind] == set(range(1, last + 1)), kind


def test_what_a_latent_costs_is_what_was_measured() -> None:
    rows = json.loads((ROOT / "results/benchmarks.json").read_text())["tokens"]
    written = table(ROOT / "docs/discrete.md", "what").values()
    for row, (shown, least, most, wanted) in zip(rows, written, strict=True):
        ratio = [row["ratio"][key] for key in ("median", "q1", "q3")]
        assert [float(cell) for cell in (shown, least, most)] == pytest.approx(ratio, abs=0.006)
        assert wanted == row["target"]


def test_measured_orders_are_those_of_the_study() -> None:
    rows = json.loads((ROOT / "results/convergence.json").read_text())["rows"]
    written = table(ROOT / "docs/theory.md", "step")
    assert set(written) == {row["step"] for row in rows}
    for row in rows:
        _, order, measured = written[row["step"]]
        assert float(order) == row["strong_order"]
        assert float(measured) == pytest.approx(row["measured_order"], abs=0.01)


def test_the_recipe_quotes_what_it_gives_on_other_laws() -> None:
    page = (ROOT / "docs/recipe.md").read_text()
    for row in json.loads((ROOT / "results/laws.json").read_text())["rows"]:
        w1, off, least = (row["metrics"][key]["mean"] for key in ("w1", "off", "least"))
        assert f"{w1:.3f} / {off:.3f} / {least:.2f}" in page, (row.get("study"), row["method"])


@pytest.mark.parametrize("page", ["README.md", "docs/rough-bergomi.md"])
def test_tables_of_rough_bergomi_are_the_results(page: str) -> None:
    """Means, deviations and speed-ups; the README has the students and their two teachers."""
    rows = json.loads((ROOT / "results/rbergomi.json").read_text())["rows"]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / page).read_text().splitlines()
        if line.startswith("|")
    ]
    students = [r for r in rows if r["method"] == "sig-deg" and not r.get("study")]
    teachers = [r for r in rows if r["method"] == "teacher" and r["nfe"] in (121, 1001)]
    whole = [r for r in rows if not r.get("study")]
    for row in students + teachers if page == "README.md" else whole:
        measured = [row["metrics"][key] for key in ("w1", "iw1")]
        shown = [
            f"{m['mean']:.4f}" + (f" ± {m['std']:.4f}" if m["n"] > 1 else "") for m in measured
        ]
        found = [line for line in lines if {f"{row['nfe']:,}", *shown} <= {*line}]
        assert len(found) >= 1, (row["method"], row["nfe"], shown)
        ratios = [row["speedup"], *row["over"].values()]
        for ratio in ratios:
            assert any(
                float(cell) == pytest.approx(ratio, rel=0.06)
                for line in found
                for cell in line
                if re.fullmatch(r"[\d.]+", cell)
            ), (row["method"], row["nfe"], ratio)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("text", ("perplexity", "entropy", "entropy_4", "distinct_4", "self_bleu")),
        ("grammar", ("invalid", "unique", "new")),
    ],
)
def test_tables_of_texts_are_the_results(name: str, keys: tuple[str, ...]) -> None:
    """Means and deviations of all rows, and of the floor where there is one."""
    results = json.loads((ROOT / f"results/{name}.json").read_text())
    page = (ROOT / f"docs/{name}.md").read_text()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()]
    rows = [(str(row["nfe"]), row["metrics"]) for row in results["rows"]]
    for calls, metrics in [*rows, *([("", results["floor"])] if results["floor"] else [])]:
        found = [metrics[key] for key in keys]
        shown = [
            f"{m['mean']:.2f} ± {m['std']:.2f}"
            if m["mean"] >= 3
            else f"{m['mean']:.3f} ± {m['std']:.3f}"
            for m in found
        ]
        assert [calls, *shown] in [line[-len(keys) - 1 :] for line in lines], (calls, shown)


def test_tables_of_pixels_are_the_results() -> None:
    """All rows of the main table; of other grey levels teacher and student side by side."""
    page = (ROOT / "docs/mnist-tokens.md").read_text()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()]
    keys = ("fid", "fid_2", "precision", "recall", "diversity", "tv", "ambiguous")
    main = json.loads((ROOT / "results/mnist-tokens.json").read_text())
    for row in main["rows"]:
        found = [row["metrics"][key] for key in keys]
        shown = [f"{m['mean']:.2f} ± {m['std']:.2f}" for m in found]
        assert [str(row["nfe"]), *shown, f"{row['speedup']:.1f}"] in [line[1:] for line in lines]
    beside = json.loads((ROOT / "results/mnist-tokens-levels.json").read_text())
    compared = {
        (row.get("study") or "16 grey levels, masked", row["nfe"], row["role"]): row["metrics"]
        for row in beside["rows"]
        if "teacher last" not in (row.get("variant") or "")
    }
    for title, calls in {key[:2] for key in compared}:
        pair = [compared[title, calls, role] for role in ("teacher", "student")]
        shown = [
            f"{one[key]['mean']:.{d}f} ± {one[key]['std']:.{d}f}"
            for key, d in (("fid", 1), ("fid_2", 1), ("recall", 2))
            for one in pair
        ]
        assert [title, str(calls), *shown] in lines, (title, calls)


@pytest.mark.parametrize("name", ["digits", "digits-classes", "own-pipeline"])
def test_tables_of_pipelines_are_the_results(name: str) -> None:
    """All rows, and the floor: means, and deviations of what was drawn more than once."""
    results = json.loads((ROOT / f"results/{name}.json").read_text())
    page = (ROOT / "docs/digits.md").read_text()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()]
    places = {"accuracy": 3, "recall": 3, "fid": 3, "diversity": 2, "w1": 4, "iw1": 4, "energy": 4}
    places |= {"accuracy_2": 3, "recall_2": 3, "class_diversity": 2, "fid_2": 3}
    series = ("w1", "iw1", "energy")
    images = ("accuracy", "accuracy_2", "recall", "recall_2", "diversity", "class_diversity")
    for row in [*results["rows"], *([{"metrics": results["floor"]}] if results["floor"] else [])]:
        shown = [str(row.get("nfe", ""))]
        for key in series if "w1" in row["metrics"] else (*images, "fid", "fid_2"):
            m, d = row["metrics"][key], places[key]
            shown.append(f"{m['mean']:.{d}f}" + (f" ± {m['std']:.{d}f}" if m["n"] > 1 else ""))
        assert shown in [line[1:] for line in lines], (row.get("method"), shown)


def left_open(order: int, paths: int = 4000, steps: int = 120) -> float:
    """Share of the variance of 1DN that the first coefficients of one step's path leave open.

    Two completions of each path share the starting noise and the coefficients: half their mean
    square distance is the mean conditional variance.
    """
    teacher = EulerMaruyama(GaussianMixtureDenoiser(LAW.means, LAW.stds, LAW.weights, SCHEDULE))
    generator = Generator().manual_seed(order)
    grid = fine_grid(SCHEDULE, steps, "power")
    h = -grid.diff()
    ends = (h.cumsum(0) / h.sum()).clamp(max=1)
    # The coefficients are c = M z for the normalised increments z.
    M = restriction(order, torch.cat([ends.new_zeros(1), ends[:-1]]), ends)[..., 0].T

    def normals(n: int) -> Tensor:
        return torch.randn(paths, n, generator=generator, dtype=torch.float64)

    start, z = SCHEDULE.prior_std * normals(1), normals(len(h))
    other = normals(len(h))
    other = other + (z - other) @ M.T @ torch.linalg.solve(M @ M.T, M)
    samples = []
    for noise in (z, other):
        x = start
        for k in range(len(h)):
            x = teacher(x, grid[k], grid[k + 1], PartialSignature(h[k], noise[:, k, None, None]))
        samples.append(x)
    return float((samples[0] - samples[1]).square().mean() / 2) / LAW.variance


def test_one_step_by_order() -> None:
    t, s = (torch.tensor(v, dtype=torch.float64) for v in (SCHEDULE.t_max, SCHEDULE.t_min))
    energy = response(SCHEDULE, t, s, 40, LAW.variance**0.5) ** 2
    for name, (gaussian, mixture, _) in table(ROOT / "docs/theory.md", "order m").items():
        order = int(name)
        share = 1 - energy[:order].sum() / energy.sum()
        assert 100 * float(share) == pytest.approx(float(gaussian), rel=0.05)
        assert 100 * left_open(order) == pytest.approx(float(mixture), rel=0.1, abs=0.5)
