"""The verdict: it sees what went wrong in known failures, and passes what is as good."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from sigdeg.denoiser import GaussianMixtureDenoiser
from sigdeg.distillation import Distilled, Verdict, distill
from sigdeg.distillation.judgement import Level, compare
from sigdeg.errors import SigdegError
from sigdeg.networks import ResidualMLP
from sigdeg.schedule import VPLinear
from sigdeg.steps import EulerMaruyama, Exponential
from sigdeg.student import SignatureStudent

N = 1000  # samples in a set; the law's own samples stand for a teacher's


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def ring(n: int, seed: int, modes: tuple[float, ...] = (0.1,) * 8) -> Tensor:
    """Eight Gaussians on a circle of radius 2, and one of condition number 100 in the middle."""
    generator = seeded(seed)
    kind = torch.multinomial(torch.tensor([*modes, 0.2]), n, replacement=True, generator=generator)
    angles = torch.arange(8) * math.pi / 4
    means = torch.cat([2 * torch.stack([angles.cos(), angles.sin()], dim=1), torch.zeros(1, 2)])
    z = torch.randn(n, 2, generator=generator)
    axes = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5
    needle = (z * torch.tensor([0.5, 0.05])) @ axes
    return means[kind] + torch.where((kind == 8)[:, None], needle, 0.1 * z)


def digits(n: int, seed: int) -> Tensor:
    """Little pictures: a bright square at one of nine places, and noise."""
    generator = seeded(seed)
    pictures = 0.1 * torch.randn(n, 1, 8, 8, generator=generator)
    places = torch.randint(3, (n, 2), generator=generator) * 2
    for picture, (i, j) in zip(pictures, places.tolist(), strict=True):
        picture[0, i : i + 4, j : j + 4] += 1
    return pictures


def between(samples: Tensor, share: float, seed: int) -> Tensor:
    """A share of them replaced by points between two."""
    generator = seeded(seed)
    other = samples[torch.randperm(len(samples), generator=generator)]
    at = 0.25 + 0.5 * torch.rand(len(samples), generator=generator)
    moved = torch.rand(len(samples), generator=generator) < share
    weight = (at * moved).reshape(-1, *(1,) * (samples.ndim - 1))
    return samples + weight * (other - samples)


def verdict(teacher: Tensor, student: Tensor, untrained: Tensor | None = None) -> Level:
    return compare(5, teacher, student, 1.5 * student if untrained is None else untrained)


def test_samples_between_the_modes_are_seen() -> None:
    teacher, fresh = ring(2 * N, 0), ring(2 * N, 1)
    for share in (0.2, 0.05):
        level = verdict(teacher, between(fresh, share, 2))
        assert level.learnt
        assert level.failed
        assert not level.equal
        # Most of them lie where there is nothing; the teacher has a hundredth there.
        assert level.off.student.mean == pytest.approx(0.01 + 0.75 * share, abs=0.02)
        assert "of its samples where the teacher has 1%" in level.says
    pictures = verdict(digits(600, 0), between(digits(600, 1), 0.2, 2))
    assert pictures.failed
    assert pictures.off.student.mean > 0.1


def test_a_mode_that_is_never_drawn_is_seen() -> None:
    level = verdict(ring(2 * N, 0), ring(2 * N, 1, modes=(0.1,) * 7 + (0.0,)))
    assert level.failed
    assert level.missed.student.mean == pytest.approx(0.11, abs=0.02)
    assert level.off.student.mean < 0.02
    assert "of the teacher's samples beyond its reach" in level.says


def test_a_student_that_learnt_nothing() -> None:
    teacher, start = ring(2 * N, 0), 0.7 * ring(2 * N, 1)
    same = verdict(teacher, start + 1e-3, start)
    assert (same.learnt, same.failed) == (False, True)
    assert same.says == "no better than the untrained step"
    worse = verdict(teacher, 0.5 * start, start)
    assert worse.failed
    assert worse.says == "worse than the untrained step"
    # Nor is a step that needs no training a success of the training.
    both = verdict(teacher, ring(2 * N, 1), ring(2 * N, 2))
    assert both.equal
    assert both.failed
    told = Verdict(N, 300, 0.0, "this", [both]).warnings
    assert told == [f"at 5 calls: {both.says}; try more samples to judge by, this"]
    # Where the student is seen to differ, more samples would not say more.
    off = Verdict(N, 300, 0.0, "this", [verdict(teacher, 0.5 * start, ring(2 * N, 2))])
    assert off.warnings == ["at 5 calls: worse than the untrained step; try this"]
    broken = verdict(teacher, torch.full_like(teacher, torch.nan), start)
    assert broken.failed
    assert broken.says == "worse than the untrained step"


def test_as_good_as_the_teacher_over_many_seeds() -> None:
    """Few false alarms, whether its noise is the teacher's or its own."""
    found = []
    n = 500
    for seed in range(25):
        teacher, fresh = ring(n, 2 * seed), ring(n, 2 * seed + 1)
        close = teacher + 0.01 * torch.randn(n, 2, generator=seeded(seed))
        found += [verdict(teacher, fresh), verdict(teacher, close)]
    assert sum(level.failed for level in found) == 0
    assert sum(not level.equal for level in found) <= 2
    assert all(level.learnt for level in found)
    good = next(level for level in found if level.equal)
    assert good.says == "as good as the teacher, as far as 500 samples tell"
    assert Verdict(250, 300, 0.0, "this", [good]).warnings == []


def test_a_shift_by_hand() -> None:
    teacher = torch.randn(400, 1, generator=seeded())
    level = compare(1, teacher, teacher + 10, teacher + 20)
    spread = float(teacher.std())
    assert level.distance.student.mean * spread == pytest.approx(10, rel=0.02)
    assert level.distance.untrained.mean * spread == pytest.approx(20, rel=0.02)
    assert level.path.student == pytest.approx((10 / spread, 0), abs=1e-5)
    assert level.path.floor == (0, 0)
    assert (level.off.student.mean, level.missed.student.mean) == (1, 1)
    # Between two sets of n: F_n - G_n is about normal, of variance 2 F (1 - F) / n.
    x = torch.linspace(-5, 5, 1001)
    share = torch.special.ndtr(x)
    expected = float(torch.trapezoid((4 / (math.pi * 200) * share * (1 - share)).sqrt(), x))
    assert level.distance.floor.mean == pytest.approx(expected, rel=0.2)


SCHEDULE = VPLinear()
MIXTURE = GaussianMixtureDenoiser([-2.0, 2.0], [0.5, 0.5], [0.5, 0.5], SCHEDULE)


def untrained(steps: tuple[int, ...] = (4,), **options: Any) -> SignatureStudent:
    network = ResidualMLP(SignatureStudent.in_channels(1, 2), 1, 16, 1)
    for i, p in enumerate(network.parameters()):
        nn.init.uniform_(p, -0.1, 0.1, generator=seeded(i))
    return SignatureStudent(network, SCHEDULE, 1, data_std=2.06, steps=steps, **options)


def run(folder: Path, **options: Any) -> Distilled:
    arguments: dict[str, Any] = {
        "student": untrained(),
        "teacher": EulerMaruyama(MIXTURE),
        "iterations": 5,
        "batch_size": 32,
        "paths": 800,
        "held_out": 100,
        "refinement": 4,
        "tracker": "none",
        "device": "cpu",
        "progress": False,
        **options,
    }
    student, teacher = arguments.pop("student"), arguments.pop("teacher")
    return distill(student, teacher, folder, **arguments)


def test_a_run_is_judged_and_remembers_it(tmp_path: Path, monkeypatch: Any) -> None:
    quiet, judged = run(tmp_path / "quiet", judge=0), run(tmp_path / "judged")
    assert quiet.verdict is None
    assert not (tmp_path / "quiet/verdict.json").exists()
    for one, other in zip(quiet.student.parameters(), judged.student.parameters(), strict=True):
        assert torch.equal(one, other)
    found = judged.verdict
    assert found is not None
    # The held-out paths, and an eighth of the 800: two sets of half of them.
    assert (found.n, found.teacher_calls, found.teacher_nfe) == (100, 16, 100 * 16)
    assert found.warnings[0].startswith("at 4 calls: ")
    assert "more iterations" in found.warnings[0]
    assert found.headline().startswith("4 calls instead of 16: ")
    assert Verdict.load(tmp_path / "judged/verdict.json") == found
    monkeypatch.setattr("sigdeg.distillation.judgement.replay", None)  # not to be called again
    assert run(tmp_path / "judged").verdict == found
    (tmp_path / "judged/verdict.json").write_text(json.dumps({"n": 3}))
    with pytest.raises(SigdegError, match="holds no verdict"):
        run(tmp_path / "judged")


def test_another_number_of_samples_is_another_verdict(tmp_path: Path) -> None:
    first = run(tmp_path, judge=40).verdict
    assert first is not None
    assert (first.n, first.teacher_nfe) == (40, 0)  # 80 of the 100 held-out paths
    second = run(tmp_path, judge=60).verdict
    assert second is not None
    assert (second.n, second.teacher_nfe) == (60, 20 * 16)
    with pytest.raises(SigdegError, match="at least 2"):
        run(tmp_path, judge=1)


@pytest.mark.parametrize(
    "options",
    [
        {"paths": 0},
        {"student": untrained((4, 2, 1)), "q": 0},
        {"states": "data", "data": torch.randn(50, 1), "teacher": Exponential(MIXTURE)},
        {"plan": "progressive"},
        {"student": untrained(residual_noise="energy"), "q": 2},
    ],
)
def test_every_kind_of_run_is_judged(tmp_path: Path, options: dict[str, Any]) -> None:
    if options.get("student") is not None and options["student"].residual_noise:
        network = ResidualMLP(SignatureStudent.in_channels(1, 2, residual_noise="energy"), 1, 8, 1)
        options = {**options}
        options["student"] = SignatureStudent(
            network, SCHEDULE, 1, data_std=2.06, steps=(4,), residual_noise="energy"
        )
    result = run(tmp_path, judge=32, **options)
    assert result.verdict is not None
    counts = [level.calls for level in result.verdict.levels]
    assert counts == sorted(result.student.steps, reverse=True)
    assert all(level.path.student.mean > 0 for level in result.verdict.levels)
