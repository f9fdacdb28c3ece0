"""diffusers' solvers on our denoisers: calls, times, closed forms, orders and native runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Generator, Tensor, nn

from sigdeg.datasets import GaussianMixture1D
from sigdeg.denoiser import Denoiser, GaussianDenoiser, GaussianMixtureDenoiser, NetworkDenoiser
from sigdeg.errors import SigdegError
from sigdeg.integrations import SOLVERS, Solver, solver_grids
from sigdeg.metrics import w1_exact
from sigdeg.rng import Generators
from sigdeg.sampling import sample
from sigdeg.schedule import EDM, Cosine, DiscreteVP, RectifiedFlow, Schedule, VPLinear

SCHEDULE = VPLinear()
LAW = GaussianMixture1D()
MIXTURE = GaussianMixtureDenoiser(LAW.means, LAW.stds, LAW.weights, SCHEDULE)
GRIDS = (
    *(f"{kind}{end}" for end in ("", "-sigma-min") for kind in ("linspace", "leading", "trailing")),
    *("karras", "log-snr", "beta"),
)
every_solver = pytest.mark.parametrize("method", SOLVERS)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def solver_sample(
    denoiser: Denoiser,
    method: str,
    grid: str,
    steps: int,
    shape: Sequence[int],
    generator: Generators,
    batch_size: int | None = None,
) -> Tensor:
    """Samples of a solver over its own grid."""
    solver = Solver(denoiser, method, grid, steps)
    return sample(solver, solver.grid, shape, generator=generator, batch_size=batch_size)


class Witness(Denoiser):
    """Passes calls on to a denoiser and remembers the times."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser.schedule)
        self.denoiser = denoiser
        self.times: list[float] = []

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        assert t.shape == ()
        assert t.dtype == torch.float64
        self.times.append(float(t))
        return self.denoiser(x, t)


class Zero(Denoiser):
    """The exact denoiser of data at 0."""

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        return torch.zeros_like(x)


def witnessed(schedule: Schedule, method: str, grid: str, steps: int) -> list[float]:
    """The times at which a solver calls the denoiser."""
    witness = Witness(GaussianDenoiser(0.3, 0.7, schedule))
    solver_sample(witness, method, grid, steps, (3, 2), seeded())
    return witness.times


# --- calls and times ------------------------------------------------------------------------------


@every_solver
@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_a_solver_calls_the_denoiser_once_a_step_at_decreasing_times(
    method: str, steps: int
) -> None:
    assert sorted(solver_grids(method, steps)) == sorted(GRIDS)
    for grid in GRIDS:
        times = witnessed(SCHEDULE, method, grid, steps)
        assert times == Solver(Zero(SCHEDULE), method, grid, steps).times.tolist()
        assert len(times) == steps
        assert all(a > b for a, b in itertools.pairwise(times))
        assert SCHEDULE.t_min <= times[-1] <= times[0] <= SCHEDULE.t_max
        if "leading" not in grid:
            assert times[0] == pytest.approx(1.0, abs=1e-6)


@every_solver
def test_levels_that_share_a_timestep_are_all_visited(method: str) -> None:
    # The first two levels round to one timestep, where diffusers by itself begins at the second.
    assert len(set(witnessed(Cosine(), method, "karras", 64))) == 64


def ratios(schedule: Schedule, times: list[float]) -> np.ndarray:
    """The noise levels sigma / alpha at some times."""
    t = torch.tensor(times, dtype=torch.float64)
    return (schedule.sigma(t) / schedule.alpha(t)).numpy()


@pytest.mark.parametrize("schedule", [SCHEDULE, VPLinear(t_min=0.01, t_max=0.9), Cosine()])
@pytest.mark.parametrize("method", ["dpm-solver++", "unipc"])
def test_times_lie_where_the_grids_say(schedule: Schedule, method: str) -> None:
    K, low, high = 7, schedule.t_min, schedule.t_max
    # Evenly spread over 1,000 timesteps, where the last of K + 1 is the jump to the end.
    index = (np.array(witnessed(schedule, method, "linspace", K)) - low) / (high - low) * 999
    np.testing.assert_allclose(index, np.linspace(999, 0, K + 1)[:-1].round(), atol=1e-3)
    # Even in log r and in r^(1/7), and by quantiles, from end to end.
    first, last = ratios(schedule, [high, low])
    expected = {
        "log-snr": np.geomspace(first, last, K),
        "karras": np.linspace(first ** (1 / 7), last ** (1 / 7), K) ** 7,
        "beta": last + (first - last) * stats.beta(0.6, 0.6).ppf(np.linspace(1, 0, K)),
    }
    for grid, levels in expected.items():
        own = ratios(schedule, witnessed(schedule, method, grid, K))
        np.testing.assert_allclose(own, levels, rtol=5e-3)  # float32 betas near t_min


def test_log_snr_is_the_grid_of_diffusers_lu_lambdas() -> None:
    schemes = ({"use_exponential_sigmas": True}, {"use_lu_lambdas": True})
    made = [diffusers.DPMSolverMultistepScheduler(**scheme) for scheme in schemes]
    for scheduler in made:
        scheduler.set_timesteps(9)
    torch.testing.assert_close(made[0].sigmas, made[1].sigmas)


# --- native runs and closed forms -----------------------------------------------------------------


class Network(nn.Module):
    """A noise prediction that depends on both arguments."""

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        timestep = torch.as_tensor(timestep, dtype=torch.float32)
        return torch.tanh(x * (0.5 + timestep.reshape(-1, 1) / 1000)) + 0.1 * x.flip(1)


NATIVE: list[tuple[str, str, dict[str, Any]]] = [
    ("ddim", "DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    *(
        (method, name, {"timestep_spacing": spacing, **options})
        for method, name, options in (
            ("dpm-solver++", "DPMSolverMultistepScheduler", {}),
            (
                "sde-dpm-solver++",
                "DPMSolverMultistepScheduler",
                {"algorithm_type": "sde-dpmsolver++"},
            ),
            ("unipc", "UniPCMultistepScheduler", {}),
        )
        for spacing in ("linspace", "leading", "trailing")
    ),
]


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize(("method", "name", "options"), NATIVE)
def test_samples_equal_those_of_the_scheduler_run_natively(
    method: str, name: str, options: dict[str, Any], steps: int
) -> None:
    """A noise network on diffusers' own betas, integer timesteps, its default conversion."""
    spacing = options["timestep_spacing"]
    scheduler: Any = getattr(diffusers, name)(**options)
    schedule = DiscreteVP.from_alphas_cumprod(scheduler.alphas_cumprod)
    network, generator = Network(), seeded()
    x = schedule.prior_std * torch.randn(50, 3, generator=generator)
    source = {} if method == "unipc" else {"generator": generator}
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        x = scheduler.step(network(x, timestep), timestep, x, **source).prev_sample
    denoiser = NetworkDenoiser(network, schedule, "epsilon")
    ours = solver_sample(denoiser, method, spacing, steps, (50, 3), seeded())
    # One call at the first level multiplies by 1 / alpha = 160: the samples are large.
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-4 * float(x.abs().mean()))


@pytest.mark.parametrize("schedule", [SCHEDULE, VPLinear(t_max=0.3)], ids=["full", "early"])
@pytest.mark.parametrize("steps", [1, 5, 10])
def test_ddim_on_a_gaussian_is_the_product_of_its_gains(schedule: Schedule, steps: int) -> None:
    r"""With $c = \alpha s^2 / (\alpha^2 s^2 + \sigma^2)$ a step to $(\alpha', \sigma')$ has gain
    $\alpha' c + \sigma' (1 - \alpha c) / \sigma$ on the deviation from $\alpha \mu$."""
    mean = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    std = torch.tensor([0.1, 0.6, 3.0], dtype=torch.float64)
    index = torch.arange(1000, 0, -1000 // steps) - 1
    t = schedule.t_min + (schedule.t_max - schedule.t_min) * index.double() / 999
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    next_alpha = torch.cat([alpha[1:], torch.ones(1, dtype=torch.float64)])
    next_sigma = torch.cat([sigma[1:], torch.zeros(1, dtype=torch.float64)])
    noise = torch.randn(200, 3, generator=seeded()).double()
    deviation = sigma[0] * noise - alpha[0] * mean
    for a, s, b, r in zip(alpha, sigma, next_alpha, next_sigma, strict=True):
        c = a * std**2 / (a**2 * std**2 + s**2)
        deviation = (b * c + r * (1 - a * c) / s) * deviation
    got = solver_sample(
        GaussianDenoiser(mean, std, schedule), "ddim", "trailing", steps, (200, 3), seeded()
    )
    torch.testing.assert_close(got.double(), mean + deviation, rtol=1e-4, atol=1e-4)


@every_solver
def test_grids_end_at_zero_or_at_the_noise_of_t_min(method: str) -> None:
    """Data at 0: a deterministic solver scales the state as sigma."""
    start = SCHEDULE.prior_std * torch.randn(2000, 1, generator=seeded())
    end = float(SCHEDULE.sigma(torch.tensor(SCHEDULE.t_min, dtype=torch.float64)))
    for grid in GRIDS:
        x = solver_sample(Zero(SCHEDULE), method, grid, 4, (2000, 1), seeded())
        if not grid.endswith("sigma-min"):
            assert torch.equal(x, torch.zeros_like(x))
        elif method == "sde-dpm-solver++":
            assert float(x.std()) == pytest.approx(end, rel=0.05)
            assert abs(float(torch.corrcoef(torch.cat([x, start], 1).T)[0, 1])) < 0.07
        else:
            first = torch.tensor(witnessed(SCHEDULE, method, grid, 4)[0], dtype=torch.float64)
            torch.testing.assert_close(
                x, end / float(SCHEDULE.sigma(first)) * start, rtol=1e-3, atol=0
            )


# --- convergence ----------------------------------------------------------------------------------


def ode_errors(method: str, counts: list[int]) -> list[float]:
    """Mean distance to the exact end of the probability flow, of Gaussian data."""
    mean, std = 1.0, 0.6
    end = torch.tensor(SCHEDULE.t_max, dtype=torch.float64)
    alpha, sigma = SCHEDULE.alpha(end), SCHEDULE.sigma(end)
    start = sigma * torch.randn(2000, 1, generator=seeded()).double()
    exact = mean + std * (start - alpha * mean) / (alpha**2 * std**2 + sigma**2).sqrt()
    denoiser = GaussianDenoiser(mean, std, SCHEDULE)
    return [
        float(
            (solver_sample(denoiser, method, "log-snr", K, (2000, 1), seeded()) - exact)
            .abs()
            .mean()
        )
        for K in counts
    ]


def test_orders_of_convergence_to_the_probability_flow() -> None:
    counts = [10, 20, 40, 80]
    ddim, multistep, unipc = (ode_errors(m, counts) for m in ("ddim", "dpm-solver++", "unipc"))
    assert ddim[3] < 0.02
    assert ddim[2] / ddim[3] == pytest.approx(2, abs=0.1)
    assert multistep[2] / multistep[3] == pytest.approx(4, abs=0.8)
    assert unipc[1] / unipc[2] > 6  # the corrector adds an order
    assert all(8 * a < b for a, b in zip(multistep[1:], ddim[1:], strict=True))
    assert all(4 * a < b for a, b in zip(unipc, ddim, strict=True))


@every_solver
def test_many_steps_draw_from_the_law(method: str) -> None:
    n = 20_000
    x = solver_sample(MIXTURE, method, "karras", 200, (n, 1), seeded(1))
    assert w1_exact(x, LAW) < 0.03  # the law's own samples have 0.0146 on average
    assert float(x.mean()) == pytest.approx(LAW.mean, abs=3 * (LAW.variance / n) ** 0.5)
    assert float(x.var()) == pytest.approx(LAW.variance, rel=0.02)


# --- noise, batches, refusals ---------------------------------------------------------------------


@every_solver
def test_all_noise_comes_from_the_generator(method: str) -> None:
    def draw(seed: int) -> Tensor:
        return solver_sample(MIXTURE, method, "trailing", 5, (6, 1), seeded(seed))

    state = torch.get_rng_state()
    one = draw(0)
    torch.rand(1)
    assert torch.equal(draw(0), one)
    assert not torch.equal(draw(1), one)
    torch.set_rng_state(state)
    draw(0)
    assert torch.equal(torch.get_rng_state(), state)


@every_solver
def test_a_seed_gives_its_sample_in_any_batch_and_at_every_count(method: str) -> None:
    solver, times = Solver(MIXTURE, method, "karras", 4), list[float]()
    whole = sample(solver, solver.grid, (9, 1), seeds=range(9))
    some = sample(solver, solver.grid, (3, 1), seeds=[7, 2, 8], batch_size=2)
    torch.testing.assert_close(some, whole[[7, 2, 8]], rtol=1e-6, atol=1e-6)
    sample(solver, solver.grid, (1, 1), seeds=[0], callback=lambda k, t, x: times.append(float(t)))
    assert times == solver.grid.tolist()


def test_a_multistep_solver_goes_over_its_own_grid() -> None:
    solver = Solver(MIXTURE, "dpm-solver++", "karras", 4)
    x, noise = torch.zeros(2, 1), solver.noise(0.5, 0.2, (2, 1))
    with pytest.raises(SigdegError, match="karras with 4 steps goes over its own grid"):
        solver(x, solver.grid[2], solver.grid[3], noise)


@pytest.mark.parametrize("method", ["ddim", "dpm-solver++", "unipc"])
def test_a_deterministic_solver_draws_the_same_in_any_batches(method: str) -> None:
    def draw(batch_size: int | None) -> Tensor:
        return solver_sample(MIXTURE, method, "trailing", 6, (9, 1), seeded(), batch_size)

    for batch_size in (4, 9, 100):
        torch.testing.assert_close(draw(batch_size), draw(None), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "heun"}, "unknown solver 'heun': choose from ddim, dpm-solver"),
        ({"grid": "cosine"}, "unknown grid 'cosine': choose from linspace, leading"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"steps": 1200}, "has no trailing grid of 1200 steps"),
        ({"steps": 61}, "has no trailing grid of 61 steps"),  # rounding gives diffusers 62
        ({"denoiser": GaussianDenoiser(0.0, 1.0, EDM())}, "variance-preserving.*got EDM"),
        ({"denoiser": GaussianDenoiser(0.0, 1.0, RectifiedFlow())}, "got RectifiedFlow"),
        ({"denoiser": GaussianDenoiser(torch.nan, 1.0, SCHEDULE)}, "gave NaN"),
    ],
)
def test_what_cannot_be_solved_is_refused(change: dict[str, Any], message: str) -> None:
    request = {
        "denoiser": MIXTURE,
        "method": "ddim",
        "grid": "trailing",
        "steps": 5,
        "shape": (4, 1),
        "generator": seeded(),
    }
    with pytest.raises(SigdegError, match=message):
        solver_sample(**{**request, **change})


def test_grids_are_those_that_a_solver_can_take() -> None:
    assert set(GRIDS) - set(solver_grids("unipc", 61)) == {"trailing", "trailing-sigma-min"}
    with pytest.raises(SigdegError, match="steps must be at least 1"):
        solver_grids("ddim", 0)
    with pytest.raises(SigdegError, match="unknown solver"):
        solver_grids("euler", 5)
