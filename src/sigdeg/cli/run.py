"""`sigdeg run` and `sigdeg report`: benchmarks, and their pages."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from sigdeg.cli.shared import tell
from sigdeg.errors import check_choice
from sigdeg.options import AnyFolder, AnyText, Folder, Seed, Text

__all__ = ["Report", "Run"]


@dataclass(frozen=True)
class Run:
    """Run a benchmark and write its results, figures and report; the same command resumes it.

    Arguments:
        experiment: digits, discrete, grammar, laws, mixture1d, mnist, mnist-tokens, own-pipeline,
            planning, rbergomi or text.
        preset: How much work: quick, default or paper, as the experiment has it.
        out: Run folder (default: runs/EXPERIMENT-PRESET).
        seed: First seed.
        device: cpu or cuda (default: what is found).
        data_dir: Folder with the data (default: $SIGDEG_DATA, else fetched once and cached).
        progress: Show progress bars.
    """

    experiment: Annotated[Positional[Text], arg(metavar="EXPERIMENT")]
    preset: Text = "default"
    out: AnyFolder = None
    seed: Seed = 0
    device: AnyText = None
    data_dir: AnyFolder = None
    progress: bool = True

    def __call__(self) -> None:
        """Run it."""
        from sigdeg.experiments import EXPERIMENTS

        check_choice(self.experiment, EXPERIMENTS, "experiment")
        chosen = import_module(f"sigdeg.experiments.{self.experiment.replace('-', '_')}")
        check_choice(self.preset, chosen.PRESETS, "preset")
        out = self.out or Path("runs") / f"{self.experiment}-{self.preset}"
        tell(chosen.run(out, self.preset, self.seed, self.device, self.data_dir, self.progress))


@dataclass(frozen=True)
class Report:
    """Write the report of a run folder anew from its results.

    Arguments:
        folder: The run folder.
    """

    folder: Annotated[Positional[Folder], arg(metavar="FOLDER")]

    def __call__(self) -> None:
        """Write it."""
        from sigdeg.report import write_report

        print(write_report(self.folder))
