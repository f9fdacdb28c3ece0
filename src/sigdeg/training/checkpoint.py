"""Checkpoints: one safetensors file with all that a training needs to go on, written atomically."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sigdeg.errors import SigdegError, reason
from sigdeg.files import read_tensors, save_tensors

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(
    path: Path,
    modules: dict[str, nn.Module],
    optimizers: Sequence[Optimizer],
    extra: dict[str, Tensor],
    step: int,
    run: str = "",
) -> None:
    """Write modules, optimisers and further tensors, as they are after `step` steps of a run.

    All of it, step and run included, is under the file's digest.
    """
    tensors = {f"extra.{name}": value for name, value in extra.items()}
    for prefix, module in modules.items():
        tensors |= {f"{prefix}.{name}": value for name, value in module.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            prefix = f"optimizer-{number}.{index}"
            tensors |= {f"{prefix}.{name}": value for name, value in state.items()}
    save_tensors(path, tensors, {"step": str(step), "run": run})


def load_checkpoint(
    path: Path, modules: dict[str, nn.Module], optimizers: Sequence[Optimizer], run: str = ""
) -> tuple[int, dict[str, Tensor]]:
    """Restore what `save_checkpoint` wrote; returns the step and the further tensors."""
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
    try:
        for prefix, module in modules.items():
            module.load_state_dict(groups[prefix])
        for number, optimizer in enumerate(optimizers):
            states: dict[int, dict[str, Tensor]] = {}
            for name, value in groups.get(f"optimizer-{number}", {}).items():
                index, _, key = name.partition(".")
                states.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    except (KeyError, RuntimeError, ValueError) as error:
        raise SigdegError(f"{path} belongs to another model: {reason(error)}") from None
    return int(metadata["step"]), groups.get("extra", {})


def ema_update(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the model's: decay * average + (1 - decay) * model."""
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
