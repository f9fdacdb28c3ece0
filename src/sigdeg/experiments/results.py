"""Results: rows of a table, with all that is needed to judge them, in `results.json`."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from sigdeg.files import save_json
from sigdeg.metrics import Summary, over_draws, verdict
from sigdeg.networks import count_parameters
from sigdeg.runs import keep, kept

__all__ = [
    "add_equal_quality",
    "add_rivals",
    "add_speed",
    "count_calls",
    "grid_name",
    "hardware",
    "make_row",
    "merge",
    "paired_seconds",
    "pool",
    "remember",
    "save_results",
    "single",
    "summarise",
    "versions",
]

K = TypeVar("K")


def summarise(values: Sequence[dict[str, float]]) -> dict[str, Summary]:
    """Mean and standard deviation of metrics over draws."""
    return {
        key: over_draws(lambda i: values[i][key], int, len(values))  # noqa: B023
        for key in values[0]
    }


def merge(metrics: Sequence[dict[str, Summary]]) -> dict[str, Summary]:
    """Pool the same metrics of several seeds."""
    return {key: pool([m[key] for m in metrics]) for key in metrics[0]}


def pool(summaries: Sequence[Summary]) -> Summary:
    """One summary of all the draws behind several, as if they had been drawn together."""
    n = sum(s["n"] for s in summaries)
    mean = sum(s["n"] * s["mean"] for s in summaries) / n
    squares = sum(
        (s["n"] - 1) * s["std"] ** 2 + s["n"] * (s["mean"] - mean) ** 2 for s in summaries
    )
    return {"mean": mean, "std": (squares / max(1, n - 1)) ** 0.5, "n": n}


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


def make_row(
    method: str, model: nn.Module, nfe: int, metrics: dict[str, Summary], **more: Any
) -> dict[str, Any]:
    """A row of results with every key it must have; what does not apply is None."""
    return {
        "method": method,
        "steps": nfe,
        "order": None,
        "nfe": nfe,
        "metrics": metrics,
        "seconds": None,
        "speedup": None,
        "params": count_parameters(model) or None,  # an exact denoiser has none
        "train_seconds": None,
        "teacher_nfe": None,
        **more,
    }


def add_speed(
    rows: Sequence[dict[str, Any]],
    seconds: Mapping[int, float],
    teacher: int,
    over: Mapping[str, int] | None = None,
) -> None:
    """Write times into rows, and speed-ups over the teacher that students learned from.

    Arguments:
        rows: The rows.
        seconds: Times by index of a row.
        teacher: Index of the row of that teacher, at its own step count.
        over: Rows to tell speed-ups over as well, in this order, by what a reader calls them.
    """
    for i, own in seconds.items():
        rows[i] |= {"seconds": own, "speedup": seconds[teacher] / own}
        if over:
            rows[i]["over"] = {name: seconds[j] / own for name, j in over.items()}


def rivals(
    rows: Sequence[dict[str, Any]], keys: Sequence[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Students, and what samples without training, that have these metrics; no side tables."""
    main = [row for row in rows if not row.get("study") and set(keys) <= row["metrics"].keys()]
    students = [row for row in main if row["method"] == "sig-deg"]
    return students, [row for row in main if row["method"] != "sig-deg"]


def add_rivals(rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> None:
    """Compare students with all training-free samplers of no more calls, metric by metric.

    `rival` holds for each metric the sampler with the best mean and what the student is beside it:
    better, worse, or a tie within two standard errors. All metrics are distances.
    """
    students, others = rivals(rows, keys)
    for row in students:
        equal = [other for other in others if other["nfe"] <= row["nfe"]]
        for key in keys if equal else ():
            best = min(equal, key=lambda other: other["metrics"][key]["mean"])
            found = verdict(row["metrics"][key], best["metrics"][key])
            row.setdefault("rival", {})[key] = {"method": best["method"], "verdict": found}


def add_equal_quality(rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> None:
    """Beside the speed-up over the teacher, that over the cheapest training-free equal.

    Equal is a setting of the teacher, or a solver, that is not worse than the student by more than
    two standard errors in any of the metrics named, all distances. Side tables stay out of it, and
    so do rows without these metrics. Where a single draw is all there is, nothing is claimed.
    """
    students, others = rivals(rows, keys)
    for row in students:
        own = row["metrics"]
        found = [[verdict(other["metrics"][k], own[k]) for k in keys] for other in others]
        equals = [
            other
            for other, verdicts in zip(others, found, strict=True)
            if "worse" not in verdicts and other.get("seconds")
        ]
        if equals and not any(None in verdicts for verdicts in found):
            cheapest = min(equals, key=lambda other: other["seconds"])
            row["equal_quality"] = {
                **{key: cheapest.get(key) for key in ("method", "nfe", "grid", "teacher")},
                "speedup": cheapest["seconds"] / row["seconds"],
            }


def hardware(device: torch.device | str = "cpu") -> dict[str, Any]:
    """The machine behind the numbers."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    machine = {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if torch.device(device).type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    return machine


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("sigdeg", "torch", "accelerate", "diffusers")
    }


def grid_name(power: float) -> str:
    """A grid of power spacing as the results name it."""
    return "uniform" if power == 1 else f"power {power:g}"


def single(value: float, n: int) -> Summary:
    """A metric of a single set of n samples."""
    return {"mean": value, "std": 0.0, "n": n}


def count_calls(calls: int) -> str:
    """A number of network calls in words."""
    return "1 call" if calls == 1 else f"{calls:,} calls"


def remember(file: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What an interrupted run has found already, or find it now and keep it.

    Raises:
        SigdegError: If the file is damaged, or another run's: a run is told by its `config.json`.
    """
    folder = file.parents[1]
    if not file.exists():
        keep(file, compute(), folder)
    return kept(file, folder)


def save_results(folder: Path, results: dict[str, Any], device: str | None = None) -> Path:
    """Write `results.json` with versions and hardware, atomically."""
    path = folder / "results.json"
    machine = hardware(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    save_json(path, {**results, "versions": versions(), "hardware": machine})
    return path
