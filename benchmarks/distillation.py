"""Distillation: a training iteration against the network calls in it.

The training is a real one, a call of `distill` in a folder of its own. After every optimiser step
the bare network calls of an iteration are done beside it: one forward and backward of the student's
network and, where paths are fresh, r forward calls of the teacher's. An iteration lasts from the
end of one such interruption to the next optimiser step.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim import Muon, Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks import Row, seconds_of
from benchmarks.sampling import image_denoiser, vector_denoiser
from sigdeg.denoiser import NetworkDenoiser, unwrap
from sigdeg.distillation import distill
from sigdeg.steps import EulerMaruyama
from sigdeg.student import SignatureStudent

__all__ = ["measure"]


def beside(train: Callable[[], object], bare: Callable[[], object]) -> list[tuple[float, float]]:
    """Seconds of every training iteration but the first, and of bare work done after it."""
    seconds: list[tuple[float, float]] = []
    resumed: float | None = None  # the first iteration starts after much preparation: not timed

    def after_step(optimizer: Optimizer, *_: Any) -> None:
        nonlocal resumed
        if isinstance(optimizer, Muon):  # which steps after Adam: once an iteration is enough
            return
        now = time.perf_counter()
        cost = seconds_of(bare)
        if resumed is not None:
            seconds.append((now - resumed, cost))
        resumed = time.perf_counter()

    hook = register_optimizer_step_post_hook(after_step)
    try:
        train()
    finally:
        hook.remove()
    return seconds


def throughput(
    name: str,
    denoiser: NetworkDenoiser,
    shape: tuple[int, ...],
    batch: int,
    iterations: int,
    refinement: int,
    steps: int,
    fresh: bool,
) -> Row:
    """One training: a student of some steps, from cached paths or from fresh segments of data."""
    student = SignatureStudent.from_denoiser(
        denoiser, 1, steps=(steps,), sample_shape=shape, lookahead=0.0, residual_noise=None
    )
    network = copy.deepcopy(student.network)
    state, timestep = torch.randn(batch, *shape), torch.rand(batch)
    width = SignatureStudent.in_channels(1, student.seen)
    inputs = torch.randn(batch, width, *shape[1:])

    def bare() -> None:
        with torch.no_grad():
            for _ in range(refinement if fresh else 0):
                denoiser.network(state, timestep)
        network.zero_grad()
        unwrap(network(inputs, timestep)).sum().backward()

    with tempfile.TemporaryDirectory() as folder:

        def train() -> None:
            distill(
                student,
                EulerMaruyama(denoiser),
                Path(folder) / "run",
                data=torch.randn(4 * batch, *shape) if fresh else None,
                states="data" if fresh else "teacher",
                paths=0 if fresh else 2 * batch,
                held_out=0,
                iterations=iterations,
                batch_size=batch,
                refinement=refinement,
                tracker="none",
                device="cpu",
                progress=False,
                judge=0,
            )

        seconds = beside(train, bare)
    return Row(
        f"distillation, {name}, {'fresh' if fresh else 'cached'} paths",
        "training iteration",
        f"its network calls ({f'{refinement} + ' if fresh else ''}1 forward and backward)",
        seconds,
        {"batch": batch, "steps": steps, "refinement": refinement, "input": list(inputs.shape)},
    )


def measure(
    vectors: int = 1024,
    images: int = 64,
    widths: tuple[int, ...] = (32, 64, 64),
    iterations: int = 151,
    fresh_iterations: int = 21,
    image_iterations: int = 13,
) -> list[Row]:
    """All rows. Pairs a second are the batch over the seconds of an iteration.

    Arguments:
        vectors: Batch of the MLP.
        images: Batch of the U-Net.
        widths: Widths of the U-Net.
        iterations: Iterations of the MLP from cached paths.
        fresh_iterations: Iterations of the MLP from fresh paths.
        image_iterations: Iterations of the U-Net.
    """
    vector, image = vector_denoiser(), image_denoiser(widths)
    return [
        throughput("MLP", vector, (1,), vectors, iterations, 30, 10, fresh=False),
        throughput("MLP", vector, (1,), vectors, fresh_iterations, 30, 10, fresh=True),
        throughput("U-Net", image, (1, 28, 28), images, image_iterations, 2, 5, fresh=False),
    ]
