"""A student that looks ahead: where it looks, what it gains, and its saved self."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

from sigdeg.denoiser import Denoiser, GaussianMixtureDenoiser
from sigdeg.distillation import DistillConfig, distill
from sigdeg.errors import SigdegError
from sigdeg.networks import ResidualMLP
from sigdeg.response import distinct, response
from sigdeg.sampling import march, sample
from sigdeg.schedule import EDM, Cosine, RectifiedFlow, Schedule, VPLinear
from sigdeg.signature import PartialSignature
from sigdeg.steps import EulerMaruyama, Exponential
from sigdeg.student import PlainStudent, SignatureStudent

SCHEDULE = VPLinear()
S = torch.tensor([[2.0, 0.9, 0.1], [0.9, 0.5, -0.1], [0.1, -0.1, 0.3]], dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


class Gaussian(Denoiser):
    """The exact denoiser of data N(0, S)."""

    def forward(self, x: Tensor, t: Tensor, **condition: object) -> Tensor:
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        noisy = alpha**2 * S + sigma**2 * torch.eye(3, dtype=torch.float64)
        return x @ (alpha * S @ torch.linalg.inv(noisy)).T.to(x)


class Exact(nn.Module):
    """A denoiser in the place of a student's network; it remembers what it was shown."""

    def __init__(self, denoiser: Denoiser, channels: int) -> None:
        super().__init__()
        self.denoiser, self.channels = denoiser, channels
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, inputs: Tensor, timestep: Tensor) -> Tensor:
        x = inputs[:, : self.channels]
        self.seen.append((x, timestep))
        return self.denoiser(x, timestep[0])


def student(network: nn.Module, channels: int, order: int = 6, **options: object):  # type: ignore[no-untyped-def]
    options = {"prediction_type": "sample", "lookahead": 0.5, **options}
    return SignatureStudent(network, SCHEDULE, channels, order, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.9])
def test_it_looks_where_gaussian_data_would_be(fraction: float) -> None:
    """Against fine steps of the exact score on one path, stopped part-way.

    What is left is the noise that so many coefficients do not tell, of the variance they lack.
    """
    start, end = (torch.tensor(v, dtype=torch.float64) for v in (0.8, 0.2))
    at = student(nn.Identity(), 3, covariance=S, lookahead=fraction).response.looks_at(start, end)
    times = torch.cat([torch.linspace(0.8, at, 301), torch.linspace(at, 0.2, 301)[1:]]).double()
    lengths = -times.diff()
    dW = normal(1000, 600, 3) * lengths[:, None].sqrt()
    x = y = normal(1000, 3, seed=3)
    teacher = EulerMaruyama(Gaussian(SCHEDULE))
    for i in range(300):
        fine = PartialSignature(lengths[i], dW[:, i : i + 1] / lengths[i].sqrt())
        y = teacher(y, times[i], times[i + 1], fine)
    stds = torch.linalg.eigvalsh(S).sqrt()
    carried = SCHEDULE.alpha(start) * noisy(at, stds) / (SCHEDULE.alpha(at) * noisy(start, stds))
    total = noisy(at, stds) - carried**2 * noisy(start, stds)
    for order in (2, 16):
        path = PartialSignature.from_increments(dW, lengths, order)
        network = Exact(Gaussian(SCHEDULE), 3)
        student(network, 3, order, covariance=S, lookahead=fraction)(x, start, end, path)
        ((looked, timestep),) = network.seen
        torch.testing.assert_close(timestep, SCHEDULE.timestep(at).expand(len(x)))
        told = (response(SCHEDULE, start, end, order, stds, until=at) ** 2).sum(-1)
        error = float((looked - y).square().mean())
        assert error == pytest.approx(float((total - told).mean()), rel=0.1, abs=1e-3)


@pytest.mark.parametrize("schedule", [SCHEDULE, Cosine(), EDM(), RectifiedFlow()])
def test_it_looks_where_the_signal_has_made_part_of_its_way(schedule: Schedule) -> None:
    t = torch.tensor([0.9, 0.9, 0.4], dtype=torch.float64)
    s = torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64)
    step = SignatureStudent(nn.Identity(), schedule, 3, lookahead=0.3)
    at = step.response.looks_at(t, s)
    share, first, last = (
        schedule.alpha(q) / (schedule.alpha(q) ** 2 + schedule.sigma(q) ** 2).sqrt()
        for q in (at, t, s)
    )
    torch.testing.assert_close(share, first + 0.3 * (last - first))
    assert float(step.response.looks_at(t[1], s[1])) == float(at[1])


@pytest.mark.parametrize("std", [0.0, 0.7])
def test_the_response_part_way_has_the_variance_of_the_path(std: float) -> None:
    """Bessel, and Parseval in the limit: what many coefficients miss of it is nothing."""
    t, s, at = (torch.tensor(v, dtype=torch.float64) for v in (0.9, 0.3, 0.55))
    a, n2 = ((f(t), f(at)) for f in (SCHEDULE.alpha, lambda q: noisy(q, std)))
    total = n2[1] - (a[0] * n2[1] / a[1]) ** 2 / n2[0]
    shares = [
        float((response(SCHEDULE, t, s, m, std, until=at) ** 2).sum() / total)
        for m in (1, 4, 16, 60)
    ]
    assert shares == sorted(shares)
    assert 0.98 < shares[-1] <= 1
    whole, scaled = (response(SCHEDULE, t, s, 20, std, until=v) for v in (s, None))
    torch.testing.assert_close(whole, scaled, rtol=1e-4, atol=1e-6)


def noisy(t: Tensor, std: float) -> Tensor:
    return SCHEDULE.alpha(t) ** 2 * std**2 + SCHEDULE.sigma(t) ** 2


def test_the_midpoint_follows_the_path_better_than_the_start() -> None:
    """Two modes, the exact posterior mean in the place of the network, five steps on one path."""
    mixture = GaussianMixtureDenoiser(
        torch.tensor([[-1.0], [1.0]]), torch.tensor([0.3, 0.3]), torch.ones(2), SCHEDULE
    ).double()
    coarse = torch.linspace(1, 0.1, 6, dtype=torch.float64)
    r = 200
    fine = torch.linspace(1, 0.1, 5 * r + 1, dtype=torch.float64)
    dW = normal(2000, 5 * r, 1) * (0.9 / (5 * r)) ** 0.5
    x = normal(2000, 1, seed=3)
    noise = [
        PartialSignature(fine[0] - fine[1], v[:, None] * (5 * r / 0.9) ** 0.5) for v in dW.unbind(1)
    ]
    truth = march(Exponential(mixture), x, fine, noise)
    path = [
        PartialSignature.from_increments(part, fine[:r] - fine[1 : r + 1], 6)
        for part in dW.split(r, dim=1)
    ]
    errors = {}
    for lookahead in (0.0, 0.5):  # the same linear response, at a fixed mean
        std = 1.04 if lookahead else 0.0
        step = student(Exact(mixture, 1), 1, data_std=std, lookahead=lookahead).double()
        errors[lookahead] = float((march(step, x, coarse, path) - truth).square().mean().sqrt())
    assert errors[0.5] < 0.6 * errors[0.0]


def test_each_sample_its_own_step() -> None:
    """Times of every sample and one time for all agree, for a number and for a matrix."""
    t = torch.tensor([0.9, 0.6, 0.9], dtype=torch.float64)
    s = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64)
    x, c = normal(3, 3), normal(3, 6, 3, seed=2)
    for options in ({"covariance": S}, {"data_std": 0.8}):
        # The network must not look at the times of the first sample only.
        step = student(Mean(), 3, **options)
        together = step(x, t, s, PartialSignature(t - s, c))
        for i in range(3):
            path = PartialSignature(t[i] - s[i], c[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], step(x[i : i + 1], t[i], s[i], path))


class Mean(nn.Module):
    def forward(self, inputs: Tensor, timestep: Tensor) -> Tensor:
        return torch.tanh(inputs[:, :3] + timestep[:, None])


def test_the_different_steps_of_a_batch() -> None:
    """As `torch.unique` finds them among pairs, which is slow."""
    grid = torch.linspace(1, 0, 6, dtype=torch.float64)
    k, length = torch.randint(3, (2, 200), generator=Generator().manual_seed(0))
    t, s = grid[k], grid[k + 1 + length]
    first, rows = distinct(t, s)
    pairs, which = torch.stack([t, s], dim=1).unique(dim=0, return_inverse=True)
    assert torch.equal(torch.stack([t, s], dim=1)[first], pairs)
    assert torch.equal(rows, which)


def test_comes_back(tmp_path: Path) -> None:
    network = ResidualMLP(SignatureStudent.in_channels(3, 2), 3, 16, 1)
    step = student(network, 3, 2, covariance=S)
    step.save_pretrained(tmp_path)
    loaded = SignatureStudent.from_pretrained(tmp_path)
    assert loaded.lookahead == 0.5
    drawn = (sample(m, m.grid(), (5, 3), seeds=range(5)) for m in (step, loaded))
    assert torch.equal(*drawn)


def test_bad_lookahead() -> None:
    network = nn.Identity()
    with pytest.raises(SigdegError, match=r"in \[0, 1\), got 1.0"):
        student(network, 3, covariance=S, lookahead=1.0)
    with pytest.raises(SigdegError, match="plain"):
        PlainStudent(network, SCHEDULE, 3, lookahead=0.5)
    path = PartialSignature.sample(0.5, (2, 3), 6)
    with pytest.raises(SigdegError, match="needs the data's covariance or a data_std"):
        student(network, 3, data_std=0.0)(torch.zeros(2, 3), 1.0, 0.5, path)


def test_distilling_takes_the_covariance_of_the_teachers_samples(tmp_path: Path) -> None:
    network = ResidualMLP(SignatureStudent.in_channels(3, 2), 3, 16, 1)
    step = student(network, 3, 2, data_std=0.0, steps=(2,))
    config = DistillConfig(
        iterations=1, batch_size=8, paths=2000, held_out=8, refinement=30, tracker="none"
    )
    options = {"device": "cpu", "progress": False, "judge": 0}
    teacher = Exponential(Gaussian(SCHEDULE))
    found = distill(step, teacher, tmp_path / "run", config, **options).student
    assert step.response.stds is None  # the caller's student is left as it was
    U, stds = found.response.directions, found.response.stds
    torch.testing.assert_close(U @ torch.diag(stds**2) @ U.T, S, rtol=0.1, atol=0.1)
    data = torch.randn(500, 3, generator=torch.Generator().manual_seed(2))
    own = {**options, "states": "data", "data": data, "paths": 0, "refinement": 2}
    found = distill(step, teacher, tmp_path / "data", config, **own).student
    U, stds = found.response.directions, found.response.stds
    torch.testing.assert_close(U @ torch.diag(stds**2) @ U.T, torch.cov(data.double().T))
    fresh = distill(step, teacher, tmp_path / "fresh", config, paths=0, held_out=500, **options)
    U, stds = fresh.student.response.directions, fresh.student.response.stds
    torch.testing.assert_close(U @ torch.diag(stds**2) @ U.T, S, rtol=0.2, atol=0.2)


def test_few_samples_give_a_standard_deviation(tmp_path: Path) -> None:
    """Of six samples in three dimensions no covariance is to be had."""
    network = ResidualMLP(SignatureStudent.in_channels(3, 2), 3, 16, 1)
    step = student(network, 3, 2, data_std=0.0, steps=(2,))
    work = {"iterations": 1, "batch_size": 4, "paths": 0, "refinement": 4, "tracker": "none"}
    teacher, data = Exponential(Gaussian(SCHEDULE)), torch.randn(6, 3)
    options = {"states": "data", "data": data, "device": "cpu", "progress": False}
    found = distill(step, teacher, tmp_path / "few", **work, **options).student
    assert found.response.stds is None
    assert found.data_std == pytest.approx(float(data.std()))


def test_the_rounds_of_a_plan_look_ahead_too(tmp_path: Path) -> None:
    network = ResidualMLP(SignatureStudent.in_channels(3, 2), 3, 16, 1)
    step = student(network, 3, 2, data_std=0.0, steps=(2,))
    work = {"iterations": 1, "batch_size": 8, "paths": 200, "refinement": 4, "tracker": "none"}
    teacher = Exponential(Gaussian(SCHEDULE))
    options = {"plan": "progressive", "device": "cpu", "progress": False}
    found = distill(step, teacher, tmp_path / "plan", **work, **options).student
    assert found.steps == (2,)
    assert found.grid().tolist() == step.grid().tolist()
    assert found.response.stds is not None
    loaded = SignatureStudent.from_pretrained(tmp_path / "plan" / "student")
    path = [PartialSignature.sample(-d, (2, 3), 2) for d in found.grid().diff()]
    x = torch.randn(2, 3)
    torch.testing.assert_close(
        march(loaded, x, loaded.grid(), path), march(found, x, found.grid(), path)
    )
