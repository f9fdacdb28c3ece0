"""Networks too large for one device: every process keeps a part of each parameter (FSDP2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import MethodType
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

__all__ = ["gathered", "shard"]

M = TypeVar("M", bound=nn.Module)


def shard(module: nn.Module, accelerator: Accelerator) -> None:
    """Share parameters, and with them gradients and moments, over all processes (FSDP2).

    Each process keeps a part of every parameter. Those of a block are gathered when it is called,
    those outside of blocks when the module is.
    """
    place = accelerator.device
    mesh = init_device_mesh(place.type, (accelerator.num_processes,))
    half = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
    # Inputs stay as they are: half of the precision is no time.
    policy = MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False)
    for block in blocks(module):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # Resharded, so that what is outside of a step finds parts only.
    fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def gathered(module: M, work: Callable[[M], None]) -> None:
    """Call a function of a sharded module with what is gathered for its forward."""
    name = "gathered"
    setattr(module, name, MethodType(work, module))
    register_fsdp_forward_method(module, name)
    getattr(module, name)()
    delattr(module, name)


def blocks(module: nn.Module, listed: bool = False) -> Iterator[nn.Module]:
    """The modules that lists hold, but for those within one of them."""
    if listed and not isinstance(module, nn.ModuleList | nn.ModuleDict):
        yield module
        return
    for child in module.children():
        yield from blocks(child, isinstance(module, nn.ModuleList))
