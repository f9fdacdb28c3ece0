"""Run every benchmark, print a table, write `results/benchmarks.json`.

python -m benchmarks            all of them
python -m benchmarks tokens     these; what the file says of the others stays
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import Row, distillation, export, pipelines, sampling, signatures, tokens
from sigdeg.errors import check_choice
from sigdeg.files import save_json
from sigdeg.results import hardware, versions

__all__ = ["main"]

OUT = Path(__file__).parents[1] / "results" / "benchmarks.json"
BENCHMARKS: dict[str, Callable[..., list[Row]]] = {
    "signatures": signatures.measure,
    "sampling": sampling.measure,
    "distillation": distillation.measure,
    "tokens": tokens.measure,
    "pipelines": pipelines.measure,
    "export": export.measure,
}


def main(
    out: Path = OUT,
    sizes: Mapping[str, Mapping[str, Any]] | None = None,
    names: Sequence[str] = (),
) -> None:
    """Run benchmarks and write the results.

    Arguments:
        out: The file to write, atomically.
        sizes: Other sizes than the default ones, by benchmark.
        names: Those to run (default: all); each then says by itself what it ran on.
    """
    for name in names:
        check_choice(name, BENCHMARKS, "benchmark")
    began, busy = time.perf_counter(), load()
    if busy > 0.5:
        print(f"Other work is running (load {busy:.1f}): small operations wait for their threads.")
    results: dict[str, list[dict[str, Any]]] = {}
    titles = ("", "ratio", "quartiles", "first", "second", "target")
    print("{:51}{:>8}  {:16}{:>10}{:>11}  {}".format(*titles), flush=True)
    for name in names or BENCHMARKS:
        rows = BENCHMARKS[name](**(sizes or {}).get(name, {}))
        results[name] = [row.json() | rate(row) for row in rows]
        for row in rows:
            print(line(row), flush=True)
    run = {
        "hardware": hardware("cpu") | {"load_before": round(busy, 2)},
        "versions": versions() | {"torchsde": version("torchsde")},
        "seconds": round(time.perf_counter() - began, 1),
    }
    method = "A B A B ..., first / second of each pair; seconds and ratios over the pairs"
    whole: dict[str, Any] = {**run, "method": method}
    if names:
        whole = json.loads(out.read_text())
        whole["apart"] = whole.get("apart", {}) | dict.fromkeys(names, run)
    save_json(out, whole | results)


def load() -> float:
    """Processes that wanted a core in the last minute; 0 where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def rate(row: Row) -> dict[str, float]:
    """For a training: pairs of states learned from in a second."""
    if "batch" not in row.size:
        return {}
    return {"pairs_per_second": float(f"{row.size['batch'] / row.first['median']:.4g}")}


def line(row: Row) -> str:
    """A row as a line of the table."""
    ratio = row.ratio
    quartiles = f"{ratio['q1']:.3g} - {ratio['q3']:.3g}"
    times = "".join(f"{1e3 * side['median']:8.4g} ms" for side in (row.first, row.second))
    verdict = {True: "reached", False: "MISSED", None: ""}[row.reached]
    notes = " ".join([row.target, verdict, *(f"{v:g} pairs/s" for v in rate(row).values())])
    return f"{row.name:51}{ratio['median']:8.3g}  {quartiles:16}{times}  {notes}".rstrip()


if __name__ == "__main__":
    main(names=sys.argv[1:])
