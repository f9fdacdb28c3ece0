"""Does planning pay? Planned grids and plans against their rivals, and theory against training.

On 1DN grids are planned from costs measured on the exact teacher, for least-squares and for trained
students; on rough Bergomi along the principal components of the data, and students are merged by
plans as well. On Gaussian data every plan is predicted and carried out. What the presets train
stands in `planning_presets.py`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sigdeg.experiments.planning_gaussian import gaussian_rows
from sigdeg.experiments.planning_mixture import LEAST_SQUARES, MixtureGrids
from sigdeg.experiments.planning_presets import DEFAULT, PRESETS, Settings
from sigdeg.experiments.planning_series import GRIDS, SeriesGrids
from sigdeg.report import write_report
from sigdeg.report.planning import grids_plot, prediction_plot
from sigdeg.results import Row, save_results
from sigdeg.runs import claim_folder
from sigdeg.training import resolve_device

__all__ = ["DEFAULT", "PRESETS", "Settings", "run"]


def run(
    out: Path,
    preset: str = DEFAULT,
    seed: int = 0,
    device: str | None = None,
    data_dir: Path | None = None,
    progress: bool = True,
) -> Path:
    """Run the experiment and write `results.json`, figures and the report into a folder.

    The same call resumes an interrupted run. The teacher of rough Bergomi is taken from the run of
    that benchmark beside this folder, or trained. `data_dir` is not used: the data are simulated.

    Raises:
        SigdegError: If the folder holds another run, or its data are damaged.
    """
    settings = PRESETS[preset]
    identity = {"experiment": "planning", "preset": preset, "seed": seed}
    device = resolve_device(device)
    claim_folder(out, "config.json", {**identity, **dataclasses.asdict(settings)})
    options: tuple[int, str, bool] = (seed, device, progress)
    mixture = MixtureGrids(settings.mixture, out, *options)
    rows, floor = mixture.rows(), mixture.floor()
    gaussian = gaussian_rows(settings.merged, settings.times, settings.gaussian_seeds, seed)
    rows += gaussian
    if settings.series:
        series = SeriesGrids(settings.series, out, *options)
        rows += series.rows()
        floor |= series.floor()
    figures = draw(out, rows, floor, mixture)
    steps, name = next(iter(mixture.students))
    mixture.students[steps, name][0].student.save_pretrained(out / "student")
    save_results(
        out,
        {
            **identity,
            "title": "Planning: grids and plans",
            "summary": "Students on planned grids beside the same students on others.",
            "quality": {
                "metric": "w1_exact",
                "label": "1DN: Wasserstein-1 distance to the exact law",
                "lower_is_better": True,
            },
            "rows": rows,
            "paper": [],
            "floor": floor,
            "figures": figures,
            "student": "student",
            "example": {"steps": steps},
        },
        device,
    )
    return write_report(out)


def draw(
    out: Path, rows: list[Row], floor: dict[str, Any], mixture: MixtureGrids
) -> list[dict[str, str]]:
    """The figures, from the rows."""
    folder = out / "figures"
    w1 = ("w1_exact", "W1 to the exact law")
    sets = {
        "1DN, least squares": (LEAST_SQUARES, w1),
        "1DN, trained students": (None, w1),
        "Rough Bergomi": (GRIDS, ("iw1", "W1 of increments")),
    }
    panels = {
        title: [row for row in rows if row["role"] == "student" and row.get("study") == study]
        for title, (study, _) in sets.items()
    }
    grids_plot(
        {title: found for title, found in panels.items() if found},
        {title: metric for title, (_, metric) in sets.items()},
        floor,
        folder / "grids.png",
    )
    spectra: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("plan") and row.get("kind") == "linear":
            spectra.setdefault((row["study"] or "").partition(":")[0], []).append(row)
    prediction_plot(spectra, folder / "predictions.png")
    mixture.histograms(folder / "histograms.png")
    return [
        {"file": f"figures/{file}.png", "caption": caption}
        for file, caption in (
            (
                "grids",
                "Quality on planned and other grids of as many steps. Bars are one standard "
                "deviation, the dashed line is what real data score.",
            ),
            ("histograms", "Histograms of 20,000 samples of trained students beside the data."),
            (
                "predictions",
                "Linear students trained by every plan: the distance to the teacher "
                "that the theory predicts, and the one they reach.",
            ),
        )
    ]
