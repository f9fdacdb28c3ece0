"""Does planning pay? Planned grids and plans against their rivals, and theory against training.

On 1DN grids are planned from costs measured on the exact teacher, for least-squares and for trained
students; on rough Bergomi along the principal components of the data, and students are merged by
plans as well. On Gaussian data every plan is predicted and carried out. What the presets train
stands in `planning_presets.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from sigdeg.experiments.bench import Benchmark
from sigdeg.experiments.planning_gaussian import gaussian_rows
from sigdeg.experiments.planning_grids import GRIDS
from sigdeg.experiments.planning_mixture import LEAST_SQUARES, MixtureGrids
from sigdeg.experiments.planning_presets import PRESETS, Settings
from sigdeg.experiments.planning_series import SeriesGrids
from sigdeg.report.planning import grids_plot, prediction_plot
from sigdeg.results import Row, Summary, of_role

__all__ = ["PRESETS", "Planning", "Settings", "run"]


class Planning(Benchmark[Settings]):
    """Three parts, each with teachers and rows of its own.

    The teacher of rough Bergomi is taken from the run of that benchmark beside this folder, or
    trained.
    """

    name = "planning"
    title = "Planning: grids and plans"
    presets = PRESETS
    quality = ("w1_exact", "1DN: Wasserstein-1 distance to the exact law")
    summary = "Students on planned grids beside the same students on others."

    def prepare(self) -> None:
        options = {**self.options, "seed": self.seed}
        self.mixture = MixtureGrids(self.settings.mixture, self.out / "mixture1d", **options)
        self.series: SeriesGrids | None = None
        if self.settings.series:
            self.series = SeriesGrids(self.settings.series, self.out / "rbergomi", **options)
            self.series.prepare()

    def fill(self) -> None:
        self.mixture.fill()
        gaussian = self.settings.merged, self.settings.times, self.settings.gaussian_seeds
        self.rows = [*self.mixture.rows, *gaussian_rows(*gaussian, self.seed)]
        if self.series:
            self.series.fill()
            self.rows += self.series.rows
        (self.shown_steps, _), (first, *_) = next(iter(self.mixture.students.items()))
        self.student = first.student

    def floor(self) -> dict[str, Summary]:
        """The metrics of real samples and of real paths."""
        return self.mixture.floor() | (self.series.floor() if self.series else {})

    def draw_figures(self) -> Mapping[str, str]:
        """Grids and plans from the rows, and histograms of students on 1DN."""
        folder = self.out / "figures"
        w1 = ("w1_exact", "W1 to the exact law")
        sets = (
            ("1DN, least squares", LEAST_SQUARES, *w1),
            ("1DN, trained students", None, *w1),
            ("Rough Bergomi", GRIDS, "iw1", "W1 of increments"),
        )
        students, panels = of_role(self.rows, "student"), {}
        for title, study, key, label in sets:
            if found := [row for row in students if row.get("study") == study]:
                panels[title] = found, key, label
        grids_plot(panels, self.floor(), folder / "grids.png")
        spectra: dict[str, list[Row]] = {}
        for row in students:
            if row.get("kind") == "linear":
                spectra.setdefault((row["study"] or "").partition(":")[0], []).append(row)
        prediction_plot(spectra, folder / "predictions.png")
        self.mixture.draw_histograms(folder / "histograms.png")
        return {
            "grids": "Quality on planned and other grids of as many steps. Bars are one standard "
            "deviation, the dashed line is what real data score.",
            "histograms": "Histograms of 20,000 samples of trained students beside the data.",
            "predictions": "Linear students trained by every plan: the distance to the teacher "
            "that the theory predicts, and the one they reach.",
        }


run = Planning.run
