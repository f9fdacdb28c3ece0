"""Every pipeline class of the installed diffusers, tried: the table of what works.

`python -m tests.pipelines.inventory` builds each class, tiny and random, makes it a student and
writes `results/pipelines.json` and `docs/pipelines-table.md`; with names of classes it only prints
what comes of those.
"""

from __future__ import annotations

import gc
import inspect
import json
import sys
import textwrap
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Generator, Tensor, nn

from sigdeg.errors import SigdegError, reason
from sigdeg.pipelines import (
    Calls,
    PipelineStudent,
    SigDEGScheduler,
    Trace,
    add_signature,
    replaced,
    unguided,
)
from sigdeg.pipelines.calls import Kept, fitted
from sigdeg.pipelines.trace import call_pipeline, recorded, steps_of
from sigdeg.signature import PartialSignature
from tests.pipelines.build import build

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "results" / "pipelines.json", ROOT / "docs" / "pipelines-table.md"
LONGEST = 200  # letters of a line in the page
ORDER, STUDENT = 2, "student"
CLOSE, ROUNDED = 5e-6, 2e-5
NO_TEACHER = (  # as refusals say it
    *("jump to the data", "is for tokens"),
    *("no scheduler of its own", "never steps its scheduler"),
)
WORKS, REFUSED, CANNOT, FAULT = "works", "refused", "cannot be built", "fault"


class RoundingError(AssertionError):
    """Recorded calls are off by so little that the rounding of a network may explain it."""


def classes() -> list[str]:
    """The names of all pipeline classes of diffusers that run on torch and can be imported."""
    found = []
    for name in dir(diffusers):
        if "Pipeline" in name and not name.startswith(("Onnx", "Flax")) and "Onnx" not in name:
            cls = getattr(diffusers, name, None)
            if inspect.isclass(cls) and issubclass(cls, diffusers.DiffusionPipeline):
                found.append(name)
    return [name for name in found if name != "DiffusionPipeline"]


def attempt(name: str) -> tuple[str, str]:
    """What comes of a class, and in which line.

    It works if, under the student's scheduler, an untrained student is its teacher to the bit, and
    the calls recorded of an unguided run make the pipeline's own steps again, with a gradient for
    the path. Where that is off by the rounding of its network it is tried in double precision.
    What fails with its own scheduler, too, cannot be built here.
    """
    try:
        pipe, call = build(name)
    except Exception as error:
        return CANNOT, reason(error)
    try:
        try:
            return WORKS, follow(pipe, call)
        except RoundingError:
            pipe, call = build(name)
            return WORKS, follow(pipe.to(torch.float64), call)
    except SigdegError as error:
        said = str(error)
        if not said.startswith(f"{name} fails: "):
            return REFUSED, said
    except Exception as error:
        return FAULT, f"{type(error).__name__}: {reason(error)}"
    try:
        pipe, call = build(name)
        told = inspect.signature(pipe.__call__).parameters
        steps = {"num_inference_steps": steps_of(pipe, call)}
        with torch.no_grad():
            pipe(**call, **{key: v for key, v in steps.items() if key in told})
    except Exception as error:
        return CANNOT, f"fails with its own scheduler, too: {reason(error)}"
    return REFUSED, said


def follow(pipe: Any, call: dict[str, Any]) -> str:
    """A pipeline as teacher and as student; what its network is called with and how often."""
    steps = steps_of(pipe, call)
    off, found = unguided(pipe, call)
    own = pipe.scheduler

    def march(given: dict[str, Any], **step: Any) -> tuple[Tensor, SigDEGScheduler, list[Any]]:
        told = {"order": ORDER, "steps": [steps], **found.marched}
        scheduler = SigDEGScheduler.like(own, **told, **step)
        scheduler.log = []
        with (
            torch.random.fork_rng(),
            replaced(pipe, scheduler),
            recorded(pipe, scheduler, found.networks) as calls,
        ):
            torch.manual_seed(0)  # some encode an image by it
            call_pipeline(pipe, given, steps, Generator().manual_seed(0))
        return scheduler.log[-1].after, scheduler, calls

    teacher = march(call)[0]
    for network in found.networks:
        add_signature(pipe.components[network], found, ORDER, STUDENT)
    if not torch.isfinite(teacher).all():
        raise AssertionError("values are not finite")
    if not torch.equal(march(call, student=STUDENT)[0], teacher):
        raise AssertionError("an untrained student is not its teacher")
    replay(pipe, found, *march(off, student=STUDENT)[1:])
    return f"{', '.join(found.networks)}: {found.layer}"


def replay(pipe: Any, found: Trace, scheduler: SigDEGScheduler, calls: list[Any]) -> None:
    """The steps of a run made again from its recorded calls."""
    log = scheduler.log or []
    rows, steps = len(log[0].before), len(scheduler.grid) - 1
    calls = fitted(found.chosen(calls, rows), log, found)
    kept = {f"{steps}.{called.k}": Kept.of(called, found, rows) for called in calls}
    places = torch.tensor([[0, row] for row in range(rows)])
    networks = nn.ModuleDict({name: pipe.components[name] for name in found.networks})
    learner = PipelineStudent.read(
        {k: v for k, v in scheduler.config.sigdeg.items() if k not in ("student", "rows")},
        network=networks,
        recorded=Calls(found, [kept], places),
        sample_shape=tuple(log[0].before.shape[1:]),
    ).eval()
    for logged in log:
        t, s = scheduler.grid[logged.k : logged.k + 2]
        noise = PartialSignature((t - s).float(), logged.coefficients)
        with torch.no_grad():
            made = learner(logged.before, t, s, noise, row=torch.arange(rows))
        off = float((made - logged.after).abs().max() / logged.after.abs().max())
        if off > CLOSE:
            kind = RoundingError if off < ROUNDED else AssertionError
            raise kind(f"recorded calls are {off:.1e} off the pipeline's own steps")
    learner.clip = learner.threshold = None  # of what is clamped nothing can be learned
    t, s = scheduler.grid[log[0].k : log[0].k + 2]
    noise = PartialSignature((t - s).float(), log[0].coefficients)
    learner(log[0].before, t, s, noise, row=torch.arange(rows)).square().mean().backward()
    grads = [p.grad for p in networks[calls[0].name].signature.parameters()]
    if any(grad is None or not grad.abs().max() > 0 for grad in grads):
        raise AssertionError("no gradient reaches the path")


def main(names: list[str]) -> None:
    """Try the classes and print what comes of them; if all were tried, write the table."""
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    outcomes = {}
    for name in names or classes():
        outcomes[name] = attempt(name)
        gc.collect()  # networks and the hooks on them hold one another
        print(name, *outcomes[name], sep=" | ", flush=True)
    if not names:
        told = {"diffusers": diffusers.__version__, "classes": outcomes}
        RESULTS.write_text(json.dumps(told, indent=1) + "\n")
        PAGE.write_text(page(told))


def page(told: dict[str, Any]) -> str:
    """The table as a page."""
    outcomes = told["classes"]
    counts = Counter(outcome for outcome, _ in outcomes.values())
    able = sum(counts.values()) - counts[CANNOT]
    others = sum(any(no in line for no in NO_TEACHER) for _, line in outcomes.values())
    lines = [
        "# Every pipeline class",
        "",
        f"The {len(outcomes)} pipeline classes of diffusers {told['diffusers']}, each tried by",
        "`python -m tests.pipelines.inventory`: tiny and random, most as diffusers' own tests",
        "build them. A class works if its untrained student is its teacher to the bit, if the",
        "calls recorded of its network make the pipeline's own steps again, to "
        f"{CLOSE:g} (in double",
        "precision where its rounding is more), and if a gradient reaches the layer that sees the",
        "path. What cannot be built here fails under",
        "its own scheduler, too, needs a package that is not installed, or has no tiny",
        "configuration yet.",
        "",
        f"Of the {able} that can be built {counts[WORKS]} work; {others} have networks of few",
        "steps already, tokens, or no scheduler that they step themselves. Of all others",
        f"{counts[WORKS] / (able - others):.0%} work.",
    ]
    titles = {
        WORKS: ("Works", "network: its input layer"),
        REFUSED: ("Refused", "in the line"),
        FAULT: ("Fails", "as"),
        CANNOT: ("Cannot be built here", "because"),
    }
    for outcome, (title, column) in titles.items():
        rows = [(name, line) for name, (kind, line) in outcomes.items() if kind == outcome]
        if rows:
            lines += ["", f"## {title}", "", f"| class | {column} |", "|---|---|"]
            lines += [f"| {name} | {cell(line)} |" for name, line in rows]
    return "\n".join(lines) + "\n"


def cell(line: str) -> str:
    """A line that fits into a table."""
    clean = " ".join(line.split()).replace("|", "/").replace("<", "").replace(">", "")
    return textwrap.shorten(clean, LONGEST, placeholder=" ...")


if __name__ == "__main__":
    main(sys.argv[1:])
