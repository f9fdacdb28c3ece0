"""Steps against diffusers, published tableaux, exact Gaussian laws, quadrature and differences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from scipy import integrate
from scipy.special import eval_legendre
from torch import Generator, Tensor, nn

from sigdeg.denoiser import (
    Denoiser,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    NetworkDenoiser,
)
from sigdeg.errors import SigdegError
from sigdeg.integrations import from_scheduler
from sigdeg.response import exponential_coefficients, response, weigh
from sigdeg.schedule import EDM, Cosine, RectifiedFlow, Schedule, VPLinear, expand
from sigdeg.signature import PartialSignature
from sigdeg.steps import (
    DenoiserStep,
    EulerMaruyama,
    Exponential,
    ShARK,
    StochasticTaylor,
)

SCHEDULES: dict[str, Schedule] = {
    "vp": VPLinear(),
    "cosine": Cosine(),
    "edm": EDM(),
    "flow": RectifiedFlow(shift=2.0),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
STEPS: dict[str, Callable[[Denoiser], DenoiserStep]] = {
    "euler": EulerMaruyama,
    "taylor": StochasticTaylor,
    "complete": lambda denoiser: StochasticTaylor(denoiser, complete=True),
    "shark": ShARK,
    "exponential": Exponential,
    "exponential-4": lambda denoiser: Exponential(denoiser, order=4, data_std=1.3),
}
every_step = pytest.mark.parametrize("build", STEPS.values(), ids=STEPS)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def close(actual: Tensor, expected: Tensor, tol: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tol, atol=tol)


def mixture(schedule: Schedule) -> GaussianMixtureDenoiser:
    means = [[-1.0, 0.5], [1.0, 0.0], [0.3, -1.0]]
    return GaussianMixtureDenoiser(means, [0.5, 0.3, 0.8], [0.3, 0.3, 0.4], schedule)


def signature(h: float | Tensor, batch: int, order: int = 4, seed: int = 1) -> PartialSignature:
    return PartialSignature(
        torch.as_tensor(h, dtype=torch.float64), normals(batch, order, 2, seed=seed)
    )


# --- the exponential step is ancestral sampling ---------------------------------------------------


class TinyNetwork(nn.Module):
    """A random network that predicts epsilon, with a bounded answer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(normals(2, 2, seed=5), requires_grad=False)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight.to(x) + torch.sin(timestep / 50)[:, None])


def test_exponential_step_is_diffusers_ddpm_step() -> None:
    scheduler = diffusers.DDPMScheduler(variance_type="fixed_small", clip_sample=False)
    # Its own table is in single precision: 1 - alphas_cumprod loses half the digits near the data.
    scheduler.alphas_cumprod = (1 - scheduler.betas.double()).cumprod(0)
    network, n = TinyNetwork(), scheduler.config.num_train_timesteps
    step = Exponential(NetworkDenoiser(network, from_scheduler(scheduler)))
    x = theirs = normals(8, 2)
    for i in [*range(999, 989, -1), *range(500, 490, -1), *range(9, -1, -1)]:
        output = network(theirs, torch.full((8,), i).double())
        theirs = scheduler.step(output, i, theirs, Generator().manual_seed(i)).prev_sample
        drawn = PartialSignature(scalar(1 / n), normals(8, 1, 2, seed=i))
        x = step(x, (i + 1) / n, i / n, drawn)
        close(x, theirs, 1e-9)


def test_exponential_step_is_diffusers_sde_dpm_solver_of_order_one() -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", solver_order=1
    )
    scheduler.set_timesteps(20)
    schedule, network = from_scheduler(scheduler), TinyNetwork()
    n, step = 1000, Exponential(NetworkDenoiser(network, schedule))
    x = normals(8, 2).float()
    knots = scheduler.timesteps
    for k, (i, j) in enumerate(itertools.pairwise(knots)):
        noise = normals(8, 2, seed=k).float()
        output = network(x, i.expand(8).float())
        theirs = scheduler.step(output, i, x, variance_noise=noise).prev_sample
        drawn = PartialSignature((i - j) / n, noise[:, None])
        x = step(x, (i + 1.0) / n, (j + 1.0) / n, drawn)
        torch.testing.assert_close(x, theirs, rtol=1e-4, atol=1e-4)  # their sigmas are float32
        x = theirs


@every_schedule
def test_exponential_coefficients_are_those_of_sde_dpm_solver(schedule: Schedule) -> None:
    t, s = (scalar(v) for v in (0.8, 0.55))
    h = schedule.log_snr(s) - schedule.log_snr(t)
    a, b = exponential_coefficients(schedule, t, s)
    close(a, schedule.sigma(s) / schedule.sigma(t) * torch.exp(-h))
    close(b, -schedule.alpha(s) * torch.expm1(-2 * h))
    (w,) = response(schedule, t, s, 1)
    close(w, schedule.sigma(s) * torch.sqrt(-torch.expm1(-2 * h)))
    a, b = exponential_coefficients(schedule, t, scalar(0.0))
    assert (float(a), float(b)) == (0, 1)


# --- exact Gaussian laws --------------------------------------------------------------------------


@every_schedule
@pytest.mark.parametrize("order", [1, 2, 5])
@pytest.mark.parametrize("knots", [(0.95, 0.4), (0.95, 0.6, 0.5, 0.3)])
def test_gaussian_data_has_its_exact_law_at_any_step_size(
    schedule: Schedule, order: int, knots: tuple[float, ...]
) -> None:
    mean, std = 0.7, 1.3
    step = Exponential(GaussianDenoiser(mean, std, schedule), order, data_std=std)

    def law(t: Tensor) -> tuple[Tensor, Tensor]:
        return schedule.alpha(t) * mean, schedule.alpha(t) ** 2 * std**2 + schedule.sigma(t) ** 2

    # The step is affine in (x, c): its values at 0 and at unit vectors are its coefficients.
    unit = torch.cat([torch.zeros(2, order), torch.eye(order)]).double()[..., None]
    x = torch.zeros(order + 2, 1, dtype=torch.float64)
    x[1] = 1
    m, variance = law(scalar(knots[0]))
    for t, s in itertools.pairwise(knots):
        out = step(x, t, s, PartialSignature(scalar(t - s), unit))[:, 0]
        gain, weights = out[1] - out[0], out[2:] - out[0]
        m, variance = out[0] + gain * m, gain**2 * variance + (weights**2).sum()
        expected_mean, expected_variance = law(scalar(s))
        close(m, expected_mean)
        close(variance, expected_variance)


def kappa(schedule: Schedule, t: float, s: float, data_std: float) -> Callable[[float], float]:
    """Response to dB at elapsed fraction v of the step; checked against the SDE itself below."""

    def value(v: float) -> float:
        tau = scalar(t - (t - s) * v)
        a, a_s = schedule.alpha(tau), schedule.alpha(scalar(s))
        n2 = a**2 * data_std**2 + schedule.sigma(tau) ** 2
        n2_s = a_s**2 * data_std**2 + schedule.sigma(scalar(s)) ** 2
        return float(schedule.diffusion(tau) * a * n2_s / (a_s * n2))

    return value


@every_schedule
def test_response_kernel_solves_the_linear_reverse_sde(schedule: Schedule) -> None:
    t, s, std = 0.9, 0.4, 1.3
    denoiser = GaussianDenoiser(0.0, std, schedule)
    one = torch.ones(1, 1, dtype=torch.float64)
    weight = kappa(schedule, t, s, std)
    for v in (0.2, 0.7):
        start = t - (t - s) * v
        # Phi(start -> s) = exp of the integrated slope of the linear drift
        slope = integrate.quad(
            lambda tau: float(denoiser.reverse_drift(one, scalar(tau))), s, start, epsabs=1e-12
        )[0]
        expected = float(schedule.diffusion(scalar(start))) * math.exp(slope)
        assert weight(v) == pytest.approx(expected, rel=1e-8)


def projections(schedule: Schedule, t: float, s: float, order: int, data_std: float) -> Tensor:
    """Integrals of kappa against the orthonormal Legendre polynomials, by adaptive quadrature."""
    h, weight = t - s, kappa(schedule, t, s, data_std)

    def integral(k: int) -> float:
        scale = math.sqrt(h * (2 * k + 1))  # phi_k du = sqrt((2k + 1) / h) P_k h dv
        value = integrate.quad(
            lambda v: weight(v) * eval_legendre(k, 2 * v - 1), 0, 1, epsabs=1e-12, limit=400
        )[0]
        return scale * value

    return torch.tensor([integral(k) for k in range(order)], dtype=torch.float64)


@every_schedule
@pytest.mark.parametrize("data_std", [0.0, 1.0])
@pytest.mark.parametrize(("t", "s"), [(0.9, 0.8), (0.98, 0.25)])
def test_response_is_the_projection_with_the_exact_variance(
    schedule: Schedule, data_std: float, t: float, s: float
) -> None:
    raw = projections(schedule, t, s, 6, data_std)
    w = response(schedule, scalar(t), scalar(s), 6, data_std)
    close(w / w.norm(), raw / raw.norm(), 1e-8)
    total = integrate.quad(
        lambda v: kappa(schedule, t, s, data_std)(v) ** 2 * (t - s), 0, 1, epsabs=1e-12, limit=400
    )[0]
    assert float((w**2).sum()) == pytest.approx(total, rel=1e-9)


@every_schedule
def test_parseval_without_the_normalisation(schedule: Schedule) -> None:
    t, s = 0.95, 0.5
    raw = projections(schedule, t, s, 13, 1.0)
    total = float((response(schedule, scalar(t), scalar(s), 1, 1.0) ** 2).sum())
    left = 1 - (raw**2).cumsum(0) / total
    assert bool((left > -1e-9).all())  # Bessel
    assert float(left[12]) < 1e-3 * float(left[0])
    assert float(left[12]) < 1e-6


def test_response_over_the_whole_interval_is_resolved_by_its_nodes() -> None:
    # From noise to t_min the kernel is steep at the end: the default nodes must still resolve it.
    schedule = VPLinear()
    t, s = scalar(1.0), scalar(1e-3)
    for data_std in (0.0, 1.0):
        w, finer = (response(schedule, t, s, 10, data_std, nodes=n) for n in (64, 256))
        close(w, finer, 1e-8)


def test_weigh_sums_over_the_coefficients() -> None:
    c, w = normals(3, 2, 2, 2), normals(3, 2, seed=1)
    expected = torch.stack([sum(w[b, k] * c[b, k] for k in range(2)) for b in range(3)])
    close(weigh(w, c), expected)
    close(weigh(w[0], c)[0], expected[0])


# --- Runge-Kutta ----------------------------------------------------------------------------------


class Additive:
    """Coefficients of an additive-noise tableau as diffrax publishes them for ShARK."""

    a = ((), (5 / 6,))
    b = (0.4, 0.6)
    c = (0.0, 5 / 6)
    a_W = (0.0, 5 / 6)
    a_H = (1.0, 1.0)
    b_W, b_H = 1.0, 0.0


@every_schedule
def test_shark_is_the_published_tableau(schedule: Schedule) -> None:
    denoiser, x, (t, s) = mixture(schedule), normals(5, 2), (0.7, 0.6)
    path, h, tab = signature(t - s, 5, order=2), t - s, Additive
    W, H = path.W, path.levy_area
    g_t, g_s = (schedule.diffusion(scalar(v)) for v in (t, s))
    slopes: list[Tensor] = []
    for a, c, a_W, a_H in zip(tab.a, tab.c, tab.a_W, tab.a_H, strict=True):
        z = x + g_t * (a_W * W + a_H * H)
        z = z + h * sum((w * k for w, k in zip(a, slopes, strict=True)), torch.zeros_like(x))
        slopes.append(denoiser.reverse_drift(z, scalar(t - c * h)))
    expected = x + h * sum(w * k for w, k in zip(tab.b, slopes, strict=True))
    expected = expected + g_t * (tab.b_W * W + tab.b_H * H) + (g_s - g_t) * (W / 2 - H)
    close(ShARK(denoiser)(x, t, s, path), expected)


def test_shark_noise_is_the_integral_of_a_linear_diffusion() -> None:
    # With a drift of zero only int g dB is left; for g linear in time it is exact in (W, A).
    class Linear(VPLinear):
        def drift(self, t: Tensor) -> Tensor:
            return torch.zeros_like(t)

        def diffusion(self, t: Tensor) -> Tensor:
            return 1 + 2 * t

    class Flat(Denoiser):
        def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
            return x / expand(self.schedule.alpha(t), x)  # a score of zero

    t, s = 0.9, 0.5
    path, x = signature(t - s, 3, order=2), normals(3, 2)
    # g(t - u) = 1 + 2 t - 2 u, and int u dB = h W - A
    noise = (1 + 2 * t) * path.W - 2 * ((t - s) * path.W - path.time_integral)
    close(ShARK(Flat(Linear()))(x, t, s, path), x + noise)


# --- Taylor ---------------------------------------------------------------------------------------


@every_schedule
def test_taylor_terms_are_those_of_finite_differences(schedule: Schedule) -> None:
    denoiser, x = mixture(schedule), normals(4, 2)
    t, h, eps = 0.6, 0.05, 1e-4
    path = signature(h, 4, order=2)
    W, A = path.W, path.time_integral

    def mu(y: Tensor, time: float = t) -> Tensor:
        return denoiser.reverse_drift(y, scalar(time))

    def g(time: float) -> Tensor:
        return schedule.diffusion(scalar(time))

    def along(v: Tensor) -> Tensor:
        return (mu(x + eps * v) - mu(x - eps * v)) / (2 * eps)

    slope = (g(t - eps) - g(t + eps)) / (2 * eps)  # reverse time
    printed = x + mu(x) * h + g(t) * W + slope * (h * W - A) + along(g(t) * A)
    close(StochasticTaylor(denoiser)(x, t, t - h, path), printed, 1e-5)
    laplacian = sum(
        (mu(x + eps * e) - 2 * mu(x) + mu(x - eps * e)) / eps**2 for e in torch.eye(2).double()
    )
    in_time = (mu(x, t - eps) - mu(x, t + eps)) / (2 * eps)
    completed = printed + h**2 / 2 * (in_time + along(mu(x)) + g(t) ** 2 / 2 * laplacian)
    close(StochasticTaylor(denoiser, complete=True)(x, t, t - h, path), completed, 1e-4)


def test_taylor_differentiates_a_network() -> None:
    denoiser = NetworkDenoiser(TinyNetwork(), VPLinear())
    x, path = normals(4, 2), signature(0.01, 4, order=2)
    t, s = 0.5, 0.49
    near = ShARK(denoiser)(x, t, s, path)
    for complete, tolerance in ((False, 2e-2), (True, 2e-3)):
        moved = StochasticTaylor(denoiser, complete)(x, t, s, path)
        close(moved, near, tolerance)


def test_euler_maruyama_is_its_formula() -> None:
    denoiser, x = mixture(VPLinear()), normals(3, 2)
    path = signature(0.1, 3, order=1)
    g = VPLinear().diffusion(scalar(0.5))
    expected = x + 0.1 * denoiser.reverse_drift(x, scalar(0.5)) + g * path.W
    close(EulerMaruyama(denoiser)(x, 0.5, 0.4, path), expected)


# --- every step -----------------------------------------------------------------------------------


@every_step
def test_a_step_to_zero_is_the_posterior_mean(build: Callable[[Denoiser], DenoiserStep]) -> None:
    denoiser = mixture(VPLinear())
    x, path = normals(3, 2), signature(0.4, 3)
    assert torch.equal(build(denoiser)(x, 0.4, 0, path), denoiser(x, scalar(0.4)))


@every_step
def test_a_batch_may_end_at_different_times(build: Callable[[Denoiser], DenoiserStep]) -> None:
    denoiser = mixture(VPLinear())
    step, x = build(denoiser), normals(3, 2)
    t, s = torch.tensor([0.4, 0.9, 0.4]).double(), torch.tensor([0.0, 0.85, 0.3]).double()
    path = signature(t - s, 3)
    got = step(x, t, s, path)
    for i in range(3):
        alone = PartialSignature(path.dt[i], path.coefficients[i : i + 1])
        close(got[i : i + 1], step(x[i : i + 1], t[i], s[i], alone))


@every_schedule
@every_step
def test_times_of_a_batch_equal_a_scalar_time(
    build: Callable[[Denoiser], DenoiserStep], schedule: Schedule
) -> None:
    step, x = build(mixture(schedule)), normals(3, 2)
    t, s = scalar(0.6), scalar(0.55)
    path = signature(t - s, 3)
    expected = step(x, t, s, path)
    close(step(x, t.expand(3), s.expand(3), path), expected, 1e-12)
    close(step(x, float(t), s.expand(3), path), expected, 1e-12)


@every_step
def test_a_step_calls_the_network_as_often_as_it_says(
    build: Callable[[Denoiser], DenoiserStep],
) -> None:
    calls = 0

    class Counted(GaussianDenoiser):
        def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
            nonlocal calls
            calls += 1
            assert condition == {"label": 3}
            return super().forward(x, t)

    step = build(Counted(0.0, 1.0, VPLinear()))
    step(normals(2, 2), 0.6, 0.5, signature(0.1, 2), label=3)
    derivatives = 5 if getattr(step, "complete", False) else 0
    assert calls >= step.nfe
    assert calls <= step.nfe + derivatives


@pytest.mark.parametrize("build", [StochasticTaylor, ShARK])
def test_steps_of_order_two_refuse_a_bare_increment(
    build: Callable[[Denoiser], DenoiserStep],
) -> None:
    with pytest.raises(SigdegError, match="order 2 or more, got order 1"):
        build(mixture(VPLinear()))(normals(2, 2), 0.5, 0.4, signature(0.1, 2, order=1))


def test_single_precision_states_stay_in_single_precision() -> None:
    denoiser, x = mixture(VPLinear()), normals(3, 2).float()
    path = PartialSignature(torch.tensor(0.1), normals(3, 4, 2).float())
    for build in STEPS.values():
        single = build(denoiser)(x, 0.5, 0.4, path)
        double = build(denoiser)(
            x.double(), 0.5, 0.4, PartialSignature(scalar(0.1), path.coefficients.double())
        )
        assert single.dtype == torch.float32
        np.testing.assert_allclose(single, double, rtol=1e-4, atol=1e-4)
