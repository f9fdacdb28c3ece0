"""What a step of a run shows its network, what it gives back, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sigdeg.errors import SigdegError, extra
from sigdeg.pipelines.noise import tiled
from sigdeg.schema import number

with extra("pipelines"):
    from diffusers.utils import BaseOutput

__all__ = ["Logged", "Look", "Stepped", "check_scales", "first_number", "precise", "scales_of"]


@dataclass
class Stepped(BaseOutput):  # type: ignore[misc]  # diffusers is not typed
    r"""What `SigDEGScheduler.step` returns.

    Attributes:
        prev_sample: The state at the end of the step.
        pred_original_sample: The posterior mean that it was made with.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


@dataclass
class Logged:
    """One step of a march that is logged: its number, states before and after, and the noise.

    Of as many samples: its rows may be copies of them, which guidance makes.
    """

    k: int
    before: Tensor
    after: Tensor
    coefficients: Tensor
    output: Tensor
    samples: int


@dataclass(frozen=True)
class Look:
    r"""What a student's network is to see at a step.

    Attributes:
        state: The state in the place of the pipeline's own, scaled, and ahead if it looks ahead.
        coefficients: Those of the path over the step, shape (rows, order, \*).
        end: Where the step ends, shape (rows,).
        guidance: The scale of the guidance, shape (rows,), where the scheduler tells it.
    """

    state: Tensor
    coefficients: Tensor
    end: Tensor
    guidance: Tensor | None = None


def first_number(value: Any) -> float:
    """Of a number, or of a tensor of one for each row."""
    return float(torch.as_tensor(value).flatten()[0])


def precise(values: Tensor) -> Tensor:
    """Values in single precision at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def check_scales(value: Any) -> None:
    """Refuse what is neither a scale of guidance, nor one a sample, nor none.

    Raises:
        SigdegError: If it is neither.
    """
    scales = value if isinstance(value, list) and value else [value]
    for scale in () if value is None else scales:
        number()(scale, "sigdeg.guidance")


def scales_of(value: Any, rows: int) -> Tensor:
    """Scales of guidance by row, of one for all or one a sample.

    Raises:
        SigdegError: If rows are no copies of so many samples.
    """
    scale = torch.as_tensor(value, dtype=torch.float32).reshape(-1)
    if not len(scale) or rows % len(scale):
        raise SigdegError(f"{len(scale)} scales of guidance are set for {rows} samples")
    return tiled(scale, rows)
