"""Results: the rows of a table with all that is needed to judge them, and their one file.

Whoever measures writes `results.json` with `save_results`; a report reads it with `read_results`.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Required, TypedDict, cast

import torch
from torch import nn

from sigdeg import __version__
from sigdeg.errors import SigdegError
from sigdeg.files import read_json, save_json
from sigdeg.schema import flag, listed, mapped, maybe, number, record, text

__all__ = [
    "Results",
    "Role",
    "Row",
    "Summary",
    "Verdict",
    "add_equal_quality",
    "add_rivals",
    "add_speed",
    "count_calls",
    "grid_name",
    "hardware",
    "make_row",
    "merge",
    "of_role",
    "pool",
    "read_results",
    "save_results",
    "single",
    "summarise",
    "verdict",
    "versions",
]

Role = Literal["teacher", "student", "untrained", "peer", "floor"]
Verdict = Literal["better", "tie", "worse"]


class Summary(TypedDict):
    """A metric over `n` draws: mean and standard deviation; n is 0 where nobody tells it."""

    mean: float
    std: float
    n: int


class Row(TypedDict, total=False):
    """A method at one setting: what it is, what came out, what it cost.

    `nfe` counts network calls a sample, guidance included; `teacher_nfe` those of the teacher
    behind the training. `study` names the side table a row stands in, `variant` what sets it apart
    there. Experiments add what tells their own rows apart.
    """

    method: Required[str]
    role: Required[Role]
    metrics: Required[dict[str, Summary]]
    steps: int
    order: int | None
    nfe: int
    seconds: float | None
    speedup: float | None
    over: dict[str, float]  # speed-ups over other rows, by what a reader calls those
    params: int | None
    train_seconds: float | None
    teacher_nfe: float | None
    planning_nfe: float | None
    preset: str | None
    study: str | None
    variant: str | None
    teacher: str | None
    teacher_steps: int | None
    grid: str | None
    tried: int  # grids among which validation chose
    times: list[float]
    plan: str
    tree: str | None
    s: float  # training time of a merge
    iterations: int
    head: str | None
    kind: str
    elastic: bool
    q: int
    seeds: int
    verdict: dict[str, Any] | None
    rival: dict[str, Any]
    equal_quality: dict[str, Any] | None


class Results(TypedDict, total=False):
    """What `results.json` holds."""

    rows: Required[list[Row]]
    paper: Required[list[Row]]
    floor: Required[dict[str, Summary]]
    experiment: str | None
    preset: str | None
    seed: int
    title: str | None
    summary: str | None
    quality: dict[str, Any] | None
    figures: list[dict[str, str]] | None
    texts: dict[str, list[str]] | None
    training: dict[str, Any] | None
    student: str | None
    example: dict[str, Any] | None
    warnings: list[str] | None
    versions: dict[str, str] | None
    hardware: dict[str, Any] | None


ROLES: dict[str, Role] = {
    "teacher": "teacher",
    "sig-deg": "student",
    "di4c": "student",
    "untrained": "untrained",
}


def role_of(method: str) -> Role:
    """What a method is where a row does not say: its name tells."""
    return ROLES.get(method, "peer")


def of_role(rows: Sequence[Row], *roles: Role) -> list[Row]:
    """The rows of some roles."""
    return [row for row in rows if row["role"] in roles]


def summarise(draws: Sequence[Mapping[str, float | Sequence[float]]]) -> dict[str, Summary]:
    """Metrics over independent draws: mean, and standard deviation (divisor n - 1; 0 of one).

    A draw may tell several values of a metric.

    Raises:
        SigdegError: If there is no draw.
    """
    if not draws:
        raise SigdegError("a metric needs at least 1 draw, got 0")
    values: dict[str, list[float]] = {}
    for draw in draws:
        for key, drawn in draw.items():
            values.setdefault(key, []).extend(drawn if isinstance(drawn, Sequence) else [drawn])
    return {
        key: {
            "mean": statistics.fmean(drawn),
            "std": statistics.stdev(drawn) if len(drawn) > 1 else 0.0,
            "n": len(drawn),
        }
        for key, drawn in values.items()
    }


def single(value: float, n: int) -> Summary:
    """A metric of a single set of n samples."""
    return {"mean": value, "std": 0.0, "n": n}


def pool(summaries: Sequence[Summary]) -> Summary:
    """One summary of all the draws behind several, as if they had been drawn together."""
    n = sum(s["n"] for s in summaries)
    mean = sum(s["n"] * s["mean"] for s in summaries) / n
    squares = sum(
        (s["n"] - 1) * s["std"] ** 2 + s["n"] * (s["mean"] - mean) ** 2 for s in summaries
    )
    return {"mean": mean, "std": (squares / max(1, n - 1)) ** 0.5, "n": n}


def merge(metrics: Sequence[dict[str, Summary]]) -> dict[str, Summary]:
    """Pool the same metrics of several seeds."""
    return {key: pool([m[key] for m in metrics]) for key in metrics[0]}


def verdict(own: Summary, other: Summary, lower_is_better: bool = True) -> Verdict | None:
    r"""Whether a metric tells two samplers apart: within two standard errors it is a tie.

    The standard error of the difference of two means is
    $\sqrt{s_1^2 / n_1 + s_2^2 / n_2}$, and draws are taken as independent.

    Arguments:
        own: The metric of the sampler that is judged.
        other: That of the one it is compared with.
        lower_is_better: Whether the metric is a distance.

    Returns:
        What the first is beside the second; None where either has a single draw, or no deviation:
        nobody knows the error of that.
    """
    if min(own["n"], other["n"]) < 2 or min(own["std"], other["std"]) <= 0:
        return None
    error = (own["std"] ** 2 / own["n"] + other["std"] ** 2 / other["n"]) ** 0.5
    difference = own["mean"] - other["mean"]
    if abs(difference) <= 2 * error:
        return "tie"
    return "better" if (difference < 0) == lower_is_better else "worse"


def make_row(
    method: str, model: object, nfe: int, metrics: dict[str, Summary], **columns: Any
) -> Row:
    """A row with every key it must have; what does not apply is None.

    Arguments:
        method: Its method, which has a look of its own in reports.
        model: What is called, for its size, if it is a module.
        nfe: Network calls a sample.
        metrics: What came out.
        columns: Further keys, see `Row`; a role that no name tells, or steps of several calls.
    """
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    return cast(
        "Row",
        {
            "method": method,
            "role": role_of(method),
            "steps": nfe,
            "order": None,
            "nfe": nfe,
            "metrics": metrics,
            "seconds": None,
            "speedup": None,
            "params": sum(p.numel() for p in parameters) or None,  # exact laws have none
            "train_seconds": None,
            "teacher_nfe": None,
            **columns,
        },
    )


def add_speed(
    rows: Sequence[Row],
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
    for i, taken in seconds.items():
        rows[i]["seconds"], rows[i]["speedup"] = taken, seconds[teacher] / taken
        if over:
            rows[i]["over"] = {name: seconds[j] / taken for name, j in over.items()}


def students_and_others(rows: Sequence[Row], keys: Sequence[str]) -> tuple[list[Row], list[Row]]:
    """Students, and what samples without training, that have these metrics; no side tables."""
    main = [row for row in rows if not row.get("study") and set(keys) <= row["metrics"].keys()]
    return of_role(main, "student"), of_role(main, "teacher", "untrained", "peer")


def add_rivals(rows: Sequence[Row], keys: Sequence[str]) -> None:
    """Compare students with all training-free samplers of no more calls, metric by metric.

    `rival` holds for each metric the sampler with the best mean and what the student is beside it:
    better, worse, or a tie within two standard errors. All metrics are distances.
    """
    students, others = students_and_others(rows, keys)
    for row in students:
        equal = [other for other in others if other["nfe"] <= row["nfe"]]
        for key in keys if equal else ():
            best = min(equal, key=lambda other: other["metrics"][key]["mean"])
            found = verdict(row["metrics"][key], best["metrics"][key])
            row.setdefault("rival", {})[key] = {"method": best["method"], "verdict": found}


def add_equal_quality(rows: Sequence[Row], keys: Sequence[str]) -> None:
    """Beside the speed-up over the teacher, that over the cheapest training-free equal.

    Equal is a setting of the teacher, or a solver, that is not worse than the student by more than
    two standard errors in any of the metrics named, all distances. Side tables stay out of it, and
    so do rows without these metrics. Where a single draw is all there is, nothing is claimed.
    """
    students, others = students_and_others(rows, keys)
    for row in students:
        own = row["metrics"]
        found = [[verdict(other["metrics"][k], own[k]) for k in keys] for other in others]
        equals = [
            (seconds, other)
            for other, verdicts in zip(others, found, strict=True)
            if "worse" not in verdicts and (seconds := other.get("seconds"))
        ]
        if equals and not any(None in verdicts for verdicts in found):
            seconds, cheapest = min(equals, key=lambda equal: equal[0])
            row["equal_quality"] = {
                **{key: cheapest.get(key) for key in ("method", "nfe", "grid", "teacher")},
                "speedup": seconds / (row["seconds"] or math.nan),
            }


def grid_name(power: float) -> str:
    """A grid of power spacing as the results name it."""
    return "uniform" if power == 1 else f"power {power:g}"


def count_calls(calls: int) -> str:
    """A number of network calls in words."""
    return "1 call" if calls == 1 else f"{calls:,} calls"


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
    names = ("torch", "accelerate", "diffusers")  # the last comes with an extra
    found = {name: version(name) for name in names if find_spec(name) is not None}
    # Its own name is not known where a checkout runs that is not installed.
    return {"python": platform.python_version(), "sigdeg": __version__} | found


def save_results(folder: Path, results: Mapping[str, Any], device: str | None = None) -> Path:
    """Write `results.json` with versions and hardware, atomically."""
    path = folder / "results.json"
    machine = hardware(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    save_json(path, {**results, "versions": versions(), "hardware": machine})
    return path


def check_metric(value: Any, name: str) -> None:
    """A number, or a summary of several; null where a figure is not finite."""
    if isinstance(value, Mapping):
        record({"mean": maybe(number())}, {"std": maybe(number(0)), "n": maybe(number(0))})(
            value, name
        )
    else:
        maybe(number())(value, name)


AMOUNTS = ("steps", "order", "nfe", "seconds", "speedup", "params", "train_seconds", "teacher_nfe")
ROWS = listed(
    record(
        {"method": text},
        {
            **dict.fromkeys((*AMOUNTS, "teacher_steps"), maybe(number(0))),
            **dict.fromkeys(("role", "variant", "study", "teacher"), maybe(text)),
            "metrics": maybe(mapped(check_metric)),
            "equal_quality": maybe(
                record({"method": text, "nfe": number(0), "speedup": number(0)}, {})
            ),
            "over": mapped(maybe(number(0))),
            "verdict": maybe(record({"says": text, "equal": flag, "failed": flag}, {})),
        },
    )
)
RESULTS = record(  # results.json, as far as the report reads it
    {"rows": ROWS},
    {
        "paper": maybe(ROWS),
        "floor": maybe(mapped(check_metric)),
        "quality": maybe(record({"metric": text}, {"label": text, "lower_is_better": flag})),
        "figures": maybe(listed(record({"file": text}, {"caption": text}))),
        "texts": maybe(mapped(listed(text))),
        "training": maybe(mapped(maybe(listed(listed(maybe(number()), 3))))),
        "example": maybe(mapped()),
        "warnings": maybe(listed(text)),
        "versions": maybe(mapped()),
        "hardware": maybe(mapped()),
        **dict.fromkeys(("title", "summary", "experiment", "preset", "student"), maybe(text)),
    },
)


def read_results(path: Path) -> Results:
    """Read `results.json` and check what the report needs of it.

    Returns:
        The results; `rows`, `paper` and `floor` exist, every row has a role and summaries.

    Raises:
        SigdegError: If the file is missing, damaged or of another form.
    """
    results = read_json(path)
    if not isinstance(results.get("rows"), list):
        raise SigdegError(f"{path} has no list of rows")
    try:
        RESULTS(results, "")
    except SigdegError as error:
        raise SigdegError(f"{path} has a damaged entry: {error}") from None
    results["paper"] = results.get("paper") or []
    results["floor"] = summaries(results.get("floor") or {})
    for row in [*results["rows"], *results["paper"]]:
        row["metrics"] = summaries(row.get("metrics") or {})
        row["role"] = row.get("role") or role_of(row["method"])
    return cast("Results", results)


def summaries(metrics: Mapping[str, Any]) -> dict[str, Summary]:
    """Metrics as summaries; a bare number, as a paper quotes it, is a mean."""
    found: dict[str, Summary] = {}
    for key, given in metrics.items():
        if given is not None:
            summary = given if isinstance(given, Mapping) else {"mean": given}
            mean = math.nan if summary["mean"] is None else float(summary["mean"])
            std, n = summary.get("std") or 0.0, summary.get("n") or 0
            found[key] = {"mean": mean, "std": std, "n": n}
    return found
