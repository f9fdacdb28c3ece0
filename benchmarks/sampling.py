"""Sampling: what a student costs beyond its network calls.

The denominator is the network alone, called on the very inputs that one sampling gave it. What the
sampler does by itself (noise, inputs, outputs, scalars of the schedule) is measured a second time
without any network: a network that returns at once takes its place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Generator, Tensor, nn

from benchmarks import Row, compare
from sigdeg.denoiser import NetworkDenoiser
from sigdeg.integrations import from_scheduler, load_teacher
from sigdeg.networks import ResidualMLP
from sigdeg.sampling import sample
from sigdeg.schedule import VPLinear
from sigdeg.student import SignatureStudent

__all__ = ["image_denoiser", "measure", "shipped", "vector_denoiser"]


def vector_denoiser() -> NetworkDenoiser:
    """The residual MLP of 1DN."""
    return NetworkDenoiser(ResidualMLP(1, 1), VPLinear(), "edm", data_std=2.0)


def image_denoiser(widths: tuple[int, ...] = (32, 64, 64)) -> NetworkDenoiser:
    """A U-Net for images of 28 x 28, with attention at its coarsest level."""
    network = diffusers.UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=widths,
        down_block_types=("DownBlock2D",) * (len(widths) - 1) + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (len(widths) - 1),
        norm_num_groups=8,
    )
    return NetworkDenoiser(network, from_scheduler(diffusers.DDPMScheduler()))


class Free(nn.Module):
    """A network that costs nothing."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, *inputs: Any) -> Tensor:
        """The same output whatever comes in."""
        return self.output


def record(student: SignatureStudent, draw: Callable[[], Tensor]) -> list[tuple[Tensor, ...]]:
    """What a student's network is called with while it samples."""
    calls: list[tuple[Tensor, ...]] = []
    hook = student.network.register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    draw()
    hook.remove()
    return calls


def overhead(
    name: str, denoiser: NetworkDenoiser, shape: tuple[int, ...], pairs: int, **target: float
) -> list[Row]:
    """Rows of one network: sampling in 5 steps against 5 calls, and without the network."""
    student = SignatureStudent.from_denoiser(
        denoiser, 1, steps=(5,), sample_shape=shape[1:], lookahead=0.0, residual_noise=None
    ).eval()
    free = copy.deepcopy(student)
    free.network = Free(torch.zeros(shape))
    generator = Generator().manual_seed(0)

    def draw(step: SignatureStudent, **noise: Any) -> Tensor:
        return sample(step, step.grid(), shape, **noise)

    calls = record(student, lambda: draw(student, generator=generator))

    @torch.no_grad()
    def bare() -> None:
        for inputs in calls:
            student.network(*inputs)

    works: list[tuple[str, str, Callable[[], Tensor], dict[str, float]]] = [
        ("sampler", "sample, 5 steps", lambda: draw(student, generator=generator), target),
        (
            "sampler, a seed a sample",
            "sample, 5 steps",
            lambda: draw(student, seeds=range(shape[0])),
            {},
        ),
        (
            "sampler's own work",
            "sample, 5 steps, network free of cost",
            lambda: draw(free, generator=generator),
            {},
        ),
    ]
    return [
        compare(
            f"{what}, {name}",
            (first, work),
            ("5 network calls", bare),
            pairs,
            **limits,
            input=list(calls[0][0].shape),
        )
        for what, first, work, limits in works
    ]


def shipped(images: int, pairs: int) -> list[Row]:
    """Rows of the student that comes with the package: a seed a sample, on one thread."""
    student = SignatureStudent.from_pretrained("mnist").eval()
    teacher: Any = load_teacher("mnist-teacher").step
    teacher = teacher.denoiser.network.eval()
    shape = (images, *student.sample_shape)

    def draw() -> Tensor:
        return sample(student, student.grid(5), shape, seeds=range(images))

    calls = record(student, draw)

    @torch.no_grad()
    def own() -> None:
        for inputs in calls:
            student.network(*inputs)

    @torch.no_grad()
    def bare() -> None:
        for inputs, timestep in calls:
            teacher(inputs[:, : student.channels], timestep)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [
            compare(
                f"sampler, shipped student / {whose} network",
                ("sample, 5 steps", draw),
                ("5 network calls", work),
                pairs,
                at_most=limit,
                input=list(calls[0][0].shape),
            )
            for whose, work, limit in (("its", own, 1.03), ("teacher's", bare, 1.06))
        ]
    finally:
        torch.set_num_threads(threads)


def measure(
    vectors: int = 10_000,
    images: int = 64,
    widths: tuple[int, ...] = (32, 64, 64),
    pairs: int = 9,
) -> list[Row]:
    """All rows.

    Arguments:
        vectors: Batch of the MLP.
        images: Batch of the U-Net, and of the shipped student.
        widths: Widths of the U-Net.
        pairs: How often each two are compared.
    """
    return [
        *overhead("MLP", vector_denoiser(), (vectors, 1), pairs),
        *overhead("U-Net", image_denoiser(widths), (images, 1, 28, 28), pairs, at_most=1.05),
        *shipped(images, pairs),
    ]
