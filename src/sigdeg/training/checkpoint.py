"""Checkpoints: one safetensors file with all that a training needs to go on, written atomically.

It holds whole tensors, however many processes share them: any other number can go on with it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from sigdeg.errors import SigdegError, reason
from sigdeg.files import read_tensors, save_tensors
from sigdeg.training.weights import Average, fill, kept, like, whole

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(
    path: Path,
    module: nn.Module,
    average: Average,
    optimizers: Sequence[Optimizer],
    extra: Mapping[str, Tensor],
    step: int,
    run: str = "",
    write: bool = True,
) -> None:
    """Write a module, its average, optimisers and further tensors, as they are after `step` steps.

    All of it, step and run included, is under the file's digest. Frozen parameters are left out.
    Processes that share tensors all call this; one of them is to `write`.
    """
    named: dict[str, Tensor] = {f"extra.{name}": value for name, value in extra.items()}
    named |= {f"objective.{name}": value for name, value in kept(module).items()}
    named |= {f"average.{name}": value for name, value in average.named(module).items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            prefix = f"optimizer-{number}.{index}"
            named |= {f"{prefix}.{name}": value for name, value in state.items()}
    tensors = {}
    for name, value in named.items():
        gathered = whole(value)
        if write:
            tensors[name] = gathered.cpu()
    if write:
        save_tensors(path, tensors, {"step": str(step), "run": run})


def load_checkpoint(
    path: Path,
    module: nn.Module,
    average: Average,
    optimizers: Sequence[Optimizer],
    run: str = "",
) -> tuple[int, dict[str, Tensor]]:
    """Restore what `save_checkpoint` wrote; returns the step and the further tensors.

    Checkpoints of earlier versions hold frozen parameters too, which are as they were.
    """
    try:
        tensors, metadata = read_tensors(path)
        if not metadata.keys() >= {"digest", "step", "run"}:
            raise SigdegError("it has no digest")
    except SigdegError as error:
        raise SigdegError(
            f"{path} is not a whole checkpoint: {error}; delete it to start anew"
        ) from None
    if metadata["run"] != run:
        raise SigdegError(f"{path} belongs to another model or run: delete it to start anew")
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        prefix, _, rest = name.partition(".")
        groups.setdefault(prefix, {})[rest] = value
    known = module.state_dict().keys()
    try:
        restore(kept(module), groups["objective"], known)
        restore(average.named(module), groups["average"], known)
        for number, optimizer in enumerate(optimizers):
            load_optimizer(optimizer, groups.get(f"optimizer-{number}", {}))
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise SigdegError(f"{path} belongs to another model: {reason(error)}") from None
    return int(metadata["step"]), groups.get("extra", {})


def restore(
    tensors: Mapping[str, Tensor], values: Mapping[str, Tensor], known: Collection[str]
) -> None:
    """Set tensors to values of the same names; others must be frozen parameters' names."""
    for name in values.keys() - known:
        raise ValueError(f"it has no {name}")
    for name, tensor in tensors.items():
        if values[name].shape != tensor.shape:
            shapes = f"{tuple(values[name].shape)} there, {tuple(tensor.shape)} here"
            raise ValueError(f"{name} has the shape {shapes}")
        fill(tensor, values[name])


def load_optimizer(optimizer: Optimizer, values: Mapping[str, Tensor]) -> None:
    """Restore an optimiser's state, by parameter: each moment is shared as its parameter is."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states: dict[int, dict[str, Any]] = {}
    for name, value in values.items():
        index, _, key = name.partition(".")
        p = parameters[int(index)]
        states.setdefault(int(index), {})[key] = like(value, p) if value.shape == p.shape else value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
