"""Schedules against autograd, diffusers' schedulers and each other."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from sigdeg.errors import SigdegError
from sigdeg.grids import fine_grid
from sigdeg.integrations import from_scheduler
from sigdeg.rng import randn, seed_generators
from sigdeg.schedule import (
    EDM,
    Cosine,
    DiscreteVP,
    RectifiedFlow,
    Schedule,
    VEGeometric,
    VPLinear,
    expand,
    schedule_from_config,
)


def ddpm_betas(steps: int) -> Tensor:
    """DDPM's linear betas, with the same total noise at every number of steps."""
    return torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)


def discrete(steps: int) -> DiscreteVP:
    return DiscreteVP.from_alphas_cumprod((1 - ddpm_betas(steps)).cumprod(0))


SCHEDULES: dict[str, Schedule] = {
    "vp": VPLinear(),
    "cosine": Cosine(),
    "offset-cosine": Cosine(offset=0.008),
    "edm": EDM(),
    "geometric": VEGeometric(),
    "flow": RectifiedFlow(),
    "shifted-flow": RectifiedFlow(shift=3.0),
    "discrete": discrete(100),
}
every = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def times(schedule: Schedule, n: int = 41) -> Tensor:
    """Times inside the range; no knot of the discrete table, where the slope jumps."""
    v = (torch.arange(n, dtype=torch.float64) + 0.37) / n
    return schedule.t_min + (schedule.t_max - schedule.t_min) * v


def derivative(values: Tensor, t: Tensor) -> Tensor:
    return torch.autograd.grad(values.sum(), t)[0]


# --- the SDE that alpha and sigma imply -----------------------------------------------------------


@every
def test_drift_and_diffusion_follow_from_alpha_and_sigma(schedule: Schedule) -> None:
    t = times(schedule).requires_grad_()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    # + 0 t: EDM's alpha is constant and has no graph of its own
    f = derivative(alpha.log() + 0 * t, t)
    torch.testing.assert_close(schedule.drift(t), f, rtol=1e-9, atol=1e-12)
    g2 = schedule.diffusion(t) ** 2
    torch.testing.assert_close(g2, derivative(sigma**2, t) - 2 * f * sigma**2, rtol=1e-7, atol=1e-9)
    slope = derivative(schedule.log_snr(t), t)
    torch.testing.assert_close(g2, -2 * sigma**2 * slope, rtol=1e-9, atol=1e-12)


@every
def test_log_snr_is_the_ratio_and_decreases(schedule: Schedule) -> None:
    t = times(schedule)
    ratio = torch.log(schedule.alpha(t) / schedule.sigma(t))
    torch.testing.assert_close(schedule.log_snr(t), ratio, rtol=1e-9, atol=1e-9)
    assert bool((schedule.log_snr(t).diff() < 0).all())


@pytest.mark.parametrize("name", ["vp", "cosine", "offset-cosine", "discrete"])
def test_variance_is_preserved(name: str) -> None:
    schedule = SCHEDULES[name]
    t = times(schedule)
    total = schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2
    torch.testing.assert_close(total, torch.ones_like(t), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["flow", "shifted-flow"])
def test_flow_paths_are_straight(name: str) -> None:
    schedule = SCHEDULES[name]
    t = times(schedule)
    torch.testing.assert_close(schedule.alpha(t) + schedule.sigma(t), torch.ones_like(t))


def test_shift_is_a_change_of_clock() -> None:
    t = times(RectifiedFlow())
    shifted = RectifiedFlow(shift=3.0)
    torch.testing.assert_close(shifted.log_snr(t), RectifiedFlow().log_snr(t) - math.log(3))


@every
def test_time_at_is_the_inverse(schedule: Schedule) -> None:
    t = times(schedule)
    closed, searched = (f(schedule.log_snr(t)) for f in (schedule.time_at, searching(schedule)))
    torch.testing.assert_close(closed, t, rtol=1e-9, atol=0)
    torch.testing.assert_close(searched, t, rtol=1e-9, atol=0)
    assert float(schedule.time_at(torch.tensor(math.inf, dtype=torch.float64))) == 0


def searching(schedule: Schedule) -> Callable[[Tensor], Tensor]:
    """What a schedule has that gives no inverse of its own."""
    return functools.partial(Schedule.time_at, schedule)


@every
def test_corrupted_data_has_the_law_of_the_forward_process(schedule: Schedule) -> None:
    clean = torch.full((3, 2), 2.0)
    t = torch.tensor([schedule.t_min, 0.5, schedule.t_max], dtype=torch.float64)
    noise = randn((3, 2), seed_generators([1, 2, 3]))
    noised = schedule.corrupt(clean, t, seed_generators([1, 2, 3]))
    assert torch.equal(noised, schedule.corrupt(clean, t, noise))
    expected = schedule.alpha(t)[:, None] * 2 + schedule.sigma(t)[:, None] * noise
    torch.testing.assert_close(noised.double(), expected, rtol=1e-6, atol=1e-6)
    start = schedule.prior((3, 2), seed_generators([1, 2, 3]))
    torch.testing.assert_close(start, schedule.prior_std * noise)


@every
def test_data_at_zero_and_prior_at_the_top(schedule: Schedule) -> None:
    zero = torch.zeros((), dtype=torch.float64)
    assert float(schedule.alpha(zero)) == 1
    assert float(schedule.sigma(zero)) == 0
    assert float(schedule.sigma(zero.float())) == pytest.approx(0, abs=1e-4)
    top = torch.tensor(schedule.t_max, dtype=torch.float64)
    assert schedule.prior_std == pytest.approx(float(schedule.sigma(top)))
    assert 0 < schedule.t_min < schedule.t_max <= 1


# --- discrete tables ------------------------------------------------------------------------------


def test_discrete_reproduces_the_table_at_the_integer_timesteps() -> None:
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    schedule = from_scheduler(scheduler)
    n = len(scheduler.alphas_cumprod)
    t = torch.arange(1, n + 1, dtype=torch.float64) / n
    expected = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(schedule.alpha(t) ** 2, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(schedule.sigma(t) ** 2, 1 - expected, rtol=1e-6, atol=1e-7)
    # in float32, what the network sees, they are integers to the bit
    assert torch.equal(schedule.timestep(t).float(), torch.arange(n, dtype=torch.float32))


def test_discrete_tends_to_the_continuous_schedule_at_first_order() -> None:
    t = torch.linspace(0.2, 1, 9, dtype=torch.float64)
    exact = VPLinear().log_snr(t)
    errors = [float((discrete(n).log_snr(t) - exact).abs().max()) for n in (1000, 2000, 4000)]
    assert errors[0] < 0.1
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(2, rel=0.05)


def test_discrete_agrees_with_diffusers_ddpm_and_the_continuous_schedule() -> None:
    schedule = from_scheduler(diffusers.DDPMScheduler())
    t = torch.linspace(0.1, 1, 50, dtype=torch.float64)
    close = {"rtol": 0, "atol": 5e-3}  # 1000 steps: an error of order beta_t = 0.02 at most
    torch.testing.assert_close(schedule.alpha(t), VPLinear().alpha(t), **close)
    torch.testing.assert_close(schedule.sigma(t), VPLinear().sigma(t), **close)
    g = schedule.diffusion(t)
    torch.testing.assert_close(g, VPLinear().diffusion(t), rtol=0.02, atol=0)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
@pytest.mark.parametrize("kind", [diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler])
def test_zero_terminal_snr_is_kept_just_above_zero(kind: type, beta_schedule: str) -> None:
    scheduler = kind(rescale_betas_zero_snr=True, beta_schedule=beta_schedule)
    schedule = from_scheduler(scheduler)
    n = len(scheduler.alphas_cumprod)
    t = torch.arange(1, n + 1, dtype=torch.float64) / n
    table = torch.as_tensor(scheduler.alphas_cumprod).double()
    torch.testing.assert_close(schedule.alpha(t[:-1]) ** 2, table[:-1], rtol=1e-6, atol=0)
    assert 0 < float(schedule.alpha(t[-1])) < float(schedule.alpha(t[-2]))
    assert bool(schedule.diffusion(t).isfinite().all())
    assert schedule.prior_std == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("table", [(), (1.0,), (1.0, 1.0), (0.0, 1.0)])
def test_a_table_that_is_none_is_refused(table: tuple[float, ...]) -> None:
    with pytest.raises(SigdegError, match="at least 2 strictly decreasing log-SNRs"):
        DiscreteVP(table)


# --- diffusers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 18, 100])
def test_uniform_edm_grid_is_diffusers_karras_grid(n: int) -> None:
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(n)
    schedule = from_scheduler(scheduler)
    knots = fine_grid(schedule, n - 1, "uniform")
    torch.testing.assert_close(schedule.sigma(knots).float(), scheduler.sigmas, rtol=1e-5, atol=0)
    # the network's conditioning, c_noise = log(sigma) / 4
    seen = schedule.timestep(knots[:-1]).float()
    torch.testing.assert_close(seen, scheduler.timesteps, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_shift_is_diffusers(shift: float) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = from_scheduler(scheduler)
    assert schedule == RectifiedFlow(shift=shift, timesteps=1000.0)
    n = len(scheduler.sigmas)
    t = torch.arange(n, 0, -1, dtype=torch.float64) / n  # its training sigmas, before the shift
    torch.testing.assert_close(schedule.sigma(t).float(), scheduler.sigmas, rtol=1e-5, atol=1e-6)
    seen = schedule.timestep(t).float()
    torch.testing.assert_close(seen, scheduler.timesteps, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDPMScheduler(beta_schedule="scaled_linear"),
        diffusers.DDIMScheduler(num_train_timesteps=200),
        diffusers.EulerDiscreteScheduler(),
        diffusers.DPMSolverMultistepScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_schedulers_with_a_table_become_discrete(scheduler: diffusers.SchedulerMixin) -> None:
    schedule = from_scheduler(scheduler)
    assert isinstance(schedule, DiscreteVP)
    n = scheduler.config.num_train_timesteps
    t = torch.arange(1, n + 1, dtype=torch.float64) / n
    alphas = torch.as_tensor(np.asarray(scheduler.alphas_cumprod)).double()
    torch.testing.assert_close(schedule.alpha(t) ** 2, alphas, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "kind", [diffusers.EDMEulerScheduler, diffusers.EDMDPMSolverMultistepScheduler]
)
def test_edm_schedulers_keep_their_parameters(kind: type) -> None:
    schedule = from_scheduler(kind(sigma_min=0.01, sigma_max=50.0, rho=5.0))
    assert schedule == EDM(sigma_min=0.01, sigma_max=50.0, rho=5.0)


# --- configuration --------------------------------------------------------------------------------


@every
def test_config_survives_json(schedule: Schedule) -> None:
    again = schedule_from_config(json.loads(json.dumps(schedule.config())))
    assert again == schedule
    t = times(schedule)
    assert torch.equal(again.log_snr(t), schedule.log_snr(t))


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"kind": "Nowhere"}, "unknown schedule 'Nowhere': choose from VPLinear"),
        ({}, "unknown schedule None"),
        ({"kind": "VPLinear", "beta": 1}, "schedule VPLinear: .*'beta'"),
    ],
)
def test_wrong_config_is_refused(config: dict[str, object], line: str) -> None:
    with pytest.raises(SigdegError, match=line):
        schedule_from_config(config)


@dataclass(frozen=True)
class Warped(Cosine):
    """A schedule of one's own, told by a number."""

    power: float = 2.0

    def alpha(self, t: Tensor) -> Tensor:
        return super().alpha(t**self.power)

    def sigma(self, t: Tensor) -> Tensor:
        return super().sigma(t**self.power)


def test_a_dataclass_of_ones_own_is_rebuilt_from_its_config() -> None:
    config = json.loads(json.dumps(Warped(power=3.0).config()))
    assert schedule_from_config(config) == Warped(power=3.0)
    assert schedule_from_config(config, Warped(power=3.0)) == Warped(power=3.0)
    with pytest.raises(SigdegError, match="is not the Warped that was saved"):
        schedule_from_config(config, Warped(power=2.0))
    # Files of before hold values instead: they tell whether it is the one that is given.
    values = json.loads(json.dumps(Warped(power=3.0).values()))
    assert schedule_from_config(values, Warped(power=3.0)) == Warped(power=3.0)
    with pytest.raises(SigdegError, match=r"unknown schedule 'Warped': .*\(schedule=\.\.\.\)"):
        schedule_from_config(values)


def test_another_class_of_a_known_name_is_not_taken_for_it() -> None:
    class VPLinear(Cosine):
        """Not the one of the package."""

    assert schedule_from_config({"kind": "VPLinear"}) == SCHEDULES["vp"]
    assert VPLinear().config().keys() == {"kind", "alpha", "sigma"}


def test_expand_broadcasts_over_the_batch_in_the_type_of_the_state() -> None:
    x = torch.zeros(2, 3, 4)
    assert expand(torch.tensor(2.0, dtype=torch.float64), x).shape == ()
    rows = expand(torch.tensor([1.0, 2.0], dtype=torch.float64), x)
    assert rows.shape == (2, 1, 1)
    assert rows.dtype == x.dtype
    assert torch.equal((x + rows)[1], torch.full((3, 4), 2.0))
