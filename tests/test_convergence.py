"""Strong orders of the training-free steps, by synchronous coupling on an exact score.

One Brownian path drives every resolution: signatures of order 2 are drawn on the finest grid and
concatenated for the coarser ones. On 1DN rare paths that end at the other mode dominate the root
mean square, so here the law is smoother and the interval shorter; `benchmarks/convergence.py` shows
the whole of it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from sigdeg.denoiser import Denoiser, GaussianMixtureDenoiser
from sigdeg.grids import fine_grid
from sigdeg.sampling import march
from sigdeg.schedule import VPLinear
from sigdeg.signature import PartialSignature
from sigdeg.steps import DenoiserStep, EulerMaruyama, Exponential, ShARK, StochasticTaylor

SCHEDULE = VPLinear(beta_min=1.0, beta_max=3.0)
DENOISER = GaussianMixtureDenoiser([-1.0, 1.0], [0.7, 0.7], [0.5, 0.5], SCHEDULE)
START, END, FINEST = 0.8, 0.4, 1024
COUNTS = (8, 16, 32, 64)  # steps over the interval
PIECES = (512, 256, 128, 64)  # finest steps in one step of the local study
COMPLETE = functools.partial(StochasticTaylor, complete=True)


class Coupled:
    """One set of paths, their signatures on the finest grid and the reference along it."""

    def __init__(self, grid: Tensor, paths: int = 500) -> None:
        generator = Generator().manual_seed(0)
        self.grid, shape = grid, (paths, 1)

        def normals() -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        signs = torch.randint(2, shape, generator=generator) * 2.0 - 1
        t = grid[0]
        clean = signs + 0.7 * normals()
        self.x = SCHEDULE.alpha(t) * clean + SCHEDULE.sigma(t) * normals()
        self.path = [
            PartialSignature.sample(h, shape, 2, generator, torch.float64) for h in -grid.diff()
        ]
        self.reference = {0: self.x}

        def keep(k: int, _: Tensor, x: Tensor) -> None:
            self.reference[k] = x

        march(ShARK(DENOISER), self.x, grid, self.path, keep)

    def error(self, step: DenoiserStep, parts: int, until: int | None = None) -> float:
        """Root mean square error against the reference, with one step for each `parts` pieces."""
        until = len(self.path) if until is None else until
        path = [PartialSignature.fold(self.path[i : i + parts]) for i in range(0, until, parts)]
        x = march(step, self.x, self.grid[: until + 1 : parts], path)
        return float((x - self.reference[until]).square().mean().sqrt())


@pytest.fixture(scope="module")
def coupled() -> Coupled:
    return Coupled(torch.linspace(START, END, FINEST + 1, dtype=torch.float64))


def slope(sizes: list[float], errors: list[float]) -> float:
    """Least-squares slope in logarithms."""
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (sizes, errors))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


Build = Callable[[Denoiser], DenoiserStep]


@pytest.mark.parametrize(
    ("build", "order"),
    [
        pytest.param(EulerMaruyama, 1.0, id="euler-maruyama"),
        pytest.param(Exponential, 1.0, id="exponential"),
        pytest.param(StochasticTaylor, 1.0, id="taylor-as-printed"),
        pytest.param(COMPLETE, 1.5, id="taylor-complete"),
        pytest.param(ShARK, 1.5, id="shark"),
    ],
)
def test_strong_order(coupled: Coupled, build: Build, order: float) -> None:
    errors = [coupled.error(build(DENOISER), FINEST // n) for n in COUNTS]
    assert slope([1 / n for n in COUNTS], errors) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize(
    ("build", "order"),
    [
        pytest.param(EulerMaruyama, 1.5, id="euler-maruyama"),
        pytest.param(StochasticTaylor, 2.0, id="taylor-as-printed"),
    ],
)
def test_local_order(coupled: Coupled, build: Build, order: float) -> None:
    # Single steps that all start at START. The printed Taylor scheme gains half an order here, but
    # what it lacks is a mean, which a march adds up: globally it is no better (above).
    errors = [coupled.error(build(DENOISER), pieces, until=pieces) for pieces in PIECES]
    assert slope([float(p) for p in PIECES], errors) == pytest.approx(order, abs=0.2)


def test_what_the_printed_taylor_scheme_lacks_is_the_mean(coupled: Coupled) -> None:
    def bias(build: Build, pieces: int) -> float:
        x = build(DENOISER)(
            coupled.x,
            coupled.grid[0],
            coupled.grid[pieces],
            PartialSignature.fold(coupled.path[:pieces]),
        )
        return float(((x - coupled.reference[pieces]) * torch.sign(coupled.x)).mean())

    printed, complete = (abs(bias(b, 64)) for b in (StochasticTaylor, COMPLETE))
    assert complete < printed / 10


@pytest.mark.parametrize("build", [Exponential, EulerMaruyama, ShARK])
def test_error_vanishes_as_the_grid_is_refined(build: Build) -> None:
    # From pure noise to the data, the final denoise included: the reference march and the coarse
    # ones share the path, and their distance tends to zero (what Theorem 6 promises a student).
    finest = 1024
    coupled = Coupled(fine_grid(SCHEDULE, finest, "power")[:-1], paths=200)
    t_min = torch.tensor(SCHEDULE.t_min, dtype=torch.float64)
    counts, errors = (4, 16, 64, 256), []
    target = DENOISER(coupled.reference[finest], t_min)
    for n in counts:
        parts = finest // n
        path = [PartialSignature.fold(coupled.path[i : i + parts]) for i in range(0, finest, parts)]
        denoise = PartialSignature.sample(SCHEDULE.t_min, coupled.x.shape, dtype=torch.float64)
        grid = torch.cat([coupled.grid[::parts], torch.zeros(1, dtype=torch.float64)])
        x = march(build(DENOISER), coupled.x, grid, [*path, denoise])
        errors.append(float((x - target).square().mean().sqrt()))
    assert all(fine < coarse / 2 for coarse, fine in itertools.pairwise(errors))
    assert errors[-1] < 0.02


def test_coupling_is_one_path() -> None:
    coupled = Coupled(torch.linspace(START, END, 65, dtype=torch.float64), paths=50)
    whole = PartialSignature.fold(coupled.path)
    torch.testing.assert_close(whole.W, sum(p.W for p in coupled.path))
    assert float(whole.dt) == pytest.approx(START - END)
    assert coupled.error(ShARK(DENOISER), 1) < 1e-15
