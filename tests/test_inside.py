"""Students with a denoiser inside: any denoiser, frozen, and a small network beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sigdeg.denoiser import Denoiser, GaussianMixtureDenoiser, NetworkDenoiser
from sigdeg.distillation import distill
from sigdeg.guidance import AutoGuidance
from sigdeg.inside import Corrected
from sigdeg.networks import ResidualMLP
from sigdeg.sampling import sample
from sigdeg.schedule import EDM, RectifiedFlow, Schedule, VPLinear
from sigdeg.steps import Exponential
from sigdeg.student import SignatureStudent

STDS = torch.tensor([[[0.5, 0.2], [0.2, 0.3]], [[0.1, 0.0], [0.0, 1.5]]], dtype=torch.float64)


def law(schedule: Schedule) -> GaussianMixtureDenoiser:
    """Two Gaussians in the plane."""
    means = torch.tensor([[-1.0, 0.5], [2.0, 0.0]])
    return GaussianMixtureDenoiser(means, STDS, [0.3, 0.7], schedule)


class Halved(nn.Module):
    """A small network of one's own, for images; its last layer zero."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.last = nn.Conv2d(inputs, 2, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.last(x)
        return out


def function(x: Tensor, t: Tensor) -> Tensor:
    """What an exported network says of the noise at a timestep."""
    return torch.tanh(x) * t[:, None, None, None].cos()


@pytest.mark.parametrize("schedule", [VPLinear(), EDM(), RectifiedFlow()])
def test_untrained_it_is_the_exponential_step_of_the_exact_teacher(schedule: Schedule) -> None:
    options: dict[str, Any] = {"lookahead": 0.0, "residual_noise": None, "steps": (5,)}
    exact = law(schedule)
    student = SignatureStudent.from_denoiser(exact, 2, 3, inside=True, **options).double()
    draws = [
        sample(step, student.grid(), (9, 2), seeds=range(9), dtype=torch.float64)
        for step in (student, Exponential(exact, 3))
    ]
    torch.testing.assert_close(*draws, rtol=1e-9, atol=1e-9)


def test_a_function_is_a_teacher_and_stands_inside_its_student() -> None:
    """One that predicts the noise of images, as an ONNX session wrapped in a function does."""
    denoiser = NetworkDenoiser(function, VPLinear(), "epsilon", clip=2.0)
    inputs = SignatureStudent.in_channels(2, 2)
    student = SignatureStudent.from_denoiser(
        denoiser,
        2,
        2,
        inside=Halved(inputs),
        sample_shape=(2, 4, 4),
        lookahead=0.0,
        residual_noise=None,
        steps=(3,),
    ).double()
    draws = [
        sample(step, student.grid(), (4, 2, 4, 4), seeds=range(4), dtype=torch.float64)
        for step in (student, Exponential(denoiser, 2))
    ]
    torch.testing.assert_close(*draws, rtol=1e-9, atol=1e-9)


def test_only_the_network_beside_is_trained(tmp_path: Path) -> None:
    """The denoiser inside stays to the bit, a network under guidance too; the rest comes back."""
    torch.manual_seed(0)
    networks = [ResidualMLP(2, 2, width, 1) for width in (16, 8)]
    for network in networks:
        nn.init.normal_(network.head.weight, std=0.1)
    good, weak = (NetworkDenoiser(n, VPLinear(), "edm", data_std=1.2) for n in networks)
    teachers: list[Denoiser] = [law(VPLinear()), AutoGuidance(good, weak, 1.5)]
    for i, teacher in enumerate(teachers):
        before = [value.clone() for value in teacher.state_dict().values()]
        start = SignatureStudent.from_denoiser(teacher, 2, 2, inside=True, steps=(2,))
        work: dict[str, Any] = {"iterations": 30, "paths": 64, "batch_size": 32, "refinement": 4}
        work |= {"tracker": "none", "device": "cpu", "progress": False, "judge": 0, "ema": 0.5}
        work |= {"held_out": 16, "learning_rate": 1e-2}
        found = distill(start, Exponential(teacher), tmp_path / str(i), **work)
        assert isinstance(found.student.network, Corrected)
        inside = found.student.network.denoiser.state_dict().values()
        assert all(torch.equal(a, b) for a, b in zip(before, inside, strict=True))
        assert bool(found.student.network.network.head.weight.any())
        again = SignatureStudent.from_pretrained(
            tmp_path / str(i) / "student", network=start.network
        )
        draws = [sample(s, s.grid(), (5, 2), seeds=range(5)) for s in (found.student, again)]
        assert torch.equal(*draws)
