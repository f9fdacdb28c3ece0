"""Distil any teacher and show what came of it: the path of `sigdeg distill`, and in Python."""

from __future__ import annotations

import dataclasses
import inspect
from numbers import Integral
from pathlib import Path
from typing import Any, overload

from accelerate import PartialState

from sigdeg.costs import check_memory, judging_bytes
from sigdeg.discrete import DiscreteConfig, TokenModel
from sigdeg.discrete.recipe import configure as configure_tokens
from sigdeg.distillation import DistillConfig, Distilled, Verdict
from sigdeg.distillation import distill as distill_step
from sigdeg.errors import SigdegError, check_least
from sigdeg.grids import Grid
from sigdeg.integrations import load_teacher
from sigdeg.model import Card, Model, as_model
from sigdeg.results import versions
from sigdeg.rng import seeded
from sigdeg.runs import fingerprint
from sigdeg.student import SignatureStudent
from sigdeg.training import resolve_device
from sigdeg.workflows.recipe import Recipe

__all__ = ["configure", "distill", "distill_teacher"]

INSTEAD = {
    "guidance": "guide the teacher, distill(teacher.guided(2.0), ...)",
    "labels": "all classes are distilled, and asked for as in student.sample(n, label=3)",
    "null_class": "it belongs to the teacher, load_teacher(path, null_class=...)",
    "out_dir": "the folder of a new student is out",
}
TOKENS = {"network", "elastic", "inject"}
TRAINING = {field.name for field in dataclasses.fields(DistillConfig)}


@overload
def distill(student: SignatureStudent, /, *given: Any, **options: Any) -> Distilled: ...
@overload
def distill(teacher: Any, /, **options: Any) -> Model: ...
def distill(*given: Any, **options: Any) -> Any:
    """Distil: a teacher into a new student, or into one that is given.

    `distill(teacher, steps=(10, 5), out="runs/cifar")` takes a `Model`, a diffusers pipeline, or
    the folder or hub id of either, and gives the student as a `Model`, as `sigdeg distill` does: in
    `out` are its folder, `student/`, and `report.html`. Options are those of `Recipe` and
    `DistillConfig`, and

    - `out`: The run folder (default: runs/distilled).
    - `samples`: Samples in each of the two sets that the student is judged by (default: 256).
    - `device`, `progress`: Where to compute; whether to show progress.

    With `calls`, or `prompts`, the teacher is a diffusers pipeline of any kind, or the folder or
    hub id of one, and what comes back is that pipeline with the student in it, see
    `sigdeg.workflows.pipelines.distill_calls`.

    Of a teacher of tokens they are those of `sigdeg.discrete.distill` and `DiscreteConfig`, with
    `samples`.

    `distill(student, teacher, out_dir, ...)` trains that student on that teacher's step, see
    `sigdeg.distillation.distill`.

    Raises:
        SigdegError: If options do not fit together, or the folder holds another run.
        TrainingError: If the loss stops being finite; the last good checkpoint is kept.
    """
    if "student" in options or isinstance(next(iter(given), None), SignatureStudent):
        if any(isinstance(part, Model) for part in (*given, *options.values())):
            raise SigdegError(
                "a student that is given learns from a step: give teacher.step, and "
                "condition=teacher.conditions() if it knows classes"
            )
        return distill_step(*given, **options)
    if len(given) != 1:
        raise SigdegError("a teacher is followed by named options: steps=10, out='runs/distilled'")
    if "calls" in options or "prompts" in options:
        from sigdeg.workflows.pipelines import distill_calls

        return distill_calls(given[0], **options)
    teacher = load_teacher(given[0])
    if isinstance(teacher, TokenModel):
        return tokens_of(teacher, **options)
    known = {f.name for f in dataclasses.fields(Recipe)} | TRAINING
    own = ("out", "samples", "device", "progress")
    unknown = [name for name in options if name not in known and name not in own]
    if unknown:
        if unknown[0] in INSTEAD:
            raise SigdegError(f"there is no option {unknown[0]!r} here: {INSTEAD[unknown[0]]}")
        raise SigdegError(
            f"unknown option {unknown[0]!r}: a Recipe's are {', '.join(sorted(known - TRAINING))}, "
            f"a DistillConfig's {', '.join(sorted(TRAINING))}, and {', '.join(own)}"
        )
    recipe = {name: value for name, value in options.items() if name in known - TRAINING}
    if "steps" in recipe:
        steps = recipe["steps"]
        recipe["steps"] = tuple(steps) if isinstance(steps, list | tuple) else (steps,)
        if not all(isinstance(count, Integral) for count in recipe["steps"]):
            raise SigdegError(f"steps are whole numbers, such as 5 or (10, 5), got {steps!r:.60}")
    asked = Recipe(**recipe)
    config = configure(teacher, asked, **{k: v for k, v in options.items() if k in TRAINING})
    rest = {name: value for name, value in options.items() if name in own[1:]}
    out = Path(options.get("out", "runs/distilled"))
    return distill_teacher(teacher, out, asked, config, **rest)


def tokens_of(
    teacher: TokenModel, out: str | Path = "runs/distilled", steps: Any = (10,), **options: Any
) -> Model:
    """Distil a teacher of tokens, see `distill`."""
    from sigdeg.workflows.tokens import distill_tokens

    training = {field.name for field in dataclasses.fields(DiscreteConfig)}
    own = set(inspect.signature(distill_tokens).parameters) | TOKENS
    unknown = sorted(options.keys() - training - own)
    if unknown:
        raise SigdegError(
            f"unknown option {unknown[0]!r} of a teacher of tokens: a DiscreteConfig's are "
            f"{', '.join(sorted(training))}, and {', '.join(sorted(own - {'teacher', 'options'}))}"
        )
    given = {k: v for k, v in options.items() if k in training}
    config = configure_tokens(teacher, bool(options.get("elastic")), **given)
    rest = {k: v for k, v in options.items() if k not in training}
    counts = steps if isinstance(steps, list | tuple) else (steps,)
    return distill_tokens(teacher, Path(out), config, steps=tuple(counts), **rest)


def configure(teacher: Model, recipe: Recipe, **options: Any) -> DistillConfig:
    """How to distil: the defaults for the teacher's kind of data, but for options that are given.

    Distribution matching judges samples, and so takes whole paths. An interruption costs a quarter
    of the teacher's paths at most.
    """
    given = {name: value for name, value in options.items() if value is not None}
    given.setdefault("q", 0 if given.get("matching") else 1)
    config = DistillConfig.for_samples(teacher.shape, max(recipe.steps, default=1), **given)
    if "shard_size" in given:
        return config
    return dataclasses.replace(config, shard_size=max(1, config.paths // 4))


def distill_teacher(
    teacher: Model,
    out: Path,
    recipe: Recipe,
    config: DistillConfig,
    samples: int = 256,
    device: str | None = None,
    progress: bool = True,
    command: str | None = None,
) -> Model:
    """Distil a teacher into a run folder, with results and a report.

    Arguments:
        teacher: The teacher.
        out: The run folder.
        recipe: What student it gets.
        config: How to distil.
        samples: Samples in each of the two sets that are compared.
        device: Where to compute.
        progress: Show progress bars.
        command: The command line, for the card.

    Returns:
        The student.
    """
    from sigdeg.report import write_report  # an extra, which training a student can do without
    from sigdeg.workflows.evaluate import finer_grid, measure, save_comparison

    # That of an exact law starts with a network of its own: the same when the run is gone on with.
    student = seeded(config.seed, lambda: new_student(teacher, recipe))
    check_least(samples, 2, "samples")
    check_memory(judging_bytes(samples, teacher.shape, len(student.steps)))
    # A student's own guidance is no guidance of the student that it teaches.
    taught = isinstance(teacher.step, SignatureStudent)
    card = dataclasses.replace(
        Card() if taught else teacher.card,
        name=None,
        teacher=teacher.name,
        fingerprint=fingerprint(teacher.step),
        start=recipe.start,
        plan=recipe.plan,
        grid=recipe.grid,
        seed=config.seed,
        configuration=dataclasses.asdict(config),
        versions=versions(),
        command=command,
    )
    student.origin = card.written
    result = distill_step(
        student,
        teacher.gaussian,
        out,
        config,
        condition=teacher.conditions(),
        fine=finer_grid(teacher),
        plan=recipe.plan,
        grid=recipe.grid,
        judge=0,
        device=device,
        progress=progress,
    )
    made = dataclasses.replace(
        as_model(result.student),
        codec=teacher.codec,
        conditions=teacher.conditions,
        card=dataclasses.replace(card, name=out.name, teacher_calls=result.teacher_nfe),
    )
    if not PartialState().is_main_process:
        return made
    kept = out / "verdict.json"
    if (out / "results.json").exists() and kept.exists() and Verdict.load(kept).n == samples:
        made = judged(made, Verdict.load(kept))  # this run has been judged
        made.save_pretrained(out / "student")
        write_report(out)
        return made
    made.save_pretrained(out / "student")
    compared = measure(
        result.student,
        teacher,
        config,
        samples,
        held_out=result.held_out,
        device=resolve_device(device),
        progress=progress,
    )
    for row in compared.rows:
        if row["role"] == "student":
            row |= {"train_seconds": result.seconds, "teacher_nfe": result.teacher_nfe}
    made = judged(made, compared.verdict)
    made.save_pretrained(out / "student")
    results = {
        "title": f"{teacher.name}, distilled",
        "experiment": "distill",
        "preset": None,
        "training": {"student": result.history.tolist()},
        "student": "student",
        "example": {"steps": max(student.steps)},
    }
    save_comparison(out, results, compared, config.seed, device)
    return made


def judged(model: Model, verdict: Verdict) -> Model:
    """A model whose card says what came of judging it."""
    said = " ".join([verdict.headline(), *verdict.warnings])
    return dataclasses.replace(model, card=dataclasses.replace(model.card, verdict=said))


def new_student(teacher: Model, recipe: Recipe) -> SignatureStudent:
    """The student to start with: the teacher's network, or a student that is gone on from."""
    steps = recipe.steps
    if recipe.times is not None and (recipe.grid is not None or recipe.start is not None):
        raise SigdegError(
            "times are given, planned, or those of the student that is gone on from: leave the "
            "others out"
        )
    if recipe.start is not None:
        from sigdeg.workflows.evaluate import check_pair

        known = SignatureStudent.from_pretrained(recipe.start)
        check_pair(known, teacher)
        return known.at_times(known.grid(max(steps)), steps)
    if isinstance(teacher.step, SignatureStudent):
        return teacher.step.at_times(Grid(teacher.grid.times).at(max(steps, default=1)), steps)
    options: dict[str, Any] = {}
    if recipe.lookahead is not None:
        options["lookahead"] = recipe.lookahead
    return SignatureStudent.from_denoiser(
        teacher.denoiser,
        teacher.shape[0],
        recipe.order,
        steps=steps,
        sample_shape=teacher.shape,
        residual_noise=None if recipe.residual_noise == "none" else recipe.residual_noise,
        times=recipe.times,
        condition=teacher.condition(1),
        covariance=getattr(teacher.codec, "covariance", None),
        **options,
    )
