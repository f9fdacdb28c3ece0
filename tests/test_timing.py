"""Seconds, on a machine that others use as well."""

import time

from sigdeg.timing import paired_seconds


def test_time_is_that_of_the_processor() -> None:
    """A program that waits, as for a busy machine, is no slower for it."""
    busy = {"work": lambda: sum(range(100_000)), "wait": lambda: time.sleep(0.01) or sum(range(9))}
    seconds = paired_seconds(busy, rounds=1, least=0.001)
    assert seconds["wait"] < seconds["work"]
