"""The command line of planning: `sigdeg plan spectrum | merge | grid | phase`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from sigdeg.errors import SigdegError
from sigdeg.options import AnyFolder, AnyText, Group, Seed, Text, number, whole

if TYPE_CHECKING:
    from sigdeg.planning.spectrum import Spectrum
    from sigdeg.schedule import Schedule

__all__ = ["PLAN"]

Accounting = Literal["equal-s", "equal-steps", "equal-compute"]
Guidance = Annotated[float | None, number(-1000, 1000)]
Kind = Literal["cosine", "vp"]
NullClass = Annotated[int | None, whole(0, 10**6)]
Json = Annotated[bool, arg(name="json")]
Samples = Annotated[int, whole(2, 10**7)]
Source = Annotated[Positional[Text], arg(metavar="SOURCE")]
TeacherSteps = Annotated[int, whole(2, 1000), arg(aliases=["-T"])]
Until = Annotated[float, number(0, 1)]


def spectrum(
    source: Source,
    schedule: Kind = "cosine",
    teacher_steps: TeacherSteps = 32,
    samples: Samples = 1024,
    sampling_steps: Annotated[int, whole(1, 1000)] = 30,
    seed: Seed = 0,
    device: AnyText = None,
    out: AnyFolder = None,
    as_json: Json = False,
    progress: bool = True,
) -> None:
    """The eigenvalues of data or of a teacher's own samples, and which plans they call for.

    Args:
        source: Samples (.npy, or .safetensors with one tensor), eigenvalues (.json, .csv), the
            benchmarks mixture1d and rbergomi, or a teacher: folder or hub id of a diffusers
            pipeline, mnist-teacher.
        schedule: Schedule of the windows.
        teacher_steps: Teacher steps T of the windows.
        samples: Samples to draw from a teacher or a benchmark.
        sampling_steps: Steps to draw a teacher's samples with.
        seed: Seed of what is drawn.
        device: cpu or cuda (default: what is found).
        out: Folder for spectrum.json, which the other commands read, and spectrum.png.
        as_json: Print JSON and nothing else.
        progress: Show a progress bar.
    """
    asked = check_place("spectrum", locals())
    from sigdeg.planning.summary import describe, verdict
    from sigdeg.planning.theory import discretise, regime, windows
    from sigdeg.report.plans import spectrum_plot

    found, _ = find_spectrum(source, samples, sampling_steps, seed, device, progress)
    steps = discretise(schedule, teacher_steps)
    own, (low, high) = regime(steps, found), windows(steps)
    result = {
        **found.to_json(),
        "schedule": schedule,
        "teacher_steps": teacher_steps,
        "windows": [low, high],
        "regime": own,
        "warnings": found.warnings(),
    }
    values = found.eigenvalues
    lines = [
        describe(found),
        f"variance {found.variance:.4g} in all, eigenvalues {values[0]:.3g} to {values[-1]:.3g}, "
        f"carried by {found.effective:.1f} directions",
        verdict(found, own, (low, high), f"{schedule}, T = {teacher_steps}"),
    ]
    pictures = {"spectrum.png": lambda path: spectrum_plot(found, (low, high), path)}
    finish("spectrum", result, lines, pictures, out, as_json, asked)


def merge(
    source: Source,
    schedule: Kind | None = None,
    teacher_steps: TeacherSteps = 32,
    training_time: Annotated[float, number(0, 1e6), arg(aliases=["-s"])] = 0.5,
    accounting: Accounting = "equal-s",
    seed: Seed = 0,
    device: AnyText = None,
    out: AnyFolder = None,
    as_json: Json = False,
    progress: bool = True,
) -> None:
    """The order in which to merge a teacher's steps into one, and what each order would give.

    Args:
        source: A spectrum, or what `sigdeg plan spectrum` takes.
        schedule: Schedule of the teacher (default: a teacher's own, otherwise cosine).
        teacher_steps: Teacher steps T that are merged into one.
        training_time: Training time s of the one-shot student, learning rate times steps of
            gradient descent; under Adam the law does not hold (docs/planning.md).
        accounting: What other plans share with it: s a merge, optimiser steps in all, or network
            calls in all.
        seed: Seed of what is drawn.
        device: cpu or cuda (default: what is found).
        out: Folder for plan.json and plan.png.
        as_json: Print JSON and nothing else.
        progress: Show a progress bar.
    """
    asked = check_place("plan", locals())
    from sigdeg.planning.summary import plan_json, plan_lines
    from sigdeg.planning.theory import discretise, recommend_plan
    from sigdeg.report.plans import plans_plot

    found, own = find_spectrum(
        source, seed=seed, device=device, progress=progress, schedule=schedule
    )
    steps = discretise(own or schedule or "cosine", teacher_steps)
    kind = "the teacher's schedule" if own else schedule or "cosine"
    advice = recommend_plan(found, steps, training_time, accounting)
    chosen = advice.plans[accounting]

    def draw(path: Path) -> None:
        notes = {name: f"W2 {p.distance:.3g}" for name, p in chosen.items()}
        plans_plot({name: p.plan for name, p in chosen.items()}, path, advice.name, notes)

    result = {
        "source": found.source,
        "schedule": kind,
        "teacher_steps": teacher_steps,
        "s": training_time,
        **plan_json(advice),
        "warnings": found.warnings(),
    }
    lines = plan_lines(found, advice, f"{kind}, T = {teacher_steps}", training_time)
    finish("plan", result, lines, {"plan.png": draw}, out, as_json, asked)


def grid(
    source: Source,
    steps: Annotated[int, whole(1, 1000)] = 8,
    order: Annotated[int, whole(1, 64)] = 2,
    budget: Annotated[float, number(0, math.inf)] = math.inf,
    start: Literal["warm", "zero"] = "warm",
    residual_noise: bool = False,
    schedule: Kind | None = None,
    fine_steps: Annotated[int, whole(2, 1000)] = 256,
    guidance: Guidance = None,
    guidance_until: Until = 1.0,
    weak: AnyText = None,
    null_class: NullClass = None,
    measure: bool = True,
    candidates: Annotated[int | None, whole(2, 1000)] = None,
    paths: Annotated[int, whole(2, 10**7)] = 2000,
    refinement: Annotated[int, whole(2, 1000)] = 6,
    axes: Annotated[int, whole(1, 4096)] = 64,
    weighing: Literal["plain", "relative", "balanced"] | None = None,
    samples: Samples = 1024,
    seed: Seed = 0,
    device: AnyText = None,
    out: AnyFolder = None,
    as_json: Json = False,
    progress: bool = True,
) -> None:
    """The times at which a student of a few steps loses the least, from a spectrum or a teacher.

    A teacher is measured: what coarse steps between candidate times lose, however far from Gaussian
    it is. `sigdeg distill TEACHER --grid planned` takes the same times.

    Args:
        source: A spectrum, or what `sigdeg plan spectrum` takes.
        steps: Steps of the student.
        order: Signature coefficients a dimension.
        budget: Training time of every step, learning rate times iterations; inf is converged.
        start: Start of the training: the ancestral step, or zero.
        residual_noise: The student adds noise of the variance that it loses.
        schedule: Schedule of the teacher (default: a teacher's own, otherwise vp).
        fine_steps: Fine steps of the linear teacher that the grid is chosen from.
        guidance: Scale of guidance, as `sigdeg distill` takes it.
        guidance_until: Time above which there is none.
        weak: Folder or hub id of a weaker version of the teacher that guides it.
        null_class: The label that means no class.
        measure: Measure a teacher; otherwise only the spectrum of its samples counts.
        candidates: Candidate times to measure between (default: 19, or more for more than 9 steps).
        paths: Teacher paths to measure with.
        refinement: Fine teacher steps between neighbouring candidates.
        axes: Principal axes to measure along, at most.
        weighing: How measured losses are weighed: plain, relative to the variance of the states, or
            both alike (default: plain along one axis, otherwise balanced).
        samples: Samples behind the spectrum of a benchmark, or of a teacher that is not measured.
        seed: Seed of what is drawn.
        device: cpu or cuda (default: what is found).
        out: Folder for grid.json and grid.png.
        as_json: Print JSON and nothing else.
        progress: Show progress bars.
    """
    asked = check_place("grid", locals())

    from sigdeg.planning import LinearStudent, plan_grid, recommend_grid
    from sigdeg.planning.advice import default_candidates
    from sigdeg.planning.sources import find_source, own_samples, sample_spectrum
    from sigdeg.planning.spectrum import Spectrum
    from sigdeg.planning.summary import grid_json, grid_lines
    from sigdeg.report.plans import grids_plot
    from sigdeg.schedule import Cosine, VPLinear
    from sigdeg.training import resolve_device

    student = LinearStudent(order, budget, start, residual_noise)
    told = {"guidance": guidance, "until": guidance_until, "weak": weak, "null_class": null_class}
    found = find_source(source, samples, seed, **told)
    teacher = None if isinstance(found, Spectrum) else found
    own = (
        own_schedule(teacher, schedule) or {"cosine": Cosine(), "vp": VPLinear()}[schedule or "vp"]
    )
    if weighing is not None and (teacher is None or not measure):
        raise SigdegError(
            "only a teacher that is measured has losses to weigh: leave --weighing out"
        )
    if isinstance(found, Spectrum):
        if (guidance, guidance_until, weak, null_class) != (None, 1, None, None):
            raise SigdegError(
                f"{source} is no teacher to be guided: leave --guidance, --guidance-until, --weak "
                "and --null-class out"
            )
        advice = recommend_grid(found, own, steps, student, fine_steps)
    elif measure:
        device = resolve_device(device)
        candidates = candidates or default_candidates(steps)
        advice = plan_grid(
            found.to(device).step,
            steps,
            found.shape,
            student,
            candidates=candidates,
            paths=paths,
            refinement=refinement,
            axes=axes,
            weighing=weighing,
            fine=fine_steps,
            seed=seed,
            source=own_samples(found, (candidates - 1) * refinement),
            condition=found.conditions(),
            device=device,
            progress=progress,
        )
    else:
        drawn = sample_spectrum(found, samples, 30, seed, device, progress)
        advice = recommend_grid(drawn, own, steps, student, fine_steps)
    result = {
        "source": advice.spectrum.source,
        "steps": steps,
        "order": order,
        **grid_json(advice),
        "warnings": advice.warnings(),
    }

    def draw(path: Path) -> None:
        known = advice.grids
        first = {advice.name: known[advice.name]}
        grids_plot({n: g.times for n, g in (first | known).items()}, own, path)

    lines = grid_lines(advice)
    finish("grid", result, lines, {"grid.png": draw}, out, as_json, asked)


def phase(
    schedule: Kind = "cosine",
    teacher_steps: TeacherSteps = 32,
    accounting: Accounting = "equal-s",
    variances: Annotated[tuple[float, float], number(1e-9, 1e9, 2)] = (0.03, 10.0),
    training_times: Annotated[tuple[float, float], number(1e-9, 1e9, 2)] = (0.02, 4.0),
    out: AnyFolder = None,
    as_json: Json = False,
) -> None:
    """Which plan is best for data of one variance: the phase diagram.

    Args:
        schedule: Schedule of the teacher.
        teacher_steps: Teacher steps T that are merged into one.
        accounting: What the plans share with the one-shot student.
        variances: Smallest and largest variance of the data.
        training_times: Smallest and largest training time s of the one-shot student.
        out: Folder for phase.json and phase.png.
        as_json: Print JSON and nothing else.
    """
    asked = check_place("phase", locals())
    import numpy as np

    from sigdeg.planning.theory import discretise, phase_diagram
    from sigdeg.report.plans import phase_plot

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
    lines += [
        "best plan: "
        + ", ".join(f"{name} on {share:.0%}" for name, share in shares.items())
        + " of the diagram",
        f"largest gain over one-shot outside the windows: {np.nanmax(over[~between]):.3g} times",
    ]
    finish(
        "phase",
        result,
        lines,
        {"phase.png": lambda path: phase_plot(found, path)},
        out,
        as_json,
        asked,
    )


def find_spectrum(
    source: str,
    samples: int = 1024,
    steps: int = 30,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
    schedule: str | None = None,
) -> tuple[Spectrum, Schedule | None]:
    """The spectrum of a source, and its schedule where it is a teacher."""
    from sigdeg.planning.sources import find_source, sample_spectrum
    from sigdeg.planning.spectrum import Spectrum

    found = find_source(source, samples, seed)
    if isinstance(found, Spectrum):
        return found, None
    own = own_schedule(found, schedule)
    return sample_spectrum(found, samples, steps, seed, device, progress), own


PLAN = Group(
    "Plan a distillation: what to merge in which order, and where to put the student's times.",
    {"spectrum": spectrum, "merge": merge, "grid": grid, "phase": phase},
)


def own_schedule(teacher: Any, asked: str | None) -> Schedule | None:
    """A teacher's own schedule; None where there is no teacher."""
    if teacher is not None and asked is not None:
        raise SigdegError("a teacher brings its own schedule: leave --schedule out")
    found: Schedule | None = None if teacher is None else teacher.denoiser.schedule
    return found


def check_place(name: str, options: dict[str, Any]) -> dict[str, str]:
    """Refuse a folder that holds another plan, before any work; returns what tells this one."""
    from sigdeg.costs import check_room
    from sigdeg.files import read_json

    out = options.pop("out")
    aside = ("as_json", "progress", "device")
    asked = {key: str(value) for key, value in options.items() if key not in aside}
    if out is not None:
        check_room(out)
        file = out / f"{name}.json"
        if file.exists() and read_json(file).get("asked") != asked:
            raise SigdegError(f"{out} holds another {file.name}: choose another folder with --out")
    return asked


def finish(
    name: str,
    result: dict[str, Any],
    lines: Sequence[str],
    pictures: Mapping[str, Callable[[Path], None]],
    out: Path | None,
    as_json: bool,
    asked: dict[str, str],
) -> None:
    """Write what a folder was asked for, then print."""
    from sigdeg.files import finite, save_json

    written = []
    if out is not None:
        for file, draw in pictures.items():
            draw(out / file)
        save_json(out / f"{name}.json", {**result, "asked": asked})
        written = [str(out / file) for file in (f"{name}.json", *pictures)]
    if as_json:
        print(json.dumps(finite(result), allow_nan=False))
        return
    warnings = [f"warning: {text}" for text in result.get("warnings", [])]
    print("\n".join([*lines, *warnings, *written]))
