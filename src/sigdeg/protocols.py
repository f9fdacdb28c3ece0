"""What the sampler knows: a process that noises data, and a step that goes back in time.

Diffusion by a schedule and steps driven by Brownian paths are one case of it (`sigdeg.steps`); any
other process and its steps run through the same `sigdeg.sampling.sample`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from typing_extensions import TypeVar

from sigdeg.rng import Generators

__all__ = ["Process", "Step", "Time"]

N = TypeVar("N", default=Any)
Time: TypeAlias = Tensor | float


class Process(Protocol):
    """What turns data into noise over the times from 0 to 1.

    Attributes:
        t_min: Where sampling has all but ended; the step from there goes to 0.
        t_max: Where nothing but noise is left.
    """

    @property
    def t_min(self) -> float: ...

    @property
    def t_max(self) -> float: ...

    def prior(
        self,
        shape: Sequence[int],
        generator: Generators | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        r"""The state at `t_max`, shape (batch, \*), from one stream or from one a sample."""


class Step(Protocol[N]):
    r"""One step from time t down to time s, driven by noise of its own kind.

    No step draws noise while it is called: `noise` makes it from explicit generators, so that the
    same noise can be given again, at another step count or to another step.

    Attributes:
        process: The process it reverses.
    """

    @property
    def process(self) -> Process: ...

    def noise(
        self,
        t: Time,
        s: Time,
        shape: Sequence[int],
        generator: Generators | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> N:
        r"""The noise of one step, from one stream or from one a sample.

        Arguments:
            t: Start.
            s: End, below t.
            shape: Shape of the state, (batch, \*).
            generator: One generator, or one a sample.
            dtype: Type of the state (default: the process's).
            device: Device of the state.
        """

    def calls(self, t: float, s: float) -> int:
        """Network calls a sample that the step takes, those of guidance included."""

    def __call__(self, x: Tensor, t: Time, s: Time, noise: N, /, **condition: Any) -> Tensor:
        r"""Advance the state.

        Arguments:
            x: State at time t, shape (batch, \*).
            t: Start, a scalar or with shape (batch,).
            s: End, below t, a scalar or with shape (batch,).
            noise: As `noise` makes it.
            condition: Passed on to the network.

        Returns:
            The state at time s, shape (batch, \*).
        """
