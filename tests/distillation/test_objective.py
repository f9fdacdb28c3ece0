"""The loss by hand, by torch's own distributions, and where a Gaussian problem fixes its value."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import integrate
from scipy.special import eval_legendre
from torch import Generator, Tensor

from sigdeg.denoiser import GaussianDenoiser
from sigdeg.distillation import Batch, Objective, TeacherPaths, simulate
from sigdeg.distillation.objective import Segments
from sigdeg.grids import refine
from sigdeg.networks import ResidualMLP
from sigdeg.schedule import VPLinear
from sigdeg.signature import PartialSignature
from sigdeg.steps import Exponential
from sigdeg.student import SignatureStudent

SCHEDULE = VPLinear()
STD = 0.6


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def student(order: int = 2, zero: bool = False, **options: Any) -> SignatureStudent:
    """A student of one channel in double precision; its network zero, or far from it."""
    noise = options.get("residual_noise")
    inputs = SignatureStudent.in_channels(1, order, residual_noise=noise)
    network = ResidualMLP(inputs, 1, 8, 1)
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            p.copy_(0.0 if zero else 0.4 * torch.randn(p.shape, generator=seeded(i)))
    return SignatureStudent(network, SCHEDULE, 1, order, data_std=STD, **options).double()


def batch(n: int, q: int, order: int, last: int) -> Batch:
    """Random segments of q steps that begin at steps 0 to last."""
    return Batch(
        torch.arange(n) % (last + 1),
        torch.randn(n, q + 1, 1, generator=seeded(1), dtype=torch.float64),
        torch.randn(n, q, order, 1, generator=seeded(2), dtype=torch.float64),
    )


def close(actual: Tensor, expected: Tensor | float, tol: float = 1e-10) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected.reshape(actual.shape), rtol=tol, atol=tol)


@pytest.mark.parametrize("q", [1, 2, 4])
def test_by_hand(q: int) -> None:
    """Eq. 11, and Eq. 10 at q = K: unrolled from the teacher's state, one sample at a time."""
    step = student(2, steps=(4,))
    grid = step.grid()
    segments = batch(10, q, step.order, 4 - q)
    objective = Objective(step, [grid]).double()
    objective.scales.copy_(torch.tensor([[0.5, 2.0, 3.0, 7.0]]))
    errors = objective.errors([segments], [0])[0]
    assert errors.shape == (10, q)
    for i in range(10):
        x = segments.states[i : i + 1, 0]
        for j in range(q):
            k = int(segments.start[i]) + j
            path = PartialSignature(grid[k] - grid[k + 1], segments.coefficients[i : i + 1, j])
            target = segments.states[i : i + 1, j + 1]
            x = step(x, grid[k], grid[k + 1], path)
            close(errors[i, j], (x - target).square().mean() / objective.scales[0, k])
    close(objective(Segments([segments]))["loss"], errors.mean())


@pytest.mark.parametrize("q", [1, 3])
def test_energy_score_by_hand(q: int) -> None:
    """Two draws that share start and path, with the noise of two other segments."""
    step = student(2, residual_noise="energy", steps=(4,))
    assert step.order == 3
    grid = step.grid()
    segments = batch(7, q, 3, 4 - q)
    objective = Objective(step, [grid]).double()
    objective.scales.copy_(torch.tensor([[0.5, 2.0, 3.0, 7.0]]))
    errors = objective.errors([segments], [0])[0]
    for i in range(7):
        draws = []
        for other in (i - 1, i - 2):
            x, draw = segments.states[i : i + 1, 0], []
            for j in range(q):
                k = int(segments.start[i]) + j
                c = segments.coefficients[i : i + 1, j].clone()
                c[:, 2] = segments.coefficients[other, j, 2]
                x = step(x, grid[k], grid[k + 1], PartialSignature(grid[k] - grid[k + 1], c))
                draw.append(float(x.detach()))
            draws.append(draw)
        for j in range(q):
            (a, b), y = (draw[j] for draw in draws), float(segments.states[i, j + 1])
            score = abs(a - y) / 2 + abs(b - y) / 2 - abs(a - b) / 2
            scale = float(objective.scales[0, int(segments.start[i]) + j]) ** 0.5
            close(errors[i, j].detach(), score / scale, 1e-5)


def test_energy_score_is_least_at_the_true_spread() -> None:
    """Draws N(0, s^2) scored on targets N(0, 1): least at s = 1, where its value is known."""
    n = 40_000
    step = student(1, residual_noise="energy", steps=(1,))
    segments = Batch(
        torch.zeros(n, dtype=torch.long),
        torch.randn(n, 2, 1, generator=seeded(1), dtype=torch.float64),
        torch.randn(n, 1, 2, 1, generator=seeded(2), dtype=torch.float64),
    )
    objective = Objective(step, [step.grid()])
    scores = {}
    for spread in (0.0, 0.5, 0.8, 1.0, 1.25, 2.0):

        def law(x: Tensor, t: Any, s: Any, path: PartialSignature, r: float = spread) -> Any:
            return r * path.coefficients[:, 1]

        step.forward = law  # type: ignore[method-assign]  # a student of a known law
        scores[spread] = float(objective.errors([segments], [0])[0].mean())
    assert min(scores, key=scores.__getitem__) == 1.0
    for spread, score in scores.items():  # E|N(0, 1 + s^2)| - E|N(0, 2 s^2)| / 2
        exact = math.sqrt(2 / math.pi) * (math.sqrt(1 + spread**2) - spread / math.sqrt(2))
        assert score == pytest.approx(exact, abs=0.02)


def test_levels_of_an_elastic_student() -> None:
    """Each level is compared on its own grid, with its own scales, and counts as much."""
    step = student(2, steps=(1, 2, 4))
    grids = [step.grid(4), step.grid(4)[::2], step.grid(4)[::4]]
    objective = Objective(step, grids).double()
    objective.scales[0], objective.scales[1, :2], objective.scales[2, 0] = 2.0, 3.0, 5.0
    parts = [batch(n, 1, 2, last) for n, last in ((7, 3), (4, 1), (3, 0))]
    expected = 0.0
    for level, part in enumerate(parts):
        t, s = grids[level][part.start], grids[level][part.start + 1]
        path = PartialSignature(t - s, part.coefficients[:, 0])
        error = (step(part.states[:, 0], t, s, path) - part.states[:, 1]) ** 2
        expected += float(error.detach().mean()) / (2.0, 3.0, 5.0)[level] / 3
    close(objective(Segments(parts))["loss"], expected)


def test_images_are_averaged_over_their_elements() -> None:
    step = student(2)
    flat = batch(6, 1, 2, 0)
    objective = Objective(step, [step.grid()])
    states, c = (v.unsqueeze(-1).expand(*v.shape, 5) for v in (flat.states, flat.coefficients))
    images = Batch(flat.start, states, c)

    class Pixels(torch.nn.Module):
        def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
            pixels = x.movedim(1, -1).flatten(0, 1)
            return network(pixels, timestep.repeat_interleave(5)).reshape(-1, 5, 1).movedim(-1, 1)

    network = step.network
    expected = objective.errors([flat], [0])[0]
    step.network = Pixels()
    close(objective.errors([images], [0])[0], expected)


@pytest.mark.parametrize("steps", [(3,), (1, 2, 4)])
@pytest.mark.parametrize("data", [False, True])
def test_normalised_loss_starts_at_one(steps: tuple[int, ...], data: bool) -> None:
    """Step by step and level by level, from whole paths or from runs of two steps."""
    if data and len(steps) > 1:
        steps = (2, 4)
    step = student(2, steps=steps)
    longest = max(steps)
    grid = step.grid(longest)
    clean = torch.randn(100, 1, generator=seeded()) if data else None
    paths = TeacherPaths(
        Exponential(GaussianDenoiser(0.5, STD, SCHEDULE), 2, STD),
        list(refine(SCHEDULE, grid, 3)),
        (1,),
        2,
        clean,
        2,
    )
    segments = paths.draw(400, seeded(3))
    grids = [grid[:: longest // k] for k in sorted(steps, reverse=True)]
    if data:
        grids = grids[:1]
    objective = Objective(step.float(), grids)
    objective.normalise(segments)
    for level, coarse in enumerate(grids):
        seen = segments.coarsen(grid, longest // (len(coarse) - 1))
        for k in range(len(coarse) - 1):
            losses = []
            for j in range(seen.coefficients.shape[1]):
                rows = seen.start + j == k
                one = Batch(
                    seen.start[rows] + j,
                    seen.states[rows, j : j + 2],
                    seen.coefficients[rows, j : j + 1],
                )
                if bool(rows.any()):
                    losses.append(objective.errors([one], [level])[0][:, 0])
            close(torch.cat(losses).mean(), 1.0, 1e-3)


def test_steps_that_are_not_seen_and_perfect_ones_keep_the_loss_finite() -> None:
    step = student(1, zero=True, steps=(3,))
    quiet = Batch(torch.zeros(2, dtype=torch.long), torch.zeros(2, 2, 1), torch.zeros(2, 1, 1, 1))
    objective = Objective(step.float(), [step.grid()])
    objective.normalise(quiet)
    assert torch.isfinite(objective(Segments([quiet]))["loss"])
    assert objective.scales[0, 1:].tolist() == [1.0, 1.0]


def left_open(t: float, s: float, order: int) -> tuple[float, float]:
    r"""$\int \kappa^2$ and the share of it that m Legendre coefficients carry, by quadrature.

    $\kappa(u) = g(\tau)\, \alpha_\tau n_s^2 / (\alpha_s n_\tau^2)$ is the response of the exact
    reverse SDE of Gaussian data to its path; Parseval splits its square over the coefficients.
    """

    def n2(time: float) -> float:
        v = torch.tensor(time, dtype=torch.float64)
        return float(SCHEDULE.alpha(v) ** 2 * STD**2 + SCHEDULE.sigma(v) ** 2)

    def kappa(u: float) -> float:
        v = torch.tensor(t - u, dtype=torch.float64)
        gain = SCHEDULE.diffusion(v) * SCHEDULE.alpha(v)
        return float(gain) * n2(s) / (float(SCHEDULE.alpha(torch.tensor(s).double())) * n2(t - u))

    def phi(k: int, u: float) -> float:
        h = t - s
        return float(math.sqrt((2 * k + 1) / h) * eval_legendre(k, 2 * u / h - 1))

    total = integrate.quad(lambda u: kappa(u) ** 2, 0, t - s, epsabs=1e-12, limit=200)[0]
    seen = [
        integrate.quad(lambda u, k=k: kappa(u) * phi(k, u), 0, t - s, epsabs=1e-12, limit=200)[0]
        for k in range(order)
    ]
    return total, sum(w**2 for w in seen) / total


def test_gaussian_problem_leaves_exactly_what_the_coefficients_leave() -> None:
    r"""Exact teacher, exact linear student: the loss is known, and falls with the order.

    With share p of the variance in the seen coefficients, the untrained student, which spreads all
    of the variance over them, has the error $(1 - \sqrt p)^2 + (1 - p) = 2 (1 - \sqrt p)$ of
    $\int \kappa^2$. The best student has $1 - p$.
    """
    t, s = 0.8, 0.3
    grid = torch.tensor([t, s], dtype=torch.float64)
    teacher = Exponential(GaussianDenoiser(0.0, STD, SCHEDULE), 4, STD)
    row = torch.linspace(t, s, 17, dtype=torch.float64)
    n = 4000
    x = torch.randn(n, 1, generator=seeded(), dtype=torch.float64)
    states, coefficients = simulate(teacher, [row], x, 4, seeded(1))
    previous = math.inf
    for order in (1, 2, 3, 4):
        total, share = left_open(t, s, order)
        assert previous > 1 - share > 0
        previous = 1 - share
        segments = Batch(torch.zeros(n, dtype=torch.long), states, coefficients[:, :, :order])
        errors = Objective(student(order, zero=True), [grid]).errors([segments], [0])[0]
        noise = 5 * (2 / n) ** 0.5  # of a mean of squares
        expected = 2 * (1 - math.sqrt(share)) * total
        assert float(errors.mean().detach()) == pytest.approx(expected, rel=noise)
        # Regression on the state and the seen coefficients finds the best there is.
        design = torch.cat([x, segments.coefficients[:, 0, :, 0]], dim=1)
        fitted = design @ torch.linalg.lstsq(design, states[:, 1]).solution
        best = float((fitted - states[:, 1]).square().mean())
        assert best == pytest.approx((1 - share) * total, rel=noise)


def test_gradients_reach_every_weight_through_the_unrolling() -> None:
    """As differentiating by hand would: the derivative along one weight by central differences."""
    step = student(2, steps=(4,))
    objective = Objective(step, [step.grid()]).double()
    segments = batch(6, 3, 2, 1)
    objective(Segments([segments]))["loss"].backward()
    for p in step.network.parameters():
        assert p.grad is not None
        i = int(p.grad.flatten().abs().argmax())
        eps = 1e-6
        with torch.no_grad():
            p.flatten()[i] += eps
            up = objective(Segments([segments]))["loss"]
            p.flatten()[i] -= 2 * eps
            down = objective(Segments([segments]))["loss"]
            p.flatten()[i] += eps
        close(p.grad.flatten()[i], (up - down) / (2 * eps), 1e-5)
