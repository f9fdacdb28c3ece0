"""The four questions of planning: each function answers one, `Answer` shows and keeps what it says.

The arguments are the options of the command, `sigdeg plan --help` lists them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sigdeg.costs import check_room
from sigdeg.errors import SigdegError
from sigdeg.files import finite, read_json, save_json
from sigdeg.model import Model
from sigdeg.planning import (
    LinearStudent,
    Spectrum,
    plan_grid,
    recommend_grid,
)
from sigdeg.planning.measured import Weighing
from sigdeg.planning.theory.budget import Accounting
from sigdeg.planning.theory.operators import SCHEDULES, discretise, windows
from sigdeg.planning.theory.phase import phase_diagram
from sigdeg.planning.theory.recommend import recommend_plan, regime
from sigdeg.schedule import Schedule
from sigdeg.training import resolve_device
from sigdeg.workflows.plan import plots, tables
from sigdeg.workflows.plan.sources import find_source, sample_spectrum

__all__ = ["Answer", "answer", "grid", "merge", "phase", "spectrum"]

Kind = Literal["cosine", "vp"]


@dataclass(frozen=True)
class Answer:
    """What a command found.

    Arguments:
        name: Of its JSON file.
        result: What is in it.
        lines: The same to read.
        pictures: How its pictures are drawn, by file.
    """

    name: str
    result: dict[str, Any]
    lines: Sequence[str]
    pictures: Mapping[str, Callable[[Path], None]]

    def save(self, folder: Path, asked: Mapping[str, str]) -> list[Path]:
        """Write JSON and pictures; returns their paths. `asked` tells this request from others."""
        file = folder / f"{self.name}.json"
        for name, draw in self.pictures.items():
            draw(folder / name)
        save_json(file, {**self.result, "asked": asked})
        return [file, *(folder / name for name in self.pictures)]

    @property
    def json(self) -> str:
        """The result as JSON; numbers that JSON does not know are null."""
        return json.dumps(finite(self.result), allow_nan=False)

    @property
    def text(self) -> str:
        """The result to read, and what to know before it is used."""
        warnings = self.result.get("warnings", [])
        return "\n".join([*self.lines, *(f"warning: {warning}" for warning in warnings)])


def spectrum(
    *,
    source: str,
    schedule: Kind,
    teacher_steps: int,
    samples: int,
    sampling_steps: int,
    seed: int,
    device: str | None,
    progress: bool,
) -> Answer:
    """The eigenvalues of data or of a teacher's own samples, and which plans they call for."""
    found = find_source(source, samples, seed)
    if isinstance(found, Model):
        found = sample_spectrum(found, samples, sampling_steps, seed, device, progress)
    steps = discretise(schedule, teacher_steps)
    place, (low, high) = regime(steps, found), windows(steps)
    result = {
        **found.to_json(),
        "schedule": schedule,
        "teacher_steps": teacher_steps,
        "windows": [low, high],
        "regime": place,
        "warnings": found.warnings(),
    }
    values = found.eigenvalues
    lines = [
        tables.describe(found),
        f"variance {found.variance:.4g} in all, eigenvalues {values[0]:.3g} to {values[-1]:.3g}, "
        f"carried by {found.effective:.1f} directions",
        tables.verdict(found, place, (low, high), f"{schedule}, T = {teacher_steps}"),
    ]

    def draw(path: Path) -> None:
        plots.spectrum_plot(found, (low, high), path)

    return Answer("spectrum", result, lines, {"spectrum.png": draw})


def merge(
    *,
    source: str,
    schedule: Kind | None,
    teacher_steps: int,
    training_time: float,
    accounting: Accounting,
    seed: int,
    device: str | None,
    progress: bool,
) -> Answer:
    """The order in which to merge a teacher's steps into one, and what each order would give."""
    found = find_source(source, seed=seed)
    kind: str = schedule or "cosine"
    steps = discretise(own_schedule(found, schedule) or SCHEDULES[kind], teacher_steps)
    if isinstance(found, Model):
        kind = "the teacher's schedule"
        found = sample_spectrum(found, seed=seed, device=device, progress=progress)
    advice = recommend_plan(found, steps, training_time, accounting)
    result = {
        "source": found.source,
        "schedule": kind,
        "teacher_steps": teacher_steps,
        "s": training_time,
        **tables.plan_json(advice),
        "warnings": found.warnings(),
    }

    def draw(path: Path) -> None:
        chosen = advice.plans[accounting]
        notes = {name: f"W2 {outcome.distance:.3g}" for name, outcome in chosen.items()}
        plans = {name: outcome.plan for name, outcome in chosen.items()}
        plots.plans_plot(plans, path, advice.name, notes)

    lines = tables.plan_lines(found, advice, f"{kind}, T = {teacher_steps}", training_time)
    return Answer("plan", result, lines, {"plan.png": draw})


def grid(
    *,
    source: str,
    steps: int,
    order: int,
    budget: float,
    start: Literal["warm", "zero"],
    residual_noise: bool,
    schedule: Kind | None,
    fine_steps: int,
    guidance: float | None,
    guidance_until: float,
    weak: str | None,
    null_class: int | None,
    measure: bool,
    weighing: Weighing | None,
    samples: int,
    seed: int,
    device: str | None,
    progress: bool,
    **measuring: Any,
) -> Answer:
    """The times at which a student of a few steps loses the least, from a spectrum or a teacher."""
    student = LinearStudent(order, budget, start, residual_noise)
    told = {"guidance": guidance, "until": guidance_until, "weak": weak, "null_class": null_class}
    found = find_source(source, samples, seed, **told)
    known = own_schedule(found, schedule) or SCHEDULES[schedule or "vp"]
    if weighing is not None and not (measure and isinstance(found, Model)):
        raise SigdegError(
            "only a teacher that is measured has losses to weigh: leave --weighing out"
        )
    if isinstance(found, Spectrum) and tuple(told.values()) != (None, 1, None, None):
        raise SigdegError(
            f"{source} is no teacher to be guided: leave --guidance, --guidance-until, --weak and "
            "--null-class out"
        )
    if isinstance(found, Model) and measure:
        device = resolve_device(device)
        advice = plan_grid(
            found.to(device).gaussian,
            steps,
            found.shape,
            student,
            weighing=weighing,
            fine=fine_steps,
            seed=seed,
            source=found.name,
            condition=found.conditions(),
            device=device,
            progress=progress,
            **measuring,
        )
    else:
        if isinstance(found, Model):
            found = sample_spectrum(found, samples, 30, seed, device, progress)
        advice = recommend_grid(found, known, steps, student, fine_steps)
    result = {
        "source": advice.spectrum.source,
        "steps": steps,
        "order": order,
        **tables.grid_json(advice),
        "warnings": advice.warnings(),
    }

    def draw(path: Path) -> None:
        grids = advice.grids
        first = {advice.name: grids[advice.name]}
        plots.times_plot({name: g.times for name, g in (first | grids).items()}, known, path)

    return Answer("grid", result, tables.grid_lines(advice), {"grid.png": draw})


def phase(
    *,
    schedule: Kind,
    teacher_steps: int,
    accounting: Accounting,
    variances: tuple[float, float],
    training_times: tuple[float, float],
) -> Answer:
    """Which plan is best for data of one variance: the phase diagram."""
    for name, (low, high) in (("variances", variances), ("training_times", training_times)):
        if not 0 < low < high < math.inf:
            raise SigdegError(f"{name} must be two positive numbers that rise, got {low} {high}")
    found = phase_diagram(
        discretise(schedule, teacher_steps),
        np.geomspace(*variances, 161),
        np.geomspace(*training_times, 61),
        accounting,
    )
    kind, over = found.kind, found.gain("vanilla")
    low, high = found.windows
    between = (found.eigenvalues > low) & (found.eigenvalues < high)
    shares = {
        name: float((kind == value).mean())
        for value, name in enumerate(("boot", "mixed", "vanilla"))
    }
    result = {
        "schedule": schedule,
        "teacher_steps": teacher_steps,
        "accounting": accounting,
        "windows": list(found.windows),
        "eigenvalues": found.eigenvalues.tolist(),
        "times": found.times.tolist(),
        "kind": kind.astype(int).tolist(),
        "gain_over_vanilla": over.tolist(),
        "share": shares,
    }
    lines = [f"{schedule}, T = {teacher_steps}, {accounting}"]
    if accounting == "equal-s":
        lines.append(f"BOOT is the best of all plans up to {low:.3f}, vanilla from {high:.3f} on")
    told = ", ".join(f"{name} on {share:.0%}" for name, share in shares.items())
    lines += [
        f"best plan: {told} of the diagram",
        f"largest gain over one-shot outside the windows: {np.nanmax(over[~between]):.3g} times",
    ]

    def draw(path: Path) -> None:
        plots.phase_plot(found, path)

    return Answer("phase", result, lines, {"phase.png": draw})


def own_schedule(source: Spectrum | Model, asked: str | None) -> Schedule | None:
    """A teacher's own schedule; None where there is no teacher."""
    if isinstance(source, Spectrum):
        return None
    if asked is not None:
        raise SigdegError("a teacher brings its own schedule: leave --schedule out")
    return source.schedule


QUESTIONS: dict[str, Callable[..., Answer]] = {
    "spectrum": spectrum,
    "plan": merge,
    "grid": grid,
    "phase": phase,
}


def answer(
    name: str, options: Mapping[str, Any], out: Path | None = None, as_json: bool = False
) -> str:
    """Answer a question.

    Arguments:
        name: Which: spectrum, plan, grid or phase, as the JSON file is called.
        options: Its options.
        out: The folder to write the answer into, JSON and pictures.
        as_json: Whether to say JSON and nothing else.

    Returns:
        What to print.

    Raises:
        SigdegError: If the folder holds another answer of this name or cannot be written to, which
            is found before any work, or what is asked does not fit.
    """
    asked = {k: str(value) for k, value in options.items() if k not in ("progress", "device")}
    if out is not None:
        check_room(out)
        file = out / f"{name}.json"
        if file.exists() and read_json(file).get("asked") != asked:
            raise SigdegError(f"{out} holds another {file.name}: choose another folder with --out")
    found = QUESTIONS[name](**options)
    written = [] if out is None else found.save(out, asked)
    return found.json if as_json else "\n".join([found.text, *map(str, written)])
