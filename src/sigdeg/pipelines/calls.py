r"""The calls that a pipeline makes of its network, kept to be made again with other states.

Training needs no pipeline: text encoders, masks, rotary ids and what ControlNet says of a state are
in the arguments that the network was called with. They are kept by row, so that rows of many runs
join into one batch.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from sigdeg.errors import SigdegError
from sigdeg.grids import Grid
from sigdeg.pipelines.facts import Trace
from sigdeg.pipelines.layer import Called, as_whole
from sigdeg.pipelines.relation import first_tensor, is_list, part_of
from sigdeg.pipelines.stepped import Logged
from sigdeg.runs import fingerprint
from sigdeg.schedule import expand

__all__ = ["Calls", "Kept", "fitted", "keep_calls", "read_calls"]

HALF = (torch.bfloat16, torch.float16)

LISTED = "sigdeg_listed"  # marks a list of samples, kept as one tensor


@dataclass(frozen=True)
class Kept:
    """One call of a network: of each leaf of its arguments a tensor or a value, and how they nest.

    Arguments:
        name: The network.
        structure: How the leaves nest, as pytree writes it.
        leaves: Tensors and values; of the state itself the type of its numbers is kept.
        by_row: Which of the leaves have a row a sample.
        around: Weights of the output and the state in what is stepped on.
    """

    name: str
    structure: str
    leaves: tuple[Any, ...]
    by_row: tuple[bool, ...]
    around: tuple[float, float] = 1.0, 0.0
    kind: str = field(init=False)  # calls of one kind join into one

    def __post_init__(self) -> None:
        told = [self.name, self.structure]
        for leaf, rows in zip(self.leaves, self.by_row, strict=True):
            if rows:
                told.append(f"{tuple(leaf.shape[1:])} {leaf.dtype}")
            elif isinstance(leaf, Tensor):
                told.append(fingerprint(leaf))  # ids of many tokens are long
            else:
                told.append(repr(leaf))
        object.__setattr__(self, "kind", " ".join(told))

    @classmethod
    def of(cls, called: Called, trace: Trace, samples: int, fixed: Collection[int] = ()) -> Kept:
        """A call as it was recorded, of so many samples; `fixed` leaves have no rows of theirs.

        Raises:
            SigdegError: If an argument is neither a tensor nor a plain value.
        """
        args, kwargs = list(called.args), dict(called.kwargs)
        if trace.alone:
            place: Any = args if isinstance(trace.state, int) else kwargs
            place[trace.state] = as_whole(place[trace.state]).new_empty(0)
        if trace.listed is not None:  # its other lists are of the samples, too
            args = [{LISTED: torch.stack(v)} if is_list(v) else v for v in args]
            kwargs = {k: {LISTED: torch.stack(v)} if is_list(v) else v for k, v in kwargs.items()}
        if trace.time is not None:
            place = args if isinstance(trace.time, int) else kwargs
            time = place[trace.time]
            if isinstance(time, Tensor) and time.numel() == 1:
                place[trace.time] = time.reshape(1).expand(samples)
        leaves, structure = pytree.tree_flatten((args, kwargs))
        kept, by_row = [], []
        for number, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                leaf = leaf.detach().cpu().contiguous().clone()
            elif leaf is not None and not isinstance(leaf, bool | int | float | str):
                raise SigdegError(
                    f"the {called.name} is called with a {type(leaf).__name__}, which cannot be "
                    "kept: tensors and plain values can"
                )
            kept.append(leaf)
            rows = isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == samples
            by_row.append(rows and number not in fixed)
        written = pytree.treespec_dumps(structure)
        return cls(called.name, written, tuple(kept), tuple(by_row), called.around)


def unlisted(value: Any) -> Any:
    """A list of samples again."""
    return list(value[LISTED]) if isinstance(value, dict) and LISTED in value else value


def keep_calls(kept: Mapping[str, Kept]) -> tuple[dict[str, Tensor], str]:
    """Calls by place as tensors by name and JSON; what is the same in several is there once."""
    tensors: dict[str, Tensor] = {}
    told: dict[str, Any] = {}
    for place, call in kept.items():
        leaves: list[Any] = []
        for number, leaf in enumerate(call.leaves):
            if not isinstance(leaf, Tensor):
                leaves.append({"value": leaf})
                continue
            same = (n for n, v in tensors.items() if n.endswith(f".{number}") and alike(v, leaf))
            name = next(same, f"{place}.{number}")
            tensors.setdefault(name, leaf)
            leaves.append({"tensor": name, "rows": call.by_row[number]})
        told[place] = {"name": call.name, "structure": call.structure, "leaves": leaves}
        told[place]["around"] = call.around
    return tensors, json.dumps(told)


def read_calls(tensors: Mapping[str, Tensor], told: str) -> dict[str, Kept]:
    """What `keep_calls` gave."""
    calls = {}
    for place, call in json.loads(told).items():
        leaves = [tensors[v["tensor"]] if "tensor" in v else v["value"] for v in call["leaves"]]
        by_row = tuple(v.get("rows", False) for v in call["leaves"])
        around = tuple(call.get("around", (1.0, 0.0)))
        calls[place] = Kept(call["name"], call["structure"], tuple(leaves), by_row, around)
    return calls


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same."""
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


def fitted(calls: Sequence[Called], log: Sequence[Logged], trace: Trace) -> list[Called]:
    """The calls of a run with their `around`, where the pipeline turns means into something else.

    It does so by the timestep: what is fitted to one run's outputs and states holds for all.
    """
    if trace.relation != "mean":
        return list(calls)
    given = {logged.k: logged.output for logged in log}
    made = []
    for called in (c for c in calls if c.k in given):
        wanted = given[called.k]
        said = part_of(first_tensor(called.output), wanted, trace.axis, trace.said)
        assert said is not None  # as when it was traced
        both = torch.stack([said.to(wanted), trace.part(called.argument(trace.state))], dim=-1)
        weights = torch.linalg.lstsq(both.double().flatten(0, -2), wanted.double().reshape(-1, 1))
        a, b = weights.solution.flatten().tolist()
        made.append(replace(called, around=(a, b)))
    return made


class Calls:
    """The calls of many runs, by row: of a run of several samples each is a row.

    Arguments:
        trace: What is known of the network.
        runs: Calls by place, `"K.k"` for step k of K, one mapping a run.
        rows: Of each row the run and the place in it, shape (rows, 2).
    """

    def __init__(self, trace: Trace, runs: Sequence[Mapping[str, Kept]], rows: Tensor) -> None:
        self.trace, self.runs, self.rows = trace, runs, rows
        self._places: dict[tuple[float, float], str] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Calls:
        return self  # large, and never changed

    def place(self, t: float, s: float, grids: Grid) -> str:
        """The place of a step of one of the student's grids."""
        key = round(t, 9), round(s, 9)
        if key not in self._places:
            for count in grids.steps:
                times = grids.at(count).tolist()
                for k in range(count):
                    step = round(times[k], 9), round(times[k + 1], 9)
                    self._places.setdefault(step, f"{count}.{k}")
        return self._places[key]

    def replay(
        self,
        networks: Any,
        states: Tensor,
        beside: tuple[Tensor, Tensor],
        starts: Tensor,
        row: Tensor,
        grids: Grid,
    ) -> Tensor:
        r"""What the network says of states, called as it was in some rows, shape (batch, \*).

        Arguments:
            networks: The networks by name.
            states: What they are to see, shape (batch, \*).
            beside: Coefficients (batch, order, \*) of the steps, and their ends (batch,).
            starts: Starts of the steps, shape (batch,).
            row: Numbers of the rows, shape (batch,).
            grids: The student's.
        """
        coefficients, ends = beside
        groups: dict[str, list[tuple[int, Kept, int]]] = {}
        steps = zip(starts.tolist(), ends.tolist(), self.rows[row.cpu()].tolist(), strict=True)
        for i, (t, s, (run, place)) in enumerate(steps):
            kept = self.runs[run][self.place(t, s, grids)]
            groups.setdefault(kept.kind, []).append((i, kept, place))
        outputs, order = [], []
        for members in groups.values():
            own = torch.tensor([i for i, _, _ in members], device=states.device)
            name = members[0][1].name
            kind = next(networks[name].parameters()).dtype
            args, kwargs = self.joined(members, states[own], kind)
            told = [kwargs.pop("sigdeg")] if "sigdeg" in kwargs else []  # the scale of guidance
            given = coefficients[own], ends[own.cpu()], *told
            output = first_tensor(networks[name](*args, **kwargs, sigdeg=given)).to(states)
            around = torch.tensor([kept.around for _, kept, _ in members]).to(states)
            outputs.append(self.related(output, states[own], around))
            order.append(own)
        return torch.cat(outputs)[torch.cat(order).argsort()]

    def joined(
        self, members: Sequence[tuple[int, Kept, int]], states: Tensor, kind: torch.dtype
    ) -> tuple[list[Any], dict[str, Any]]:
        """Calls of one kind as one call; what was in half precision is of the network's kind."""
        first = members[0][1]
        leaves = []
        for number, (leaf, rows) in enumerate(zip(first.leaves, first.by_row, strict=True)):
            if rows:
                leaf = torch.stack([kept.leaves[number][place] for _, kept, place in members])
            if isinstance(leaf, Tensor):
                leaf = leaf.to(states.device, kind if leaf.dtype in HALF else None)
            leaves.append(leaf)
        structure = pytree.treespec_loads(first.structure)
        args, kwargs = pytree.tree_unflatten(leaves, structure)
        if self.trace.listed is not None:
            args = [unlisted(v) for v in args]
            kwargs = {k: unlisted(v) for k, v in kwargs.items()}
        place = args if isinstance(self.trace.state, int) else kwargs
        argument = place[self.trace.state]
        states = states.to(argument)
        place[self.trace.state] = self.trace.filled(argument, states)
        return args, kwargs

    def related(self, output: Tensor, states: Tensor, around: Tensor) -> Tensor:
        """What a scheduler is given of the network's output, with weights, shape (rows, 2)."""
        if self.trace.answer is not None:
            part: Tensor | None = self.trace.answer.take(output)
        else:
            part = part_of(output, states, self.trace.axis, self.trace.said)
        assert part is not None  # as when it was traced
        if self.trace.relation == "mean":
            a, b = (expand(weights, part) for weights in around.unbind(1))
            return a * part + b * states
        return -part if self.trace.relation == "negated" else part
