r"""Training-free solvers to compare with: diffusers' own schedulers on any denoiser.

A scheduler lives on noise levels $r_k = \sigma / \alpha$, a denoiser on the time $t$. Here the
scheduler is given the denoiser's schedule as a table of 1,000 timesteps, and before every call its
actual level is turned back into the time where $-\lambda_t = \log(\sigma_t / \alpha_t) = \log r_k$.
The state of these schedulers is $\alpha_t x_0 + \sigma_t \varepsilon$, as it is here. K steps cost
K calls.

| solver | | source |
|---|---|---|
| `ddim` | $\eta = 0$ | Song et al. (arXiv 2010.02502) |
| `dpm-solver++` | order 2, multistep (2M) | Lu et al. (arXiv 2211.01095) |
| `sde-dpm-solver++` | order 2, for the reverse SDE | the same |
| `unipc` | order 2, $B_2(h)$ | Zhao et al. (arXiv 2302.04867) |

DDIM runs as DPM-Solver++ of order 1, which it equals: diffusers' `DDIMScheduler` has no grids of
noise levels, and on `linspace` its steps do not meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sigdeg.denoiser import Denoiser
from sigdeg.errors import SigdegError, check_choice, check_least, extra
from sigdeg.protocols import Time
from sigdeg.rng import Generators
from sigdeg.schedule import Schedule, VPLinear
from sigdeg.signature import PartialSignature
from sigdeg.steps import GaussianStep

__all__ = ["SOLVERS", "Solver", "solver_grids"]

MULTISTEP = "DPMSolverMultistepScheduler"
SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": (MULTISTEP, {"solver_order": 1, "algorithm_type": "dpmsolver++"}),
    "dpm-solver++": (MULTISTEP, {"solver_order": 2, "algorithm_type": "dpmsolver++"}),
    "sde-dpm-solver++": (MULTISTEP, {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh2"}),
}
# The grids of noise levels have no sigma-min: they end at that level before the step to zero.
GRIDS: dict[str, dict[str, Any]] = {
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading"},
    "trailing": {"timestep_spacing": "trailing"},
    "linspace-sigma-min": {"timestep_spacing": "linspace", "final_sigmas_type": "sigma_min"},
    "leading-sigma-min": {"timestep_spacing": "leading", "final_sigmas_type": "sigma_min"},
    "trailing-sigma-min": {"timestep_spacing": "trailing", "final_sigmas_type": "sigma_min"},
    "karras": {"use_karras_sigmas": True},
    "log-snr": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}
TRAIN_STEPS = 1000


def solver_grids(method: str, steps: int) -> list[str]:
    r"""Names of the grids that a solver can take with K steps.

    | grid | noise levels |
    |---|---|
    | `linspace`, `leading`, `trailing` | timesteps evenly spaced, diffusers' three ways |
    | the same with `-sigma-min` | they end at the noise of `t_min`, the others at zero |
    | `karras` | even in $r^{1/7}$ (Karras et al., arXiv 2206.00364) |
    | `log-snr` | even in $\log r$: diffusers' exponential, the same as its `use_lu_lambdas` |
    | `beta` | quantiles of a beta law (Lee et al., arXiv 2407.12173) |

    As in diffusers, `leading` starts below `t_max`, from noise that belongs to `t_max`.

    Arguments:
        method: A name in `SOLVERS`.
        steps: The number of steps K, at least 1.

    Raises:
        SigdegError: If the solver is unknown or steps < 1.
    """
    check_least(steps, 1, "steps")
    schedulers = {grid: build(method, grid, VPLinear()) for grid in GRIDS}
    return [grid for grid, scheduler in schedulers.items() if prepare(scheduler, steps)]


class Solver(GaussianStep):
    r"""A training-free solver of K steps as a step: `sample(solver, solver.grid, shape, ...)`.

    The noise of the SDE solver is the first coefficient of the path; the others draw none. Of its
    calls a multistep method remembers the latest, so it goes over its own grid, from the first time
    to the last.

    Arguments:
        denoiser: The posterior mean, with a variance-preserving schedule
            ($\alpha_t^2 + \sigma_t^2 = 1$).
        method: A name in `SOLVERS`.
        grid: A name in `solver_grids(method, steps)`.
        steps: The number of steps K, at least 1.

    Attributes:
        grid: Its K + 1 times, from `t_max` on.
        times: The K times at which it calls the denoiser.

    Raises:
        SigdegError: If a name is unknown, steps < 1, the grid cannot have so many steps or the
            schedule does not preserve variance.
    """

    def __init__(self, denoiser: Denoiser, method: str, grid: str, steps: int) -> None:
        super().__init__()
        check_least(steps, 1, "steps")
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        self.name = f"{method} on {grid} with {steps} steps"
        self.stochastic = method.startswith("sde")
        self.scheduler = build(method, grid, self.schedule)
        if not prepare(self.scheduler, steps):
            raise SigdegError(f"{method} has no {grid} grid of {steps} steps: use another grid")
        self.grid = times_of(self.scheduler, self.schedule)
        self.times = self.grid[:-1].clone()
        self.grid[0] = self.schedule.t_max

    def calls(self, t: float, s: float) -> int:
        """One a step, and those of guidance."""
        return self.denoiser.calls(torch.tensor([t], dtype=torch.float64))

    def noise(
        self,
        t: Time,
        s: Time,
        shape: Sequence[int],
        generator: Generators | None = None,
        **kind: Any,
    ) -> PartialSignature:
        """A signature of order 1; of a deterministic solver it is zero."""
        if self.stochastic:
            return super().noise(t, s, shape, generator, **kind)
        return PartialSignature(
            torch.as_tensor(t - s), torch.zeros(shape[0], 1, *shape[1:], **kind)
        )

    def forward(
        self, x: Tensor, t: Time, s: Time, noise: PartialSignature, **condition: Any
    ) -> Tensor:
        """One step, see `sigdeg.protocols.Step`.

        Raises:
            SigdegError: If it is not the next one of its grid, or the end is not finite.
        """
        k, last = int((self.grid - t).abs().argmin()), len(self.times) - 1
        if k == 0:
            prepare(self.scheduler, len(self.times))
        elif k != self.scheduler.step_index:
            raise SigdegError(f"{self.name} goes over its own grid, from the first time on")
        more = {"variance_noise": noise.coefficients[:, 0]} if self.stochastic else {}
        mean = self.denoiser(x, self.times[k], **condition)
        x = self.scheduler.step(mean, self.scheduler.timesteps[k], x, **more).prev_sample
        if k == last and not bool(torch.isfinite(x).all()):
            raise SigdegError(f"{self.name} gave NaN or infinite values")
        return x


def build(method: str, grid: str, schedule: Schedule) -> Any:
    """The scheduler of diffusers, with the table of a schedule."""
    with extra("diffusers"):
        import diffusers

    check_choice(method, SOLVERS, "solver")
    check_choice(grid, GRIDS, "grid")
    t = torch.linspace(schedule.t_min, schedule.t_max, TRAIN_STEPS, dtype=torch.float64)
    kept = schedule.alpha(t) ** 2
    if not torch.allclose(kept + schedule.sigma(t) ** 2, torch.ones_like(t), atol=1e-6):
        raise SigdegError(
            "the solvers need a variance-preserving schedule (alpha^2 + sigma^2 = 1), "
            f"got {type(schedule).__name__}"
        )
    betas = 1 - kept / torch.cat([torch.ones_like(kept[:1]), kept[:-1]])
    name, options = SOLVERS[method]
    return getattr(diffusers, name)(
        num_train_timesteps=TRAIN_STEPS,
        trained_betas=betas.tolist(),
        prediction_type="sample",
        **options,
        **GRIDS[grid],
    )


def prepare(scheduler: Any, steps: int) -> bool:
    """Put a scheduler at its first step; whether it has that many, each to less noise.

    With many steps timesteps repeat, and rounding may give `trailing` one too many.
    """
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)  # or it skips a level where the first timestep stands twice
    levels: Tensor = scheduler.sigmas
    return len(levels) == steps + 1 and bool((levels.diff() < 0).all())


def times_of(scheduler: Any, schedule: Schedule) -> Tensor:
    """The times of a scheduler's noise levels, K + 1; a level of zero is at 0."""
    levels = scheduler.sigmas.double()
    # The table of the scheduler is in single precision, its ends as well.
    times = schedule.time_at(-levels.log()).clamp(schedule.t_min, schedule.t_max)
    return times.where(levels > 0, 0.0)
