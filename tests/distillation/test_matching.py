"""Distribution matching: its gradient is a difference of scores, and a wrong law is drawn right."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from sigdeg.denoiser import (
    Denoiser,
    GaussianDenoiser,
    NetworkDenoiser,
)
from sigdeg.distillation import DistillConfig, distill
from sigdeg.distillation.matching import Matching, times_by_share
from sigdeg.errors import SigdegError
from sigdeg.guidance import AutoGuidance, ClassifierFreeGuidance
from sigdeg.networks import ResidualMLP
from sigdeg.sampling import sample
from sigdeg.schedule import EDM, RectifiedFlow, Schedule, VPLinear
from sigdeg.steps import Exponential
from sigdeg.student import SignatureStudent

SCHEDULE = VPLinear()
STD = 0.7


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def teacher(width: int = 16) -> NetworkDenoiser:
    """A network of zero output: with `edm` the exact denoiser of N(0, STD^2)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ResidualMLP(1, 1, width, 1)
    nn.init.zeros_(network.head.weight)
    nn.init.zeros_(network.head.bias)
    return NetworkDenoiser(network, SCHEDULE, "edm", data_std=STD)


def test_the_exact_denoiser() -> None:
    x, t = torch.randn(50, 1, generator=seeded()), torch.tensor(0.4)
    exact = GaussianDenoiser(0.0, STD, SCHEDULE)(x, t)
    torch.testing.assert_close(teacher()(x, t), exact)


def test_a_critic_that_is_the_teacher_sees_nothing_to_do() -> None:
    matching = Matching(Exponential(teacher()), 1, levels=2)
    samples = [torch.randn(n, 1, generator=seeded(n), requires_grad=True) for n in (5, 3)]
    divergence, denoising = matching(samples, [{}, {}], seeded())
    assert divergence == 0
    (divergence + denoising).backward()
    assert all(bool((x.grad == 0).all()) for x in samples)
    assert any(bool((p.grad != 0).any()) for p in matching.critic.parameters())


@pytest.mark.parametrize("schedule", [VPLinear(), EDM(), RectifiedFlow()], ids=repr)
def test_noise_levels_spread_the_share_of_the_signal(schedule: Schedule) -> None:
    times = times_by_share(schedule)
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    share = alpha / (alpha**2 + sigma**2).sqrt()
    even = torch.linspace(float(share[0]), float(share[-1]), len(share), dtype=share.dtype)
    assert float((share - even).abs().max()) < 2e-3
    assert bool((times.diff() <= 0).all())


class Known(NetworkDenoiser):
    """A critic that denoises N(0, std^2) exactly, by a network's output."""

    def output(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        alpha, sigma = self.scales(x, t)
        own = self.data_std
        mean = GaussianDenoiser(0.0, condition["std"], SCHEDULE)(x, t)
        scale = (alpha**2 * own**2 + sigma**2).sqrt()
        skip = alpha * own**2 / scale**2
        return (mean - skip * x) * scale / (sigma * own)

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        return self.to_mean(self.output(x, t, **condition), x, t)


def test_the_gradient_is_the_difference_of_two_scores() -> None:
    """Gaussian samples, a Gaussian teacher and a critic that knows both: everything by hand."""
    matching = Matching(Exponential(teacher().double()), 1)
    known = Known(nn.Identity(), SCHEDULE, "edm", data_std=STD)
    known.output = lambda x, t, told: Known.output(known, x, t, std=1.3)  # type: ignore[method-assign]
    matching.critic = known
    x = (1.3 * torch.randn(200, 1, generator=seeded(), dtype=torch.float64)).requires_grad_()
    divergence, _ = matching([x], [{}], seeded(7))
    (slope,) = torch.autograd.grad(divergence, x)
    noise = seeded(7)
    t = matching.times[torch.randint(len(matching.times), (200,), generator=noise)]
    alpha, sigma = SCHEDULE.alpha(t)[:, None], SCHEDULE.sigma(t)[:, None]
    at = alpha * x.detach() + sigma * torch.randn(x.shape, generator=noise).to(x)
    # Tweedie: the scores of N(0, a^2 s^2 + b^2) differ by (D_critic - D_teacher) a / b^2.
    scores = [-at / (alpha**2 * std**2 + sigma**2) for std in (1.3, STD)]
    means = (scores[0] - scores[1]) * sigma**2 / alpha
    target = GaussianDenoiser(0.0, STD, SCHEDULE)(at, t)
    expected = means / (x.detach() - target).abs() / len(x)
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-9)
    assert float((slope * x.detach()).sum()) > 0  # too wide a law: descent makes it narrower


@pytest.mark.parametrize("start", [0.4, 1.2])
def test_a_wrong_spread_is_mended(start: float) -> None:
    """Samples s * N(0, 1), s learned with the critic: it ends at the teacher's deviation."""
    matching = Matching(Exponential(teacher()), 1)
    log = torch.tensor(float(torch.tensor(start).log()), requires_grad=True)
    optimizer = torch.optim.Adam(
        [
            {"params": [log], "lr": 5e-3},
            {"params": matching.critic.parameters(), "lr": 1e-2},
        ]
    )
    kept = []  # the critic learns faster than what it judges, or both go round in circles
    for step in range(350):
        x = log.exp() * torch.randn(256, 1, generator=seeded(step))
        divergence, denoising = matching([x], [{}], seeded(10_000 + step))
        optimizer.zero_grad()
        (divergence + denoising).backward()
        optimizer.step()
        kept.append(float(log.detach().exp()))
    assert sum(kept[-80:]) / 80 == pytest.approx(STD, rel=0.05)


def student(own: NetworkDenoiser, **options: Any) -> SignatureStudent:
    options = {"lookahead": 0.0, "residual_noise": None} | options
    return SignatureStudent.from_denoiser(own, 1, 2, **options)


def run(folder: Path, own: NetworkDenoiser, start: SignatureStudent, **options: Any) -> Any:
    config = DistillConfig(
        iterations=options.pop("iterations", 4),
        batch_size=64,
        paths=200,
        held_out=20,
        refinement=4,
        q=0,
        matching=1.0,
        tracker="none",
    )
    config = dataclasses.replace(config, **options)
    return distill(start, Exponential(own), folder, config, device="cpu", progress=False, judge=0)


@pytest.mark.parametrize("noise", [None, "energy"])
def test_it_stands_beside_any_loss_on_paths(tmp_path: Path, noise: Any) -> None:
    """A student that draws a law of the wrong mean comes to the teacher's."""
    own = teacher()
    wrong = student(own, steps=(1,), residual_noise=noise)
    with torch.no_grad():
        wrong.network.network.head.bias[0] = 0.6
    found = run(tmp_path, own, wrong, iterations=160, learning_rate=1e-2, warmup=5, ema=0.9)
    means = [
        abs(float(sample(step, step.grid(), (20_000, 1), generator=seeded()).mean()))
        for step in (wrong, found.student)
    ]
    assert means[1] < 0.5 * means[0]


def test_an_interrupted_matching_goes_on_to_the_bit(tmp_path: Path) -> None:
    own = teacher()
    whole = run(tmp_path / "a", own, student(own, steps=(2, 1)), checkpoint_every=2)
    folder, calls = tmp_path / "b", 0
    real = nn.utils.clip_grad_norm_

    def stop(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return real(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", stop)
        with pytest.raises(KeyboardInterrupt):
            run(folder, own, student(own, steps=(2, 1)), checkpoint_every=2)
    again = run(folder, own, student(own, steps=(2, 1)), checkpoint_every=2)
    for a, b in zip(whole.student.parameters(), again.student.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("by", ["classes", "a weaker version"])
def test_a_guided_teacher_is_matched_as_it_is_guided(by: str) -> None:
    """The critic starts as the network alone, the target is guided."""
    own = teacher()
    guided: Denoiser = AutoGuidance(own, teacher(8), 2.0)
    if by == "classes":
        guided = ClassifierFreeGuidance(own, 2.0, {"shift": torch.zeros(1)})
    guided.forward = lambda x, t, **_: own(x, t) + 1  # type: ignore[method-assign]
    matching = Matching(Exponential(guided), 1)
    x = torch.randn(50, 1, generator=seeded(), requires_grad=True)
    divergence, _ = matching([x], [{}], seeded(1))
    (slope,) = torch.autograd.grad(divergence, x)
    assert bool((slope < 0).all())  # the target lies above: samples are to rise


def test_it_needs_samples_and_a_network(tmp_path: Path) -> None:
    own = teacher()
    with pytest.raises(SigdegError, match="it needs q=0, got q=1"):
        run(tmp_path, own, student(own, steps=(2,)), q=1)
    with pytest.raises(SigdegError, match="a teacher whose denoiser is a network"):
        Matching(Exponential(GaussianDenoiser(0.0, 1.0, SCHEDULE)), 1)
    assert copy.deepcopy(matching := Matching(Exponential(own), 1)).target is matching.target
