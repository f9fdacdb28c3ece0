r"""A pipeline as a teacher: its own run over a fine grid, seen at the coarse times.

`pipe(**call)` under a `SigDEGScheduler` of many steps is the reverse SDE of whatever the pipeline
does, guidance and all. Its states at the coarse times and its folded noise are what a student
learns from; a second run, without guidance, whose network answers at once and whose scheduler is
forced through those states, records how the student's network will be called.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from sigdeg.errors import SigdegError
from sigdeg.grids import join_rows
from sigdeg.pipelines.calls import Kept, fitted
from sigdeg.pipelines.checks import check_finite
from sigdeg.pipelines.facts import Trace
from sigdeg.pipelines.guidance import Guidance, conditioned, negative_half
from sigdeg.pipelines.layer import Called
from sigdeg.pipelines.scheduler import SigDEGScheduler, replaced
from sigdeg.pipelines.stepped import Logged
from sigdeg.pipelines.student import PipelineStudent
from sigdeg.pipelines.trace import SCALES, call_pipeline, recorded
from sigdeg.signature import PartialSignature

__all__ = ["PipelineTeacher", "Run", "answered"]


COUNTS = ("batch_size", "_per_prompt")  # how pipelines are asked for several samples


class Run(NamedTuple):
    r"""One run of a pipeline as a teacher, of some samples.

    Attributes:
        start: Number of the coarse step that it begins with: later ones where it starts from an
            image.
        states: At the coarse times, shape (samples, q + 1, \*).
        coefficients: Of the coarse steps, shape (samples, q, order, \*).
        calls: How the student's network is called at step k of K, by place `"K.k"`.
    """

    start: int
    states: Tensor
    coefficients: Tensor
    calls: dict[str, Kept]


@dataclass(frozen=True)
class PipelineTeacher:
    """A pipeline whose runs a student learns from.

    Arguments:
        pipe: The pipeline, with its own scheduler and network.
        off: Arguments that turn its guidance off, as `unguided` finds them.
        trace: What is known of its network.
        student: The student's step: its grids, and the order of its paths.
        rows: Fine times in each of the student's coarse steps.
        guidance: What of its guidance the student is told.
    """

    pipe: Any
    off: Mapping[str, Any]
    trace: Trace
    student: PipelineStudent
    rows: Sequence[Tensor]
    guidance: Guidance = field(default_factory=Guidance)
    _fixed: dict[int, dict[str, set[int]]] = field(default_factory=dict, init=False, repr=False)

    @property
    def fine_steps(self) -> int:
        """Steps of the teacher: of one sample each is a call, or more where it is guided."""
        return sum(len(row) - 1 for row in self.rows)

    @property
    def plain(self) -> dict[str, Any]:
        """Arguments that turn the guidance of a student's calls off, if it is not told of it."""
        off = self.guidance.without({}, self.off)
        return {name: v for name, v in off.items() if name not in self.guidance.guiders}

    def run(self, call: Mapping[str, Any], seed: int, dropped: bool = False) -> Run:
        """Run a call, and record the student's calls of it.

        Arguments:
            call: Arguments of the pipeline.
            seed: Of its noise: a run depends on call and seed alone.
            dropped: Whether the calls are to be without the condition.

        Raises:
            SigdegError: If the pipeline fails, gives values that are not finite, or starts between
                the student's coarse times.
        """
        log = self.march(call, seed)
        start, states, coefficients = self.coarsen(log)
        check_finite(self.pipe, states)
        calls: dict[str, Kept] = {}
        longest = len(self.rows)
        for count in self.student.steps:
            stride = longest // count
            if start % stride:
                raise SigdegError(
                    f"{type(self.pipe).__name__} starts this call after {start} of {longest} "
                    f"steps, which are no whole ones of {count}: change its strength, or the step "
                    "counts"
                )
            through = states[:, ::stride]
            calls |= self.record(call, seed, count, start // stride, through, dropped)
        return Run(start, states, coefficients, calls)

    def rehearse(self, calls: Sequence[Mapping[str, Any]]) -> list[int]:
        """Refuse calls that cannot be runs: one of each kind is, whose network answers at once.

        Returns:
            The samples of each call.

        Raises:
            SigdegError: As `run` does, or if states differ in shape.
        """
        dropped, shapes = self.guidance.dropout > 0, dict[str, torch.Size]()
        for kind, call in {kind_of(call): call for call in calls}.items():
            with answered(self.pipe, self.trace.networks):
                shapes[kind] = self.run(call, 0, dropped).states.shape
        if len({shape[1:] for shape in shapes.values()}) > 1:
            raise SigdegError(
                "the calls make states of several shapes or lengths: give them one resolution and "
                "one strength"
            )
        return [shapes[kind_of(call)][0] for call in calls]

    def march(self, call: Mapping[str, Any], seed: int) -> list[Logged]:
        """The steps of the teacher over its fine grid."""
        fine = join_rows(self.rows)
        step = {"times": fine.tolist(), "steps": [len(fine) - 1], **self.trace.marched}
        scheduler = SigDEGScheduler.like(self.pipe.scheduler, **step, student="")
        scheduler.order_drawn = self.student.order
        log: list[Logged] = []
        scheduler.log = log
        with replaced(self.pipe, scheduler):
            call_pipeline(self.pipe, call, len(fine) - 1, Generator().manual_seed(seed))
        if not log:
            raise SigdegError(f"{type(self.pipe).__name__} made no step of this call")
        return log

    def coarsen(self, log: Sequence[Logged]) -> tuple[int, Tensor, Tensor]:
        """Where a run starts, its states at the coarse times, and the folded noise."""
        fine, first = join_rows(self.rows), log[0].k
        ends = torch.tensor([0, *(len(row) - 1 for row in self.rows)]).cumsum(0).tolist()
        start = next((k for k, end in enumerate(ends[:-1]) if end >= first), None)
        if start is None or len(log) != self.fine_steps - first:
            raise SigdegError(
                f"{type(self.pipe).__name__} took {len(log)} of {self.fine_steps} steps: less than "
                "one of the student's"
            )
        samples = log[0].samples
        log = log[ends[start] - first :]
        at = [end - ends[start] for end in ends[start:]]
        states = [log[i].before[:samples] for i in at[:-1]] + [log[-1].after[:samples]]
        joined = []
        for left, right in itertools.pairwise(at):
            times = fine[ends[start] + left : ends[start] + right + 1]
            parts = [
                PartialSignature((times[j] - times[j + 1]).float(), logged.coefficients[:samples])
                for j, logged in enumerate(log[left:right])
            ]
            joined.append(PartialSignature.fold(parts).coefficients)
        return start, torch.stack(states, 1).float().cpu(), torch.stack(joined, 1).float().cpu()

    def decode(self, call: Mapping[str, Any], seed: int, states: Tensor) -> Any:
        """What the pipeline makes of the states at the end of a run, its first output."""
        count = min(self.student.steps)
        scheduler = self.forced(count, [states] * count)
        with replaced(self.pipe, scheduler), answered(self.pipe, self.trace.networks):
            generator = Generator().manual_seed(seed)
            return call_pipeline(self.pipe, {**call, **self.off}, count, generator)[0]

    def forced(self, count: int, states: Sequence[Tensor]) -> SigDEGScheduler:
        """A scheduler of the student's grid that goes through given states, whatever it is told."""
        step = {**self.student.written, "steps": [count], **self.trace.marched, "student": ""}
        if self.student.times is not None:
            step["times"] = self.student.grid(count).tolist()
        scheduler: SigDEGScheduler = SigDEGScheduler.like(self.pipe.scheduler, **step)
        scheduler.forced = states
        return scheduler

    def record(
        self,
        call: Mapping[str, Any],
        seed: int,
        count: int,
        start: int,
        states: Tensor,
        dropped: bool = False,
    ) -> dict[str, Kept]:
        """The student's calls of its network over a grid of `count` steps, through given states."""
        through = [*states[:, :1].unbind(1)] * start + [*states[:, 1:].unbind(1)]
        networks = [self.pipe.components[name] for name in self.trace.networks]
        samples, told = len(states), self.guidance
        with conditioned(networks, told.width):
            plain = told.without(call, self.off)
            calls = self.called(plain, seed, count, through)
            fixed = self.fixed(plain, seed, through, calls)
        calls = self.trace.chosen(calls, samples)
        if dropped:
            guided = self.called(told.guided(call), seed, count, through)
            calls = negative_half(guided, calls, self.trace, samples)
        if told.beside:
            scale = torch.full((samples,), told.scale(call))
            calls = [replace(c, kwargs={**c.kwargs, "sigdeg": scale}) for c in calls]
        made = {
            f"{count}.{c.k}": Kept.of(c, self.trace, samples, fixed.get(c.name, ()))
            for c in calls
            if c.k >= start
        }
        names = self.trace.networks
        for k in range(start, count):
            if f"{count}.{k}" not in made:
                raise SigdegError(
                    f"step {k + 1} of {count} does not call the {' or the '.join(names)}: another "
                    "network would have to be distilled with it"
                )
        return made

    def fixed(
        self,
        call: Mapping[str, Any],
        seed: int,
        through: Sequence[Tensor],
        calls: Sequence[Called],
    ) -> dict[str, set[int]]:
        """By network the leaves of its calls that have a row a sample by chance alone.

        Ids of 16 tokens are no rows of 16 samples: of twice as many samples they are the same.
        """
        samples = len(through[0])
        more = twice(call, samples)
        if samples == 1 or more is None:
            return {}
        if samples not in self._fixed:
            found = self._fixed[samples] = {}
            with suppress(SigdegError):  # not all calls can be of twice as many
                key = self.trace.state
                for made, own in zip(
                    self.called(more, seed, len(through), through), calls, strict=False
                ):
                    if len(made.argument(key)) != 2 * len(own.argument(key)):
                        continue
                    leaves = enumerate(Kept.of(made, self.trace, 2 * samples).leaves)
                    found[made.name] = {
                        i for i, v in leaves if isinstance(v, Tensor) and v.shape[:1] == (samples,)
                    }
        return self._fixed[samples]

    def called(
        self, call: Mapping[str, Any], seed: int, count: int, through: Sequence[Tensor]
    ) -> list[Called]:
        """The networks' calls in a run of so many steps through given states."""
        scheduler, names = self.forced(count, through), self.trace.networks
        log: list[Logged] = []
        scheduler.log = log
        with (
            replaced(self.pipe, scheduler),
            answered(self.pipe, names),
            recorded(self.pipe, scheduler, names) as calls,
        ):
            call_pipeline(self.pipe, call, count, Generator().manual_seed(seed))
        return fitted(calls, log, self.trace)


def kind_of(call: Mapping[str, Any]) -> str:
    """What of a call may decide whether it can be a run: no texts, no scale of guidance."""

    def told(name: str, value: Any) -> str:
        if isinstance(value, list | tuple):
            return f"{len(value)} [{', '.join(sorted({told(name, part) for part in value}))}]"
        if isinstance(value, bool | int | float) and not name.endswith((*SCALES, "labels")):
            return repr(value)
        size = getattr(value, "shape", getattr(value, "size", ""))  # of a tensor, of a picture
        return f"{type(value).__name__} {size}"

    return "; ".join(sorted(f"{name}: {told(name, value)}" for name, value in call.items()))


def twice(call: Mapping[str, Any], samples: int) -> dict[str, Any] | None:
    """A call of so many samples as one of twice as many, where it has arguments one a sample."""
    more: dict[str, Any] = {}
    for name, value in call.items():
        if isinstance(value, list | Tensor) and len(value) == samples:
            more[name] = value * 2 if isinstance(value, list) else torch.cat([value, value])
        elif type(value) is int and value == samples and name.endswith(COUNTS):
            more[name] = 2 * samples
    return {**call, **more} if more else None


@contextmanager
def answered(pipe: Any, names: Sequence[str]) -> Iterator[None]:
    """Networks that answer at once in here: what they said the first time they saw such a shape."""
    said: dict[tuple[Any, ...], Any] = {}

    def answer(own: Callable[..., Any], name: str) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            given = [*args, *kwargs.values()]
            key = name, *(tuple(v.shape) for v in given if isinstance(v, Tensor))
            if key not in said:
                said[key] = own(*args, **kwargs)
            return said[key]

        return forward

    networks = {name: pipe.components[name] for name in names}
    before = {name: vars(network).get("forward") for name, network in networks.items()}
    for name, network in networks.items():
        network.forward = answer(network.forward, name)
    try:
        yield
    finally:
        for name, network in networks.items():
            if before[name] is None:
                del network.forward
            else:  # another's, such as one that answers at once already
                network.forward = before[name]
