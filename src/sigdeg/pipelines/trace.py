r"""What one run of a pipeline tells of its network: nothing of it has to be written down by hand.

The user's own call runs for two steps. What the network is called with is compared with the state
that the scheduler steps on: that gives the argument of the state, the copies for guidance, the
timestep in its own units and what becomes of the output. Then its input layer is looked for, see
`sigdeg.pipelines.layer`.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Generator, Tensor, nn

from sigdeg.denoiser import Timesteps
from sigdeg.errors import SigdegError, reason
from sigdeg.pipelines.checks import NONE, check_finite, check_scheduler, suspects
from sigdeg.pipelines.facts import Trace
from sigdeg.pipelines.guiders import guiders, turned_off
from sigdeg.pipelines.layer import Called, Key, find_layer
from sigdeg.pipelines.numbered import LEAST, Layout, find_layout
from sigdeg.pipelines.relation import CLOSE, find_relation, first_tensor, is_list
from sigdeg.pipelines.scheduler import SigDEGScheduler, replaced
from sigdeg.pipelines.stepped import Logged, first_number, precise

__all__ = [
    "call_pipeline",
    "recorded",
    "steps_of",
    "trace",
    "unguided",
]

# Guidance is off at 1, but for those of attention that add to what is there.
SCALES = ("guidance_scale", "cfg_scale")
ADDED = ("pag_scale", "pag_adaptive_scale", "sag_scale")


def call_pipeline(pipe: Any, call: Mapping[str, Any], steps: int, generator: Any = None) -> Any:
    """Run a pipeline without gradient, for so many steps; guiders that are False in it are off.

    Raises:
        SigdegError: If it refuses the call: what it says, in one line.
    """
    given = {"num_inference_steps": steps, "generator": generator, **call}
    off = [name for name in guiders(pipe) if given.pop(name, None) is False]
    quiet = getattr(pipe, "_progress_bar_config", None)
    pipe.set_progress_bar_config(disable=True)
    try:
        with torch.no_grad(), turned_off(pipe, off):
            return pipe(**given)
    except SigdegError:
        raise
    except Exception as error:  # whatever a pipeline makes of its arguments
        said = f"{type(pipe).__name__} fails: {reason(error)}{suspects(pipe)}"
        raise SigdegError(said) from error
    finally:
        pipe.__dict__.pop("_progress_bar_config", None)
        if quiet is not None:
            pipe._progress_bar_config = quiet


@contextmanager
def recorded(
    pipe: Any, scheduler: SigDEGScheduler, names: tuple[str, ...] = ()
) -> Iterator[list[Called]]:
    """The calls of a pipeline's networks (default: of all its components) are recorded in here."""
    calls: list[Called] = []
    handles = []

    def listen(name: str, module: nn.Module) -> None:
        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            # Copied: some U-Nets empty the lists they are given, some pipelines write into a state.
            args, kwargs = pytree.tree_map_only(
                Tensor, lambda v: v.detach().clone(), (args, kwargs)
            )
            calls.append(Called(name, scheduler.k, args, kwargs))

        def after(_: nn.Module, args: Any, output: Any) -> None:
            mine = next(c for c in reversed(calls) if c.name == name)
            mine.output = output

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))

    for name, module in pipe.components.items():
        if isinstance(module, nn.Module) and name in (names or pipe.components):
            listen(name, module)
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
        for called in calls:  # made before the scheduler was told with which step it begins
            called.k = max(called.k, scheduler.first)


class Log(list[Logged]):
    """Steps of a scheduler and of its copies: by one some pipelines step a second state."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Log:
        return self


def observe(
    pipe: Any, call: Mapping[str, Any], steps: int, scheduler: SigDEGScheduler
) -> list[Called]:
    """Run a call under a scheduler, and see what the components are called with in its steps."""
    with replaced(pipe, scheduler), recorded(pipe, scheduler) as calls:
        call_pipeline(pipe, call, steps, Generator().manual_seed(0))
    return [c for c in calls if c.k < len(scheduler.grid) - 1]


def trace(pipe: Any, call: Mapping[str, Any], timesteps: Timesteps = "continuous") -> Trace:
    """Find out how a pipeline calls its network, by one run of a call.

    Arguments:
        pipe: The pipeline; its scheduler is replaced while it runs.
        call: Arguments of the pipeline.
        timesteps: Which ones it is shown.

    Raises:
        SigdegError: If the pipeline fails, or its network cannot be made out.
    """
    name = type(pipe).__name__
    check_scheduler(pipe)
    scheduler = SigDEGScheduler.like(pipe.scheduler, student="", timesteps=timesteps)
    log = scheduler.log = Log()
    calls = observe(pipe, call, steps_of(pipe, call), scheduler)
    check_log(pipe, log)
    first, layout = log[0], None
    at_first = [c for c in calls if c.k == first.k]
    shown = ((c, find_state(c, first.before, scheduler)) for c in reversed(at_first))
    called, found = next(((c, found) for c, found in shown if found is not None), (None, None))
    if called is None or found is None:
        layout = numbered(pipe, call, list(dict.fromkeys(c.name for c in calls if c.k > first.k)))
        called = next(c for c in at_first if c.name == layout.name)
        found = layout.state, None, 0, layout.copies, None
    state, axis, begin, copies, listed = found
    kind = type(pipe.components[called.name])
    mine = [c for c in calls if type(pipe.components[c.name]) is kind]
    time, scale, shift = find_time(mine, scheduler, state)
    own = [c for c in mine if c.k == first.k]
    if any(first_tensor(c.output).requires_grad for c in own):
        raise SigdegError(
            f"{name} changes its states by gradients of its {called.name}: its steps are none of a "
            "diffusion alone"
        )
    parts = own
    if (copies, len(own)) != (1, 1):
        alone = listed is None and len(first.before) == first.samples
        parts = [p for c in own for p in c.parts(state, first.samples)] if alone else []
    around = scheduler.core.preconditioning(first.before, scheduler.grid[first.k])
    mean = scheduler.core.mean(precise(first.output), first.before, around)
    relation, said, which = find_relation(parts, first.output, mean, axis, begin)
    if layout is not None:
        relation, said, which = layout.relation, 0, 0
    net = pipe.components[called.name]
    channels = first.before.shape[1 if axis is None else axis]
    names = tuple(dict.fromkeys(c.name for c in mine))
    layer = find_layer(net, called, state)[0]
    if layer is None:
        raise SigdegError(f"{name}: no layer of its {called.name} sees the whole state as it is")
    facts = state, axis, channels, copies, len(own), time, scale, shift
    more = begin, listed, said, which
    samples = first.samples // (1 if layout is None else layout.rows)
    views = () if layout is None else (layout.rows, layout.place, layout.answer)
    made = Trace(names, *facts, relation, layer, samples, *more, *views)
    if relation is not None:
        check_places(name, made, mine)
    return replace(made, timesteps=timesteps)


def check_log(pipe: Any, log: Sequence[Logged]) -> None:
    """Refuse a pipeline that steps nothing, several states, or what is not finite."""
    name = type(pipe).__name__
    if not log:
        raise SigdegError(f"{name} never steps its scheduler: {NONE}")
    if len({logged.k for logged in log}) < len(log):
        raise SigdegError(
            f"{name} steps several states side by side, such as a film and its sound: a student "
            "has one"
        )
    check_finite(pipe, log[0].output)


def check_places(name: str, made: Trace, calls: Sequence[Called]) -> None:
    """Refuse a pipeline whose network does not find the state where it was in its first step."""
    for called in calls:
        try:
            made.part(called.argument(made.state))
        except (RuntimeError, LookupError, SigdegError):
            raise SigdegError(
                f"{name} shows its {called.name} the state in another place from step to step: "
                "what it keeps between them is in no call of a student"
            ) from None


def numbered(pipe: Any, call: Mapping[str, Any], names: Sequence[str]) -> Layout:
    """Where the state stands in calls of some components, by a run whose states are numbers.

    Raises:
        SigdegError: If it stands nowhere.
    """
    count, found = steps_of(pipe, call, LEAST), None
    with suppress(SigdegError):  # not all pipelines live on numbers
        found = find_layout(pipe, names, count, partial(observe, pipe, call, count))
    if found is None:
        kind = type(pipe).__name__
        raise SigdegError(f"{kind}: no component is called with the state that its scheduler steps")
    return found


def steps_of(pipe: Any, call: Mapping[str, Any], least: int = 2) -> int:
    """As many steps as leave so many to be made: from an image, a part of them is."""
    known = inspect.signature(type(pipe).__call__).parameters
    strength = call.get("strength", known["strength"].default if "strength" in known else 1.0)
    shortened = isinstance(strength, int | float) and 0 < strength < 1
    return math.ceil(least / strength) if shortened else least


def find_state(
    called: Called, state: Tensor, scheduler: SigDEGScheduler
) -> tuple[Key, int | None, int, int, tuple[int, ...] | None] | None:
    """The argument that is the state, the axis of other channels, `begin`, copies, `listed`."""
    t = scheduler.grid[called.k]
    seen = scheduler.core.preconditioning(state, t).scale(state)
    for key, value in called.items():
        listed = None
        if is_list(value):
            value = torch.stack(value)
            ones = [i for i in range(1, value.ndim) if value.shape[i] == 1]
            listed = tuple(ones[: max(0, value.ndim - state.ndim)])
            value = value.squeeze(listed)
        if not isinstance(value, Tensor) or value.ndim != state.ndim or len(value) % len(state):
            continue
        if not value.is_floating_point():
            continue
        wider = [i for i in range(1, value.ndim) if value.shape[i] != state.shape[i]]
        if len(wider) > 1 or any(value.shape[i] < state.shape[i] for i in wider):
            continue
        axis = wider[0] if wider else None
        copies = len(value) // len(state)
        others = 0 if axis is None else value.shape[axis] - state.shape[axis]
        for begin, expected in itertools.product(sorted({0, others}), (seen, state)):
            part = value if axis is None else value.narrow(axis, begin, state.shape[axis])
            whole = expected.repeat(copies, *(1,) * (state.ndim - 1)).to(part)
            if float((part - whole).abs().max()) <= CLOSE * float(whole.abs().max()):
                return key, axis, begin, copies, listed
    return None


def find_time(
    calls: list[Called], scheduler: SigDEGScheduler, state: Key
) -> tuple[Key | None, float, float]:
    """The argument that is the timestep, and how it follows from the scheduler's."""
    first, last = calls[0], calls[-1]
    if first.k == last.k:
        return None, 1.0, 0.0
    own = [float(scheduler.timesteps[c.k]) for c in (first, last)]
    best: tuple[Key | None, float, float] = None, 1.0, 0.0
    for key, _ in first.items():
        if key == state or (isinstance(key, int) and key >= len(last.args)):
            continue
        try:
            told = [first_number(v.argument(key)) for v in (first, last)]
        except (TypeError, ValueError, RuntimeError, IndexError, KeyError):
            continue
        if told[0] == told[1]:
            continue
        scale = (told[0] - told[1]) / (own[0] - own[1])
        if best[0] is None or "time" in str(key):
            best = key, scale, told[0] - scale * own[0]
    return best


def unguided(pipe: Any, call: Mapping[str, Any]) -> tuple[dict[str, Any], Trace]:
    """A call without guidance, its trace, and one network call a step where there is such a call.

    Guidance that the network is told of by an input (`FluxPipeline`'s) stays. What else guides is
    turned off: its components that do, and the arguments that scale it.

    Raises:
        SigdegError: If nothing turns the guidance off.
    """
    try:
        return turn_off(pipe, call)
    except SigdegError:
        own = getattr(pipe.scheduler, "timesteps", None)
        if not isinstance(own, Tensor) or own.is_floating_point():
            raise
        with suppress(SigdegError):  # some look tables up by their timesteps
            return turn_off(pipe, call, "integer")
        raise


def turn_off(
    pipe: Any, call: Mapping[str, Any], timesteps: Timesteps = "continuous"
) -> tuple[dict[str, Any], Trace]:
    """See `unguided`; the pipeline is shown such timesteps."""
    known = inspect.signature(type(pipe).__call__).parameters
    scales = [name for name in known if name.endswith(SCALES) and name not in ADDED]
    added = {name: 0.0 for name in ADDED if name in known}
    inner = [name for name in scales if name != "guidance_scale"]
    none = dict.fromkeys(guiders(pipe), False)
    tries: list[dict[str, Any]] = [
        {},
        {**dict.fromkeys(inner, 1.0), **added},
        {**dict.fromkeys(scales, 1.0), **added},
        {**dict.fromkeys(scales, 0.0), **added},
    ]
    why, several = "", None
    for off in tries:
        try:
            found = trace(pipe, {**call, **none, **off}, timesteps)
        except SigdegError as error:
            if not off:  # the call fails as it is
                raise
            why = why or f": {error}"
            continue
        made = {**call, **none, **off}, found
        if found.relation is not None and found.single:
            return made
        if found.relation is not None:
            several = several or made
        elif found.single:
            why = ": what it steps on is not what its network said, or the first part of it"
    if several is not None:
        return several
    known_by = ", ".join(scales) or "its call"
    raise SigdegError(
        f"{type(pipe).__name__}: guidance cannot be turned off by {known_by}, so that a step is "
        f"one call of its network{why}"
    )
