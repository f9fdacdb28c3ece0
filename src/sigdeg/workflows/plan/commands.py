"""Answers to the questions of planning: a function each, `Answer` shows and keeps what it says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sigdeg.costs import check_room
from sigdeg.errors import SigdegError
from sigdeg.files import finite, read_json, save_json
from sigdeg.model import Model
from sigdeg.planning import LinearStudent, Spectrum, plan_grid, recommend_grid
from sigdeg.planning.theory.operators import SCHEDULES, discretise, windows
from sigdeg.planning.theory.phase import phase_diagram
from sigdeg.planning.theory.recommend import recommend_plan, regime
from sigdeg.schedule import Schedule
from sigdeg.training import resolve_device
from sigdeg.workflows.plan import plots, tables
from sigdeg.workflows.plan.sources import find_source, sample_spectrum
from sigdeg.workflows.plan.tokens import plan_tokens

if TYPE_CHECKING:
    from sigdeg.workflows.plan import questions

__all__ = ["Answer", "answer"]


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


def spectrum(asked: questions.Spectrum) -> Answer:
    """The eigenvalues of data or of a teacher's own samples, and which plans they call for."""
    found = find_source(asked.source, asked.samples, asked.seed)
    if isinstance(found, Model):
        drawn = asked.samples, asked.sampling_steps, asked.seed
        found = sample_spectrum(found, *drawn, asked.device, asked.progress)
    steps = discretise(asked.schedule, asked.teacher_steps)
    place, (low, high) = regime(steps, found), windows(steps)
    result = {
        **found.to_json(),
        "schedule": asked.schedule,
        "teacher_steps": asked.teacher_steps,
        "windows": [low, high],
        "regime": place,
        "warnings": found.warnings(),
    }
    values = found.eigenvalues
    lines = [
        tables.describe(found),
        f"variance {found.variance:.4g} in all, eigenvalues {values[0]:.3g} to {values[-1]:.3g}, "
        f"carried by {found.effective:.1f} directions",
        tables.verdict(found, place, (low, high), f"{asked.schedule}, T = {asked.teacher_steps}"),
    ]

    def draw(path: Path) -> None:
        plots.spectrum_plot(found, (low, high), path)

    return Answer("spectrum", result, lines, {"spectrum.png": draw})


def merge(asked: questions.Merge) -> Answer:
    """The order in which to merge a teacher's steps into one, and what each order would give."""
    found, s = find_source(asked.source, seed=asked.seed), asked.training_time
    kind: str = asked.schedule or "cosine"
    known = own_schedule(found, asked.schedule) or SCHEDULES[kind]
    steps = discretise(known, asked.teacher_steps)
    if isinstance(found, Model):
        kind = "the teacher's schedule"
        found = sample_spectrum(
            found, seed=asked.seed, device=asked.device, progress=asked.progress
        )
    advice = recommend_plan(found, steps, s, asked.accounting)
    result = {
        "source": found.source,
        "schedule": kind,
        "teacher_steps": asked.teacher_steps,
        "s": s,
        **tables.plan_json(advice),
        "warnings": found.warnings(),
    }

    def draw(path: Path) -> None:
        chosen = advice.plans[asked.accounting]
        notes = {name: f"W2 {outcome.distance:.3g}" for name, outcome in chosen.items()}
        plans = {name: outcome.plan for name, outcome in chosen.items()}
        plots.plans_plot(plans, path, advice.name, notes)

    lines = tables.plan_lines(found, advice, f"{kind}, T = {asked.teacher_steps}", s)
    return Answer("plan", result, lines, {"plan.png": draw})


def grid(asked: questions.Grid) -> Answer:
    """The times at which a student of a few steps loses the least, from a spectrum or a teacher."""
    steps, seed = asked.steps, asked.seed
    student = LinearStudent(asked.order, asked.budget, asked.start, asked.residual_noise)
    found = find_source(asked.source, asked.samples, seed, asked.load)
    known = own_schedule(found, asked.schedule) or SCHEDULES[asked.schedule or "vp"]
    if asked.weighing is not None and not (asked.measure and isinstance(found, Model)):
        raise SigdegError(
            "only a teacher that is measured has losses to weigh: leave --weighing out"
        )
    if isinstance(found, Spectrum) and asked.told:
        raise SigdegError(
            f"{asked.source} is no teacher to be guided: leave --guidance, --guidance-until, "
            "--weak and --null-class out"
        )
    if isinstance(found, Model) and asked.measure:
        device = resolve_device(asked.device)
        advice = plan_grid(
            found.to(device).gaussian,
            steps,
            found.shape,
            student,
            candidates=asked.candidates,
            paths=asked.paths,
            refinement=asked.refinement,
            axes=asked.axes,
            weighing=asked.weighing,
            fine=asked.fine_steps,
            seed=seed,
            source=found.name,
            condition=found.conditions(),
            device=device,
            progress=asked.progress,
        )
    else:
        if isinstance(found, Model):
            found = sample_spectrum(found, asked.samples, 30, seed, asked.device, asked.progress)
        advice = recommend_grid(found, known, steps, student, asked.fine_steps)
    result = {
        "source": advice.spectrum.source,
        "steps": steps,
        "order": asked.order,
        **tables.grid_json(advice),
        "warnings": advice.warnings(),
    }

    def draw(path: Path) -> None:
        grids = advice.grids
        first = {advice.name: grids[advice.name]}
        plots.times_plot({name: g.times for name, g in (first | grids).items()}, known, path)

    return Answer("grid", result, tables.grid_lines(advice), {"grid.png": draw})


def phase(asked: questions.Phase) -> Answer:
    """Which plan is best for data of one variance: the phase diagram."""
    for name in ("variances", "training_times"):
        low, high = getattr(asked, name)
        if not 0 < low < high < math.inf:
            raise SigdegError(f"{name} must be two positive numbers that rise, got {low} {high}")
    found = phase_diagram(
        discretise(asked.schedule, asked.teacher_steps),
        np.geomspace(*asked.variances, 161),
        np.geomspace(*asked.training_times, 61),
        asked.accounting,
    )
    kind, over = found.kind, found.gain("vanilla")
    low, high = found.windows
    between = (found.eigenvalues > low) & (found.eigenvalues < high)
    shares = {
        name: float((kind == value).mean())
        for value, name in enumerate(("boot", "mixed", "vanilla"))
    }
    result = {
        "schedule": asked.schedule,
        "teacher_steps": asked.teacher_steps,
        "accounting": asked.accounting,
        "windows": list(found.windows),
        "eigenvalues": found.eigenvalues.tolist(),
        "times": found.times.tolist(),
        "kind": kind.astype(int).tolist(),
        "gain_over_vanilla": over.tolist(),
        "share": shares,
    }
    lines = [f"{asked.schedule}, T = {asked.teacher_steps}, {asked.accounting}"]
    if asked.accounting == "equal-s":
        lines.append(f"BOOT is the best of all plans up to {low:.3f}, vanilla from {high:.3f} on")
    told = ", ".join(f"{name} on {share:.0%}" for name, share in shares.items())
    lines += [
        f"best plan: {told} of the diagram",
        f"largest gain over one-shot outside the windows: {np.nanmax(over[~between]):.3g} times",
    ]

    def draw(path: Path) -> None:
        plots.phase_plot(found, path)

    return Answer("phase", result, lines, {"phase.png": draw})


def tokens(asked: questions.Tokens) -> Answer:
    """How many steps a teacher of tokens needs, and where they should go."""
    found = plan_tokens(
        asked.teacher,
        asked.steps,
        asked.distance,
        asked.candidates,
        asked.samples,
        asked.seed,
        resolve_device(asked.device),
        asked.progress,
    )
    result = found.to_json()

    def draw(path: Path) -> None:
        plots.times_plot(found.grids, None, path)

    return Answer("tokens", result, found.lines(result), {"tokens.png": draw})


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
    "tokens": tokens,
}


def answer(asked: questions.Question) -> str:
    """Answer a question, and write the answer, JSON and pictures, into its folder, if it names one.

    Returns:
        What to print.

    Raises:
        SigdegError: If the folder holds another answer of this name or cannot be written to, which
            is found before any work, or what is asked does not fit.
    """
    apart = ("progress", "device", "out", "as_json")  # they change nothing in the answer
    told = {name: str(value) for name, value in vars(asked).items() if name not in apart}
    if asked.out is not None:
        check_room(asked.out)
        file = asked.out / f"{asked.name}.json"
        if file.exists() and read_json(file).get("asked") != told:
            raise SigdegError(
                f"{asked.out} holds another {file.name}: choose another folder with --out"
            )
    found = QUESTIONS[asked.name](asked)
    written = [] if asked.out is None else found.save(asked.out, told)
    return found.json if asked.as_json else "\n".join([found.text, *map(str, written)])
