"""The report: `results.json` and its figures as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from sigdeg.errors import SigdegError, reason
from sigdeg.files import atomic_write, read_json
from sigdeg.report.headline import headline
from sigdeg.report.plots import quality_plot, training_plot
from sigdeg.report.style import DPI
from sigdeg.report.table import cost_table, metric_name, result_table, study_tables
from sigdeg.results import Results, Row, read_results

__all__ = ["write_report"]

CSS_DPI = 96
FORMATS = ("PNG", "JPEG", "GIF", "WEBP")  # no others: some run programs to be read

ENVIRONMENT = Environment(
    loader=PackageLoader("sigdeg", "report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Picture(NamedTuple):
    """An image inside the page; width and height are CSS pixels."""

    source: str
    caption: str
    width: int
    height: int


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder, and the plots it needs into `figures/`.

    The page is one file: images and style are inside it, it runs no script and fetches nothing. It
    depends on the folder's content alone: written twice it is the same to the byte.

    Arguments:
        folder: A run folder with `results.json`, and `config.json` if there is one.

    Returns:
        The path of the page.

    Raises:
        SigdegError: If `results.json`, `config.json` or a figure is missing or damaged, or the
            folder cannot be written to.
    """
    folder = Path(folder)
    whole = read_results(folder / "results.json")
    try:
        page = render(folder, whole)
    except SigdegError:
        raise
    except Exception as error:  # an entry of a kind that only the plots and tables know
        told = f"{type(error).__name__}: {reason(error)}"
        file = folder / "results.json"
        raise SigdegError(f"{file} holds what no report can show: {told}") from error
    report = folder / "report.html"
    atomic_write(report, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return report


def render(folder: Path, whole: Results) -> str:
    """The page of a run folder's results."""
    results: Results = {**whole, "rows": main(whole["rows"]), "paper": main(whole["paper"])}
    config = folder / "config.json"
    top = headline(results)
    return ENVIRONMENT.get_template("template.html.j2").render(
        results=results,
        title=results.get("title") or results.get("experiment") or folder.name,
        headline=top,
        warnings=results.get("warnings") or [],
        table=result_table(results, top.row if top else None),
        studies=study_tables(whole),
        costs=cost_table(results),
        quality=quality_picture(folder, results),
        training=training_picture(folder, results),
        pictures=[
            picture(inside(folder, figure["file"]), figure.get("caption", ""))
            for figure in results.get("figures") or []
        ],
        usage=usage(results),
        counts=counts(results),
        config=json.dumps(read_json(config), indent=2) if config.exists() else None,
    )


def main(rows: Sequence[Row]) -> list[Row]:
    """Rows of the main table."""
    return [row for row in rows if not row.get("study")]


def quality_picture(folder: Path, results: Results) -> Picture | None:
    """Quality against network calls, where a quality metric is named and rows have it."""
    quality = results.get("quality")
    if not quality or not any(quality["metric"] in row["metrics"] for row in results["rows"]):
        return None
    path = inside(folder, "figures/quality.png")
    quality_plot(results["rows"], results["floor"], quality, path)
    caption = "Quality against the network calls one sample costs. Bars are one standard deviation."
    if quality["metric"] in results["floor"]:
        caption += " The floor is what two independent sets of real data score against each other."
    return picture(path, caption)


def training_picture(folder: Path, results: Results) -> Picture | None:
    """Training curves, where there are any: of more than a point."""
    curves = results.get("training") or {}
    training = {label: points for label, points in curves.items() if points and len(points) > 1}
    if not training:
        return None
    path = inside(folder, "figures/training.png")
    training_plot(training, path)
    return picture(path, "Loss on training data and on data held out.")


def inside(folder: Path, file: str) -> Path:
    """A file of a run folder: a report that is passed on tells nothing of what lies outside."""
    try:
        within = (folder / file).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # no path, or links in a circle
        within = False
    if not within:
        raise SigdegError(f"figure {file} lies outside of the run folder {folder}")
    return folder / file


def picture(path: Path, caption: str) -> Picture:
    """An image file as part of the page.

    Raises:
        SigdegError: If it is missing or no whole image.
    """
    try:
        content = path.read_bytes()
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            image.load()
            kind = Image.MIME[image.format or ""]
            width, height = (round(side * CSS_DPI / DPI) for side in image.size)
    except Exception as error:  # a damaged image may break anything inside its decoder
        raise SigdegError(f"figure {path} is missing or damaged: {reason(error)}") from None
    source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return Picture(source, caption, width, height)


def usage(results: Results) -> tuple[str, str] | None:
    """Three lines of Python and one of shell that draw from the student, or None without one."""
    student = results.get("student")
    if not student:
        return None
    steps = (results.get("example") or {}).get("steps")
    steps = steps if type(steps) is int else None  # what is copied is run
    asked = f"16, {steps}, seed=0" if steps else "16, seed=0"
    python = (
        "from sigdeg import load_model\n"
        f"student = load_model({json.dumps(student)})\n"
        f"x = student.sample({asked})"
    )
    option = f" --steps {steps}" if steps else ""
    return python, f"sigdeg sample {shlex.quote(student)} -n 16{option} --seed 0 --out samples"


def counts(results: Results) -> dict[str, str]:
    """For each metric over how many draws or seeds it is averaged."""
    found: dict[str, set[int]] = {}
    for metrics in [*(row["metrics"] for row in results["rows"]), results["floor"]]:
        for key, summary in metrics.items():
            if summary.get("n"):
                found.setdefault(key, set()).add(int(summary["n"]))
    return {
        metric_name(key): " or ".join(str(n) for n in sorted(many)) for key, many in found.items()
    }
