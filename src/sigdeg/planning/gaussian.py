r"""Coarse grids that lose the least: shortest paths on the cost of a step.

A grid of K steps is a path with K edges through the fine times. For a converged student of the
exact linear SDE the lost variance is additive along it, $V_0 = \lambda - \sum P_l^2 R_{l,r}$ with
$P_l = A_1 \cdots A_l$, so the best grid is a shortest path. The Wasserstein distance itself, and a
student trained for a finite time, are not additive: the path is reweighted and then improved by an
exact local search.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sigdeg.errors import SigdegError
from sigdeg.planning.linear import FineSDE, LinearStudent
from sigdeg.planning.spectrum import Floats

__all__ = ["PlannedGrid", "dp_grid", "shortest_path", "warped_points"]

TINY = np.finfo(np.float64).tiny
ROUNDS = 5  # reweightings a start
IMPROVEMENT = 1e-12  # relative: no move for the sake of rounding


@dataclass(frozen=True)
class PlannedGrid:
    """A coarse grid and what it is predicted to cost.

    Arguments:
        points: Indices of its times among the times it was chosen from.
        times: Decreasing times that end at 0, float64, shape (K + 1,).
        cost: The predicted cost, in the unit of the plan that made it.
    """

    points: tuple[int, ...]
    times: Tensor
    cost: float


def shortest_path(cost: ArrayLike, edges: int) -> tuple[list[int], float]:
    r"""Cheapest path from the first node to the last with a given number of edges.

    $D_e(r) = \min_{l<r} D_{e-1}(l) + cost_{l,r}$, in $O(edges \cdot M^2)$.

    Arguments:
        cost: Cost of the edge from node l to node r > l, shape (M, M); infinite where there is no
            edge. Only entries above the diagonal count; they may be negative.
        edges: The number of edges, from 1 to M - 1.

    Returns:
        The nodes, increasing from 0 to M - 1, and the path's cost.

    Raises:
        SigdegError: If the matrix is not square or has NaN, edges is out of range, or no path has
            so many edges.
    """
    matrix = np.asarray(cost, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise SigdegError(f"cost must be a square matrix of two nodes or more, got {matrix.shape}")
    nodes = len(matrix)
    if not 1 <= edges < nodes:
        raise SigdegError(f"a path over {nodes} nodes has 1 to {nodes - 1} edges, got {edges}")
    forward = np.triu(np.ones(matrix.shape, dtype=bool), 1)
    if np.isnan(matrix[forward]).any():
        raise SigdegError("cost must be a number for every pair l < r, got NaN")
    matrix = np.where(forward, matrix, np.inf)
    best, before = matrix[0], []
    for _ in range(edges - 1):
        total = best[:, None] + matrix
        before.append(total.argmin(axis=0))
        best = total.min(axis=0)
    if not best[-1] < np.inf:
        raise SigdegError(f"no path of {edges} edges has a finite cost")
    path = [nodes - 1]
    for step in reversed(before):
        path.append(int(step[path[-1]]))
    return [0, *path[::-1]], float(best[-1])


def warped_points(fine: int, steps: int, power: float = 1.0) -> list[int]:
    r"""Fine indices nearest to the power grid $N (i / K)^p$, kept distinct; p = 1 is uniform.

    Arguments:
        fine: The number of fine steps N.
        steps: The number of coarse steps K, from 1 to N.
        power: The exponent p.

    Raises:
        SigdegError: If the number of coarse steps is out of range.
    """
    if not 1 <= steps <= fine:
        raise SigdegError(f"a grid on {fine} fine steps has 1 to {fine} steps, got {steps}")
    i = np.arange(steps + 1)
    points = np.rint(fine * (i / steps) ** power).astype(int)
    # Nearest points may coincide near the data: push them apart, leaving room for those after.
    rising = np.maximum.accumulate(points - i) + i
    return [int(p) for p in np.minimum(rising, fine - steps + i)]


def dp_grid(sde: FineSDE, steps: int, student: LinearStudent | None = None) -> PlannedGrid:
    r"""The grid with the smallest $W_2$ between a linear student's samples and the teacher's.

    To first order in the variances $W_2^2$ is additive over the steps, with the cost

    $$ E_{l,r} = \sum_k w_k P_l^2 (a^2 n_r^2 + q - n_l^2), \qquad
       w = (\sqrt{V_0} - \sqrt{V_0^*}) / \sqrt{V_0}, $$

    a the step's gain and q the variance of its noise. Shortest paths, reweighted at the grid found,
    from several power grids; then an exact local search, which moves one time or shifts a run of
    neighbouring times until nothing helps.

    Arguments:
        sde: The fine SDE.
        steps: The number of coarse steps K, from 1 to N.
        student: The student, converged and of order 2 by default.

    Returns:
        The grid; its points are fine indices from 0 to N and its cost is the $W_2$.

    Raises:
        SigdegError: If the number of coarse steps is out of range.
    """
    student = student or LinearStudent()
    # A student trained for a finite time may do best with one long last step: start there too.
    powers = [1.0, 2.0, 3.0] if student.budget == math.inf else [1 / 3, 1 / 2, 1.0, 2.0, 3.0]
    starts = [warped_points(sde.steps, steps, power) for power in powers]
    table = sde.student_table(student)
    excess = _excess(sde, table)
    met = set()
    for points in starts:
        for _ in range(ROUNDS):
            met.add(tuple(points))
            final, target = np.sqrt(_march(sde, table, points)), np.sqrt(sde.variance[0])
            deviation = (final - target) / np.maximum(final, 1e-6 * target + TINY)
            points, _ = shortest_path(excess @ (sde.multiplicity * deviation), steps)
            if tuple(points) in met:
                break
    cost, best = min(_move_times(sde, table, list(points)) for points in sorted(met))
    while True:
        shifted = _shift_runs(sde, table, best)
        moved = _move_times(sde, table, shifted)
        if moved[0] >= cost * (1 - IMPROVEMENT):
            break
        cost, best = moved
    return PlannedGrid(tuple(best), torch.from_numpy(sde.times[best[::-1]]), cost)


def _excess(sde: FineSDE, table: tuple[Floats, Floats]) -> Floats:
    r"""$P_l^2 (a^2 n_r^2 + q - n_l^2)$: what every step adds to V_0, shape (N + 1, N + 1, d)."""
    gain, noise = table
    survives = np.cumprod(np.vstack([np.ones_like(sde.variance[0]), sde.A**2]), axis=0)
    excess = np.zeros_like(gain)
    for left in range(sde.steps):
        rest = slice(left + 1, None)
        change = gain[left, rest] * sde.variance[rest] + noise[left, rest] - sde.variance[left]
        excess[left, rest] = survives[left] * change
    return excess


def _march(sde: FineSDE, table: tuple[Floats, Floats], points: ArrayLike) -> Floats:
    r"""Variance of a student's samples on grids (\*, K + 1), its steps from the table, (\*, d)."""
    gain, noise = table
    grids = np.asarray(points)
    variance: Floats = sde.variance[-1]
    for i in range(grids.shape[-1] - 1, 0, -1):
        left, right = grids[..., i - 1], grids[..., i]
        variance = gain[left, right] * variance + noise[left, right]
    return variance


def _shift_runs(sde: FineSDE, table: tuple[Floats, Floats], points: list[int]) -> list[int]:
    """Shift runs of neighbouring times by one fine step, the best first, until none helps.

    The optimum is a flat valley along which neighbours move together.
    """
    inner = range(1, len(points) - 1)
    runs = [(i, j) for i in inner for j in inner if i <= j]
    shifts = np.zeros((2 * len(runs), len(points)), dtype=int)
    for k, (i, j) in enumerate(runs):
        shifts[2 * k, i : j + 1], shifts[2 * k + 1, i : j + 1] = 1, -1
    grid = np.array(points)
    best = sde.distance(_march(sde, table, grid))
    while True:
        trials = grid + shifts
        trials = trials[(np.diff(trials) > 0).all(axis=1)]
        distances = sde.distance(_march(sde, table, trials))
        if not len(trials) or distances.min() >= best * (1 - IMPROVEMENT):
            return [int(p) for p in grid]
        grid, best = trials[distances.argmin()], distances.min()


def _move_times(
    sde: FineSDE, table: tuple[Floats, Floats], points: list[int]
) -> tuple[float, list[int]]:
    """Move one time after the other to its best place until none moves."""
    gain, noise = table
    best = float(sde.distance(_march(sde, table, points)))
    while True:
        before = best
        arriving = [sde.variance[-1]]  # at each of the points, from the noise down
        for left, right in zip(points[-2::-1], points[:0:-1], strict=True):
            arriving.insert(0, gain[left, right] * arriving[0] + noise[left, right])
        # The steps below a point compose to V_0 = scale V_l + shift.
        scale, shift = np.ones_like(arriving[0]), np.zeros_like(arriving[0])
        for i in range(1, len(points) - 1):
            left, right = points[i - 1], points[i + 1]
            between = slice(left + 1, right)
            middle = gain[between, right] * arriving[i + 1] + noise[between, right]
            final = scale * (gain[left, between] * middle + noise[left, between]) + shift
            distances = sde.distance(final)
            if distances.min() < best * (1 - IMPROVEMENT):
                points[i], best = left + 1 + int(distances.argmin()), float(distances.min())
            shift = shift + scale * noise[left, points[i]]
            scale = scale * gain[left, points[i]]
        if best == before:
            return best, points
