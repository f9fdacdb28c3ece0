r"""Time grids: decreasing times from t_max down to the data.

A *coarse* grid of K steps is $t_0 = t_{max} > t_1 > \dots > t_K = 0$; its last step is the final
denoise, so K steps cost K calls. A *fine* grid refines it for the teacher, whose last step to 0
starts at the schedule's `t_min`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from sigdeg.errors import SigdegError, check_choice, check_least
from sigdeg.protocols import Process
from sigdeg.schedule import Schedule

__all__ = [
    "Grid",
    "Spacing",
    "check_grid",
    "check_span",
    "coarse_grid",
    "fine_grid",
    "join_rows",
    "refine",
]

Spacing = Literal["uniform", "power", "log_snr"]


def check_grid(grid: Tensor | Sequence[float]) -> Tensor:
    """Two or more times that strictly decrease in [0, 1], validated, in float64, shape (K + 1,)."""
    times = torch.as_tensor(grid, dtype=torch.float64, device="cpu")
    if times.ndim != 1 or len(times) < 2:
        raise SigdegError("a grid needs at least two times, from noise to data")
    if not bool((times.diff() < 0).all()):
        raise SigdegError(
            f"a grid must strictly decrease, got {[round(v, 6) for v in times.tolist()]}"
        )
    if float(times[0]) > 1 or float(times[-1]) < 0:
        raise SigdegError(
            f"grid times must lie in [0, 1], got {float(times[0])} to {float(times[-1])}"
        )
    return times


def check_span(process: Process, grid: Tensor | Sequence[float], to_data: bool = True) -> Tensor:
    """Validate times that samples are drawn at: from where there is nothing but noise, to the data.

    Without `to_data` they may end before: samples may be wanted as they are there.
    """
    times = check_grid(grid)
    first, last = float(times[0]), float(times[-1])
    if abs(first - process.t_max) > 1e-9 or (to_data and last != 0):
        raise SigdegError(
            f"times must run from {process.t_max:g}, where this {type(process).__name__} is "
            f"noise, to 0, got {first:g} to {last:g}"
        )
    return times


def coarse_grid(
    schedule: Schedule, steps: int, spacing: Spacing = "power", power: float = 1.5
) -> Tensor:
    r"""Grid of K steps for a student.

    | spacing | times |
    |---|---|
    | `uniform` | $t_k = t_{min} + (t_{max} - t_{min}) (1 - k/K)$, the paper's |
    | `power` | $t_k = t_{min} + (t_{max} - t_{min}) (1 - k/K)^p$: shorter steps near the data |
    | `log_snr` | uniform in $\lambda$ from $t_{max}$ to $t_{min}$ |

    and $t_K = 0$.

    Arguments:
        schedule: The schedule, for its time range.
        steps: The number of steps K, at least 1.
        spacing: The kind of spacing.
        power: The exponent p of `power`.

    Returns:
        K + 1 times in float64, the last one 0.

    Raises:
        SigdegError: If steps < 1 or the spacing is unknown.
    """
    check_request(steps, spacing)
    if spacing == "log_snr":
        return log_snr_grid(schedule, steps, knots=steps)
    v = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
    v = v if spacing == "uniform" else v**power
    grid = schedule.t_min + (schedule.t_max - schedule.t_min) * v
    grid[-1] = 0
    return grid


def check_request(steps: int, spacing: str) -> None:
    """Refuse a grid of no steps or of an unknown spacing."""
    check_least(steps, 1, "steps")
    check_choice(spacing, get_args(Spacing), "spacing")


def log_snr_grid(schedule: Schedule, intervals: int, knots: int) -> Tensor:
    """The first `knots` times uniform in log-SNR from t_max to t_min, then 0."""
    ends = torch.tensor([schedule.t_max, schedule.t_min], dtype=torch.float64)
    first, last = schedule.log_snr(ends).clamp(-20, 20)
    target = first + (last - first) * torch.arange(knots, dtype=torch.float64) / intervals
    times = schedule.time_at(target)
    times[0] = ends[0]
    return torch.cat([times, times.new_zeros(1)])


def refine(
    schedule: Schedule, coarse: Tensor | Sequence[float], refinement: int, power: float = 2.0
) -> Tensor:
    r"""Split every coarse step into fine ones for the teacher.

    Fine times are uniform in $t^{1/p}$ inside each coarse step: with $p = 2$ steps shrink towards
    the data, where the teacher's own error is made. The last coarse step ends with the final
    denoise, from `t_min` to 0.

    Arguments:
        schedule: The schedule, for its `t_min`.
        coarse: Coarse grid of K steps.
        refinement: Fine steps a coarse step r, at least 1 (all but the last) and 2 (the last).
        power: The exponent p.

    Returns:
        Fine times, shape (K, r + 1): row k refines coarse step k.

    Raises:
        SigdegError: If the refinement is too small, or the last coarse step has no room for it.
    """
    times = check_grid(coarse)
    if refinement < 1 or (refinement < 2 and times[-1] == 0 and times[-2] > schedule.t_min):
        raise SigdegError(
            f"refinement must be at least 2 fine steps a coarse step, got {refinement}"
        )
    if refinement > 1 and times[-1] == 0 and times[-2] <= schedule.t_min:
        raise SigdegError(
            f"the last coarse step must start above t_min = {schedule.t_min:g} to be refined, "
            f"got {float(times[-2]):g}"
        )
    rows = []
    for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        final = s == 0
        end = schedule.t_min if final else s
        count = refinement - 1 if final else refinement
        v = torch.linspace(t ** (1 / power), end ** (1 / power), count + 1, dtype=torch.float64)
        row = v**power
        row[0], row[-1] = t, end
        rows.append(torch.cat([row, row.new_zeros(1)]) if final else row)
    return torch.stack(rows)


def join_rows(rows: Tensor | Sequence[Tensor]) -> Tensor:
    """The fine grid of rows as `refine` gives them, each beginning where the last one ends."""
    return torch.cat([rows[0], *(row[1:] for row in rows[1:])])


def fine_grid(
    schedule: Schedule, steps: int, spacing: Spacing = "uniform", power: float = 2.0
) -> Tensor:
    """A teacher's own grid: `steps` integration steps from t_max to t_min, then the denoise.

    It costs steps + 1 calls of a one-call step.
    """
    check_request(steps, spacing)
    if spacing == "log_snr":
        return log_snr_grid(schedule, steps, knots=steps + 1)
    p = power if spacing == "power" else 1.0
    first, last = schedule.t_max ** (1 / p), schedule.t_min ** (1 / p)
    v = torch.linspace(first, last, steps + 1, dtype=torch.float64) ** p
    v[0], v[-1] = schedule.t_max, schedule.t_min
    return torch.cat([v, v.new_zeros(1)])


@dataclass(frozen=True)
class Grid:
    """The grids of a sampler: its finest one, and those that take every so many of its times.

    Arguments:
        times: Decreasing times, from the schedule's `t_max` to 0.
        steps: The step counts that it was trained for; a single one allows no other.
        spaced: Makes the grid of a step count, where its times are spaced by a rule.
    """

    times: tuple[float, ...]
    steps: tuple[int, ...] = ()
    spaced: Callable[[int], Tensor] | None = field(default=None, compare=False)

    def at(self, steps: int | None = None) -> Tensor:
        """The grid of so many steps, float64, shape (steps + 1,).

        The default is the most that it was trained for, or the finest grid.
        """
        finest = len(self.times) - 1
        steps = max(self.steps, default=finest) if steps is None else steps
        if steps > finest or (len(self.steps) == 1 and steps not in self.steps):
            known = ", ".join(map(str, self.steps))
            raise SigdegError(
                f"this student was distilled for {known} steps, got {steps}"
                if known
                else f"this model's grid has {finest} steps, got {steps}"
            )
        check_least(steps, 1, "steps")
        if self.spaced is not None:
            return self.spaced(steps)
        at = torch.linspace(0, finest, steps + 1, dtype=torch.float64).round().int()
        return check_grid([self.times[i] for i in at.tolist()])
