"""Denoisers against Gaussian conditioning, autograd of log densities and Bayes by brute force."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from scipy import integrate, stats
from torch import Generator, Tensor, nn

from sigdeg.denoiser import (
    Denoiser,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    NetworkDenoiser,
    unwrap,
)
from sigdeg.errors import SigdegError
from sigdeg.guidance import AutoGuidance, ClassifierFreeGuidance
from sigdeg.prediction import OF_DATA_STD, Prediction, preconditioning
from sigdeg.schedule import (
    EDM,
    Cosine,
    DiscreteVP,
    RectifiedFlow,
    Schedule,
    VPLinear,
    expand,
)

SCHEDULES: dict[str, Schedule] = {
    "vp": VPLinear(),
    "cosine": Cosine(),
    "edm": EDM(),
    "flow": RectifiedFlow(shift=2.0, timesteps=1000.0),
}
every = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
TIMES = torch.tensor([0.02, 0.3, 0.7, 0.98], dtype=torch.float64)
MEAN, STD = 0.7, 1.3
MEANS, STDS, WEIGHTS = [-2.0, 0.5, 2.0], [0.5, 0.2, 0.8], [0.5, 0.2, 0.3]


def states(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def times(schedule: Schedule) -> Tensor:
    return schedule.t_min + (schedule.t_max - schedule.t_min) * TIMES


def close(actual: Tensor, expected: Tensor, tol: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tol, atol=tol)


class Stub(nn.Module):
    """A network that answers with a given function and remembers what it was shown."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer
        self.seen: list[Any] = []

    def forward(self, x: Tensor, timestep: Tensor, **condition: Any) -> Any:
        self.seen.append((x, timestep, condition))
        return self.answer(x, timestep, **condition)


def gaussian_posterior(schedule: Schedule, x: Tensor, t: Tensor) -> Tensor:
    """E[x_0 | x_t] of N(MEAN, STD^2) by the product of two normal densities (precisions add)."""
    alpha, sigma = expand(schedule.alpha(t), x), expand(schedule.sigma(t), x)
    prior, likelihood = 1 / STD**2, (alpha / sigma) ** 2
    return (prior * MEAN + likelihood * x / alpha) / (prior + likelihood)


def exact_output(schedule: Schedule, x: Tensor, t: Tensor, prediction: Prediction) -> Tensor:
    """What a perfect network answers at the state x, written from the definitions."""
    alpha, sigma = expand(schedule.alpha(t), x), expand(schedule.sigma(t), x)
    x0 = gaussian_posterior(schedule, x, t)
    epsilon = (x - alpha * x0) / sigma
    match prediction:
        case "epsilon":
            return epsilon
        case "v_prediction":
            return alpha * epsilon - sigma * x0
        case "sample":
            return x0
        case "score":
            return -(x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        case "flow":
            return epsilon - x0
        case "flow_to_data":
            return x0 - epsilon
        case "edm" | "edm_v":  # Karras et al., Table 1, on the variance-exploding state x / alpha
            s = sigma / alpha
            c_skip = STD**2 / (s**2 + STD**2)
            c_out = s * STD / (s**2 + STD**2).sqrt()
            sign = 1 if prediction == "edm" else -1
            return sign * (x0 - c_skip * x / alpha) / c_out


PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


# --- networks -------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_becomes_the_same_mean(schedule: Schedule, prediction: Prediction) -> None:
    t = times(schedule)
    x = 2 * states(len(t), 3, 2)
    output = exact_output(schedule, x, t, prediction)
    network = Stub(lambda *_: output)
    denoiser = NetworkDenoiser(network, schedule, prediction, data_std=STD)
    expected = gaussian_posterior(schedule, x, t)
    close(denoiser(x, t), expected)
    ((seen, timestep, _),) = network.seen
    close(timestep, schedule.timestep(t))
    if prediction in OF_DATA_STD:  # c_in of Karras et al.
        alpha, sigma = expand(schedule.alpha(t), x), expand(schedule.sigma(t), x)
        close(seen, x / alpha / ((sigma / alpha) ** 2 + STD**2).sqrt())
    else:
        assert torch.equal(seen, x)


@every
def test_exact_gaussian_denoiser(schedule: Schedule) -> None:
    t = times(schedule)
    x = states(len(t), 5)
    denoiser = GaussianDenoiser(MEAN, STD, schedule)
    close(denoiser(x, t), gaussian_posterior(schedule, x, t))
    close(denoiser.score(x, t), exact_output(schedule, x, t, "score"), 1e-8)


def test_gaussian_denoiser_takes_a_mean_and_std_for_each_element() -> None:
    mean, std = states(2, 3, seed=1), states(2, 3, seed=2).exp()
    whole = GaussianDenoiser(mean, std, VPLinear())(states(4, 2, 3), TIMES)
    for i, j in [(0, 1), (1, 2)]:
        single = GaussianDenoiser(float(mean[i, j]), float(std[i, j]), VPLinear())
        close(whole[:, i, j], single(states(4, 2, 3)[:, i, j], TIMES))


def test_network_sees_its_own_integer_timesteps_and_the_condition() -> None:
    schedule = DiscreteVP.from_alphas_cumprod(torch.linspace(0.99, 0.01, 1000))
    network = Stub(lambda x, *_, **__: x)
    labels = torch.tensor([3, 1])
    x = torch.zeros(2, 3)
    NetworkDenoiser(network, schedule)(x, torch.tensor([0.5, 1.0]), class_labels=labels)
    ((seen, timestep, condition),) = network.seen
    assert timestep.tolist() == [499.0, 999.0]
    assert seen.dtype == timestep.dtype == torch.float32
    assert condition["class_labels"] is labels


def test_scalar_time_equals_a_batch_of_times() -> None:
    denoiser = NetworkDenoiser(Stub(lambda x, t: x * t[:, None].cos()), VPLinear())
    x = states(3, 2)
    t = torch.tensor(0.4, dtype=torch.float64)
    assert torch.equal(denoiser(x, t), denoiser(x, t.expand(3)))
    assert torch.equal(denoiser(x, 0.4), denoiser(x, t))


def test_whole_timesteps_are_the_nearest_and_never_below_the_first() -> None:
    schedule = DiscreteVP.from_alphas_cumprod(torch.linspace(0.99, 0.01, 1000))
    table = nn.Embedding(1000, 1)  # which takes int64 and nothing else
    network = Stub(lambda x, timestep: x * table(timestep))
    denoiser = NetworkDenoiser(network, schedule, timesteps="integer")
    k = torch.arange(1000)
    denoiser(torch.zeros(1000, 1), (k + 1).double() / 1000)
    denoiser(torch.zeros(3, 1), torch.tensor([0.0004, 0.49974, 0.50026], dtype=torch.float64))
    denoiser(torch.zeros(2, 1), torch.tensor(1.0))
    whole, between, alike = (timestep for _, timestep, _ in network.seen)
    assert torch.equal(whole, k)
    assert between.tolist() == [0, 499, 499]
    assert alike.tolist() == [999, 999]


def test_whole_timesteps_need_a_schedule_that_counts_them() -> None:
    NetworkDenoiser(nn.Identity(), RectifiedFlow(timesteps=1000.0), "flow", timesteps="integer")
    for other in (VPLinear(), EDM(), RectifiedFlow()):
        with pytest.raises(SigdegError, match="integer ones need a schedule that counts them"):
            NetworkDenoiser(nn.Identity(), other, timesteps="integer")
    for lookup in (nn.Embedding(9, 1), lambda timestep: torch.ones(9)[timestep]):
        tables = NetworkDenoiser(Stub(lambda x, t, f=lookup: x * f(t)), VPLinear())
        with pytest.raises(
            SigdegError, match='in a table: give NetworkDenoiser timesteps="integer"'
        ):
            tables(torch.zeros(2, 1), torch.tensor(0.5))
    with pytest.raises(SigdegError, match="unknown timesteps 'whole': choose from continuous, "):
        NetworkDenoiser(nn.Identity(), VPLinear(), timesteps="whole")  # type: ignore[arg-type]


class Prompted(nn.Module):
    """The state, something else, then the timestep, as transformers of diffusers take them."""

    def forward(self, x: Tensor, prompt: Tensor, timestep: Tensor) -> Tensor:
        return x + prompt * timestep[:, None]


def test_networks_are_called_as_they_want_to_be() -> None:
    x, t, prompt = states(4, 2), TIMES[1], states(4, 2, seed=2)
    schedule = RectifiedFlow(timesteps=1000.0)
    expected = NetworkDenoiser(Stub(lambda x, t: x + prompt * t[:, None]), schedule)(x, t)
    assert torch.equal(NetworkDenoiser(Prompted(), schedule)(x, t, prompt=prompt), expected)
    other = Stub(lambda told, x: x + prompt * told[:, None])
    swapped = NetworkDenoiser(other, schedule, call=lambda f, x, told, _: f(told, x))
    assert torch.equal(swapped(x, t), expected)
    clock = Stub(lambda x, t: x * t[:, None])
    NetworkDenoiser(clock, EDM(), timesteps="time")(x, t)
    assert clock.seen[0][1].tolist() == [float(t)] * 4


def test_learned_variance_is_dropped() -> None:
    x = states(2, 3, 4, 4)
    twice = Stub(lambda x, _: torch.cat([x.sin(), 100 + x], dim=1))
    plain = Stub(lambda x, _: x.sin())
    t = TIMES[1]
    expected = NetworkDenoiser(plain, VPLinear())(x, t)
    assert torch.equal(NetworkDenoiser(twice, VPLinear())(x, t), expected)


def test_clip_clamps_the_mean_and_not_the_output() -> None:
    x = 3 * states(64, 2)
    output = Stub(lambda x, _: x / 2)
    t = TIMES[2]
    free = NetworkDenoiser(output, VPLinear())(x, t)
    clipped = NetworkDenoiser(output, VPLinear(), clip=1.0)(x, t)
    assert float(free.abs().max()) > 1
    assert torch.equal(clipped, free.clamp(-1, 1))


def test_tuples_and_output_objects_are_unwrapped() -> None:
    class Output:
        def __init__(self, sample: Tensor) -> None:
            self.sample = sample

        def __getitem__(self, index: int) -> Tensor:
            return (self.sample,)[index]

    x = states(2, 3)
    assert all(unwrap(output) is x for output in (x, (x, None), Output(x)))


def test_unknown_prediction_is_refused() -> None:
    with pytest.raises(SigdegError, match="unknown prediction type 'noise': choose from epsilon, "):
        NetworkDenoiser(nn.Identity(), VPLinear(), "noise")  # type: ignore[arg-type]  # the point
    x = torch.zeros(1, 1)
    with pytest.raises(SigdegError, match="unknown prediction 'noise'"):
        preconditioning(x, x, "noise")  # type: ignore[arg-type]  # the point


# --- the reverse SDE ------------------------------------------------------------------------------


@every
def test_reverse_drift_is_minus_the_forward_one_plus_the_score(schedule: Schedule) -> None:
    t = times(schedule)
    x = states(len(t), 2)
    drift = GaussianDenoiser(MEAN, STD, schedule).reverse_drift(x, t)
    f, g = expand(schedule.drift(t), x), expand(schedule.diffusion(t), x)
    close(drift, -f * x + g**2 * exact_output(schedule, x, t, "score"), 1e-8)


# --- mixtures -------------------------------------------------------------------------------------


def log_density(schedule: Schedule, x: Tensor, t: Tensor) -> Tensor:
    """Log density of x_t for the scalar mixture, by torch.distributions."""
    law = torch.distributions
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    means, stds, weights = (torch.tensor(v, dtype=torch.float64) for v in (MEANS, STDS, WEIGHTS))
    components = law.Normal(alpha * means, (alpha**2 * stds**2 + sigma**2).sqrt())
    return law.MixtureSameFamily(law.Categorical(weights), components).log_prob(x)


@every
def test_mixture_score_is_the_gradient_of_its_log_density(schedule: Schedule) -> None:
    denoiser = GaussianMixtureDenoiser(MEANS, STDS, WEIGHTS, schedule)
    for t in times(schedule):
        x = 3 * states(20, 1).requires_grad_()
        (expected,) = torch.autograd.grad(log_density(schedule, x[:, 0], t).sum(), x)
        close(denoiser.score(x.detach(), t), expected, 1e-6)


def test_mixture_mean_is_bayes_by_quadrature() -> None:
    schedule = VPLinear()
    denoiser = GaussianMixtureDenoiser(MEANS, STDS, WEIGHTS, schedule)
    t = torch.tensor(0.35, dtype=torch.float64)
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))

    def joint(x0: float, x: float) -> float:
        prior = sum(
            w * stats.norm.pdf(x0, m, s) for m, s, w in zip(MEANS, STDS, WEIGHTS, strict=True)
        )
        return float(prior * stats.norm.pdf(x, alpha * x0, sigma))

    for x in (-1.5, 0.0, 0.4, 2.0):
        mass = integrate.quad(joint, -8, 8, args=(x,), points=MEANS, epsabs=1e-12)[0]
        first = integrate.quad(
            lambda x0, x=x: x0 * joint(x0, x), -8, 8, points=MEANS, epsabs=1e-12
        )[0]
        mean = denoiser(torch.tensor([[x]], dtype=torch.float64), t)
        assert float(mean) == pytest.approx(first / mass, abs=1e-8)


@every
def test_one_component_is_the_gaussian(schedule: Schedule) -> None:
    t = times(schedule)
    x = states(len(t), 3)
    mean = states(1, 3, seed=1)
    mixture = GaussianMixtureDenoiser(mean, [STD], [5.0], schedule)
    close(mixture(x, t), GaussianDenoiser(mean[0], STD, schedule)(x, t))


def test_mixture_in_many_dimensions_against_brute_force() -> None:
    schedule = Cosine()
    means = states(4, 3, seed=3)
    stds, weights = torch.tensor([0.3, 0.5, 1.0, 0.1]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    x, t = states(6, 3), torch.linspace(0.05, 0.9, 6, dtype=torch.float64)
    got = GaussianMixtureDenoiser(means, stds, weights, schedule)(x, t)
    for i in range(len(x)):
        alpha, sigma = float(schedule.alpha(t[i])), float(schedule.sigma(t[i]))
        total, mean = 0.0, torch.zeros(3, dtype=torch.float64)
        for m, s, w in zip(means, stds.tolist(), weights.tolist(), strict=True):
            variance = alpha**2 * s**2 + sigma**2
            density = w * stats.multivariate_normal.pdf(x[i], alpha * m, variance)
            total += density
            mean = mean + density * (m + alpha * s**2 / variance * (x[i] - alpha * m))
        close(got[i], mean / total)


@every
def test_one_component_with_a_covariance_is_conditioning(schedule: Schedule) -> None:
    mean, root = states(1, 3, seed=1), states(3, 3, seed=2)
    S, t, x = root @ root.T, times(schedule), states(len(times(schedule)), 3)
    got = GaussianMixtureDenoiser(mean, S[None], [2.0], schedule)(x, t)
    for i in range(len(t)):
        alpha, sigma = float(schedule.alpha(t[i])), float(schedule.sigma(t[i]))
        noisy = alpha**2 * S + sigma**2 * torch.eye(3, dtype=torch.float64)
        close(got[i], mean[0] + alpha * S @ torch.linalg.solve(noisy, x[i] - alpha * mean[0]), 1e-9)


@every
def test_the_score_of_needles_is_the_gradient_of_their_log_density(schedule: Schedule) -> None:
    means, roots = states(3, 2, seed=1), states(3, 2, 2, seed=2)
    covariances, weights = roots @ roots.mT, torch.tensor([0.2, 0.5, 0.3])
    denoiser = GaussianMixtureDenoiser(means, covariances, weights, schedule)
    for t in times(schedule):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        noisy = alpha**2 * covariances + sigma**2 * torch.eye(2, dtype=torch.float64)
        law = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(weights.double()),
            torch.distributions.MultivariateNormal(alpha * means, noisy),
        )
        x = 2 * states(20, 2).requires_grad_()
        (expected,) = torch.autograd.grad(law.log_prob(x).sum(), x)
        close(denoiser.score(x.detach(), t), expected, 1e-6)


def test_equal_covariances_are_standard_deviations() -> None:
    means, x, t = states(4, 3), states(5, 3, seed=1), torch.tensor(0.3)
    round_ = GaussianMixtureDenoiser(means, [0.5] * 4, [1.0] * 4, Cosine())
    full = GaussianMixtureDenoiser(means, 0.25 * torch.eye(3).expand(4, 3, 3), [1.0] * 4, Cosine())
    close(full(x, t), round_(x, t))


def test_mixture_far_from_every_component_stays_finite() -> None:
    denoiser = GaussianMixtureDenoiser(MEANS, STDS, WEIGHTS, VPLinear())
    x = torch.tensor([[-1e3], [1e3]])
    assert bool(denoiser(x, torch.tensor(1e-3)).isfinite().all())


def test_a_ragged_mixture_is_refused() -> None:
    with pytest.raises(SigdegError, match="as many means, stds and weights, got 3, 2, 1"):
        GaussianMixtureDenoiser([0.0, 1.0, 2.0], [1.0, 1.0], [1.0], VPLinear())
    with pytest.raises(SigdegError, match=r"as covariances, \(1, 2, 2\), got \(1, 3, 3\)"):
        GaussianMixtureDenoiser(torch.zeros(1, 2), torch.eye(3)[None], [1.0], VPLinear())
    for matrix in ([[1.0, 0.5], [0.0, 1.0]], [[1.0, 2.0], [2.0, 1.0]]):
        with pytest.raises(SigdegError, match="symmetric and positive"):
            GaussianMixtureDenoiser(torch.zeros(1, 2), [matrix], [1.0], VPLinear())


# --- guidance -------------------------------------------------------------------------------------


def labelled(schedule: Schedule) -> tuple[Denoiser, Stub]:
    """A denoiser whose mean is its label, in both columns."""
    network = Stub(lambda x, _, label: label[:, None].to(x).expand_as(x))
    return NetworkDenoiser(network, schedule, "sample"), network


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.5])
@pytest.mark.parametrize("t", [torch.tensor(0.5), torch.tensor([0.5, 0.6])])
def test_guidance_extrapolates_from_the_unconditional(scale: float, t: Tensor) -> None:
    inner, network = labelled(VPLinear())
    guided = ClassifierFreeGuidance(inner, scale, {"label": torch.tensor([10])})
    mean = guided(torch.zeros(2, 2), t, label=torch.tensor([12, 7]))
    expected = torch.tensor([10 + scale * 2, 10 - scale * 3])
    assert torch.equal(mean, expected[:, None].expand(2, 2))
    assert len(network.seen) == 1  # one call of twice the batch
    assert network.seen[0][0].shape == (4, 2)


def test_guided_gaussians_have_the_score_of_the_tilted_density() -> None:
    # p_c^w p_0^(1-w) of two normals of one variance is normal with the mean extrapolated
    schedule, w = VPLinear(), 2.5

    class Centred(Denoiser):
        def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
            centre = condition["centre"][:, None]
            alpha = expand(self.schedule.alpha(t), x)
            return centre + GaussianDenoiser(0.0, STD, self.schedule)(x - alpha * centre, t)

    one = torch.ones(1, dtype=torch.float64)
    guided = ClassifierFreeGuidance(Centred(schedule), w, {"centre": -one})
    x = states(4, 3)
    expected = GaussianDenoiser(-1 + w * 2, STD, schedule).score(x, TIMES)
    close(guided.score(x, TIMES, centre=one.expand(4)), expected, 1e-8)


def test_guidance_wants_exactly_its_own_conditions() -> None:
    inner, _ = labelled(VPLinear())
    guided = ClassifierFreeGuidance(inner, 2.0, {"label": torch.tensor([0])})
    with pytest.raises(SigdegError, match=r"needs the conditions \['label'\], got \[\]"):
        guided(torch.zeros(1, 2), torch.tensor(0.5))


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5])
@every
def test_a_weaker_version_guides_by_a_power_of_the_densities(
    schedule: Schedule, scale: float
) -> None:
    r"""$p^w q^{1-w}$ of two centred normals is normal, its precision the same mean of theirs."""
    denoiser, weak = (GaussianDenoiser(0.0, std, schedule) for std in (STD, 2 * STD))
    t, x = times(schedule), states(4, 3)
    alpha, sigma = expand(schedule.alpha(t), x), expand(schedule.sigma(t), x)
    precisions = [1 / (alpha**2 * std**2 + sigma**2) for std in (STD, 2 * STD)]
    expected = -(scale * precisions[0] + (1 - scale) * precisions[1]) * x
    close(AutoGuidance(denoiser, weak, scale).score(x, t), expected, 1e-8)


def test_what_guides_predicts_what_is_guided() -> None:
    network = Stub(lambda x, *_: x)
    kinds: list[Prediction] = ["epsilon", "v_prediction"]
    one, other = (NetworkDenoiser(network, VPLinear(), kind) for kind in kinds)
    with pytest.raises(SigdegError, match="predicts v_prediction, this one epsilon"):
        AutoGuidance(one, other, 2.0)


def test_guidance_ends_at_a_time() -> None:
    """Sample by sample; above it the other denoiser is not even asked."""
    schedule = VPLinear()
    denoiser, weak = (GaussianDenoiser(0.0, std, schedule) for std in (STD, 2 * STD))
    guided = AutoGuidance(denoiser, weak, 2.0, until=0.5)
    everywhere = AutoGuidance(denoiser, weak, 2.0)
    x, t = states(3, 2), torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64)
    expected = torch.cat([everywhere(x[:2], t[:2]), denoiser(x[2:], t[2:])])
    close(guided(x, t), expected, 1e-12)
    assert (guided.calls(t), everywhere.calls(t), denoiser.calls(t)) == (5, 6, 3)
    asked: list[Tensor] = []
    weak.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[1]))
    close(guided(x, t[2]), denoiser(x, t[2]), 1e-12)
    assert not asked
    close(guided(x, t[0]), everywhere(x, t[0]), 1e-12)
    assert len(asked) == 2


@pytest.mark.parametrize("until", [0.0, -1.0, 1.5, float("nan")])
def test_guidance_that_ends_nowhere_is_refused(until: float) -> None:
    denoiser = GaussianDenoiser(0.0, STD, VPLinear())
    with pytest.raises(SigdegError, match=r"must end at a time in \(0, 1\], got"):
        AutoGuidance(denoiser, denoiser, 2.0, until)


def test_both_versions_are_told_the_condition() -> None:
    (inner, network), (weak, other) = labelled(VPLinear()), labelled(VPLinear())
    label = torch.tensor([2, 5])
    AutoGuidance(inner, weak, 2.0)(torch.zeros(2, 2), torch.tensor(0.5), label=label)
    assert len(network.seen) == len(other.seen) == 1


def test_weights_of_a_mixture_are_normalised() -> None:
    denoiser = GaussianMixtureDenoiser([0.0, 1.0], [1.0, 1.0], [3.0, 1.0], VPLinear())
    assert denoiser.log_weights.exp().tolist() == pytest.approx([0.75, 0.25])
    assert math.isclose(float(denoiser.log_weights.exp().sum()), 1)
