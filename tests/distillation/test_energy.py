"""The energy score: proper, scaled, and enough to learn a law that regression cannot."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sigdeg import (
    EulerMaruyama,
    GaussianMixtureDenoiser,
    PartialSignature,
    ResidualMLP,
    SignatureStudent,
    VPLinear,
    distill,
    sample,
)
from sigdeg.datasets import GaussianMixture1D
from sigdeg.distillation import Batch, Objective
from sigdeg.metrics import w1_exact
from sigdeg.rng import seeded

SCHEDULE = VPLinear()
LAW = GaussianMixture1D()


def student(width: int = 16, channels: int = 1, **options) -> SignatureStudent:
    torch.manual_seed(0)
    inputs = SignatureStudent.in_channels(channels, 2, residual_noise="energy")
    network = ResidualMLP(inputs, channels, width, 2)
    nn.init.normal_(network.head.weight, std=0.3)
    options = {"steps": (4,), "residual_noise": "energy", **options}
    return SignatureStudent(network, SCHEDULE, channels, 2, **options)


def segments(n: int, q: int, channels: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(n, q + 1, channels, generator=generator)
    return Batch(torch.arange(n) % 3, states, torch.randn(n, q, 3, channels, generator=generator))


def test_noise_is_one_more_coefficient() -> None:
    """The step needs order m + 1 and hears all of it; a widened teacher starts as itself."""
    step = student()
    assert step.order == 3
    x, path = torch.randn(5, 1), PartialSignature.sample(0.5, (5, 1), 3)
    other = torch.cat([path.coefficients[:, :2], torch.randn(5, 1, 1)], dim=1)
    moved = step(x, 1.0, 0.5, path)
    assert not torch.equal(moved, step(x, 1.0, 0.5, PartialSignature(path.dt, other)))


@pytest.mark.parametrize(("q", "m"), [(1, 2), (2, 2), (2, 4)])
def test_by_hand(q: int, m: int) -> None:
    """Draws with the noise of other segments, unrolled, and the score of each step."""
    step, batch, channels = student(channels=3), segments(8, q, 3), 3
    objective = Objective(step, [step.grid()], draws=m)
    objective.scales.copy_(torch.rand(1, 4) + 0.5)
    with torch.no_grad():
        errors = objective.errors([batch], [0])[0]
    for i in range(8):
        draws: list[list[Tensor]] = []
        for shift in range(1, m + 1):
            x, states = batch.states[i, :1], []
            for j in range(q):
                k = int(batch.start[i]) + j
                t, s = step.grid()[k], step.grid()[k + 1]
                c = batch.coefficients[i, j].clone()
                c[2] = batch.coefficients[(i - shift) % 8, j, 2]
                x = step(x, t, s, PartialSignature((t - s).float(), c[None])).detach()
                states.append(x)
            draws.append(states)
        for j in range(q):
            target = batch.states[i, j + 1]
            drawn = [states[j][0] for states in draws]
            far = sum((one - target).norm() for one in drawn) / m
            apart = sum((one - two).norm() for one in drawn for two in drawn) / (m * (m - 1))
            rho = objective.scales[0, int(batch.start[i]) + j]
            expected = (far - apart / 2) / (channels * rho).sqrt()
            torch.testing.assert_close(errors[i, j], expected, rtol=1e-4, atol=1e-5)


def test_least_at_the_true_law() -> None:
    """The mean score of draws from the law is below that of draws with another mean or spread."""
    generator = torch.Generator().manual_seed(2)
    x, one, two = torch.randn(3, 200_000, generator=generator)

    def score(shift: float, scale: float) -> float:
        a, b = shift + scale * one, shift + scale * two
        return float(((a - x).abs() + (b - x).abs() - (a - b).abs()).mean() / 2)

    best = score(0.0, 1.0)
    assert best == pytest.approx(1 / torch.pi**0.5, abs=0.005)  # E|X - X'| / 2 of a normal law
    assert all(score(*other) > best + 0.01 for other in ((0.3, 1.0), (0.0, 0.5), (0.0, 1.6)))


def test_one_step_keeps_both_modes(tmp_path: Path) -> None:
    """1DN in one step at order 2: regression averages the modes (W1 0.69), the score does not."""
    denoiser = GaussianMixtureDenoiser(LAW.means, LAW.stds, LAW.weights, SCHEDULE)
    inputs = SignatureStudent.in_channels(1, 2, residual_noise="energy")
    network = seeded(0, lambda: ResidualMLP(inputs, 1, 64, 2))
    options = {"steps": (1,), "data_std": LAW.variance**0.5, "residual_noise": "energy"}
    result = distill(
        SignatureStudent(network, SCHEDULE, 1, 2, **options),
        EulerMaruyama(denoiser),
        tmp_path,
        iterations=800,
        batch_size=128,
        learning_rate=4e-3,
        ema=0.99,
        paths=5000,
        refinement=100,
        tracker="none",
        device="cpu",
        progress=False,
        judge=0,
    )
    generator = torch.Generator().manual_seed(0)
    samples = sample(result.student, result.student.grid(), (20_000, 1), generator=generator)
    assert w1_exact(samples, LAW) < 0.15
    assert float(samples.var()) == pytest.approx(LAW.variance, rel=0.05)
