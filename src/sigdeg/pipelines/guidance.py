r"""What becomes of guidance in a student.

The convention is diffusers': of outputs $c$ with and $u$ without the condition a scale $w$ makes
$u + w (c - u)$, and 1 is the condition alone. A teacher is guided by its pipeline; its student is

- baked: taught by guided runs, called without, at half the cost of a call;
- told: the scale is an input, of pipelines that know such networks by their own argument, of others
  by `pipe.scheduler.guidance`;
- guided again: a share of the calls it learns by is without the condition, so that a scale above 1
  pushes it from what it draws of any condition to what it draws of this one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from sigdeg.errors import SigdegError, check_choice
from sigdeg.pipelines.facts import Trace
from sigdeg.pipelines.guiders import guiders
from sigdeg.pipelines.layer import Called
from sigdeg.pipelines.trace import SCALES
from sigdeg.schema import flag, listed, maybe, number, record, text, whole

__all__ = [
    "Guidance",
    "GuidanceWay",
    "add_condition",
    "find_guidance",
    "most_guided",
    "remove_condition",
]

GuidanceWay = Literal["baked", "input"]
WIDTH = 256  # of the embedding of a scale, as pipelines with such networks have it
CONDITION = "time_embedding.cond_proj"  # the layer that such networks take it by
SAVED = record(
    {},
    {
        "name": maybe(text),
        "scales": listed(number()),
        "off": flag,
        "way": text,
        "width": maybe(whole(1)),
        "dropout": number(0, 1),
        "guiders": listed(text),
        "single": flag,
    },
)
ON = 2.0  # a scale that guides, where only what is asked of the network counts


@dataclass(frozen=True)
class Guidance:
    """How a student is guided; JSON in what it is saved with.

    Arguments:
        name: The pipeline's argument that scales it, if there is one.
        scales: Those that the teacher was called with, in order.
        off: Whether the student's calls turn it off.
        way: Whether its student is told of it.
        width: Of the embedding of a scale, where the pipeline itself tells the network.
        dropout: Share of the calls that are without the condition.
        guiders: Components of the teacher that guide, which are off in the student.
        single: Whether a step without it is one call of the network, for one output a sample.
    """

    name: str | None = None
    scales: tuple[float, ...] = ()
    off: bool = False
    way: GuidanceWay = "baked"
    width: int | None = None
    dropout: float = 0.0
    guiders: tuple[str, ...] = ()
    single: bool = True

    @property
    def beside(self) -> bool:
        """Whether the scale is told to the layer beside the input layer."""
        return self.way == "input" and self.width is None

    @property
    def once(self) -> bool:
        """Whether guidance that is left on in its calls counts twice."""
        return self.off and self.single and self.width is None and not self.dropout

    @property
    def usual(self) -> float | None:
        """The scale in the middle of those that were taught, where the scheduler tells it."""
        return self.scales[len(self.scales) // 2] if self.beside else None

    @property
    def call(self) -> dict[str, Any]:
        """The argument of a teacher's call that guides it as it was taught, in the middle."""
        return {self.name: self.scales[len(self.scales) // 2]} if self.name and self.scales else {}

    @property
    def written(self) -> dict[str, Any]:
        """It as JSON."""
        return {**asdict(self), "scales": list(self.scales), "guiders": list(self.guiders)}

    @classmethod
    def read(cls, written: Mapping[str, Any]) -> Guidance:
        """What `written` gave."""
        SAVED(written, "guidance")
        known: dict[str, Any] = {}
        for name in {f.name for f in fields(cls)} & written.keys():
            value = written[name]
            known[name] = tuple(value) if isinstance(value, list) else value
        made = cls(**known)
        check_choice(made.way, get_args(GuidanceWay), "guidance.way")
        if made.way == "input" and not made.scales:
            raise SigdegError("guidance.scales must be what the student is told, got none")
        return made

    def scale(self, call: Mapping[str, Any]) -> float:
        """The scale of a call, one of those that were taught where the call does not say."""
        return float(call.get(self.name or "", self.scales[0]))

    def without(self, call: Mapping[str, Any], off: Mapping[str, Any]) -> dict[str, Any]:
        """A call of the student: guidance is off, but where the pipeline is to tell the network."""
        return {**call, **{k: v for k, v in off.items() if self.width is None or k != self.name}}

    def guided(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """A call that is guided, whatever its scale."""
        return {**call, str(self.name): max(ON, self.scale(call))}

    def says(self) -> str:
        """What of it a user has to know."""
        taught = " to ".join(f"{v:g}" for v in sorted({*self.scales[:1], *self.scales[-1:]}))
        if self.width is not None:
            return f"Its network is told the guidance: {self.name} from {taught}. {NEGATIVE}"
        if self.beside:
            return (
                f"Its network is told the guidance: pipe.scheduler.guidance from {taught}, with "
                f"{self.name} off. {NEGATIVE}"
            )
        baked = f"Guidance of scale {taught} is in its weights"
        if self.dropout:
            begin = f"{baked}. It" if self.off else "It"
            return (
                f"{begin} can be guided again: {self.name} above 1 pushes it further to its "
                "condition, at the cost of a second call, and away from a negative prompt."
            )
        if self.guiders:
            return (
                f"Guidance is in its weights: its {' and its '.join(self.guiders)} is off, which "
                f"halves the cost of a call. {NEGATIVE}"
            )
        if self.off:
            cost = ", which halves the cost of a call" if self.single else ""
            return f"{baked}: leave it off{cost}. {NEGATIVE}"
        if self.scales and self.scales[-1] > 1:
            return f"Its network is told the guidance by its pipeline, as it was taught: {taught}."
        return "It was taught without guidance."


NEGATIVE = "Negative prompts have no effect."


def find_guidance(
    pipe: Any,
    calls: Sequence[Mapping[str, Any]],
    off: Mapping[str, Any],
    networks: Sequence[str],
    way: GuidanceWay = "baked",
    dropout: float = 0.0,
) -> Guidance:
    """What becomes of the guidance of calls.

    Arguments:
        pipe: The pipeline.
        calls: Its calls.
        off: Arguments that turn guidance off.
        networks: Names of its networks.
        way: What is asked for.
        dropout: Share of the calls that are to be without the condition.

    Raises:
        SigdegError: If the calls leave nothing to tell the student of, or nothing to drop.
    """
    check_choice(way, get_args(GuidanceWay), "guidance")
    if not 0 <= dropout < 1:
        raise SigdegError(f"dropout must lie in [0, 1), got {dropout}")
    kind, known = type(pipe).__name__, inspect.signature(type(pipe).__call__).parameters
    own = tuple(name for name in guiders(pipe) if name in off)
    off = {name: value for name, value in off.items() if name not in own}
    names = [name for name in ("guidance_scale", *off) if name in known and name.endswith(SCALES)]
    name = next((name for name in names if name in off or not off), None)
    if name is None:
        if way == "input" or dropout:
            raise SigdegError(f"{kind} has no guidance of one scale: there is nothing to teach")
        return Guidance(off=bool(off), guiders=own)
    scales = tuple(sorted({float(call.get(name, known[name].default)) for call in calls}))
    if way == "input" and (len(scales) < 2 or not off):
        raise SigdegError(
            f'guidance="input" learns from calls of several scales, such as {name} 1, 3 and 7: '
            f"these have {', '.join(f'{v:g}' for v in scales)}"
        )
    if way == "input" and dropout:
        raise SigdegError("a student is told its guidance or guided again: not both")
    embeds = hasattr(pipe, "get_guidance_scale_embedding") and all(
        takes_condition(pipe.components[network]) for network in networks
    )
    width = WIDTH if way == "input" and embeds else None
    return Guidance(name, scales, bool(off), way, width, dropout, own)


def most_guided(pipe: Any, calls: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The call of the largest scale: what turns its guidance off turns off that of all."""
    known = inspect.signature(type(pipe).__call__).parameters
    names = [name for name in known if name.endswith(SCALES)]

    def scale(call: Mapping[str, Any]) -> float:
        values = [call.get(name, known[name].default) for name in names]
        return max((v for v in values if isinstance(v, int | float)), default=0)

    return max(calls, key=scale)


def takes_condition(network: Any) -> bool:
    """Whether a network's class can be told of guidance, and it is not yet."""
    embedding = getattr(network, "time_embedding", None)
    unset = getattr(embedding, "cond_proj", "") is None
    return unset and "time_cond_proj_dim" in network.config


def add_condition(network: Any, width: int) -> None:
    """Let a network be told of guidance, to no effect as yet."""
    first = network.time_embedding.linear_1
    layer = nn.Linear(width, first.in_features, bias=False)
    nn.init.zeros_(layer.weight)
    network.time_embedding.cond_proj = layer.to(first.weight.device, first.weight.dtype)
    network.register_to_config(time_cond_proj_dim=width)


def remove_condition(network: Any) -> None:
    """Undo `add_condition`."""
    network.time_embedding.cond_proj = None
    network.register_to_config(time_cond_proj_dim=None)


@contextmanager
def conditioned(networks: Sequence[Any], width: int | None) -> Iterator[None]:
    """In here networks can be told of guidance; nothing is changed where there is no width."""
    given = networks if width is not None else ()
    for network in given:
        add_condition(network, width or 0)
    try:
        yield
    finally:
        for network in given:
            remove_condition(network)


def negative_half(
    guided: Sequence[Called], plain: Sequence[Called], trace: Trace, samples: int
) -> list[Called]:
    """Of each step of a guided run the call, or the half of it, that is without the condition.

    Arguments:
        guided: The calls of the run.
        plain: Those of the same run without guidance, one a step.
        trace: What is known of the network.
        samples: Samples of the run.

    Raises:
        SigdegError: If a step asks the network for more than two outputs.
    """
    found = []
    for own in plain:
        parts = [p for c in guided if c.k == own.k for p in c.parts(trace.state, samples)]
        if len(parts) != 2:
            raise SigdegError(
                f"a step of this pipeline asks its {own.name} for {len(parts)} outputs: only "
                "guidance by two can be taught again"
            )
        found.append(max(parts, key=lambda part: apart(part, own)))
    return found


def apart(one: Called, other: Called) -> float:
    """How far the arguments of two calls are apart."""
    pairs = zip(
        *(pytree.tree_leaves((c.args, dict(sorted(c.kwargs.items())))) for c in (one, other)),
        strict=False,
    )
    total = 0.0
    for a, b in pairs:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            same = a.shape == b.shape
            total += float((a.double() - b.double()).abs().sum()) if same else torch.inf
    return total
