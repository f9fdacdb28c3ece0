r"""Sampling: march a step over a grid, each sample on its own stream of noise.

    grid[0] = t_max > grid[1] > ... > grid[K] = 0         K steps, the last one the final denoise

Every sample owns a generator: it draws the starting noise, then one signature a step. Hence the
same seed is driven by the same noise, to the bit, in any batch and any splitting into batches, and
gives the same sample up to the rounding of the network's own kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from sigdeg.errors import SigdegError, check_least
from sigdeg.grids import check_grid, check_span
from sigdeg.protocols import N, Step
from sigdeg.rng import Generators, seed_generators

__all__ = ["march", "network_calls", "sample"]

Callback = Callable[[int, Tensor, Tensor], None]


def network_calls(step: Step[Any], grid: Tensor) -> int:
    """Network calls a sample of a step marched over a grid."""
    return sum(step.calls(t, s) for t, s in pairwise(grid.tolist()))


def march(
    step: Step[N],
    x: Tensor,
    grid: Tensor | Sequence[float],
    noises: Iterable[N],
    callback: Callback | None = None,
    **condition: Any,
) -> Tensor:
    r"""Compose a step over a grid, driven by given noise.

    Arguments:
        step: Any `Step`.
        x: State at the first time of the grid, shape (batch, \*).
        grid: Decreasing times, K + 1 values.
        noises: One a step, as `step.noise` makes them: of most steps here a `PartialSignature`.
        callback: Called as `callback(k, time, x)` after each step, k = 1 ... K.
        condition: Passed on to the network.

    Returns:
        The state at the last time of the grid.
    """
    grid = check_grid(grid)
    for k, ((t, s), noise) in enumerate(zip(pairwise(grid), noises, strict=True), start=1):
        x = step(x, t, s, noise, **condition)
        if callback is not None:
            callback(k, s, x)
    return x


@torch.no_grad()
def sample(
    step: Step[Any],
    grid: Tensor | Sequence[float],
    shape: Sequence[int],
    seeds: Sequence[int] | None = None,
    generator: Generators | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **condition: Tensor,
) -> Tensor:
    r"""Draw samples by marching a step from pure noise to the data, whatever kind of noise it is.

    Arguments:
        step: Any `Step`: the teacher's, a training-free one, a student, one of your own.
        grid: Decreasing times from the process's `t_max`; end it at 0 for the final denoise (see
            `sigdeg.grids`).
        shape: Shape of the samples, (n, \*).
        seeds: One seed a sample: sample i depends on its seed alone.
        generator: One shared generator (fast for many small samples), or one a sample.
        callback: Called as `callback(k, time, x)` for every batch: with the noise (k = 0), then
            after each step k.
        progress: Show a progress bar over batches and steps.
        batch_size: Split into batches of at most this many samples (default: all at once).
        device: Where to compute (default: where the step's weights are); samples are the same on
            every device up to rounding.
        dtype: Type of the samples (default: the process's).
        condition: Passed on to the network, each with n rows.

    Returns:
        The samples, with shape `shape`.

    Raises:
        SigdegError: If the grid does not decrease from the noise on, seeds do not match the
            shape, the step does not say what noise it takes, or a sample is not finite.
    """
    missing = [name for name in ("process", "noise") if not hasattr(step, name)]
    if missing:
        raise SigdegError(
            f"{type(step).__name__} is no step that can be sampled, it has no {missing[0]}: derive "
            "it from sigdeg.GaussianStep, or see sigdeg.protocols.Step"
        )
    grid = check_span(step.process, grid, to_data=False)
    n, *rest = shape
    if seeds is not None and generator is not None:
        raise SigdegError("give either seeds or a generator, not both")
    if seeds is not None:
        seeds = seeds if isinstance(seeds, Sequence) else [int(seed) for seed in seeds]
        seed_generators([min(seeds, default=0), max(seeds, default=0)])  # before any work
    for each in (seeds, generator):
        if isinstance(each, Sequence) and len(each) != n:
            raise SigdegError(f"{len(each)} seeds were given for {n} samples: give one a sample")
    for key, value in condition.items():
        if len(value) != n:
            raise SigdegError(f"condition {key} has {len(value)} rows for {n} samples")
    batch_size = n if batch_size is None else batch_size
    if n:
        check_least(batch_size, 1, "batch_size")
    if device is None and isinstance(step, nn.Module):
        device = next((p.device for p in step.parameters()), None)
    samples = torch.empty(*shape, dtype=dtype, device=device)
    starts = range(0, n, batch_size) if n else range(0)
    steps = len(grid) - 1
    with tqdm(total=steps * len(starts), disable=not progress, unit="step") as bar:

        def report(k: int, time: Tensor, x: Tensor) -> None:
            bar.update()
            if callback is not None:
                callback(k, time, x)

        for start in starts:
            rows = slice(start, min(start + batch_size, n))
            own = generator[rows] if isinstance(generator, Sequence) else generator
            if seeds is not None:
                own = seed_generators(seeds[rows])  # no more at a time: they take 5 kB each
            size = (rows.stop - rows.start, *rest)
            x = step.process.prior(size, own, dtype=dtype, device=device)
            drawn = (
                step.noise(t, s, size, own, dtype=dtype, device=device) for t, s in pairwise(grid)
            )
            if callback is not None:
                callback(0, grid[0], x)
            given = {key: value[rows] for key, value in condition.items()}
            if not start:
                samples = x.new_empty(*shape)  # of the process's own type
            samples[rows] = march(step, x, grid, drawn, report, **given)
    if not bool(torch.isfinite(samples).all()):
        raise SigdegError("sampling gave NaN or infinite values: the model or the grid is broken")
    return samples
