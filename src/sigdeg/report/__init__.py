"""The report of a run: one offline HTML page, and the plots that experiments share."""

from sigdeg.errors import extra

with extra("report"):
    from sigdeg.report.html import write_report
    from sigdeg.report.plots import (
        histogram_plot,
        image_grid,
        quality_plot,
        scatter_plot,
        training_plot,
        trajectories_plot,
    )
    from sigdeg.report.series import diffusion_plot, marginals_plot, paths_plot

__all__ = [
    "diffusion_plot",
    "histogram_plot",
    "image_grid",
    "marginals_plot",
    "paths_plot",
    "quality_plot",
    "scatter_plot",
    "training_plot",
    "trajectories_plot",
    "write_report",
]
