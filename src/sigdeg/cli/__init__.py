"""The command line: `sigdeg run | distill | sample | export | evaluate | report | plan`.

A command is a dataclass: its fields are the options, its docstring their help; calling it does the
work. What only one command needs is imported in its call: --help and errors need not wait for it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sigdeg.cli.distill import Distill
from sigdeg.cli.evaluate import Evaluate
from sigdeg.cli.export import Export
from sigdeg.cli.run import Report, Run
from sigdeg.cli.sample import Sample
from sigdeg.errors import guard
from sigdeg.options import Group, parse
from sigdeg.workflows.plan.questions import Grid, Merge, Phase, Spectrum, Tokens

__all__ = ["main"]

COMMANDS = Group(
    "",
    {
        "run": Run,
        "distill": Distill,
        "sample": Sample,
        "export": Export,
        "evaluate": Evaluate,
        "report": Report,
        "plan": Group(
            "Plan a distillation: what to merge in which order, where to put the student's times, "
            "and how many steps tokens need.",
            {
                "spectrum": Spectrum,
                "merge": Merge,
                "grid": Grid,
                "phase": Phase,
                "tokens": Tokens,
            },
        ),
    },
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 for work that failed, 2 for bad input."""

    def work() -> int:
        parse(COMMANDS, sys.argv[1:] if arguments is None else arguments)()
        return 0

    return guard(work)
