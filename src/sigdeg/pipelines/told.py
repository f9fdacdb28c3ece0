"""What a pipeline tells its network of time, by its own scheduler and by ours: it must be the same.

A few pipelines ask what kind their scheduler is, and count time otherwise where it is another:
their network would be called at times that have nothing to do with its state.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Generator, nn

from sigdeg.errors import SigdegError
from sigdeg.pipelines.facts import Trace
from sigdeg.pipelines.layer import Called
from sigdeg.pipelines.stepped import first_number
from sigdeg.pipelines.trace import call_pipeline

__all__ = ["check_told"]

STEPS = 20  # of which a call that starts from an image leaves some
CLOSE = 0.01  # of what is told at first: half precision rounds, and some schedulers do


class Halted(BaseException):
    """Raised at the first step of a scheduler; no pipeline catches it as an error."""


def check_told(pipe: Any, call: Mapping[str, Any], known: Trace) -> None:
    """Refuse a pipeline that tells its network other times where its scheduler is replaced.

    It runs as it is, up to the first step of its scheduler.

    Arguments:
        pipe: The pipeline, with its own scheduler.
        call: Arguments of it.
        known: How it calls its network where the scheduler is ours.

    Raises:
        SigdegError: If its network is told what is not its scheduler's timestep in those units.
    """
    key, told = known.time, list[float]()
    if key is None:
        return

    def look(_: nn.Module, args: Any, kwargs: Any) -> None:
        told.append(first_number(Called("", 0, args, kwargs).argument(key)))

    networks = [pipe.components[name] for name in known.networks]
    handles = [net.register_forward_pre_hook(look, with_kwargs=True) for net in networks]
    try:
        with stopped(pipe.scheduler) as timesteps:
            call_pipeline(pipe, call, STEPS, Generator().manual_seed(0))
    finally:
        for handle in handles:
            handle.remove()
    scaled = known.time_scale * timesteps[0]
    expected = scaled + known.time_shift
    if abs(told[0] - expected) > CLOSE * max(abs(expected), abs(scaled)):
        raise SigdegError(
            f"{type(pipe).__name__} tells its network other times where another scheduler takes "
            f"the place of its {type(pipe.scheduler).__name__}: it cannot be a teacher"
        )


@contextmanager
def stopped(scheduler: Any) -> Iterator[list[float]]:
    """A run ends with the first step of its scheduler in here; its timestep is what is given."""
    own, timesteps = scheduler.step, list[float]()

    @functools.wraps(own)
    def step(*args: Any, **kwargs: Any) -> None:
        given = inspect.signature(own).bind(*args, **kwargs).arguments
        timesteps.append(first_number(given["timestep"]))
        raise Halted

    scheduler.step = step
    try:
        yield timesteps
    except Halted:
        pass
    finally:
        del scheduler.step
