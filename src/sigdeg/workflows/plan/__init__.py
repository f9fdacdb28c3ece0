"""Planning from the command line: sources of spectra, the questions, tables and pictures."""

from sigdeg.workflows.plan.commands import Answer, answer
from sigdeg.workflows.plan.sources import find_source, sample_spectrum

__all__ = ["Answer", "answer", "find_source", "sample_spectrum"]
