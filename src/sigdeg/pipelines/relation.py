"""What becomes of a network's output: which part of it a scheduler is given, and how."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sigdeg.pipelines.facts import Relation
from sigdeg.pipelines.layer import Called

__all__ = ["CLOSE", "find_relation", "first_tensor", "is_list", "part_of"]

CLOSE = 1e-5  # of the largest value


def find_relation(
    calls: Sequence[Called], given: Tensor, mean: Tensor, axis: int | None, begin: int
) -> tuple[Relation | None, int, int]:
    """How the output of one of a step's calls became what was stepped on; `said` and `which`."""
    # The first of its channels, or those that stand where the state does.
    for which, said in itertools.product(range(len(calls)), sorted({0, begin})):
        output = part_of(first_tensor(calls[which].output), given, axis, said)
        if output is None:
            continue
        pairs: dict[Relation, tuple[Tensor, Tensor]]
        pairs = {"same": (output, given), "negated": (-output, given)}
        pairs |= {"mean": (output, mean)} if len(calls) == 1 else {}
        rounded = max(CLOSE, 4 * torch.finfo(given.dtype).eps)  # a difference over a time
        for relation, (value, wanted) in pairs.items():
            close = (rounded if relation == "mean" else CLOSE) * float(wanted.abs().max())
            if float((value.to(wanted) - wanted).abs().max()) <= close:
                return relation, said, which
    return None, 0, 0


def part_of(output: Tensor, given: Tensor, axis: int | None, begin: int) -> Tensor | None:
    """Of each axis of an output the first, of one those from `begin` on, in another's shape.

    None if it has no such part.
    """
    if output.squeeze().shape == given.squeeze().shape:
        return output.reshape(given.shape)
    starts = [begin if i == axis else 0 for i in range(given.ndim)]
    shapes = zip(output.shape, given.shape, starts, strict=False)
    if output.ndim != given.ndim or any(o < g + start for o, g, start in shapes):
        return None
    for i in range(1, output.ndim):
        output = output.narrow(i, starts[i], given.shape[i])
    return output


def first_tensor(output: Any) -> Tensor:
    """The tensor of a network's output, whatever it is wrapped in."""
    while not isinstance(output, Tensor):
        if is_list(output):
            return torch.stack(output)
        output = next(iter(output.values())) if isinstance(output, Mapping) else output[0]
    return output


def is_list(value: Any) -> bool:
    """Whether it is a list of tensors of one shape."""
    return (
        isinstance(value, list)
        and all(isinstance(v, Tensor) for v in value)
        and len({v.shape for v in value}) == 1
    )
