"""How long things take, on a machine that others use as well."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

__all__ = ["paired_seconds"]

K = TypeVar("K")


def paired_seconds(
    functions: Mapping[K, Callable[[], object]], rounds: int = 3, least: float = 0.5
) -> dict[K, float]:
    """Median time of each function, measured in turn so that a drifting machine is fair to all.

    On one thread: two that wait for each other make short functions jitter. On a CPU it is the time
    of the processor, which other programs of the machine do not slow down. A short function is
    repeated until it has filled `least` seconds.
    """
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    times: dict[K, list[float]] = {name: [] for name in functions}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(rounds):
        for name, function in functions.items():
            synchronise()
            began, calls = clock(), 0
            while calls == 0 or clock() - began < least:
                function()
                calls += 1
                synchronise()
            times[name].append((clock() - began) / calls)
    torch.set_num_threads(threads)
    return {name: statistics.median(values) for name, values in times.items()}


def synchronise() -> None:
    """Wait for the GPU, where there is one: its work is asynchronous."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
