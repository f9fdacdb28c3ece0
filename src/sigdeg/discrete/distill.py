"""Distil a teacher of tokens into a mixture student: one call, resumable to the bit."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from torch import Generator, Tensor, nn

from sigdeg.conditions import Classes
from sigdeg.discrete.config import DiscreteConfig
from sigdeg.discrete.denoiser import (
    GuidedTokens,
    NetworkTokenDenoiser,
    Parameterisation,
)
from sigdeg.discrete.latent import Latent
from sigdeg.discrete.likelihood import check_sequences
from sigdeg.discrete.model import TokenModel, as_token_model, uniform_grid
from sigdeg.discrete.objective import Drawn, MixtureObjective, draw
from sigdeg.discrete.recipe import configure, default_latent, reveals
from sigdeg.discrete.steps import TokenStep
from sigdeg.discrete.student import MixtureStudent
from sigdeg.errors import SigdegError, check_whole
from sigdeg.files import read_identified, save_tensors
from sigdeg.networks import with_latent
from sigdeg.results import versions
from sigdeg.rng import Stream, derive_generator, seeded
from sigdeg.runs import fingerprint
from sigdeg.sampling import sample
from sigdeg.training import (
    LEAST,
    Job,
    check_data,
    check_labels,
    claim,
    draw_labels,
    make_accelerator,
    split_batches,
    train,
)
from sigdeg.training.memory import check_networks

__all__ = ["Distilled", "distill", "distill_model", "make_student", "train_student"]

SHARD = 2048  # samples of the teacher a file: what an interruption costs at most


class Distilled(NamedTuple):
    """What a training gives back.

    Arguments:
        student: The student with averaged weights.
        history: Columns step, training loss, held-out loss; shape (points, 3).
        seconds: Time spent training, that before interruptions included.
        losses: What the loss of held-out items is made of, and their effective number of latents.
        teacher_nfe: Teacher calls that it took, over samples.
    """

    student: MixtureStudent
    history: Tensor
    seconds: float
    losses: dict[str, float]
    teacher_nfe: float


def make_student(
    teacher: TokenModel,
    latent: Latent,
    network: nn.Module | None = None,
    elastic: bool = False,
    inject: str | None = None,
    seed: int = 0,
) -> MixtureStudent:
    """An untrained student of a teacher: its network with a latent, all that it knows kept.

    Arguments:
        teacher: The teacher; a mixture is one, too.
        latent: The law of the student's latent.
        network: The student's network, where the teacher has none or another is wanted.
        elastic: Whether it is told where its steps end.
        inject: How the latent comes in, see `with_latent`.
        seed: Seed of what is new in the network.

    Raises:
        SigdegError: If the teacher has no network and none is given.
    """
    own = teacher.denoiser
    while isinstance(own, GuidedTokens):
        own = own.denoiser
    kind: Parameterisation = "masked"
    if isinstance(own, NetworkTokenDenoiser):
        kind = own.parameterisation
        if network is None:
            found, law = own.network, dataclasses.asdict(latent)
            network = seeded(seed, lambda: with_latent(found, law, inject, elastic))
    states = getattr(network, "config", {}).get("states", own.process.states)
    if states != own.process.states:
        raise SigdegError(
            f"the network has {states} symbols, {teacher.name} {own.process.states}: their "
            "vocabularies must be one"
        )
    if network is None:
        raise SigdegError(
            f"{teacher.name} is a {type(own).__name__}, without a network: give the student's"
        )
    return MixtureStudent(network, own.process, own.length, latent, elastic, kind)


def train_student(
    student: MixtureStudent,
    teacher: TokenStep | None,
    out_dir: str | Path,
    config: DiscreteConfig | None = None,
    *,
    data: Tensor | None = None,
    labels: Tensor | None = None,
    resume: bool = True,
    device: str | None = None,
    progress: bool = True,
    **options: Any,
) -> Distilled:
    """Train a student on a teacher's step; the same call goes on with an interrupted training.

    Arguments:
        student: The student; it is left untouched.
        teacher: The teacher's step. Without one the student learns data by their likelihood alone.
        out_dir: Folder for checkpoints, and for samples of the teacher.
        config: How to distil; single fields can be given as keywords instead.
        data: Clean tokens, int64, shape (n, D); the last twentieth is held out. Without them the
            teacher draws `config.paths` samples, which take their place.
        labels: Class of each sequence, shape (n,), for networks that take `class_labels`; without
            data, of each sample that the teacher draws.
        resume: Go on with what the folder holds of this very training.
        device: Where to compute (default: what accelerate finds).
        progress: Show progress bars.
        options: Fields of `DiscreteConfig`.

    Raises:
        SigdegError: If arguments do not fit together, or the folder holds another run.
        TrainingError: If the loss stops being finite; the last good checkpoint is kept.
    """
    config, out_dir = dataclasses.replace(config or DiscreteConfig(), **options), Path(out_dir)
    check_pair(student, teacher)
    check_single(student, config)
    if data is None and teacher is None:
        raise SigdegError("there is neither a teacher nor data to learn from")
    if data is not None:
        check_sequences(data, student.process, student.length)
        check_data(data, LEAST)
    count = config.paths if data is None else len(data)
    check_labels(labels, count)
    check_networks(student, config)
    accelerator = make_accelerator(config, out_dir, device)
    identity = {
        **config.identity(),
        "student": fingerprint(student),
        "teacher": None if teacher is None else fingerprint(teacher),
        "data": None if data is None else fingerprint(data),
        "labels": None if labels is None else fingerprint(labels),
    }
    claim(accelerator, out_dir, identity, resume)
    calls, began = 0.0, time.perf_counter()
    if teacher is not None:
        teacher = copy.deepcopy(teacher).to(accelerator.device).eval()
        calls = config.iterations * config.batch_size * teacher.denoiser.calls(1.0)
    if data is None:
        assert teacher is not None
        data = draw_data(teacher, labels, out_dir / "samples", config)
        calls += config.paths * config.path_steps * teacher.denoiser.calls(1.0)
    # Without dropout: what learns and what it learns from are one function.
    learner = copy.deepcopy(student).eval().requires_grad_(True)
    job = make_job(learner, teacher, config, data, labels, identity, progress)
    spent = time.perf_counter() - began
    trained = train(
        job, out_dir, config, device=device, progress=progress, label="distil", spent=spent
    )
    with torch.no_grad():
        found = trained.objective.to(accelerator.device)(
            send_to_device(job.held_out, accelerator.device)
        )
    losses = {name: float(value) for name, value in found.items()}
    return Distilled(
        trained.objective.cpu().student, trained.history, trained.seconds, losses, calls
    )


def check_pair(student: MixtureStudent, teacher: TokenStep | None) -> None:
    """Refuse a teacher of other tokens, or of another process."""
    if teacher is None:
        return
    own, other = student.process, teacher.process
    if own.states != other.states or own.mask != other.mask:
        raise SigdegError(
            f"the student has {own.states} symbols with mask {own.mask}, the teacher "
            f"{other.states} with mask {other.mask}: their vocabularies must be one"
        )
    if own != other:
        raise SigdegError("the student's process is not the teacher's: its schedule differs")
    if student.length != teacher.denoiser.length:
        raise SigdegError(
            f"the student has sequences of {student.length} tokens, the teacher of "
            f"{teacher.denoiser.length}"
        )


def check_single(student: MixtureStudent, config: DiscreteConfig) -> None:
    """Refuse to reveal single positions where there are no masks that stand for themselves."""
    if config.single and (not reveals(student) or student.elastic):
        raise SigdegError(
            "single positions are revealed to students that keep what is not masked and step to "
            "time 0: not of a process without a mask, of parameterisation 'all', or elastic"
        )


def draw_data(
    teacher: TokenStep, labels: Tensor | None, folder: Path, config: DiscreteConfig
) -> Tensor:
    """Samples of the teacher in the place of data, kept in files: an interruption costs one."""
    told = "" if labels is None else fingerprint(labels)
    identity = f"{fingerprint(teacher)} {told} {config.seed} {config.path_steps}"
    place = next((value.device for value in teacher.state_dict().values()), None)
    grid, main = uniform_grid(config.path_steps), PartialState().is_main_process
    parts = []
    for number, first in enumerate(range(0, config.paths, SHARD)):
        file, n = folder / f"{number:04}.safetensors", min(SHARD, config.paths - first)
        if main and not file.exists():
            generator = derive_generator(config.seed, Stream.CACHED_PATHS, number)
            asked: dict[str, Any] = (
                {} if labels is None else {"class_labels": labels[first : first + n].to(place)}
            )
            shape = (n, teacher.denoiser.length)
            drawn = sample(
                teacher, grid, shape, generator=generator, batch_size=256, device=place, **asked
            )
            save_tensors(file, {"tokens": drawn}, {"identity": f"{identity} {n}"})
        PartialState().wait_for_everyone()
        parts.append(read_identified(file, f"{identity} {n}")["tokens"])
    return torch.cat(parts)


def make_job(
    learner: MixtureStudent,
    teacher: TokenStep | None,
    config: DiscreteConfig,
    data: Tensor,
    labels: Tensor | None,
    identity: dict[str, Any],
    say: bool,
) -> Job[MixtureObjective]:
    """What is trained, and on what."""

    def take(rows: Tensor, generator: Generator) -> Drawn:
        condition = draw_labels(labels, rows, config.unlabelled, generator)
        return draw(data[rows], condition, learner, teacher, config, generator)

    batch, held_out = split_batches(len(data), 2 * config.batch_size, config, take)
    return Job(MixtureObjective(learner, teacher, config, say), batch, held_out, identity)


def distill(teacher: TokenModel, **options: Any) -> TokenModel:
    """Distil a teacher into a new student, and save it in `out/student`: see `distill_model`."""
    return distill_model(teacher, **options)[0]


def distill_model(
    teacher: TokenModel,
    *,
    network: nn.Module | None = None,
    latent: Latent | None = None,
    data: Tensor | None = None,
    labels: Tensor | None = None,
    steps: int | Sequence[int] = (),
    out: str | Path = "runs/distilled",
    elastic: bool = False,
    inject: str | None = None,
    device: str | None = None,
    progress: bool = True,
    command: str | None = None,
    **options: Any,
) -> tuple[TokenModel, Distilled]:
    """Distil a teacher into a new student, and save it in `out/student`; says what it took, too.

    A student is a teacher, too: it keeps its network, and its latent where it gets the same.

    Arguments:
        teacher: The teacher.
        network: The student's network (default: the teacher's, with a latent).
        latent: The law of its latent (default: see `default_latent`).
        data: Clean tokens to learn from as well, see `train_student`.
        labels: Their classes.
        steps: The step counts that it is meant for (default: any).
        out: The run folder.
        elastic: Whether it is told where its steps end.
        inject: How the latent comes in, see `make_student`.
        device: Where to compute (default: what accelerate finds).
        progress: Show progress bars.
        command: The command line, for the card.
        options: Fields of `DiscreteConfig` (default: see `configure`).

    Returns:
        The student as a model, and what training gave.

    Raises:
        SigdegError: If arguments do not fit together, or the folder holds another run.
        TrainingError: If the loss stops being finite; the last good checkpoint is kept.
    """
    if not isinstance(teacher, TokenModel):
        raise SigdegError(
            f"a teacher of tokens is what sigdeg.load_model gives, got {teacher!r:.60}"
        )
    config, out = configure(teacher, elastic, **options), Path(out)
    counts = tuple(steps) if isinstance(steps, Sequence) else (steps,)
    for count in counts:
        check_whole(count, 1, "steps")
    latent = latent or default_latent(teacher, network)
    student = make_student(teacher, latent, network, elastic, inject, config.seed)
    taught = teacher.step
    if not isinstance(taught, TokenStep):
        raise SigdegError(f"{teacher.name} is a {type(taught).__name__}: a single step teaches")
    if isinstance(teacher.conditions, Classes) and labels is None:
        if data is not None:
            raise SigdegError(f"{teacher.name} knows classes: give the labels of the data, too")
        labels = teacher.conditions(config.paths)["class_labels"]
    found = train_student(
        student,
        taught,
        out,
        config,
        data=data,
        labels=labels,
        device=device,
        progress=progress,
    )
    made = dataclasses.replace(
        as_token_model(found.student, steps=counts),
        codec=teacher.codec,
        card=dataclasses.replace(
            teacher.card,
            name=out.name,
            teacher=teacher.name,
            fingerprint=fingerprint(taught),
            seed=config.seed,
            configuration=dataclasses.asdict(config),
            teacher_calls=found.teacher_nfe,
            versions=versions(),
            command=command,
            verdict=None,
        ),
    )
    if isinstance(teacher.conditions, Classes):
        made = dataclasses.replace(made, conditions=teacher.conditions)
    if PartialState().is_main_process:
        made.save_pretrained(out / "student")
    return made, found
