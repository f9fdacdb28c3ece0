"""A trained sampler as one object: step, grid, codec, conditions, and the card that says whence.

Teacher and student are roles of it: what draws samples is a `Model`, and so is what was distilled
from it. Its folder is read by `sigdeg sample`, `evaluate` and `distill`, and by
`Model.from_pretrained`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from sigdeg.codec import Codec, Identity, find_codec, save_codec
from sigdeg.conditions import Classes, Conditions, Unconditional
from sigdeg.denoiser import Denoiser, NetworkDenoiser
from sigdeg.errors import SigdegError
from sigdeg.files import find_student, load_weights, read_json, save_model
from sigdeg.grids import Grid, fine_grid
from sigdeg.guidance import AutoGuidance, ClassifierFreeGuidance, Guidance
from sigdeg.networks import build_network, class_labels, network_config
from sigdeg.protocols import Step
from sigdeg.sampling import sample
from sigdeg.schedule import Schedule, schedule_from_config
from sigdeg.schema import listed, mapped, maybe, number, record, text, whole
from sigdeg.steps import Exponential, GaussianStep
from sigdeg.student import SignatureStudent

__all__ = ["Card", "Model", "as_model", "conditions_of"]

TEACHER = "sigdeg-teacher"  # the format of a folder with a denoiser's network
CALLS = 120  # of a teacher, when it is not told: fewer are felt, more are not (docs/recipe.md)
CARD = record(
    {},
    {
        "guidance": maybe(number(-1000, 1000)),
        "guidance_until": maybe(number(0, 1)),
        "null_class": maybe(whole()),
    },
)
CONDITIONS = maybe(record({"labels": listed(whole())}, {"null": maybe(whole())}))
SAVED = record(  # config.json of a teacher
    {"shape": listed(whole(1), 8), "schedule": mapped(), "network": mapped()},
    {"clip": maybe(number(0)), "data_std": number(0), "prediction_type": text, "timesteps": text},
)


@dataclass(frozen=True)
class Card:
    """What made a model. What is None is not known, or does not apply.

    Arguments:
        name: Its name.
        teacher: Name of the teacher it was distilled from.
        fingerprint: Of that teacher's step: what the paths were simulated with.
        guidance: Scale of the guidance it was distilled with, or draws with.
        guidance_until: The time above which there is none.
        weak: Name of the weaker version that guides.
        null_class: The label that means no class.
        plan: Rounds of merges that it was distilled in.
        grid: How its times were found.
        start: The student it went on from.
        seed: Seed of its training.
        configuration: How it was trained.
        teacher_calls: Teacher calls that it took.
        verdict: What fresh samples said of it.
        versions: Of the libraries.
        command: The command line.
    """

    name: str | None = None
    teacher: str | None = None
    fingerprint: str | None = None
    guidance: float | None = None
    guidance_until: float | None = None
    weak: str | None = None
    null_class: int | None = None
    plan: str | None = None
    grid: str | None = None
    start: str | None = None
    seed: int | None = None
    configuration: dict[str, Any] | None = None
    teacher_calls: float | None = None
    verdict: str | None = None
    versions: dict[str, str] | None = None
    command: str | None = None

    @classmethod
    def read(cls, written: dict[str, Any]) -> Card:
        """The card that `written` gives as JSON."""
        CARD(written, "origin")
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in written.items() if key in known})

    @property
    def written(self) -> dict[str, Any]:
        """It as JSON, without what is not known."""
        own = dataclasses.asdict(self)
        return {key: value for key, value in own.items() if value is not None}


@dataclass(frozen=True)
class Model:
    r"""A sampler.

    Arguments:
        step: What is marched: a teacher's step, or a student.
        shape: Shape of one state.
        grid: The times it is marched over.
        codec: What its states stand for.
        conditions: What it can be asked for.
        card: What made it.
    """

    step: Step
    shape: tuple[int, ...]
    grid: Grid
    codec: Codec = field(default_factory=Identity)
    conditions: Conditions = field(default_factory=Unconditional)
    card: Card = field(default_factory=Card)

    @property
    def name(self) -> str:
        """Its name."""
        return self.card.name or "the model"

    @property
    def schedule(self) -> Schedule:
        """The schedule of its diffusion.

        Raises:
            SigdegError: If it is driven by another process.
        """
        process = self.step.process
        if not isinstance(process, Schedule):
            raise SigdegError(f"{self.name} is driven by a {type(process).__name__}, no schedule")
        return process

    @property
    def gaussian(self) -> GaussianStep:
        """Its step, where partial signatures drive it.

        Raises:
            SigdegError: If other noise does.
        """
        if not isinstance(self.step, GaussianStep):
            raise SigdegError(f"{self.name} is a {type(self.step).__name__}: no path drives it")
        return self.step

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser of a teacher's step, without guidance.

        Raises:
            SigdegError: If its step has none: it is a student.
        """
        found = unguided(self.step)
        if found is None:
            raise SigdegError(f"{self.name} is a {type(self.step).__name__}, without a denoiser")
        return found

    def to(self, device: torch.device | str) -> Model:
        """The same model, its networks moved to a device."""
        for part in (self.step, self.codec):
            if isinstance(part, nn.Module):
                part.to(device)
        return self

    @torch.no_grad()
    def sample(
        self,
        n: int,
        steps: int | None = None,
        *,
        grid: Tensor | Sequence[float] | None = None,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        generator: Generator | Sequence[Generator] | None = None,
        batch_size: int | None = None,
        callback: Callable[[int, Tensor, Tensor], None] | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        **request: Any,
    ) -> Tensor:
        r"""Draw samples, in the user's own units.

        Arguments:
            n: How many.
            steps: Steps of each (default: all of its grid).
            grid: Other times, in place of its own.
            seed: Seed of the first; sample i has `seed` + i.
            seeds: One seed a sample. The same seed is driven by the same noise in any batch.
            generator: One shared generator, or one a sample, in place of seeds.
            batch_size: Samples at a time (default: all).
            callback: Called as `callback(k, time, x)` for every batch, see `sample`; x are states.
            device: Where to compute (default: where it is); it stays there.
            progress: Show a progress bar.
            request: What the conditions take, such as `label`.

        Returns:
            The samples, decoded.

        Raises:
            SigdegError: If it has no grid of so many steps, no such condition, or a sample is not
                finite.
        """
        if seed is not None:
            if seeds is not None:
                raise SigdegError("give either seed, of the first sample, or seeds, one each")
            seeds = range(seed, seed + n)
        if device is not None:
            self.to(device)
        states = sample(
            self.step,
            self.grid.at(steps) if grid is None else grid,
            (n, *self.shape),
            seeds=seeds,
            generator=generator,
            batch_size=batch_size,
            callback=callback,
            progress=progress,
            **self.condition(n, **request),
        )
        return self.decode(states)

    def decode(self, states: Tensor) -> Tensor:
        """Samples in the user's own units, of states on any device."""
        if isinstance(self.codec, nn.Module):
            self.codec.to(states.device)
        return self.codec.decode(states)

    def condition(self, n: int | None = None, **request: Any) -> dict[str, Any]:
        """Conditions of n samples, see `Conditions`, where its network is."""
        given = self.conditions(n, **request)
        place = None
        if isinstance(self.step, nn.Module):
            place = next((p.device for p in self.step.parameters()), None)
        return {key: value.to(place) for key, value in given.items()}

    def guided(self, scale: float, until: float = 1.0, weak: Model | None = None) -> Model:
        """The same model, guided by a weaker version of it or else by its classes.

        See `AutoGuidance` and `ClassifierFreeGuidance`.

        Arguments:
            scale: The scale; 1 is none.
            until: The time above which there is none.
            weak: The weaker version.

        Raises:
            SigdegError: If it has no classes and there is no weaker version, if it is not known
                which class means none, or if the weaker version is one of another model.
        """
        if isinstance(self.step, SignatureStudent):
            raise SigdegError(f"{self.name} is a student: the teacher is guided, before distilling")
        own: Guidance
        if weak is not None:
            self.check_version(weak)
            own = AutoGuidance(self.denoiser, weak.denoiser, scale, until)
        else:
            own = ClassifierFreeGuidance(self.denoiser, scale, self.none(), until)
        card = dataclasses.replace(
            self.card,
            guidance=scale,
            guidance_until=until,
            weak=None if weak is None else weak.name,
        )
        return dataclasses.replace(self, step=Exponential(own), card=card)

    def none(self) -> dict[str, Any]:
        """The condition that means none, once; refuses where there is none or it is not known."""
        if not isinstance(self.conditions, Classes):
            if isinstance(self.conditions, Unconditional):
                raise SigdegError(
                    f"{self.name} knows no classes: guidance needs a conditional teacher, or a "
                    "weaker version of this one"
                )
            return self.conditions.none(1)
        count, null = len(self.conditions.labels), self.conditions.null
        if count == 1 and null is None:
            raise SigdegError(
                f"{self.name} has one class, and none beside it to guide away from: leave guidance "
                "out, or give a weaker version of the teacher"
            )
        if null is None:
            raise SigdegError(
                f"{self.name} is not known to have a class that means none: guidance needs to be "
                f"told, such as null_class={count - 1} (--null-class {count - 1}) if it was "
                "trained with the last for that, or a weaker version of the teacher"
            )
        return self.conditions.none(1)

    def check_version(self, weak: Model) -> None:
        """Refuse what cannot guide: of other samples, noise levels or classes."""
        if (weak.shape, weak.conditions) != (self.shape, self.conditions):
            raise SigdegError(
                f"{weak.name} draws samples of shape {weak.shape} with {classes(weak)}, "
                f"{self.name} of {self.shape} with {classes(self)}: it is no version of it"
            )
        if not weak.schedule.equals(self.schedule):
            raise SigdegError(
                f"{weak.name} has other noise levels than {self.name}: it cannot guide it"
            )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained` and the command line read.

        It holds `config.json`, `model.safetensors` and, unless samples are states, `decoder/`. That
        of a student is read by `SignatureStudent.from_pretrained` too.

        Raises:
            SigdegError: If what it is made of cannot be saved: an exact law, guidance.
        """
        folder, conditions = Path(folder), None
        if isinstance(self.conditions, Classes):
            conditions = dataclasses.asdict(self.conditions)
        elif not isinstance(self.conditions, Unconditional):
            raise SigdegError(f"{type(self.conditions).__name__} cannot be saved: Classes can")
        more: dict[str, Any] = {"conditions": conditions, "origin": self.card.written}
        if not isinstance(self.codec, Identity):
            more["decoder"] = "decoder"
        save_codec(self.codec, folder)
        if isinstance(self.step, SignatureStudent):
            self.step.save_pretrained(folder, **more)
            return
        if isinstance(getattr(self.step, "denoiser", None), Guidance):
            raise SigdegError("guidance is not saved: save the model that was guided")
        denoiser = self.denoiser
        if not isinstance(denoiser, NetworkDenoiser) or type(self.step) is not Exponential:
            raise SigdegError(
                f"a {type(self.step).__name__} of a {type(denoiser).__name__} cannot be saved: the "
                "Exponential step of a NetworkDenoiser can, and any student"
            )
        config = {
            "format": TEACHER,
            "shape": list(self.shape),
            "prediction_type": denoiser.prediction_type,
            "clip": denoiser.clip,
            "data_std": denoiser.data_std,
            "timesteps": denoiser.timesteps,
            **more,
            "schedule": denoiser.schedule.config(),
            "network": network_config(denoiser.network),
        }
        save_model(folder, config, denoiser.network.state_dict())

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        network: nn.Module | None = None,
        schedule: Schedule | None = None,
    ) -> Model:
        """Load a model from a folder, or from a repository id of the Hugging Face hub.

        Students that `SignatureStudent.save_pretrained` wrote are models, too.

        Arguments:
            path: Folder written by `save_pretrained`, that of the run which made it, or a hub id.
            network: The network, where it is a class of your own; its weights are loaded into it.
            schedule: The schedule, where it is a class of your own.

        Raises:
            SigdegError: If the folder is missing, holds no model, or is damaged.
        """
        folder = find_student(path)
        written = read_json(folder / "config.json")
        if written.get("format") == TEACHER:
            made = load_denoiser(folder, written, network, schedule)
        else:
            made = as_model(SignatureStudent.from_pretrained(folder, network, schedule))
        told = written.get("conditions")
        CONDITIONS(told, "conditions")
        conditions = Classes(tuple(told["labels"]), told.get("null")) if told else made.conditions
        card = Card.read(written.get("origin") or {})
        if card.name is None:
            name = folder.resolve().name if Path(path).is_dir() else str(path)
            card = dataclasses.replace(card, name=name)
        return dataclasses.replace(made, codec=find_codec(folder), conditions=conditions, card=card)


def unguided(step: Step) -> Denoiser | None:
    """The denoiser of a step, without guidance; None where it has none."""
    found = getattr(step, "denoiser", None)
    while isinstance(found, Guidance):
        found = found.denoiser
    return found if isinstance(found, Denoiser) else None


def classes(model: Model) -> int | None:
    """How many classes a model knows, in an error message."""
    return len(model.conditions.labels) if isinstance(model.conditions, Classes) else None


def conditions_of(network: nn.Module) -> Conditions:
    """What a diffusers U-Net of classes can be asked for; of another network nothing is known."""
    labels, description = class_labels(network), network_config(network)
    while "of" in description:  # a student's, around its teacher's
        description = description["of"]
    if labels is None:
        return Unconditional()
    return Classes(tuple(labels), description["config"]["null_class"])


def as_model(
    step: Step | Denoiser, shape: Sequence[int] | None = None, name: str | None = None
) -> Model:
    """A student, a denoiser or a step of one as a model.

    Arguments:
        step: The student, the denoiser (with its exponential step), or the step.
        shape: Shape of one state; a student knows its own.
        name: Its name.

    Raises:
        SigdegError: If the shape is missing.
    """
    card = Card(name)
    if isinstance(step, SignatureStudent):
        conditions = conditions_of(step.network)
        return Model(step, step.sample_shape, step.grids, conditions=conditions, card=card)
    sizes = shape if isinstance(shape, Sequence) else ()
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise SigdegError(
            "a teacher is told the shape of its samples, such as shape=(3, 32, 32)"
            + ("" if shape is None else f", got {shape!r:.60}")
        )
    if isinstance(step, Denoiser):
        step = Exponential(step)
    if not hasattr(step, "process"):
        raise SigdegError(f"a {type(step).__name__} is no step, no denoiser and no model")
    schedule: Any = step.process
    grid = Grid(tuple(fine_grid(schedule, CALLS - 1, "power").tolist()))
    made = Model(step, tuple(sizes), grid, card=card)
    network = getattr(unguided(step), "network", None)
    conditions = Unconditional() if network is None else conditions_of(network)
    return dataclasses.replace(made, conditions=conditions)


def load_denoiser(
    folder: Path, written: dict[str, Any], network: nn.Module | None, schedule: Schedule | None
) -> Model:
    """A teacher that `Model.save_pretrained` wrote."""
    weights = folder / "model.safetensors"
    try:
        SAVED(written, "")
        network = build_network(written["network"], weights, network)
        options = {
            key: written[key] for key in ("prediction_type", "clip", "data_std", "timesteps")
        }
        schedule = schedule_from_config(written["schedule"], schedule)
        denoiser = NetworkDenoiser(network, schedule, **options)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SigdegError(f"{folder / 'config.json'} does not fit a teacher: {error}") from None
    load_weights(network, weights, config=written)
    return as_model(denoiser.eval(), written["shape"])
