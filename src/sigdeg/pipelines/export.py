"""A student pipeline's march as a function of noise and conditions, to be traced.

One run of a call tells what the network is given at each step. What is one for a step, timesteps or
the ids of positions, is constant; what is one for a sample, the embedding of its prompt, comes in.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Generator, Tensor, nn

from sigdeg.errors import SigdegError, reason
from sigdeg.pipelines.files import find_pipeline, load_pipeline, read_card
from sigdeg.pipelines.layer import Called
from sigdeg.pipelines.relation import first_tensor
from sigdeg.pipelines.scheduler import SigDEGScheduler
from sigdeg.pipelines.stepped import Logged
from sigdeg.pipelines.trace import call_pipeline, recorded
from sigdeg.signature import PartialSignature

__all__ = ["SEED", "PipelineSampler", "observe_student"]

GUIDANCE = "guidance_scale"  # what comes in where a student is told it
SEED = 0  # of the run that is looked at

Leaf = Callable[[Mapping[str, Tensor], int], Any]  # of what comes in, and the number of rows
CLOSE = 1e-3  # of the states' deviation: what a graph may differ from the pipeline


class PipelineSampler(nn.Module):
    r"""All steps of a student pipeline, from $\sigma_{t_{max}} \varepsilon$ to the last state.

    It is what the pipeline decodes: pixels of some, latents of most.

    Arguments:
        pipe: The pipeline, after a run; its networks are copied.
        calls: How they were called, once a step, with a row a sample.

    Raises:
        SigdegError: If a network cannot be copied, or is told what depends on the state.
    """

    def __init__(self, pipe: Any, calls: Sequence[Called]) -> None:
        super().__init__()
        self.core = copy.deepcopy(pipe.scheduler.core)
        self.init = float(pipe.scheduler.init_noise_sigma)
        self.times = tuple(pipe.scheduler.grid.tolist())
        self.called = [called.name for called in calls]
        try:
            networks = {name: copy.deepcopy(pipe.components[name]) for name in self.called}
        except RuntimeError as error:  # weights that are made of others, by weight_norm
            raise SigdegError(f"the network cannot be copied: {reason(error)}") from None
        self.networks = nn.ModuleDict(networks)
        self.trace = networks[self.called[0]].signature.trace
        self.given: dict[str, Tensor] = {}
        self.leaves, self.structures = self.sort(calls)
        scale = pipe.scheduler.guidance
        if scale is not None:
            samples = len(calls[0].argument(self.trace.state))
            told = torch.as_tensor(scale, dtype=torch.float32).reshape(-1).cpu()
            self.given[GUIDANCE] = told.expand(samples)
        self.to("cpu").eval().requires_grad_(False)

    def sort(self, calls: Sequence[Called]) -> tuple[list[list[Leaf]], list[Any]]:
        """How the leaves of each call are found again; those that come in are kept as `given`."""
        told, structures = [], []
        for called in calls:
            args, kwargs = list(called.args), dict(called.kwargs)
            place: Any = args if isinstance(self.trace.state, int) else kwargs
            samples, place[self.trace.state] = len(place[self.trace.state]), None
            names = [*inspect.signature(type(self.networks[called.name]).forward).parameters][1:]
            time = self.trace.time
            self.time = names[time] if isinstance(time, int) else time
            paths, structure = pytree.tree_flatten_with_path((args, kwargs))
            told.append({name_of(path, names): leaf for path, leaf in paths})
            structures.append(structure)
        return [
            [self.leaf(name, value, told, samples) for name, value in one.items()] for one in told
        ], structures

    def leaf(self, name: str, value: Any, told: list[dict[str, Any]], samples: int) -> Leaf:
        """How one leaf is found: it comes in, is a number for all samples, or is a constant."""
        if not isinstance(value, Tensor):
            return lambda condition, rows: value
        value = value.detach().cpu()
        if not value.ndim or len(value) != samples:
            return lambda condition, rows: value
        others = [other[name].cpu() for other in told if name in other]
        if name != self.time and all(
            value.shape == other.shape and torch.equal(value, other) for other in others
        ):
            self.given[name] = value
            return lambda condition, rows: condition[name]
        if value.ndim > 1 or not torch.equal(value, value[:1].expand_as(value)):
            raise SigdegError(
                f"the network's {name} changes from step to step with the state, as a ControlNet's "
                "does: such a student is run by its pipeline"
            )
        return lambda condition, rows: value[:1].expand(rows)

    def forward(
        self, noise: Tensor, coefficients: Tensor, condition: Mapping[str, Tensor]
    ) -> Tensor:
        r"""The last states, see `sigdeg.workflows.export.Sampler`."""
        x = self.init * noise
        for k, (t, s) in enumerate(pairwise(self.times)):
            path = PartialSignature(torch.as_tensor(t - s), coefficients[:, k])
            given = self.core.inputs(x, t, s, path)
            leaves = [leaf(condition, x.shape[0]) for leaf in self.leaves[k]]
            args, kwargs = pytree.tree_unflatten(leaves, self.structures[k])
            place: Any = args if isinstance(self.trace.state, int) else kwargs
            place[self.trace.state] = given.inputs
            ends = torch.as_tensor(s, dtype=torch.float64).expand(x.shape[0])
            network = self.networks[self.called[k]]
            told = [condition[GUIDANCE]] if GUIDANCE in condition else []
            seen = path.coefficients, ends, *told
            output = first_tensor(network(*args, **kwargs, sigdeg=seen))
            for axis in range(1, output.ndim):
                output = output.narrow(axis, 0, x.shape[axis])
            output = -output if self.trace.relation == "negated" else output
            x = self.core.outputs(output, given)
        return x


def name_of(path: Sequence[Any], names: Sequence[str]) -> str:
    """The name of a leaf by its place in a call: an argument's, and what leads to it in there."""
    (which, *keys) = [getattr(key, "key", getattr(key, "idx", key)) for key in path]
    return ".".join(map(str, keys if which else [names[keys[0]], *keys[1:]]))


def observe_student(
    pipe: Any, call: Mapping[str, Any], steps: int | None
) -> tuple[PipelineSampler, tuple[Tensor, Tensor, dict[str, Tensor]], Tensor]:
    """A student pipeline's sampler, what it takes of one run of a call, and where that run ended.

    Arguments:
        pipe: The pipeline, or its folder or hub id.
        call: Arguments of the pipeline, those that turn guidance off among them.
        steps: Its number of steps (default: the largest it knows).

    Raises:
        SigdegError: If the pipeline is no student, is guided, or does anything else between the
            calls of its network that no graph of them shows.
    """
    if isinstance(pipe, str | Path):
        call = {**read_card(find_pipeline(pipe))[0], **call}
        pipe = load_pipeline(pipe)
    name, scheduler = type(pipe).__name__, pipe.scheduler
    if not isinstance(scheduler, SigDEGScheduler) or not scheduler.student:
        raise SigdegError(f"this {name} is no student: sigdeg distill it first")
    networks = tuple(n for n, part in pipe.components.items() if hasattr(part, "signature"))
    dtypes = {p.dtype for n in networks for p in pipe.components[n].parameters()}
    if dtypes != {torch.float32}:
        raise SigdegError(f"a graph is made of a student in single precision: load {name} in it")
    count = steps if steps is not None else max(scheduler.core.steps)
    log: list[Logged] = []
    scheduler.log = log
    try:
        with recorded(pipe, scheduler, networks) as calls:
            call_pipeline(pipe, call, count, Generator().manual_seed(SEED))
    finally:
        scheduler.log = None
    states, samples = log[0].before, log[0].samples
    whole = len(log) == len(scheduler.grid) - 1 and [c.k for c in calls] == [g.k for g in log]
    trace = pipe.components[networks[0]].signature.trace
    if not whole or any(len(c.argument(trace.state)) != samples for c in calls):
        raise SigdegError(
            f"a step of this {name} is not one call of its network a sample, from noise on: turn "
            "guidance off in its call, and start from no image"
        )
    if not trace.alone:
        raise SigdegError(
            f"the network of this {name} sees more than its state, or that in another shape: its "
            "pipeline runs it"
        )
    sampler = PipelineSampler(pipe, calls)
    noise = (states / sampler.init).float().cpu()
    coefficients = torch.stack([g.coefficients for g in log], dim=1).cpu()
    given, expected = (noise, coefficients, sampler.given), log[-1].after.float().cpu()
    with torch.no_grad():
        apart = float((sampler(*given) - expected).abs().max() / expected.std())
    if not apart < CLOSE:
        raise SigdegError(
            f"{name} does more with its states than its network and scheduler do (their graph is "
            f"{apart:.2g} of a deviation off): its pipeline runs it"
        )
    return sampler, given, expected
