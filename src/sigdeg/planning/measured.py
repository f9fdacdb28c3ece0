r"""Grids for a teacher as it is: measure what every coarse step would lose, then plan.

A Gaussian spectrum does not see where a nonlinear teacher decides, between modes for instance. So
the teacher is marched through candidate times, its states and signatures kept, and for every pair
of times $t_r > t_l$ one regression of $z_l$ on features of $(z_r, signature)$ measures the variance
$R_{l,r}$ that a student of such features cannot explain. The grid is the shortest path on the sum
of R over the directions, of $R / Var z_l$, or of both, see `Weighing`.

References:
    Sig-DEG (arXiv 2508.16939), section 3: the regression of a coarse step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor
from tqdm.auto import tqdm

from sigdeg.costs import check_memory, path_bytes, tell_calls
from sigdeg.errors import SigdegError, check_choice
from sigdeg.grids import check_grid, coarse_grid, refine
from sigdeg.paths import Batch, TeacherPaths
from sigdeg.planning.gaussian import TINY, PlannedGrid, shortest_path
from sigdeg.planning.spectrum import Floats
from sigdeg.schedule import Schedule
from sigdeg.signature import restriction
from sigdeg.steps import GaussianStep

__all__ = [
    "Comparison",
    "Features",
    "MeasuredCost",
    "StepRegression",
    "Weighing",
    "candidate_times",
    "measured_cost",
]

Features = Literal["linear", "cubic"]
Weighing = Literal["plain", "relative", "balanced"]
CANDIDATES = 18  # steps between candidate times


@dataclass(frozen=True)
class StepRegression:
    r"""A coarse step fitted by least squares: the most flexible student of its features.

    | features | regressors of direction k |
    |---|---|
    | `linear` | 1, all of $z_r$, all coefficients |
    | `cubic` | (linear spline in $z_{r,k}$) times (cubics in the coefficients of direction k) |

    Arguments:
        features: The kind of features.
        knots: Knots of the splines, shape (knots, d).
        weights: Weights of the features, shape (p, d).
        residual: Residual variance a direction, $RSS / (n - dof)$ with the ridge's own degrees of
            freedom $\sum_i e_i / (e_i + \rho)$, shape (d,).
    """

    features: Features
    knots: Floats
    weights: Floats
    residual: Floats

    @classmethod
    def fit(
        cls,
        z: Floats,
        coefficients: Floats,
        target: Floats,
        features: Features = "linear",
        knots: int = 12,
        ridge: float = 1e-7,
    ) -> StepRegression:
        r"""Ridge regression of the states at the end of a coarse step.

        Arguments:
            z: States at its start, shape (n, d).
            coefficients: Its signatures, shape (n, order, d).
            target: States at its end, shape (n, d).
            features: `linear` or `cubic`.
            knots: Knots of the cubic features' splines, evenly over 99% of the states: responses
                are steepest between modes, where few samples are.
            ridge: Penalty $\rho$ relative to each feature's own mean square.

        Raises:
            SigdegError: If the features are unknown or as many as the samples.
        """
        check_choice(features, get_args(Features), "features")
        low, high = np.quantile(z, [0.005, 0.995], axis=0)
        places = np.linspace(low, high, knots)
        if features == "linear":
            fits = [least_squares(linear_design(z, coefficients), target, ridge)]
        else:
            fits = [
                least_squares(cubic_design(places, z, coefficients, k), target[:, [k]], ridge)
                for k in range(z.shape[1])
            ]
        weights, residual = (np.concatenate(v, axis=-1) for v in zip(*fits, strict=True))
        return cls(features, places, weights, residual)

    def __call__(self, z: Floats, coefficients: Floats) -> Floats:
        """States at the end of the step, shape (n, d)."""
        if self.features == "linear":
            return linear_design(z, coefficients) @ self.weights
        steps = [
            cubic_design(self.knots, z, coefficients, k) @ w for k, w in enumerate(self.weights.T)
        ]
        return np.stack(steps, axis=1)


def least_squares(x: Floats, target: Floats, ridge: float) -> tuple[Floats, Floats]:
    """Ridge weights (p, q) and corrected residual variances (q,) of targets (n, q) on x (n, p)."""
    n, p = x.shape
    if n <= p:
        raise SigdegError(f"{p} features need more than {n} paths: simulate more")
    scale = np.sqrt((x**2).mean(axis=0))
    scale[scale == 0] = 1
    x = x / scale
    e, vectors = np.linalg.eigh(x.T @ x / n)
    e = np.maximum(e, 0)
    w = vectors @ ((vectors.T @ (x.T @ target / n)) / (e + ridge)[:, None])
    degrees_of_freedom = (e / (e + ridge)).sum()
    residual = ((target - x @ w) ** 2).sum(axis=0) / (n - degrees_of_freedom)
    return w / scale[:, None], residual


def linear_design(z: Floats, c: Floats) -> Floats:
    """All states and coefficients, shape (n, p)."""
    return np.hstack([np.ones((len(z), 1)), z, c.reshape(len(c), -1)])


def cubic_design(knots: Floats, z: Floats, c: Floats, k: int) -> Floats:
    """Splines in the state times cubics in the coefficients of direction k, shape (n, p)."""
    state, own = z[:, k : k + 1], c[:, :, k]
    spline = np.hstack([np.ones_like(state), state, np.maximum(state - knots[:, k], 0)])
    # Hermite polynomials: the coefficients are standard normal, so these are orthonormal.
    hermite = [np.ones_like(own), own, (own**2 - 1) / 2**0.5, (own**3 - 3 * own) / 6**0.5]
    noise = [
        np.prod([hermite[degree][:, i] for i, degree in enumerate(degrees)], axis=0)
        for degrees in itertools.product(range(4), repeat=own.shape[1])
        if sum(degrees) <= 3
    ]
    product: Floats = spline[:, :, None] * np.stack(noise, axis=1)[:, None, :]
    return product.reshape(len(z), -1)


@dataclass(frozen=True)
class Comparison:
    """A Gaussian plan against a measured one of as many steps.

    Arguments:
        measured: The measured plan's grid.
        ratio: Measured cost of the Gaussian plan, moved to the nearest candidates, over that of
            this one, at least 1.
    """

    measured: PlannedGrid
    ratio: float

    @property
    def agree(self) -> bool:
        """Whether the Gaussian plan may be taken, as it came: it loses at most twice as much."""
        return self.ratio <= 2


@dataclass(frozen=True)
class MeasuredCost:
    """What the coarse steps between candidate times lose.

    Arguments:
        times: The C candidate times, decreasing to 0.
        residual: Unexplained variance of the step from time i to time j > i, shape (C, C, d).
        variance: Variance of the teacher's states at the candidates, shape (C, d).
        teacher_nfe: Teacher calls that measuring took.
    """

    times: Tensor
    residual: Floats
    variance: Floats
    teacher_nfe: float = 0

    def cost(self, steps: int, weighing: Weighing | None = None) -> Floats:
        """Cost of every step of a grid of K steps, shape (C, C).

        | weighing | sum over the directions of |
        |---|---|
        | `plain` | R |
        | `relative` | R / Var z |
        | `balanced` | both, each in units of what the cheapest grid of K steps costs by it alone |

        Of several directions the plain cost neglects those of little variance, and the relative one
        may spend a single step on all that noise still covers.

        Arguments:
            steps: The number of steps K.
            weighing: How the directions are weighed (default: one is plain, several are balanced).

        Raises:
            SigdegError: If there are not 1 to C - 1 steps, or the weighing is unknown.
        """
        weighing = weighing or ("plain" if self.residual.shape[-1] == 1 else "balanced")
        check_choice(weighing, get_args(Weighing), "weighing")
        plain, relative = self.residual.sum(-1), (self.residual / self.variance).sum(-1)
        if weighing == "balanced":
            units = [max(shortest_path(cost, steps)[1], TINY) for cost in (plain, relative)]
            plain = plain / units[0] + relative / units[1]
        cost: Floats = relative if weighing == "relative" else plain
        return cost

    def grid(self, steps: int, weighing: Weighing | None = None) -> PlannedGrid:
        """The cheapest grid of K steps; its points are indices of candidates.

        Raises:
            SigdegError: As `cost`.
        """
        points, cost = shortest_path(self.cost(steps, weighing), steps)
        return PlannedGrid(tuple(points), self.times[points], cost)

    def nearest(self, grid: Tensor, weighing: Weighing | None = None) -> PlannedGrid:
        """A grid moved to the nearest distinct candidates, with its measured cost.

        Arguments:
            grid: Decreasing times from the first candidate to 0.
            weighing: Of its cost, see `cost`.

        Raises:
            SigdegError: If it is not a grid between the candidates' ends, or has more times.
        """
        times = check_grid(grid).numpy()
        known = self.times.numpy()
        if not np.allclose(times[[0, -1]], known[[0, -1]], rtol=0, atol=1e-9):
            raise SigdegError(
                f"the grid must run from {known[0]:g} to {known[-1]:g} as the candidates do, "
                f"got {times[0]:g} to {times[-1]:g}"
            )
        if len(times) > len(known):
            raise SigdegError(f"{len(known)} candidates are too few for {len(times)} times")
        place = np.interp(times[1:-1], known[::-1], np.arange(len(known))[::-1])
        inner = np.arange(1, len(known) - 1)
        chosen = linear_sum_assignment((place[:, None] - inner) ** 2)[1]
        points = [0, *sorted(int(inner[i]) for i in chosen), len(known) - 1]
        cost = self.cost(len(points) - 1, weighing)[points[:-1], points[1:]].sum()
        return PlannedGrid(tuple(points), self.times[points], float(cost))

    def compare(self, gaussian: PlannedGrid, weighing: Weighing | None = None) -> Comparison:
        """Set a Gaussian plan against the measured plan of as many steps.

        Arguments:
            gaussian: The plan, as from `dp_grid`.
            weighing: Of the cost, see `cost`.

        Raises:
            SigdegError: If the plan's grid does not fit the candidates, see `nearest`.
        """
        moved = self.nearest(gaussian.times, weighing).cost
        best = self.grid(len(gaussian.times) - 1, weighing)
        return Comparison(best, moved / best.cost if best.cost > 0 else 1.0)


def measured_cost(
    teacher: GaussianStep,
    times: Tensor,
    shape: tuple[int, ...],
    order: int = 2,
    paths: int = 5000,
    refinement: int = 16,
    features: Features = "linear",
    directions: Tensor | int | None = None,
    condition: Mapping[str, Tensor] | None = None,
    generator: Generator | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 1024,
    progress: bool = False,
) -> MeasuredCost:
    r"""Measure what every coarse step between candidate times would lose of a teacher.

    One fine march a path, from noise to data, gives all pairs: their signatures concatenate.

    Arguments:
        teacher: The teacher's step.
        times: Candidate times, decreasing to 0; 16 to 24 of them, denser near the data.
        shape: Shape of one sample.
        order: Order of the student's signatures.
        paths: Simulated paths.
        refinement: Fine steps between neighbouring candidates.
        features: What the regressions see, see `StepRegression`.
        directions: Orthonormal columns to measure along, shape (features of a sample, d), or how
            many principal components of the first batch of samples; every feature by default.
        condition: For a conditional teacher, rows to draw from, see `TeacherPaths`.
        generator: The stream of the noise.
        device: Where the teacher lives.
        batch_size: Paths simulated at once.
        progress: Say what it takes, and show bars.

    Raises:
        SigdegError: If the candidates do not decrease to 0, there is not the memory for it, the
            teacher gives values that are not finite, or there are too few paths for the features.
    """
    times = check_grid(times)
    if times[-1] != 0:
        raise SigdegError(
            f"candidate times must decrease to 0, got {float(times[-1]):g} at the end"
        )
    rows = refine(teacher.schedule, times, refinement)
    source = TeacherPaths(
        teacher, list(rows), shape, order, device=device, condition=condition or {}
    )
    generator = generator or Generator().manual_seed(0)
    axes = directions if isinstance(directions, Tensor) else None
    most = directions if isinstance(directions, int) else math.prod(shape)
    along = most if axes is None else axes.shape[1]
    needed = 1 + along * (1 + order)
    if features == "linear" and paths <= needed:
        raise SigdegError(f"{needed} features need more than {paths} paths: simulate more")
    # Whole paths of a batch, and what is kept of all, in double precision and joined.
    memory = min(batch_size, paths) * path_bytes(len(rows), order, shape)
    memory += 4 * paths * path_bytes(len(rows), order, (along,)) + 16 * along * len(times) ** 2
    check_memory(memory)
    calls = paths * source.teacher_nfe
    if progress:
        where = rows[0], shape, batch_size, device, condition
        tell_calls(f"measuring {paths:,} paths", calls, teacher, *where, memory=memory)
    parts = []
    for first in tqdm(range(0, paths, batch_size), desc="paths", disable=not progress):
        batch = source.draw(min(batch_size, paths - first), generator)
        if axes is None and isinstance(directions, int):
            ends = batch.states[:, -1].flatten(1).double()
            axes = torch.linalg.svd(ends - ends.mean(0), full_matrices=False)[2][:directions].T
        parts.append(project(batch, axes))
    states, coefficients = (np.concatenate(v) for v in zip(*parts, strict=True))
    count, d = len(times), states.shape[-1]
    residual = np.zeros((count, count, d))
    for i in tqdm(range(count - 1), desc="measure", disable=not progress):
        c = coefficients[:, i]
        for j in range(i + 1, count):
            if j > i + 1:  # append the path from candidate j - 1 to j
                split = (times[i] - times[j - 1]) / (times[i] - times[j])
                left, right = restriction(order, 0.0, split), restriction(order, split, 1.0)
                c = left.numpy() @ c + right.numpy() @ coefficients[:, j - 1]
            fit = StepRegression.fit(states[:, i], c, states[:, j], features)
            residual[i, j] = fit.residual
    return MeasuredCost(times, residual, states.var(axis=0, ddof=1), calls)


def project(batch: Batch, directions: Tensor | None) -> tuple[Floats, Floats]:
    """States (n, C, d) and signatures (n, C - 1, order, d) of whole paths, along directions."""
    states, coefficients = batch.states.flatten(2), batch.coefficients.flatten(3)
    if directions is not None:
        states, coefficients = (v @ directions.to(v) for v in (states, coefficients))
    return states.double().cpu().numpy(), coefficients.double().cpu().numpy()


def candidate_times(schedule: Schedule, steps: int = CANDIDATES) -> Tensor:
    """Times for `measured_cost` to choose from: denser near the data, by power spacing."""
    return coarse_grid(schedule, steps, "power", 2.0)
