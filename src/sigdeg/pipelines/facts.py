"""Facts of a pipeline's network: where the state stands in its calls, and what it says of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sigdeg.denoiser import Timesteps
from sigdeg.pipelines.layer import Called, Key, as_whole
from sigdeg.pipelines.views import View

__all__ = ["Relation", "Trace"]

Relation = Literal["same", "negated", "mean"]


@dataclass(frozen=True)
class Trace:
    """Facts of a pipeline's network, found by `trace`; JSON in a student's configuration.

    Arguments:
        networks: Components that are called with the state, in the order of their first calls.
        state: Argument of the state, its position or its name.
        axis: Axis along which other channels stand beside those of the state, if any.
        channels: Those of the state along that axis.
        copies: Copies of the batch in one call.
        calls: Calls a step.
        time: Argument of the timestep, if one was found.
        time_scale: What the network is told, in timesteps of the scheduler: so many times ...
        time_shift: ... and so much more.
        relation: How the network's output becomes that of the scheduler; of a network that says the
            `mean` itself the pipeline makes what its scheduler takes for it, by the state.
        layer: The network's input layer.
        samples: Samples of the call that it was found by.
        begin: The first of those channels.
        listed: Where the state comes as a list of its samples: axes of length one that they have
            besides, counted in the whole.
        said: The first of the output's along that axis.
        which: Of a step's calls and the copies in them, in order, the one whose output is stepped
            on: some pipelines ask for more and leave it out where they are not guided.
        rows: Of the state that the scheduler steps, that are one sample: the pictures of a film.
        place: Where the state stands in its argument, if it is neither that nor along one axis.
        answer: Where what the scheduler is given stands in the network's output, then.
        timesteps: Whether the pipeline takes no others than whole ones, `integer`.
    """

    networks: tuple[str, ...]
    state: Key
    axis: int | None
    channels: int
    copies: int
    calls: int
    time: Key | None
    time_scale: float
    time_shift: float
    relation: Relation | None
    layer: str
    samples: int
    begin: int = 0
    listed: tuple[int, ...] | None = None
    said: int = 0
    which: int = 0
    rows: int = 1
    place: View | None = None
    answer: View | None = None
    timesteps: Timesteps = "continuous"

    @property
    def single(self) -> bool:
        """Whether a step is one call, for one output a sample."""
        return (self.copies, self.calls) == (1, 1)

    @property
    def written(self) -> dict[str, Any]:
        """It as JSON."""
        lists = {
            "networks": list(self.networks),
            "listed": None if self.listed is None else list(self.listed),
            "place": self.place and self.place.written,
            "answer": self.answer and self.answer.written,
        }
        return {**dataclasses.asdict(self), **lists}

    @property
    def marched(self) -> dict[str, Any]:
        """What of it a scheduler is told, as JSON."""
        return {"rows": self.rows, "timesteps": self.timesteps}

    @property
    def alone(self) -> bool:
        """Whether the argument of the state is the state, as it is."""
        return self.axis is None and self.place is None

    @classmethod
    def read(cls, written: Mapping[str, Any]) -> Trace:
        """What `written` gave."""
        listed = written.get("listed")
        lists = {
            "networks": tuple(written["networks"]),
            "listed": None if listed is None else tuple(listed),
            **{k: View.read(written[k]) if written.get(k) else None for k in ("place", "answer")},
        }
        return cls(**{**written, **lists})

    def part(self, argument: Any) -> Tensor:
        """The state in its argument.

        Raises:
            TypeError: If that is no tensor, or no list of them where it should be one.
        """
        whole = isinstance(argument, Tensor)
        if whole != (self.listed is None) or not (argument.ndim if whole else argument):
            raise TypeError(f"it is a {type(argument).__name__}")
        if self.listed is not None:
            return as_whole(argument).squeeze(self.listed)
        if self.place is not None:
            return self.place.take(argument)
        part: Tensor = argument
        return part if self.axis is None else part.narrow(self.axis, self.begin, self.channels)

    def chosen(self, calls: Sequence[Called], rows: int) -> list[Called]:
        """Of each step's calls, of copies of so many rows, the one whose output is stepped on."""
        if self.single:
            return list(calls)
        steps: dict[int, list[Called]] = {}
        for called in calls:
            steps.setdefault(called.k, []).extend(called.parts(self.state, rows))
        return [parts[self.which] for parts in steps.values() if len(parts) > self.which]

    def filled(self, argument: Any, state: Tensor) -> Any:
        """The argument with another state in it."""
        if self.listed is not None:
            for axis in self.listed:
                state = state.unsqueeze(axis)
            return list(state)
        if self.place is not None:
            return self.place.put(tiled_to(argument, len(state)), state)
        if self.axis is None:
            return state
        others = tiled_to(argument, len(state))
        end = self.begin + self.channels
        before = others.narrow(self.axis, 0, self.begin)
        after = others.narrow(self.axis, end, others.shape[self.axis] - end)
        return torch.cat([before, state, after], dim=self.axis)

    def spread(self, coefficients: Tensor, shape: Sequence[int]) -> Tensor:
        r"""Coefficients of the path where the state stands, and zeros where nothing of it does.

        Arguments:
            coefficients: Of the state, shape (rows, order, \*).
            shape: Of the argument, of one sample.
        """
        if self.place is not None:
            flat = coefficients.flatten(0, 1)
            wide = self.place.put(flat.new_zeros(len(flat), *shape), flat)
            return wide.reshape(*coefficients.shape[:2], *shape)
        if self.axis is None:
            return coefficients
        every = list(coefficients.shape)
        every[self.axis + 1] = shape[self.axis - 1]
        zeros, end = coefficients.new_zeros(every), self.begin + self.channels
        return zeros.slice_scatter(coefficients, self.axis + 1, self.begin, end)


def tiled_to(values: Tensor, rows: int) -> Tensor:
    """As many rows, where there is one for all or as many already."""
    return values if len(values) == rows else values.expand(rows, *values.shape[1:])
