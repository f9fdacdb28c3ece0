"""`sigdeg` as a process of its own: the command, and `python -m sigdeg`."""

from __future__ import annotations

import gc
import sys

from sigdeg import cli

__all__ = ["main"]


def main() -> int:
    """Run the command line; returns its exit code.

    The libraries make objects by the hundred thousand, and none of them is ever garbage: looking
    through them while they are made, and once more at exit, is a quarter of a short command's time.
    """
    gc.set_threshold(100_000)
    try:
        return cli.main()
    finally:
        gc.freeze()


if __name__ == "__main__":
    sys.exit(main())
