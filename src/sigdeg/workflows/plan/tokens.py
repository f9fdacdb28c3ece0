"""Planning for teachers of tokens: what their steps lose, how many are needed, and where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Generator, Tensor

from sigdeg.costs import check_memory
from sigdeg.datasets import PROBLEMS, load_problem
from sigdeg.discrete import (
    Absorbing,
    Ancestral,
    ExactDenoiser,
    uniform_grid,
)
from sigdeg.discrete.exact import MOST_STATES, joint_law, sampler_law, total_variation
from sigdeg.discrete.planning import (
    StepLosses,
    distance_bound,
    exact_losses,
    fewest_steps,
    measured_losses,
)
from sigdeg.errors import SigdegError
from sigdeg.integrations import load_token_teacher
from sigdeg.model import Model
from sigdeg.sampling import sample
from sigdeg.workflows.plan.tables import align, times_text

__all__ = ["TokenPlan", "plan_tokens"]


@dataclass(frozen=True)
class TokenPlan:
    """What steps of a teacher of tokens lose, and the grid that was asked for.

    Arguments:
        source: What the teacher is.
        losses: What its steps lose.
        distance: Total variation of what is drawn on a grid, exact or a bound.
        steps: Steps of the grid.
        wanted: The distance that they are the fewest for.
    """

    source: str
    losses: StepLosses
    distance: Callable[[Tensor], float]
    steps: int
    wanted: float | None

    @property
    def grids(self) -> dict[str, Tensor]:
        """The planned grid, and the even one beside it."""
        return {"planned": self.losses.grid(self.steps), "even": uniform_grid(self.steps)}

    def row(self, steps: int) -> dict[str, Any]:
        """What so many steps lose on the planned grid, and on the even one."""
        grids = {"": self.losses.grid(steps), "_even": self.losses.nearest(uniform_grid(steps))}
        lost = {f"nats{name}": self.losses.lost(grid)["mean"] for name, grid in grids.items()}
        far = {f"distance{name}": self.distance(grid) for name, grid in grids.items()}
        return {"steps": steps, **lost, **far}

    @property
    def counts(self) -> Sequence[int]:
        """Steps of the table: powers of two, and those of the grid."""
        powers = {2**k for k in range(11) if 2**k <= min(self.losses.most_steps, 2 * self.steps)}
        return sorted(powers | {self.steps})

    def to_json(self) -> dict[str, Any]:
        """It as JSON values."""
        return {
            "teacher": self.source,
            "exact": self.losses.exact,
            "candidates": self.losses.most_steps,
            "wanted": self.wanted,
            "steps": self.steps,
            "times": self.losses.grid(self.steps).tolist(),
            "rows": [self.row(steps) for steps in self.counts],
            "warnings": self.warnings(),
        }

    def warnings(self) -> list[str]:
        """What to know before it is used."""
        if self.losses.exact:
            return []
        return [
            "distances are upper bounds by the divergence lost, and count from the law of "
            f"{self.losses.most_steps} steps of the teacher"
        ]

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Its JSON values as text; the last line is the grid."""
        far = "total variation" if self.losses.exact else "at most"
        rows = [["steps", "nats lost", "even grid", far, "even grid"]]
        keys = ("nats", "nats_even", "distance", "distance_even")
        rows += [[str(row["steps"]), *(f"{row[key]:.3g}" for key in keys)] for row in found["rows"]]
        wanted = f", the fewest for {self.wanted:g}" if self.wanted is not None else ""
        return [
            self.source,
            "",
            *align(rows),
            "",
            f"Recommended: {self.steps} {'step' if self.steps == 1 else 'steps'}{wanted}",
            f"times {times_text(self.losses.grid(self.steps))}",
        ]


def plan_tokens(
    teacher: str,
    steps: int | None = None,
    distance: float | None = None,
    candidates: int = 32,
    samples: int = 256,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
) -> TokenPlan:
    """Plan the steps of a teacher of tokens; arguments as of `sigdeg plan tokens`.

    Raises:
        SigdegError: If the teacher is not found, is a mixture, or cannot come as near as wanted.
    """
    if steps is not None and distance is not None:
        raise SigdegError("give either steps or a distance, not both")
    check_memory(3 * 8 * samples * (candidates + 1) ** 2)  # what is lost between any two times
    generator = Generator().manual_seed(seed)
    if teacher in PROBLEMS:
        source, losses, far = known(teacher, candidates, samples, generator, progress)
    else:
        model = load_token_teacher(teacher).to(device)
        source, losses, far = network(model, candidates, samples, generator, progress)
    if distance is None:
        return TokenPlan(source, losses, far, steps or min(8, candidates), None)
    fewest = fewest_steps(losses, far, distance)
    if fewest is None:
        raise SigdegError(
            f"{candidates} steps come within {far(losses.grid(candidates)):.3g}, not "
            f"{distance:g}: allow more with --candidates"
        )
    return TokenPlan(source, losses, far, fewest, distance)


Found = tuple[str, StepLosses, Callable[[Tensor], float]]


def known(name: str, candidates: int, samples: int, generator: Generator, progress: bool) -> Found:
    """The exact masked teacher of a law: exact as a whole, or, of long sequences, measured."""
    law = load_problem(name)
    denoiser = ExactDenoiser(law.support, law.weights, Absorbing(law.tokens))
    step, states = Ancestral(denoiser), denoiser.process.states
    if states**law.length > MOST_STATES:
        data = law.sample(samples, generator)
        return measured(name, step, data, candidates, generator, progress)
    joint = joint_law(law.support, law.weights, states)

    @cache
    def distance(times: tuple[float, ...]) -> float:
        return total_variation(sampler_law(step, times), joint)

    losses = exact_losses(denoiser, candidates)
    return f"{name}, exact", losses, lambda grid: distance(tuple(grid.tolist()))


def network(
    model: Model, candidates: int, samples: int, generator: Generator, progress: bool
) -> Found:
    """A teacher, measured on sequences that it draws in as many steps as there may be."""
    step = model.step
    if not isinstance(step, Ancestral) or step.denoiser.latent is not None:
        raise SigdegError(f"{model.name} is a student, a mixture: plan for the teacher of it")
    told, grid = model.condition(samples), uniform_grid(candidates)
    shape = (samples, *model.shape)
    drawn = sample(step, grid, shape, generator=generator, progress=progress, **told)
    return measured(model.name, step, drawn, candidates, generator, progress, **told)


def measured(
    name: str,
    step: Ancestral,
    data: Tensor,
    candidates: int,
    generator: Generator,
    progress: bool,
    **condition: Tensor,
) -> Found:
    """A teacher's losses on sequences, and the bound on a grid's distance by them."""
    losses = measured_losses(step, data, candidates, generator, progress, **condition)
    source = f"{name}, measured on {len(data)} sequences"
    return source, losses, lambda grid: distance_bound(losses.lost(grid)["mean"])
