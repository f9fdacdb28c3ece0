"""`sigdeg` as a process of its own: the command, and `python -m sigdeg`."""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType

from sigdeg.errors import INTERRUPTED, guard, say

__all__ = ["main"]


def main() -> int:
    """Run the command line; returns its exit code.

    The libraries make objects by the hundred thousand, and none of them is ever garbage: looking
    through them while they are made, and once more at exit, is a quarter of a short command's time.
    """
    gc.set_threshold(100_000)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        return guard(command)
    finally:
        gc.freeze()
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to tidy up


def command() -> int:
    """The command line, imported only now: Ctrl-C may come while it is."""
    from sigdeg.cli import main

    return main()


def interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C: ends the work in order, an import at once, where the exception could get lost."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            sys.stderr = sys.__stderr__  # while options are parsed it is a string
            os._exit(say(INTERRUPTED, 1))
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
