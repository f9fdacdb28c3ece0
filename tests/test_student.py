"""The student against its formulas written out, exact Gaussian laws, and its saved self."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from sigdeg.denoiser import Denoiser, GaussianDenoiser, NetworkDenoiser
from sigdeg.errors import SigdegError
from sigdeg.grids import coarse_grid
from sigdeg.networks import ResidualMLP, sinusoidal
from sigdeg.response import response
from sigdeg.runs import fingerprint
from sigdeg.sampling import sample
from sigdeg.schedule import EDM, Cosine, RectifiedFlow, Schedule, VPLinear
from sigdeg.signature import PartialSignature
from sigdeg.steps import EulerMaruyama, Exponential
from sigdeg.student import STEP_FEATURES, PlainStudent, SignatureStudent

SCHEDULE = VPLinear()
every = pytest.mark.parametrize(
    "schedule",
    [VPLinear(), Cosine(), EDM(), RectifiedFlow(shift=2.0)],
    ids=lambda s: s.config()["kind"],
)


class Known(nn.Module):
    """A network that mixes its inputs and the time by fixed random weights, and counts calls."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        generator = Generator().manual_seed(1)
        weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
        self.register_buffer("weight", weight / inputs**0.5)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, timestep: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        self.seen.append((x, timestep))
        mixed = torch.einsum("oi,bi...->bo...", self.weight.to(x), x)
        return torch.tanh(mixed + timestep.reshape(-1, *(1,) * (x.ndim - 1))) + shift


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def signature(t: float, s: float, shape: tuple[int, ...], order: int) -> PartialSignature:
    generator = Generator().manual_seed(5)
    return PartialSignature.sample(t - s, shape, order, generator, torch.float64)


def student(order: int = 2, channels: int = 2, **options: Any) -> SignatureStudent:
    """A warm student with a small network that has left zero."""
    inputs = SignatureStudent.in_channels(channels, order, options.get("residual_noise"))
    network = ResidualMLP(inputs, channels, 16, 1)
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            p.copy_(0.2 * normal(*p.shape, seed=i))
    return SignatureStudent(network, SCHEDULE, channels, order, **options)


def close(actual: Tensor, expected: Tensor, tol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tol, atol=tol)


@pytest.mark.parametrize("rest", [(), (3, 4)])
def test_plain_is_equation_9(rest: tuple[int, ...]) -> None:
    r"""$x_s = x_t + N(x_t, t, (h, W, A))$, the triple as W, A and h beside the state."""
    t, s, shape = 0.7, 0.4, (5, 2, *rest)
    network = Known(PlainStudent.in_channels(2), 2)
    step = PlainStudent(network, SCHEDULE, 2, sample_shape=shape[1:])
    x, path = normal(*shape), signature(t, s, shape, 2)
    h = torch.full((5, 1, *rest), t - s, dtype=torch.float64)
    inputs = torch.cat([x, path.W, path.time_integral, h], dim=1)
    close(step(x, t, s, path), x + network(inputs, torch.full((5,), t, dtype=torch.float64)))


@every
@pytest.mark.parametrize("order", [1, 2, 5])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow", "edm"])
def test_warm_by_hand(schedule: Schedule, order: int, prediction: Any) -> None:
    r"""$\sigma_s$, $\alpha_s$ and r are enough: the exponential step with a network in it."""
    t = torch.tensor(0.6, dtype=torch.float64)
    for s in (torch.tensor(0.25, dtype=torch.float64), torch.zeros((), dtype=torch.float64)):
        v = 0.8**2
        network = Known(SignatureStudent.in_channels(2, order), 2)
        step = SignatureStudent(
            network, schedule, 2, order, prediction_type=prediction, data_std=0.8
        )
        x, path = normal(5, 2), signature(float(t), float(s), (5, 2), order)
        actual = step(x, t, s, path)
        inputs, timestep = network.seen[0]
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        n = (alpha**2 * v + sigma**2).sqrt()
        close(inputs[:, :2], x / n if prediction == "edm" else x)
        close(inputs[:, 2 : 2 + 2 * order].reshape(5, order, 2), path.coefficients)
        features = sinusoidal(s.expand(5), STEP_FEATURES)
        close(inputs[:, 2 + 2 * order :], features.double(), 1e-6)
        close(timestep, schedule.timestep(t).expand(5))
        F = network(inputs, timestep)
        D = {
            "epsilon": (x - sigma * F) / alpha,
            "v_prediction": (alpha * x - sigma * F) / (alpha**2 + sigma**2),
            "sample": F,
            "flow": (x - sigma * F) / (alpha + sigma),
            "edm": alpha * v / n**2 * x + sigma * 0.8 / n * F,
        }[prediction]
        alpha_s, sigma_s = schedule.alpha(s), schedule.sigma(s)
        r = alpha * sigma_s / (alpha_s * sigma)
        w = response(schedule, t, s, order, 0.8)
        noise = (w[:, None] * path.coefficients).sum(1)
        mean = alpha_s / alpha * r**2 * x + alpha_s * (1 - r**2) * D
        close(actual, mean + noise, 1e-9)


def test_clip_bounds_the_mean_as_the_teacher_does() -> None:
    network = Known(SignatureStudent.in_channels(2, 1), 2)
    step = SignatureStudent(
        network, SCHEDULE, 2, 1, prediction_type="sample", data_std=0.0, clip=0.1
    )
    x = normal(5, 2)
    final = step(x, 0.5, 0.0, signature(0.5, 0.0, (5, 2), 1))
    close(final, network(network.seen[0][0], network.seen[0][1]).clamp(-0.1, 0.1))
    assert final.abs().max() == 0.1


@every
@pytest.mark.parametrize("order", [1, 3])
def test_untrained_is_exact_for_gaussian_data(schedule: Schedule, order: int) -> None:
    r"""With data N(0, v), $x_s | x_t$ is Gaussian conditioning on the forward process."""
    v = 0.6**2
    network = ResidualMLP(SignatureStudent.in_channels(1, order), 1, 8, 1)
    step = SignatureStudent(network, schedule, 1, order, data_std=0.6).double()
    t, s = torch.tensor([0.7, 0.3], dtype=torch.float64)
    n2_t, n2_s = (schedule.alpha(q) ** 2 * v + schedule.sigma(q) ** 2 for q in (t, s))
    ratio = schedule.alpha(t) / schedule.alpha(s)  # x_t = ratio x_s + independent noise
    gain, variance = ratio * n2_s / n2_t, n2_s - (ratio * n2_s) ** 2 / n2_t
    x = normal(4, 1)
    quiet = PartialSignature(t - s, torch.zeros(4, order, 1, dtype=torch.float64))
    close(step(x, t, s, quiet), gain * x, 1e-9)
    unit = PartialSignature(t - s, torch.eye(order, dtype=torch.float64)[:, :, None])
    weights = step(torch.zeros(order, 1, dtype=torch.float64), t, s, unit)
    close((weights**2).sum(), variance, 1e-9)


class Rotated(nn.Module):
    """The posterior mean of data N(0, S) at one time, given the state's part of the input."""

    def __init__(self, covariance: Tensor, t: float) -> None:
        super().__init__()
        time = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = SCHEDULE.alpha(time), SCHEDULE.sigma(time)
        noisy = alpha**2 * covariance + sigma**2 * torch.eye(len(covariance))
        self.gain = alpha * covariance @ torch.linalg.inv(noisy)

    def forward(self, inputs: Tensor, timestep: Tensor) -> Tensor:
        return inputs[:, : len(self.gain)] @ self.gain.T


class TestCovariance:
    """The linear response as matrices, for data that are correlated."""

    COVARIANCE = torch.tensor(
        [[2.0, 0.9, 0.1], [0.9, 0.5, -0.1], [0.1, -0.1, 0.3]], dtype=torch.float64
    )

    @pytest.mark.parametrize(("order", "s"), [(1, 0.3), (3, 0.3), (2, 0.0)])
    def test_untrained_is_exact_for_gaussian_data(self, order: int, s: float) -> None:
        """Conditioning the forward process, in matrices: gain and covariance of x_s given x_t."""
        t, S = 0.7, self.COVARIANCE
        step = SignatureStudent(
            Rotated(S, t), SCHEDULE, 3, order, prediction_type="sample", covariance=S
        )
        times = torch.tensor([t, s], dtype=torch.float64)
        (alpha_t, alpha_s), (sigma_t, sigma_s) = SCHEDULE.alpha(times), SCHEDULE.sigma(times)
        one = torch.eye(3, dtype=torch.float64)
        noisy_t, noisy_s = alpha_t**2 * S + sigma_t**2 * one, alpha_s**2 * S + sigma_s**2 * one
        cross = alpha_t / alpha_s * noisy_s  # Cov(x_s, x_t)
        gain = cross @ torch.linalg.inv(noisy_t)
        quiet = PartialSignature(times[0] - s, torch.zeros(3, order, 3, dtype=torch.float64))
        close(step(one, t, s, quiet).T, gain, 1e-8)
        unit = torch.eye(3 * order, dtype=torch.float64).reshape(3 * order, order, 3)
        rows = step(torch.zeros(3 * order, 3), t, s, PartialSignature(times[0] - s, unit))
        close(rows.T @ rows, noisy_s - gain @ cross.T, 1e-8)

    def test_a_multiple_of_the_identity_is_one_standard_deviation(self) -> None:
        plain = student(3, data_std=0.6)
        full = SignatureStudent(
            plain.network, SCHEDULE, 2, 3, data_std=0.6, covariance=0.36 * torch.eye(2)
        )
        t = torch.tensor([0.9, 0.6, 0.9], dtype=torch.float64)
        s = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64)
        x, path = normal(3, 2).float(), PartialSignature(t - s, normal(3, 3, 2, seed=2).float())
        close(full(x, t, s, path), plain(x, t, s, path), 1e-5)

    def test_the_path_of_correlated_data_is_followed(self) -> None:
        """Against fine steps of the exact score on one path: far nearer than a scalar response."""
        S, t, s, order, r = self.COVARIANCE, 0.7, 0.2, 6, 400
        times = torch.linspace(t, s, r + 1, dtype=torch.float64)
        dW = normal(64, r, 3) * ((t - s) / r) ** 0.5
        x = y = normal(64, 3, seed=3)
        for i in range(r):
            fine = PartialSignature(
                (times[i] - times[i + 1]), dW[:, i : i + 1] * (r / (t - s)) ** 0.5
            )
            step = EulerMaruyama(Matrix(S))
            y = step(y, times[i], times[i + 1], fine)
        path = PartialSignature.from_increments(dW, (times[:-1] - times[1:]), order)
        error = {}
        for name, given in (("matrix", S), ("scalar", None)):
            coarse = SignatureStudent(
                Rotated(S, t), SCHEDULE, 3, order, prediction_type="sample", covariance=given
            )
            error[name] = float((coarse(x, t, s, path) - y).pow(2).mean().sqrt())
        assert error["matrix"] < 0.02
        assert error["matrix"] < 0.1 * error["scalar"]

    def test_comes_back(self, tmp_path: Path) -> None:
        step = student(covariance=torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
        step.save_pretrained(tmp_path)
        loaded = SignatureStudent.from_pretrained(tmp_path)
        expected = sample(step, step.grid(), (5, 2), seeds=range(5))
        assert torch.equal(sample(loaded, loaded.grid(), (5, 2), seeds=range(5)), expected)
        without = student()
        assert not torch.allclose(expected, sample(without, without.grid(), (5, 2), seeds=range(5)))

    def test_other_channels_than_its_own(self) -> None:
        step = student()
        with pytest.raises(SigdegError, match=r"draws samples of shape \(2,\), got \(3,\)"):
            sample(step, step.grid(), (5, 3), seeds=range(5))

    def test_bad_covariance(self) -> None:
        with pytest.raises(SigdegError, match=r"shape \(2, 2\), got \(3, 3\)"):
            student(covariance=torch.eye(3))
        with pytest.raises(SigdegError, match="neither a covariance"):
            PlainStudent(nn.Identity(), SCHEDULE, 2, covariance=torch.eye(2))


class Matrix(Denoiser):
    """The exact denoiser of data N(0, S)."""

    def __init__(self, covariance: Tensor) -> None:
        super().__init__(SCHEDULE)
        self.S = covariance

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        return x @ Rotated(self.S, float(t)).gain.T


@pytest.mark.parametrize("prediction", ["epsilon", "edm"])
def test_untrained_from_a_teacher_is_its_ancestral_step(prediction: Any) -> None:
    """Same network, same path: the widened copy of the teacher samples what the teacher does."""
    network = ResidualMLP(2, 2, 16, 1)
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            p.copy_(0.2 * normal(*p.shape, seed=i))
    denoiser = NetworkDenoiser(network, SCHEDULE, prediction, data_std=0.7).double()
    std = 0.7 if prediction == "edm" else 0.0
    warm = SignatureStudent.from_denoiser(
        denoiser, 2, 3, steps=(6,), lookahead=0.0, residual_noise=None
    )
    assert warm.data_std == std
    teacher = Exponential(denoiser, 3, std)
    arguments: dict[str, Any] = {"seeds": range(9), "dtype": torch.float64}
    expected = sample(teacher, warm.grid()[:-1], (9, 2), **arguments)
    close(sample(warm, warm.grid()[:-1], (9, 2), **arguments), expected, 1e-9)
    if prediction == "epsilon":  # then even the last step is the teacher's: the denoised mean
        close(
            sample(warm, warm.grid(), (9, 2), **arguments),
            sample(teacher, warm.grid(), (9, 2), **arguments),
            1e-9,
        )


def test_times_may_differ_by_sample() -> None:
    step = student(3).double()
    t = torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64)
    s = torch.tensor([0.5, 0.0, 0.1], dtype=torch.float64)
    x, c = normal(3, 2), normal(3, 3, 2, seed=2)
    both = step(x, t, s, PartialSignature(t - s, c))
    for i in range(3):
        one = slice(i, i + 1)
        close(both[one], step(x[one], t[i], s[i], PartialSignature(t[i] - s[i], c[one])), 1e-9)


def test_the_network_reads_no_more_than_it_was_built_for() -> None:
    """A path known to a higher order changes nothing: the first coefficients count."""
    step = student(2).double()
    x, path = normal(4, 2), signature(0.7, 0.4, (4, 2), 5)
    assert torch.equal(step(x, 0.7, 0.4, path), step(x, 0.7, 0.4, path.truncate(2)))


@pytest.mark.parametrize("kind", [SignatureStudent, PlainStudent])
def test_two_halves_around_the_network(kind: type[SignatureStudent]) -> None:
    """Whoever calls the network, the step is the same; neither half calls it."""
    network = Known(kind.in_channels(2, 2, "energy"), 2)
    options: dict[str, Any] = {"residual_noise": "energy", "clip": 0.5}
    step = kind(network, SCHEDULE, 2, **options)
    assert (step.seen, step.order, step.nfe) == (2, 3, 1)
    x, path = normal(4, 2), signature(0.7, 0.4, (4, 2), 3)
    given = step.inputs(x, 0.7, 0.4, path)
    assert network.seen == []
    expected = step(x, 0.7, 0.4, path)
    assert torch.equal(network.seen[0][0], given.inputs)
    assert torch.equal(step.outputs(network(given.inputs, given.timestep), given), expected)


class TestGrid:
    """A student of one grid serves that one, an elastic one all up to its largest."""

    def test_times_of_its_own(self, tmp_path: Path) -> None:
        """The finest grid as given; fewer steps take every so many of its times, or about."""
        times = (1.0, 0.6, 0.3, 0.1, 0.0)
        own = student(steps=(4, 2), times=times)
        assert own.grid().tolist() == list(times)
        assert own.grid(2).tolist() == [1.0, 0.3, 0.0]
        assert own.grid(3).tolist() == [1.0, 0.6, 0.1, 0.0]
        own.save_pretrained(tmp_path)
        assert "times" in json.loads((tmp_path / "config.json").read_text())
        again = SignatureStudent.from_pretrained(tmp_path)
        assert again.times == times
        with pytest.raises(SigdegError, match="a grid of 4 steps has 5 times, got 3"):
            student(steps=(4,), times=(1.0, 0.5, 0.0))

    def test_fixed(self) -> None:
        step = student(steps=(5,), power=1.0)
        assert not step.elastic
        assert torch.equal(step.grid(), coarse_grid(SCHEDULE, 5, "uniform"))
        for steps in (4, 6, 0):
            with pytest.raises(SigdegError, match=f"distilled for 5 steps, got {steps}"):
                step.grid(steps)

    def test_elastic(self) -> None:
        step = student(steps=(1, 2, 4, 8), power=2.0)
        assert step.elastic
        assert torch.equal(step.grid(), coarse_grid(SCHEDULE, 8, power=2.0))
        for steps in (1, 3, 8):
            assert torch.equal(step.grid(steps), coarse_grid(SCHEDULE, steps, power=2.0))
        with pytest.raises(SigdegError, match="distilled for 1, 2, 4, 8 steps, got 9"):
            step.grid(9)
        with pytest.raises(SigdegError, match="at least 1, got 0"):
            step.grid(0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"order": 4, "residual_noise": "energy", "clip": 3.0, "prediction_type": "epsilon"},
        {"steps": (1, 2, 4), "power": 2.5, "data_std": 0.3},
    ],
)
def test_saved_and_loaded_is_the_same_step(tmp_path: Path, options: dict[str, Any]) -> None:
    step = student(**options)
    step.save_pretrained(tmp_path / "s")
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    loaded = SignatureStudent.from_pretrained(tmp_path / "s")
    assert not loaded.training
    assert (loaded.steps, loaded.order, loaded.elastic) == (step.steps, step.order, step.elastic)
    assert loaded.sample_shape == step.sample_shape
    assert torch.equal(loaded.grid(), step.grid())
    assert torch.equal(
        sample(loaded, loaded.grid(), (7, 2), seeds=range(7)),
        sample(step, step.grid(), (7, 2), seeds=range(7)),
    )


@every
def test_schedule_is_saved_too(tmp_path: Path, schedule: Schedule) -> None:
    network = ResidualMLP(SignatureStudent.in_channels(1, 2), 1, 8, 1)
    SignatureStudent(network, schedule, 1).save_pretrained(tmp_path)
    assert SignatureStudent.from_pretrained(tmp_path).schedule == schedule


class Own(Schedule):
    """Straight paths of one's own, to another end."""

    t_min, t_max = 0.01, 0.9

    def __init__(self, power: float = 1.0) -> None:
        self.power = power

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t**self.power

    def sigma(self, t: Tensor) -> Tensor:
        return t**self.power

    def drift(self, t: Tensor) -> Tensor:
        return -self.power * t ** (self.power - 1) / self.alpha(t)

    def diffusion(self, t: Tensor) -> Tensor:
        slope = self.power * t ** (self.power - 1)
        return torch.sqrt(2 * self.sigma(t) * slope / self.alpha(t))


def test_schedule_of_ones_own(tmp_path: Path) -> None:
    """It is passed when the student is loaded, and must be the one that was saved."""
    network = ResidualMLP(SignatureStudent.in_channels(1, 2), 1, 8, 1)
    saved = SignatureStudent(network, Own(), 1, data_std=0.5, steps=(3,))
    saved.save_pretrained(tmp_path)
    again = SignatureStudent.from_pretrained(tmp_path, schedule=Own())
    draws = [sample(step, step.grid(), (5, 1), seeds=range(5)) for step in (saved, again)]
    assert torch.equal(*draws)
    with pytest.raises(SigdegError, match=r"unknown schedule 'Own': .*\(schedule=\.\.\.\)"):
        SignatureStudent.from_pretrained(tmp_path)
    for other in (Own(2.0), Cosine()):
        with pytest.raises(SigdegError, match="is not the Own that was saved"):
            SignatureStudent.from_pretrained(tmp_path, schedule=other)
    # A copy is the same schedule, in its identity too.
    assert fingerprint(copy.deepcopy(saved)) == fingerprint(saved)


def test_plain_comes_back(tmp_path: Path) -> None:
    network = ResidualMLP(PlainStudent.in_channels(2), 2, 8, 1)
    nn.init.normal_(network.head.weight)
    step = PlainStudent(network, SCHEDULE, 2)
    step.save_pretrained(tmp_path)
    loaded = SignatureStudent.from_pretrained(tmp_path)
    assert type(loaded) is PlainStudent
    x, path = normal(3, 2).float(), PartialSignature.sample(0.3, (3, 2))
    assert torch.equal(loaded(x, 0.7, 0.4, path), step(x, 0.7, 0.4, path))


def test_half_weights_come_back_exactly(tmp_path: Path) -> None:
    """Half the bytes on disk; computed with in single precision."""
    step = student()
    step.save_pretrained(tmp_path / "single")
    step.half().save_pretrained(tmp_path / "half")
    size = {
        name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("single", "half")
    }
    assert size["half"] < 0.7 * size["single"]
    loaded = SignatureStudent.from_pretrained(tmp_path / "half")
    for name, value in step.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], value.float())
    expected = sample(step.float(), step.grid(), (4, 2), seeds=range(4))
    assert torch.equal(sample(loaded, loaded.grid(), (4, 2), seeds=range(4)), expected)


def test_network_of_ones_own(tmp_path: Path) -> None:
    network = Known(SignatureStudent.in_channels(2, 2), 2)
    step = SignatureStudent(network, SCHEDULE, 2)
    step.save_pretrained(tmp_path)
    with pytest.raises(SigdegError, match="a network of your own has to be passed"):
        SignatureStudent.from_pretrained(tmp_path)
    fresh = Known(SignatureStudent.in_channels(2, 2), 2)
    fresh.weight.zero_()
    loaded = SignatureStudent.from_pretrained(tmp_path, fresh)
    x, path = normal(3, 2), signature(0.7, 0.4, (3, 2), 2)
    assert torch.equal(loaded(x, 0.7, 0.4, path), step(x, 0.7, 0.4, path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "holds no sigdeg student"),
        ({"channels": None}, "does not fit"),
        ({"surprise": 1}, "surprise"),
        ({"steps": 5}, "does not fit"),
        ({"order": 0}, "order must be at least 1"),
        ({"order": "two"}, "does not fit"),
        ({"kind": "hot"}, "unknown kind of student 'hot'"),
        ({"network": {"class": "os.system"}}, "unknown network class"),
        ({"network": {"class": "ResidualMLP", "config": {"depth": 3}}}, "cannot be built"),
        ({"network": "ResidualMLP"}, "does not fit"),
        ({"schedule": {"kind": "Nowhere"}}, "unknown schedule 'Nowhere'"),
        ({"schedule": {"kind": "VPLinear", "beta": 3}}, "schedule VPLinear"),
        ({"schedule": "VPLinear"}, "does not fit"),
        ({"steps": []}, "at least one step count"),
        ({"prediction_type": "noise"}, "noise"),
        ({"spacing": "magic"}, "magic"),
    ],
)
def test_config_that_is_no_students(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    student().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config = {k: v for k, v in {**config, **change}.items() if v is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SigdegError, match=message) as caught:
        SignatureStudent.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_every_digit_of_a_saved_student_counts(tmp_path: Path) -> None:
    """A figure or letter of the configuration changed by itself never gives another student."""
    times = (1.0, 0.61, 0.37, 0.0)
    covariance = torch.tensor([[2.0, 0.3], [0.3, 1.0]])
    step = student(covariance=covariance, lookahead=0.4, times=times, steps=(3,), clip=3.5)
    step.save_pretrained(tmp_path)
    file, draw = tmp_path / "config.json", Generator().manual_seed(3)
    text = file.read_text()
    places = [i for i, c in enumerate(text) if c.isalnum()]
    for i in torch.randperm(len(places), generator=draw)[:60].tolist():
        at = places[i]
        other = "7" if text[at] != "7" else "3"
        file.write_text(text[:at] + other + text[at + 1 :])
        with pytest.raises(SigdegError) as caught:
            SignatureStudent.from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)
    file.write_text(json.dumps(json.loads(text)))  # another layout is the same student
    assert SignatureStudent.from_pretrained(tmp_path).times == times


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("channels", "abc"),
        ("channels", 0),
        ("channels", 10**30),
        ("channels", True),
        ("data_std", None),
        ("data_std", [1, 2]),
        ("data_std", -1),
        ("data_std", float("nan")),
        ("clip", float("inf")),
        ("lookahead", "0.5"),
        ("covariance", 1),
        ("steps", [2.5]),
        ("steps", [10**9]),
        ("order", 1e3),
        ("times", [1, 0.5, -0.1]),
        ("sample_shape", [10**30, 8, 8]),
        ("sample_shape", ["", 8]),
        ("sample_shape", [3]),
        ("schedule", {"kind": "DiscreteVP", "log_snrs": [[], 1]}),
        ("schedule", {"kind": "DiscreteVP", "log_snrs": [float("nan"), 1]}),
        ("schedule", {"kind": "VPLinear", "beta_min": "1"}),
        ("network", {"class": "ResidualMLP", "config": {"in_channels": 2, "out_channels": -1}}),
        ("network", {"class": "ResidualMLP", "config": {"in_channels": 2, "out_channels": 10**12}}),
        ("network", {"class": "UNet2DModel", "config": {"layers_per_block": 10**9}}),
        ("network", {"class": "UNet2DModel", "config": {"block_out_channels": [10**9] * 4}}),
    ],
)
def test_a_configuration_without_a_seal_is_checked(tmp_path: Path, key: str, value: Any) -> None:
    """Types and bounds, as far as they can be told: nothing large is built to find out."""
    student().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["_weights"], config["_digest"]
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(SigdegError, match=key if key != "network" else "cannot be built") as caught:
        SignatureStudent.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_of_another_student_of_the_same_kind(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        other = student()
        nn.init.normal_(other.network.head.bias, generator=Generator().manual_seed(seed))
        other.save_pretrained(tmp_path / name)
    (tmp_path / "b" / "model.safetensors").replace(tmp_path / "a" / "model.safetensors")
    with pytest.raises(SigdegError, match="do not belong together"):
        SignatureStudent.from_pretrained(tmp_path / "a")


def test_weights_of_another_shape(tmp_path: Path) -> None:
    student(order=2).save_pretrained(tmp_path / "a")
    student(order=3).save_pretrained(tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").replace(tmp_path / "a" / "model.safetensors")
    with pytest.raises(SigdegError, match="has shape"):
        SignatureStudent.from_pretrained(tmp_path / "a")
    with pytest.raises(SigdegError, match="is missing"):
        SignatureStudent.from_pretrained(tmp_path / "b")
    with pytest.raises(SigdegError, match="neither a folder, nor one of mnist"):
        SignatureStudent.from_pretrained(tmp_path / "c")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 0}, "order must be at least 1"),
        ({"kind": "plain"}, "the paper's student is a PlainStudent"),
        ({"spacing": "uniform"}, "power=1 spaces a grid evenly"),
        ({"residual_noise": "gaussian"}, 'take residual_noise="energy"'),
        ({"residual_noise": "laplace"}, "unknown residual noise 'laplace'"),
        ({"steps": (0,)}, "at least one step count"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SigdegError, match=message):
        SignatureStudent(nn.Identity(), SCHEDULE, 1, **options)
    for odd in ({"order": 3}, {"lookahead": 0.5}):
        with pytest.raises(SigdegError, match="has order 2, and neither"):
            PlainStudent(nn.Identity(), SCHEDULE, 1, **odd)


@pytest.mark.parametrize("spacing", ["uniform", "power", "log_snr"])
def test_files_of_earlier_versions(tmp_path: Path, spacing: Any) -> None:
    """They told the spacing of their grids, and had a head that is gone."""
    student(steps=(4, 2)).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    del config["_weights"], config["_digest"]
    file.write_text(json.dumps({**config, "spacing": spacing}))
    loaded = SignatureStudent.from_pretrained(tmp_path)
    for steps in (4, 2):
        close(loaded.grid(steps), coarse_grid(SCHEDULE, steps, spacing))
    file.write_text(json.dumps({**config, "residual_noise": "gaussian"}))
    with pytest.raises(SigdegError, match='head is gone: take residual_noise="energy"') as caught:
        SignatureStudent.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("noise", [False, True])
def test_the_seed_alone_decides(noise: bool) -> None:
    """The noise to the bit, whatever the batch; a network to the rounding of its matmuls."""
    trained = student(3, residual_noise="energy" if noise else None, steps=(4,))
    untrained = student(3, residual_noise="energy" if noise else None, steps=(4,))
    with torch.no_grad():  # a last layer of zeros gives exact zeros
        for p in untrained.network.head.parameters():
            p.zero_()
    for step, tol in ((untrained, 0.0), (trained, 1e-5)):
        whole = sample(step, step.grid(), (8, 2), seeds=range(8))
        for size in (1, 3, 8):
            split = sample(step, step.grid(), (8, 2), seeds=range(8), batch_size=size)
            close(split, whole, tol)
        close(sample(step, step.grid(), (1, 2), seeds=[5]), whole[5:6], tol)


def test_a_student_costs_one_call_a_step() -> None:
    network = Known(SignatureStudent.in_channels(1, 2), 1)
    step = SignatureStudent(network, SCHEDULE, 1, steps=(7,))
    sample(step, step.grid(), (3, 1), seeds=range(3))
    assert len(network.seen) == 7 * step.nfe


def test_condition_reaches_the_network() -> None:
    network = Known(SignatureStudent.in_channels(2, 2), 2)
    step = SignatureStudent(network, SCHEDULE, 2, prediction_type="sample")
    x, path = normal(3, 2), signature(0.7, 0.0, (3, 2), 2)
    shift = normal(3, 2, seed=9)
    moved = step(x, 0.7, 0.0, path, shift=shift) - step(x, 0.7, 0.0, path)
    close(moved, shift)


def test_exact_student_of_gaussian_data_samples_the_data() -> None:
    """Any number of steps: the law of 50,000 samples is N(0, s^2) to sampling error."""
    std = 0.7
    network = ResidualMLP(SignatureStudent.in_channels(1, 2), 1, 8, 1)
    step = SignatureStudent(network, SCHEDULE, 1, data_std=std, steps=(1, 4))
    reference = GaussianDenoiser(0.0, std, SCHEDULE)
    x = normal(4, 1)
    close(
        step(x.float(), 0.4, 0.0, PartialSignature(torch.tensor(0.4), torch.zeros(4, 2, 1))),
        reference(x, torch.tensor(0.4)).float(),
        1e-5,
    )
    for steps in (1, 4):
        drawn = sample(step, step.grid(steps), (50_000, 1), generator=Generator().manual_seed(0))
        assert abs(float(drawn.mean())) < 4 * std / 50_000**0.5
        assert abs(float(drawn.var()) / std**2 - 1) < 4 * (2 / 50_000) ** 0.5
