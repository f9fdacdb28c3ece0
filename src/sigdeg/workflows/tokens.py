"""Models of tokens: distilled, judged and shown, as those of states are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from torch.nn.functional import one_hot

from sigdeg.costs import check_memory, check_room, judging_bytes
from sigdeg.datasets.images import load_images, read_array
from sigdeg.discrete import DiscreteConfig, GreyLevels, Latent, TextCodec, TokenModel
from sigdeg.discrete.distill import distill_model
from sigdeg.discrete.model import uniform_grid
from sigdeg.discrete.objective import saturation
from sigdeg.distillation import Verdict
from sigdeg.distillation.judgement import Level, compare
from sigdeg.errors import SigdegError
from sigdeg.report import write_report
from sigdeg.results import Row, Summary, add_speed, count_calls, make_row
from sigdeg.rng import Stream, derive_generator
from sigdeg.runs import claim_folder
from sigdeg.sampling import network_calls, sample
from sigdeg.timing import paired_seconds
from sigdeg.training import resolve_device
from sigdeg.workflows.evaluate import PICTURES, TIMED, Comparison, metrics, save_comparison
from sigdeg.workflows.real import Features, Real, read_real

__all__ = ["distill_tokens", "evaluate_tokens", "load_tokens"]

TOLD = 32  # symbols beyond which a token is told by so many random numbers
ADVICE = "more iterations, more latents, a larger latent, more steps, a wider network"
CAPTION = "Samples of each method, side by side in no order."


def load_tokens(path: str | Path, model: TokenModel) -> Tensor:
    r"""Data of a model of tokens: what its codec makes tokens of, or tokens as they are.

    Arguments:
        path: For a model of text a `.txt`, cut into windows one after the other. For one of grey
            levels images, see `sigdeg.datasets.load_images`. For any a `.npy` or `.safetensors` of
            whole numbers, shape (n, D).
        model: The model.

    Returns:
        Tokens, int64, shape (n, D).

    Raises:
        SigdegError: If there is no such file, or what it holds is no data of the model.
    """
    path, codec, (length,) = Path(path), model.codec, model.shape
    if path.suffix == ".txt":
        if not isinstance(codec, TextCodec):
            raise SigdegError(f"{path} is a text, and {model.name} has no characters")
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise SigdegError(f"{path} is no text that can be read: {error}") from None
        (line,) = codec.encode([text])
        if len(line) < length:
            raise SigdegError(f"{path} has {len(line)} {codec.unit}, a sample {length}")
        windows: Tensor = line[: len(line) - len(line) % length].reshape(-1, length)
        model.process.check_tokens(windows, str(path))
        return windows
    if isinstance(codec, GreyLevels) and (path.is_dir() or path.suffix != ".safetensors"):
        return codec.encode(load_images(path, (1, codec.height, codec.width)))
    if not path.is_file():
        raise SigdegError(f"there is no file {path}")
    if path.suffix not in (".npy", ".safetensors"):
        raise SigdegError(f"tokens are a .npy or .safetensors file, got {path}")
    found = read_array(path)
    if not np.issubdtype(found.dtype, np.integer) or found.shape[1:] != (length,):
        raise SigdegError(
            f"{path} must hold whole numbers (n, {length}), got {found.dtype} of {found.shape}"
        )
    tokens = torch.from_numpy(found.astype(np.int64))
    model.process.check_tokens(tokens, str(path))
    return tokens


def distill_tokens(
    teacher: TokenModel,
    out: Path,
    config: DiscreteConfig,
    *,
    steps: Sequence[int] = (10,),
    latent: Latent | None = None,
    data: Tensor | None = None,
    labels: Tensor | None = None,
    samples: int = 256,
    device: str | None = None,
    progress: bool = True,
    command: str | None = None,
    **options: Any,
) -> TokenModel:
    """Distil a teacher into a run folder, with results and a report.

    Arguments:
        teacher: The teacher.
        out: The run folder.
        config: How to distil.
        steps: The step counts that the student is judged at.
        latent: The law of its latent.
        data: Clean tokens to learn from as well.
        labels: Their classes.
        samples: Samples in each of the two sets that are compared.
        device: Where to compute.
        progress: Show progress bars.
        command: The command line, for the card.
        options: Further ones of `sigdeg.discrete.distill`.

    Returns:
        The student.
    """
    check_memory(judging_bytes(samples, told_shape(teacher), len(steps)))
    made, found = distill_model(
        teacher,
        latent=latent,
        data=data,
        labels=labels,
        steps=steps,
        out=out,
        device=device,
        progress=progress,
        command=command,
        **dataclasses.asdict(config),
        **options,
    )
    if not PartialState().is_main_process:
        return made
    counts, kept = sorted(steps, reverse=True), out / "verdict.json"
    if (out / "results.json").exists() and kept.exists():
        verdict = Verdict.load(kept)
        calls = [network_calls(made.step, uniform_grid(count)) for count in counts]
        if (verdict.n, [level.calls for level in verdict.levels]) == (samples, calls):
            made = judged(made, verdict)  # this run has been judged
            made.save_pretrained(out / "student")
            write_report(out)
            return made
    compared = measure(
        made,
        teacher,
        counts,
        teacher_steps(config.path_steps, steps),
        samples,
        config.seed,
        device=resolve_device(device),
        progress=progress,
    )
    for row in compared.rows:
        if row["role"] == "student":
            row |= {"train_seconds": found.seconds, "teacher_nfe": found.teacher_nfe}
    made = judged(made, compared.verdict)
    made.save_pretrained(out / "student")
    told = saturation(found.losses["ess"], config.latents, found.student.latent)
    results = {
        "title": f"{teacher.name}, distilled",
        "experiment": "distill",
        "preset": None,
        "training": {"student": found.history.tolist()},
        "student": "student",
        "example": {"steps": max(steps)},
        "warnings": [*compared.verdict.warnings, *([told] if told else [])],
    }
    save_comparison(out, results, compared, config.seed, device)
    return made


def judged(model: TokenModel, verdict: Verdict) -> TokenModel:
    """A model whose card says what came of judging it."""
    said = " ".join([verdict.headline(), *verdict.warnings])
    return dataclasses.replace(model, card=dataclasses.replace(model.card, verdict=said))


def teacher_steps(least: int, steps: Sequence[int]) -> int:
    """Steps of the teacher that a student is compared with: many more than its own."""
    return max(least, 4 * max(steps))


def told_shape(model: TokenModel) -> tuple[int, ...]:
    """Shape of a sample as numbers, see `as_numbers`."""
    return min(model.process.states, TOLD), *model.shape


def as_numbers(tokens: Tensor, model: TokenModel) -> Tensor:
    """Samples as numbers that distances can be told of, (n, k, D) or (n, k, height, width).

    A token is one of k = S one-hots; of many symbols each is a random vector of its own.
    """
    states, codec = model.process.states, model.codec
    if states <= TOLD:
        told = one_hot(tokens, states).float()
    else:
        generator = torch.Generator().manual_seed(0)
        told = (torch.randn(states, TOLD, generator=generator) / TOLD**0.5)[tokens]
    numbers: Tensor = told.movedim(2, 1)
    if isinstance(codec, GreyLevels):
        return numbers.reshape(*numbers.shape[:2], codec.height, codec.width)
    return numbers


@torch.no_grad()
def measure(
    student: TokenModel,
    teacher: TokenModel,
    counts: Sequence[int],
    many: int,
    n: int,
    seed: int,
    real: Real | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Comparison:
    """The student and the teacher in as many steps, beside the teacher in many.

    Arguments:
        student: The student.
        teacher: Its teacher.
        counts: The step counts, most first.
        many: Steps of the teacher that both are compared with.
        n: Samples in each of the two sets that are compared.
        seed: Seed of the samples.
        real: Real images to compare all of them with, too.
        device: Where to compute.
        progress: Show a progress bar.
    """
    student.to(device), teacher.to(device)
    condition = teacher.condition(2 * n)

    def draw(model: TokenModel, steps: int, number: int) -> Tensor:
        return sample(
            model.step,
            uniform_grid(steps),
            (2 * n, *model.shape),
            generator=derive_generator(seed, Stream.JUDGEMENT, number),
            batch_size=64,
            progress=progress,
            **condition,
        ).cpu()

    own = draw(teacher, many, 0)
    sets = [
        (draw(student, count, 2 * i + 1), draw(teacher, count, 2 * i + 2))
        for i, count in enumerate(counts)
    ]
    first = as_numbers(own, teacher)
    calls, *short = (network_calls(teacher.step, uniform_grid(k)) for k in (many, *counts))
    levels = []
    for count, pair in zip(counts, sets, strict=True):
        numbers = (as_numbers(tokens, teacher) for tokens in pair)
        levels.append(compare(network_calls(student.step, uniform_grid(count)), first, *numbers))
    verdict = Verdict(n, calls, 2 * n * (calls + sum(short)), ADVICE, levels)
    rows = make_table(student, teacher, verdict, counts, own, sets, real)
    timed = {0: partial(teacher.sample, TIMED, grid=uniform_grid(many), seed=0)}
    for i, count in enumerate(counts):
        timed[2 * i + 1] = partial(student.sample, TIMED, grid=uniform_grid(count), seed=0)
    seconds = paired_seconds(timed)
    add_speed(rows, {i: taken * n / TIMED for i, taken in seconds.items()}, teacher=0)
    summary = (
        "The student, and its teacher in as many steps (a product, which is not trained for it), "
        f"beside the teacher in {many}: two sets of {n:,}. Distances are to other samples of the "
        "teacher, not to data; ± is the noise of one such distance."
    )
    pictures = {f"teacher, {count_calls(calls)}": own}
    for level, (mine, _) in zip(levels, sets, strict=True):
        pictures[f"student, {count_calls(level.calls)}"] = mine
    few = PICTURES if isinstance(teacher.codec, GreyLevels) else 2 * n
    shown = {name: teacher.decode(tokens[:few]) for name, tokens in pictures.items()}
    if real is None:
        return Comparison(rows, {}, summary, verdict, shown, CAPTION)
    return Comparison(rows, real.floor, f"{summary} {real.describe()}", verdict, shown, CAPTION)


def make_table(
    student: TokenModel,
    teacher: TokenModel,
    verdict: Verdict,
    counts: Sequence[int],
    own: Tensor,
    sets: Sequence[tuple[Tensor, Tensor]],
    real: Real | None,
) -> list[Row]:
    """A row of the teacher, and for each step count one of the student and of the teacher there."""

    def score(level: Level, of: str, tokens: Tensor) -> dict[str, Summary]:
        found = metrics(level, of)
        found.pop("path")  # noise does not pair samples of tokens
        return found | ({} if real is None else real.compare(teacher.decode(tokens)))

    called = teacher.denoiser
    table = [
        make_row("teacher", called, verdict.teacher_calls, score(verdict.levels[0], "floor", own))
    ]
    for level, count, (mine, product) in zip(verdict.levels, counts, sets, strict=True):
        kind: dict[str, Any] = {
            "steps": count,
            "elastic": student.denoiser.elastic,
            "verdict": {"says": level.says, "equal": level.equal, "failed": level.failed},
        }
        found = score(level, "student", mine)
        table.append(make_row("di4c", student.denoiser, level.calls, found, **kind))
        used = network_calls(teacher.step, uniform_grid(count))
        found = score(level, "untrained", product)
        told: dict[str, Any] = {"role": "untrained", "steps": count}
        table.append(make_row("product", called, used, found, **told))
    return table


def evaluate_tokens(
    student: TokenModel,
    teacher: TokenModel,
    out: Path,
    identity: dict[str, Any],
    samples: int = 256,
    data: tuple[str, Features, bool] | None = None,
    seed: int = 1,
    device: str | None = None,
    progress: bool = True,
) -> Path:
    """Compare a student with its teacher, and with real images, in a folder of its own.

    Arguments as of `sigdeg.workflows.evaluate.evaluate`; the student's card says how many steps
    the teacher took for it.

    Raises:
        SigdegError: If the student is another teacher's, or the folder holds something else.
    """
    if student.process != teacher.process or student.shape != teacher.shape:
        raise SigdegError(
            f"{student.name} has other tokens, another process or another length than "
            f"{teacher.name}: it is not its student"
        )
    if student.denoiser.latent is None:
        raise SigdegError(f"{student.name} is a teacher: evaluate compares a student with it")
    counts = sorted(student.grid.steps or (10,), reverse=True)
    check_room(out, memory=judging_bytes(samples, told_shape(teacher), len(counts)))
    device, real = resolve_device(device), None
    if data is not None:
        if not isinstance(teacher.codec, GreyLevels):
            raise SigdegError(f"{teacher.name} makes no images to compare with real ones")
        shape = (1, teacher.codec.height, teacher.codec.width)
        real, told = read_real(data, shape, 2 * samples, device)
        identity = {**identity, **told}
    identity = {**identity, "samples": samples}
    claim_folder(out, "config.json", identity)
    written = student.card.configuration or {}
    many = teacher_steps(int(written.get("path_steps", 64)), counts)
    found = measure(
        student, teacher, counts, many, samples, seed, real, device=device, progress=progress
    )
    results = {**identity, "title": f"{teacher.name}: student and teacher", "preset": None}
    return save_comparison(out, results, found, seed, device)
