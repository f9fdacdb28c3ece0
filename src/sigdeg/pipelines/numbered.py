"""A run of a pipeline whose states, and what its network says of them, are numbers.

Where a state is packed, cut or turned on its way to the network, comparing values would not tell
one number from its like, least of all in half precision. So a scheduler answers every step with the
digits of numbers, one for each element of the state, and the network is made to say such numbers:
where they turn up is where the state stands, and what is stepped on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from sigdeg.pipelines.facts import Relation
from sigdeg.pipelines.layer import Called, Key
from sigdeg.pipelines.scheduler import SigDEGScheduler
from sigdeg.pipelines.stepped import Stepped
from sigdeg.pipelines.views import View

__all__ = ["LEAST", "Layout", "Numbers", "find_layout", "saying"]

BASE, DIGITS = 128, 4  # half precision holds each digit; there are 2^28 numbers
PHASES = DIGITS + 1  # of a run: one step a digit, and one of zeros
ROUNDED = 0.01  # some pipelines turn what their network says into means, and back
LEAST = PHASES + 1  # steps of a run: the network sees a state one step later


class Layout(NamedTuple):
    """Where a state stands in a call, and what is stepped on in its output.

    Attributes:
        name: The component that is called with it.
        state: Its argument.
        copies: Of the batch in one call.
        rows: Of the scheduler's state, that are one sample.
        place: Where it stands in its argument.
        answer: Where what is stepped on stands in the output, if it does.
        relation: Whether that is negated.
    """

    name: str
    state: Key
    copies: int
    rows: int
    place: View
    answer: View | None
    relation: Relation | None


def digits(like: Tensor, step: int) -> Tensor:
    """Those of a step, of the numbers of a tensor's elements: from 1, so that 0 is none of them."""
    phase, numbers = step % PHASES, torch.arange(like.numel(), device=like.device)
    shown = torch.zeros_like(numbers) if phase == DIGITS else numbers // BASE**phase % BASE + 1
    return shown.reshape(like.shape).to(like.dtype)


def numbers_of(shown: Mapping[int, Tensor]) -> Tensor | None:
    """The numbers whose digits tensors show, by step; -1 where none stands."""
    phases = {step % PHASES: values.detach().double().cpu() for step, values in shown.items()}
    if len(phases) < PHASES or len({values.shape for values in phases.values()}) > 1:
        return None
    whole = {phase: values.round() for phase, values in phases.items()}
    known, total = whole[DIGITS] == 0, torch.zeros_like(phases[0])
    for phase in range(DIGITS):
        known &= (whole[phase] >= 1) & (whole[phase] <= BASE)
        total += (whole[phase] - 1) * BASE**phase
    for phase, values in phases.items():
        known &= (values - whole[phase]).abs() < ROUNDED
    return total.where(known, -1).long()


class Numbers(SigDEGScheduler):
    """A scheduler that answers each step with digits in the place of a state.

    Attributes:
        given: What it was given as the network's output, by step.
    """

    given: dict[int, Tensor]

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
        **others: Any,
    ) -> Stepped | tuple[Tensor, Tensor]:
        """See `SigDEGScheduler.step`."""
        self.begin(timestep)
        self.given[self.k] = model_output.clone()
        new = digits(sample, self.k)
        self.k += 1
        return Stepped(new, new) if return_dict else (new, new)


@contextmanager
def saying(modules: Sequence[nn.Module], scheduler: SigDEGScheduler) -> Iterator[None]:
    """The first tensor of what some modules say shows digits in here."""

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        leaves, structure = pytree.tree_flatten(output)
        for number, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                leaves[number] = digits(leaf, scheduler.k)
                break
        return pytree.tree_unflatten(leaves, structure)

    handles = [module.register_forward_hook(after) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def find_layout(
    pipe: Any, names: Sequence[str], count: int, observe: Callable[[Any], list[Called]]
) -> Layout | None:
    """Where a state stands that is no argument by itself, nor a part of one along one axis.

    Arguments:
        pipe: The pipeline.
        names: Its components that are called at each step.
        count: The number of steps that leaves `LEAST` to be made.
        observe: Runs the pipeline for as many under a scheduler, and records its calls.
    """
    scheduler: Any = Numbers.like(pipe.scheduler, student="numbers", steps=[count])
    given = scheduler.given = {}
    with saying([pipe.components[name] for name in names], scheduler):
        calls = observe(scheduler)
    shape = next(iter(given.values())).shape
    for name in reversed(names):
        own = [c for c in calls if c.name == name and c.k - 1 in given]
        for key, value in own[0].items() if own else ():
            shown = {c.k - 1: c.argument(key) for c in own if isinstance(value, Tensor)}
            found = find_place(numbers_of(shown), shape)
            if found is None:
                continue
            copies, rows, place = found
            answer, relation = None, None
            if copies == 1 and len({c.k for c in own}) == len(own):
                whole = next(v for v in pytree.tree_leaves(own[0].output) if isinstance(v, Tensor))
                answer, relation = find_answer(given, place.part, rows, whole.shape[1:])
            return Layout(name, key, copies, rows, place, answer, relation)
    return None


def find_place(numbers: Tensor | None, shape: torch.Size) -> tuple[int, int, View] | None:
    """Copies, rows and view of a state of a shape whose numbers stand in an argument."""
    if numbers is None:
        return None
    at, size = numbers.flatten(), shape.numel()
    known = ((at >= 0) & (at < size)).nonzero()[:, 0]
    first = torch.full((size,), len(at)).scatter_reduce(0, at[known], known, "amin")
    copies = len(known) // size
    if int(first.max()) == len(at) or len(numbers) % copies:
        return None
    samples = len(numbers) // copies
    if shape[0] % samples:
        return None
    rows = shape[0] // samples
    part = tuple(shape[1:]) if rows == 1 else (rows, *shape[1:])
    view = View.fit(first.reshape(samples, -1), part, tuple(numbers.shape[1:]))
    return None if view is None else (copies, rows, view)


def find_answer(
    given: Mapping[int, Tensor], part: tuple[int, ...], rows: int, whole: torch.Size
) -> tuple[View | None, Relation | None]:
    """Where what was stepped on stands in the output, and whether it is negated."""
    relations: dict[Relation, int] = {"same": 1, "negated": -1}
    for relation, sign in relations.items():
        places = numbers_of({step: sign * values for step, values in given.items()})
        if places is not None and int(places.min()) >= 0:
            view = View.fit(places.reshape(len(places) // rows, -1), part, tuple(whole))
            return view, relation if view is not None else None
    return None, None
