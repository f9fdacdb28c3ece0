"""Students of the tiny pipelines, untrained: what their networks see beside the state counts."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Generator, Tensor

from sigdeg.pipelines import SigDEGScheduler, add_signature, trace
from tests.pipelines.zoo import FAMILIES

STEPS = 4
STEP = {"order": 2, "response_std": 1.0, "steps": [STEPS]}


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


@cache
def made(family: str, student: str, options: tuple[tuple[str, Any], ...]) -> tuple[Any, Any]:
    found = FAMILIES[family]()
    pipe, call = found.pipe, found.unguided
    step = STEP | {k: list(v) if isinstance(v, tuple) else v for k, v in options}
    scheduler = SigDEGScheduler.like(pipe.scheduler, **step, student=student)
    known = trace(pipe, call)
    for name in known.networks:
        network = add_signature(pipe.components[name], known, scheduler.core.order, student)
        with torch.no_grad():
            for i, p in enumerate(network.signature.parameters()):
                p.copy_(torch.randn(p.shape, generator=seeded(i)) / p[0].numel() ** 0.5)
    networks = {name: pipe.components[name] for name in known.networks}
    pipe.register_modules(scheduler=scheduler, **networks)
    return pipe, call


def student_of(family: str, student: str = "tiny", **step: Any) -> tuple[Any, dict[str, Any]]:
    """A pipeline with random weights beside its input layer, and a call of it without guidance."""
    pipe, call = made(family, student, tuple(sorted(step.items())))
    return copy.deepcopy(pipe), dict(call)


def draw(pipe: Any, call: dict[str, Any], seed: Any = 0, **more: Any) -> Tensor:
    """What a pipeline draws from a seed, or from one a sample."""
    seeds = [seeded(s) for s in seed] if isinstance(seed, list) else seeded(seed)
    given = {"num_inference_steps": STEPS, "generator": seeds, **call, **more}
    return torch.as_tensor(pipe(**given)[0])


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference, of the largest value."""
    return float((one - other).abs().max() / other.abs().max())
