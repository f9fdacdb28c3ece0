"""What a step of a run shows its network, what it gives back, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sigdeg.errors import extra

with extra("pipelines"):
    from diffusers.utils import BaseOutput

__all__ = ["Logged", "Look", "Stepped"]


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
    """One step of a march that is logged: its number, states before and after, and the noise."""

    k: int
    before: Tensor
    after: Tensor
    coefficients: Tensor
    output: Tensor


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
