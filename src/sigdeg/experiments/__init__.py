"""Experiments: one file a benchmark, from data and teacher to results and report.

Each has `PRESETS`, with one called default, and `run(out, preset, seed, device, data_dir,
progress)`, which returns the report. What is a hyphen in its name is an underscore in its file's.
"""

__all__ = ["EXPERIMENTS"]

# Names, not modules: these import everything, and drawing samples should not wait for that.
EXPERIMENTS = (
    "digits",
    "discrete",
    "grammar",
    "laws",
    "mixture1d",
    "mnist",
    "mnist-tokens",
    "own-pipeline",
    "planning",
    "rbergomi",
    "text",
)
