"""Experiments: one file a benchmark, from data and teacher to results and report.

Each has `PRESETS`, the `DEFAULT` one among them, and `run(out, preset, seed, device, data_dir,
progress)`, which returns the report.
"""

from types import ModuleType

from sigdeg.experiments import mixture1d, mnist, rbergomi

__all__ = ["EXPERIMENTS"]

EXPERIMENTS: dict[str, ModuleType] = {
    "mixture1d": mixture1d,
    "mnist": mnist,
    "rbergomi": rbergomi,
}
