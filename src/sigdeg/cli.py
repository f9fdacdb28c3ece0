"""The command line: `sigdeg run | distill | sample | evaluate | report | plan`."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from sigdeg.errors import SigdegError, check_choice, guard
from sigdeg.options import AnyFolder, AnyText, Folder, Group, Seed, Text, number, parse, whole
from sigdeg.plan_cli import PLAN

# What only one command needs is imported there: --help and errors need not wait for it.

__all__ = ["main"]

Batch = Annotated[int, whole(1, 10**7)]
Guidance = Annotated[float | None, number(-1000, 1000)]
NullClass = Annotated[int | None, whole(0, 10**6)]
Refinement = Annotated[int | None, whole(2, 1000)]
Samples = Annotated[int, whole(2, 10**7)]
Student = Annotated[Positional[Text], arg(metavar="STUDENT")]
Teacher = Annotated[Positional[Text], arg(metavar="TEACHER")]
Until = Annotated[float, number(0, 1)]


def run(
    experiment: Annotated[Positional[Text], arg(metavar="EXPERIMENT")],
    preset: AnyText = None,
    out: AnyFolder = None,
    seed: Seed = 0,
    device: AnyText = None,
    data_dir: AnyFolder = None,
    progress: bool = True,
) -> None:
    """Run a benchmark and write its results, figures and report; the same command resumes it.

    Args:
        experiment: mixture1d, mnist, planning or rbergomi.
        preset: How much work: quick, default or paper, as the experiment has it (default: its own).
        out: Run folder (default: runs/EXPERIMENT-PRESET).
        seed: First seed.
        device: cpu or cuda (default: what is found).
        data_dir: Folder with the data (default: $SIGDEG_DATA, else fetched once and cached).
        progress: Show progress bars.
    """
    from sigdeg.experiments import EXPERIMENTS

    check_choice(experiment, EXPERIMENTS, "experiment")
    chosen = import_module(f"sigdeg.experiments.{experiment}")
    preset = preset or chosen.DEFAULT
    check_choice(preset, chosen.PRESETS, "preset")
    out = out or Path("runs") / f"{experiment}-{preset}"
    tell(chosen.run(out, preset, seed, device, data_dir, progress))


def distill(
    teacher: Teacher,
    steps: Annotated[tuple[int, ...], whole(1, 1000, "*")] = (10,),
    order: Annotated[int, whole(1, 64)] = 4,
    out: Folder = Path("runs/distilled"),
    iterations: Annotated[int, whole(1, 10**9)] = 3000,
    batch_size: Batch = 64,
    learning_rate: Annotated[float, number(1e-12, 1e12)] = 2e-4,
    paths: Annotated[int, whole(0, 10**9)] = 5000,
    refinement: Refinement = None,
    q: Annotated[int | None, whole(0, 1000)] = None,
    matching: Annotated[float, number(0, 1e6)] = 0.0,
    start: AnyText = None,
    plan: AnyText = None,
    grid: Literal["planned"] | None = None,
    residual_noise: Literal["energy", "none"] = "energy",
    weak: AnyText = None,
    guidance: Guidance = None,
    guidance_until: Until = 1.0,
    null_class: NullClass = None,
    times: Annotated[tuple[float, ...] | None, number(0, 1, "*")] = None,
    lookahead: Annotated[float, number(0, 1)] = 0.5,
    samples: Samples = 256,
    mixed_precision: Literal["no", "bf16"] = "no",
    tracker: Text = "tensorboard",
    seed: Seed = 0,
    device: AnyText = None,
    progress: bool = True,
) -> None:
    """Distil a saved diffusers pipeline into a few-step student; the same command resumes it.

    Args:
        teacher: Folder or hub id of a DDPMPipeline, DDIMPipeline or LDMPipeline, or mnist-teacher,
            which comes with the package. FOLDER:unet_ema takes that network of it.
        steps: Step counts of the student; several, each dividing the largest, make it elastic.
        order: Signature coefficients a dimension: more for fewer steps.
        out: Run folder.
        iterations: Optimiser steps.
        batch_size: Segments a step.
        learning_rate: Peak learning rate.
        paths: Teacher paths to cache and reuse; 0 simulates fresh ones for every batch.
        refinement: Fine teacher steps a coarse step (default: 120 in all).
        q: Consecutive coarse steps in a loss term; 0 for all of them (default: 1, or 0 with
            matching).
        matching: Weight of distribution matching beside the loss on paths, such as 4: samples that
            look right. Start from a student that is trained already.
        start: Folder or hub id of a student to go on from. Its order, noise, look-ahead and times
            stay.
        plan: Distil in rounds: vanilla, progressive, consistency, boot, hybrid-M or a tree such as
            "(1 (2 3..6))" over leaves that divide the refinement, see docs/planning.md.
        grid: planned measures the teacher and puts the student's times where that loses least.
        residual_noise: What to do about what the coefficients leave open: learn its law (energy,
            at twice the cost of training) or its mean (none).
        weak: Folder or hub id of a weaker version of the teacher, such as mnist-weak: smaller, or
            trained for less long. The student learns to go the other way (see guidance), at no
            cost in calls.
        guidance: Scale of guidance, by the weaker version or else the classes of a conditional
            teacher; 1 is none.
        guidance_until: Time in (0, 1] above which there is none: 0.6 keeps the shares of the kinds
            of samples, which are settled earlier.
        null_class: The label that means no class, if the teacher was trained with one: guidance by
            classes needs it, and it is not drawn (default: as the teacher's config.json says).
        times: The largest step count's times, from 1 down to 0 (default: power spacing); fewer
            steps take every so many of them.
        lookahead: Fraction of a step after which the student's network looks: it is called on the
            state that Gaussian data would have there; 0 calls it at the step's start.
        samples: Samples behind the metrics of the report.
        mixed_precision: Precision of the training.
        tracker: tensorboard, wandb ... or none.
        seed: Seed of everything that is drawn.
        device: cpu or cuda (default: what is found).
        progress: Show progress bars.
    """
    from sigdeg.distillation import DistillConfig
    from sigdeg.experiments.images import distil_images
    from sigdeg.integrations import load_guided

    original = load_guided(teacher, guidance, guidance_until, weak, null_class)
    config = DistillConfig.for_samples(
        original.shape,
        max(steps, default=1),
        **({} if refinement is None else {"refinement": refinement}),
        iterations=iterations,
        batch_size=batch_size,
        learning_rate=learning_rate,
        paths=paths,
        q=(0 if matching else 1) if q is None else q,
        matching=matching,
        mixed_precision=mixed_precision,
        tracker=tracker,
        seed=seed,
        shard_size=max(1, paths // 4),  # an interruption costs a quarter of the paths at most
    )
    tell(
        distil_images(
            original,
            out,
            steps,
            order,
            config,
            evaluation_n=samples,
            device=device,
            progress=progress,
            residual_noise=None if residual_noise == "none" else residual_noise,
            times=times,
            lookahead=lookahead,
            start=start,
            plan=plan,
            grid=grid,
        )
    )


def sample(
    student: Student,
    n: Annotated[int, whole(1, 10**9), arg(aliases=["-n"])] = 16,
    steps: Annotated[int | None, whole(1, 1000)] = None,
    seed: Seed = 0,
    label: Annotated[int | None, whole(0, 10**9)] = None,
    out: Folder = Path("samples"),
    save: Literal["png"] | None = None,
    batch_size: Batch = 64,
    device: AnyText = None,
    progress: bool = True,
) -> None:
    """Draw samples from a student: samples.safetensors, and a picture of them.

    Latents are decoded by the decoder in the student's folder.

    Args:
        student: Folder or hub id of a student or of a run that made one, or mnist, which comes with
            the package.
        n: The number of samples.
        steps: Network calls a sample (default: the most it is trained for).
        seed: Seed of the first sample; sample i has seed + i.
        label: Class of the samples of a conditional student (default: all in turn).
        out: Folder for the samples, empty or with these very samples.
        save: png writes every image to a file of its own as well.
        batch_size: Samples at a time. The noise of a seed is the same to the bit in any batch, its
            sample up to rounding.
        device: cpu or cuda (default: what is found).
        progress: Show a progress bar.
    """
    import torch

    from sigdeg.conditions import Unconditional
    from sigdeg.costs import check_room, tell_calls
    from sigdeg.experiments.output import check_unused, write_samples
    from sigdeg.model import Model
    from sigdeg.networks import uncompiled
    from sigdeg.runs import fingerprint
    from sigdeg.training import resolve_device

    device = resolve_device(device)
    with uncompiled():
        model = Model.from_pretrained(student).to(device)
    if label is not None and isinstance(model.conditions, Unconditional):
        raise SigdegError("this student knows no classes: leave --label out")
    request: dict[str, Any] = {} if label is None else {"label": label}
    condition, grid = model.condition(n, **request), model.grid.at(steps)
    shown = model.codec.decode(torch.zeros(1, *model.shape, device=device)).shape[1:]
    if save and (len(shown) < 3 or shown[0] not in (1, 3)):
        raise SigdegError(f"samples of shape {tuple(shown)} are no images: leave --save out")
    identity: dict[str, Any] = {"student": fingerprint(model.step)}
    identity |= {"n": n, "steps": len(grid) - 1, "seed": seed, "label": label}
    check_unused(out, identity)
    drawn = 4 * n * math.prod(model.shape)
    check_room(out, drawn, 2 * drawn)
    if progress:
        tell_calls(
            f"{n:,} samples",
            n * (len(grid) - 1),
            model.step,
            (grid[0], grid[1]),
            model.shape,
            min(n, batch_size),
            device,
            condition,
            disk=drawn,
            memory=2 * drawn,
        )
    samples = model.sample(n, steps, seed=seed, batch_size=batch_size, progress=progress, **request)
    for path in write_samples(samples.cpu(), out, identity, save == "png"):
        print(path)


def evaluate(
    student: Student,
    teacher: Teacher,
    samples: Samples = 256,
    refinement: Refinement = None,
    weak: AnyText = None,
    guidance: Guidance = None,
    guidance_until: Until = 1.0,
    null_class: NullClass = None,
    data: AnyText = None,
    features: Literal["inception", "mnist", "pixels"] = "inception",
    resize: bool = False,
    out: Folder = Path("runs/evaluation"),
    seed: Seed = 1,
    device: AnyText = None,
    progress: bool = True,
) -> None:
    """Compare a student with its teacher on the same noise, and write results and a report.

    Args:
        student: Folder or hub id of a student.
        teacher: Folder or hub id of the pipeline it was distilled from.
        samples: Samples in each of the two sets that are compared.
        refinement: Fine teacher steps a coarse step (default: 120 in all).
        weak: Folder or hub id of the weaker version that guided the teacher.
        guidance: Scale of guidance that the student was distilled with.
        guidance_until: Time above which there was none.
        null_class: The label that means no class, as it was given to distill.
        data: Real images to compare with as well, for FID, KID, precision, recall and diversity: a
            folder of pictures, a .npy, a .safetensors or an IDX file.
        features: What images are compared by: the FID Inception (fetched once, 96 MB), the MNIST
            classifier that comes with the package, or pixels as they are.
        resize: Cut and resize pictures of another size.
        out: Run folder.
        seed: Seed of the noise.
        device: cpu or cuda (default: what is found).
        progress: Show a progress bar.
    """
    import torch

    from sigdeg.costs import check_room, judging_bytes
    from sigdeg.datasets.images import load_images
    from sigdeg.distillation import DistillConfig
    from sigdeg.experiments import images
    from sigdeg.experiments.real import Real
    from sigdeg.grids import refine
    from sigdeg.integrations import load_guided
    from sigdeg.runs import claim_folder, fingerprint
    from sigdeg.student import SignatureStudent
    from sigdeg.training import resolve_device

    model = SignatureStudent.from_pretrained(student)
    original = load_guided(teacher, guidance, guidance_until, weak, null_class)
    images.check_pair(model, original)
    identity = {"experiment": "evaluate", "student": student, "teacher": teacher, "seed": seed}
    if guidance is not None:
        identity["guidance"] = guidance
    if guidance_until != 1:
        identity["guidance_until"] = guidance_until
    if weak is not None:
        identity["weak"] = weak
    if null_class is not None:
        identity["null_class"] = null_class
    config = DistillConfig.for_samples(
        model.sample_shape,
        max(model.steps),
        **({} if refinement is None else {"refinement": refinement}),
        seed=seed,
    )
    refine(model.schedule, model.grid(), config.refinement)  # refuses what cannot be, at once
    check_room(out, memory=judging_bytes(samples, original.shape, len(model.steps)))
    device, real = resolve_device(device), None
    if data is not None:
        shape = original.codec.decode(torch.zeros(1, *original.shape)).shape[1:]
        found_images = load_images(data, tuple(shape), resize)
        real = Real(found_images, features, 2 * samples, device)
        identity |= {"data": fingerprint(found_images), "features": features}
    identity |= {"samples": samples, "refinement": config.refinement}
    claim_folder(out, "config.json", identity)
    found = images.evaluate(
        model,
        original,
        config,
        samples,
        real=real,
        device=device,
        progress=progress,
    )
    results = {**identity, "title": f"{original.name}: student and teacher", "preset": None}
    tell(images.save_comparison(out, results, found, seed, device))


def report(folder: Annotated[Positional[Folder], arg(metavar="FOLDER")]) -> None:
    """Write the report of a run folder anew from its results.

    Args:
        folder: The run folder.
    """
    from sigdeg.report import write_report

    print(write_report(folder))


def tell(page: Path) -> None:
    """Print what a run shows, what to beware of, and where its report lies."""
    from accelerate import PartialState

    from sigdeg.report.headline import headline
    from sigdeg.results import read_results

    if not PartialState().is_main_process:
        return
    results = read_results(page.with_name("results.json"))
    found = headline(results)
    warnings = [f"warning: {text}" for text in results.get("warnings") or []]
    print(
        "\n".join([*([f"{found.claim}. {found.evidence}"] if found else []), *warnings, str(page)])
    )


COMMANDS = Group(
    "",
    {
        "run": run,
        "distill": distill,
        "sample": sample,
        "evaluate": evaluate,
        "report": report,
        "plan": PLAN,
    },
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 for work that failed, 2 for bad input."""

    def work() -> int:
        parse(COMMANDS, sys.argv[1:] if arguments is None else arguments)()
        return 0

    return guard(work)
