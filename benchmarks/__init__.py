"""Speed, as ratios of two things done in turn on the same machine.

    python -m benchmarks

A machine's speed drifts, most of all when others use it. So nothing is timed alone: the two sides
of a ratio alternate, A B A B ..., after one untimed run of each, every A is divided by the B that
follows it, and the median of these ratios counts. Quartiles say how far to trust it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Row", "compare", "seconds_of", "summary"]


@dataclass(frozen=True)
class Row:
    """Two things measured in turn.

    Arguments:
        name: What the ratio says.
        numerator: What the first of a pair is.
        denominator: What the second of a pair is.
        seconds: Times of both, one tuple a pair.
        size: The sizes behind it.
        at_most: The ratio to stay below, if there is one.
        at_least: The ratio to reach, if there is one.
    """

    name: str
    numerator: str
    denominator: str
    seconds: Sequence[tuple[float, float]]
    size: dict[str, Any]
    at_most: float | None = None
    at_least: float | None = None

    @property
    def first(self) -> dict[str, float]:
        """Summary of the numerator's seconds."""
        return summary([pair[0] for pair in self.seconds])

    @property
    def second(self) -> dict[str, float]:
        """Summary of the denominator's seconds."""
        return summary([pair[1] for pair in self.seconds])

    @property
    def ratio(self) -> dict[str, float]:
        """Summary of the paired ratios."""
        return summary([a / b for a, b in self.seconds])

    @property
    def target(self) -> str:
        """The target in words, empty if there is none."""
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return "" if self.at_least is None else f">= {self.at_least:g}"

    @property
    def reached(self) -> bool | None:
        """Whether the median meets the target; None if there is none."""
        if self.at_most is not None:
            return self.ratio["median"] <= self.at_most
        return None if self.at_least is None else self.ratio["median"] >= self.at_least

    def json(self) -> dict[str, Any]:
        """The row as JSON values."""
        return {
            "name": self.name,
            "first": {"what": self.numerator, "seconds": self.first},
            "second": {"what": self.denominator, "seconds": self.second},
            "size": self.size,
            "pairs": len(self.seconds),
            "ratio": self.ratio,
            "target": self.target or None,
            "reached": self.reached,
        }


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes, rounded to four significant digits; two values or more."""
    low, median, high = statistics.quantiles(values, method="inclusive")
    found = {"median": median, "q1": low, "q3": high, "min": min(values), "max": max(values)}
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def seconds_of(
    work: Callable[[], object], clock: Callable[[], float] = lambda: time.perf_counter()
) -> float:
    """Time of one call, by the clock on the wall or another one."""
    began = clock()
    work()
    return clock() - began


def compare(
    name: str,
    first: tuple[str, Callable[[], object]],
    second: tuple[str, Callable[[], object]],
    pairs: int,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    own_time: bool = False,
    **size: Any,
) -> Row:
    """Time two things in turn, after one untimed run of each.

    Arguments:
        name: What the ratio says.
        first: Label and work of the numerator.
        second: Label and work of the denominator.
        pairs: How often, at least 2.
        at_most: See `Row`.
        at_least: See `Row`.
        own_time: Whether processor time counts, which other programs of the machine do not slow
            down: for work on one thread.
        size: See `Row`.
    """
    (first_label, first_work), (second_label, second_work) = first, second
    first_work()
    second_work()
    clocks = (time.process_time,) if own_time else ()
    seconds = [
        (seconds_of(first_work, *clocks), seconds_of(second_work, *clocks)) for _ in range(pairs)
    ]
    return Row(name, first_label, second_label, seconds, size, at_most, at_least)
