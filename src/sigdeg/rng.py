"""Randomness: every generator there is comes from a seed, and says what it is for.

Work that may stop and go on anywhere derives a generator from (seed, stream, place); samples have
one generator a seed, and draw the same numbers in any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import TypeVar

import numpy as np
import torch
from torch import Generator, Tensor

from sigdeg.errors import SigdegError

__all__ = ["Generators", "Stream", "derive_generator", "rand", "randn", "seed_generators", "seeded"]

T = TypeVar("T")
Generators = Generator | Sequence[Generator]  # one for all samples, or one a sample


class Stream(IntEnum):
    """What a derived generator is for: the streams of one seed are independent.

    The numbers are part of what a seed means: they never change. Every benchmark has ten of its
    own; those of planning are the fifties too, because it shares no seed with MNIST.
    """

    FRESH_HELD_OUT = 1
    CACHED_PATHS = 2
    BATCHES = 3
    HELD_OUT = 4
    PLAN = 6
    JUDGEMENT = 7
    DROPOUT = 8

    MIXTURE_REAL = 11
    MIXTURE_DRAWS = 12
    MIXTURE_FLOOR = 13
    MIXTURE_DATA_FIGURE = 14
    MIXTURE_FIGURE = 15

    SERIES_DRAWS = 41
    SERIES_FLOOR = 42
    SERIES_PATHS = 43
    SERIES_FIGURE = 45
    SERIES_VALIDATION = 46

    MNIST_DRAWS = 51
    MNIST_FLOOR = 52
    MNIST_CLASSES = 53
    MNIST_NEAREST = 55
    MNIST_VALIDATION = 56

    PLANNING_MIXTURE_COST = 51
    PLANNING_MIXTURE_PATHS = 52
    PLANNING_MIXTURE_DRAWS = 53
    PLANNING_SERIES_COST = 54

    LAWS_DRAWS = 61
    LAWS_FLOOR = 62
    LAWS_PEER = 63

    TEXT_DRAWS = 71
    TEXT_BOUND = 72

    GRAMMAR_DATA = 81
    GRAMMAR_DRAWS = 82
    GRAMMAR_BOUND = 83

    DISCRETE_DATA = 91
    DISCRETE_STATES = 92

    MNIST_TOKENS_DRAWS = 101

    DIGITS_DRAWS = 111

    OWN_PIPELINE_DRAWS = 121
    OWN_PIPELINE_FLOOR = 122


def derive_generator(seed: int, stream: Stream, *place: int) -> Generator:
    """A generator that depends on its key alone: work can stop and resume anywhere."""
    # 32 bits are all that torch's CPU generator takes in.
    key = int(np.random.SeedSequence((seed, stream, *place)).generate_state(1)[0])
    return Generator().manual_seed(key)


def seed_generators(seeds: Sequence[int]) -> list[Generator]:
    """One CPU generator a seed: no two seeds have one stream.

    Raises:
        SigdegError: If a seed is negative or has more than the 32 bits that a generator takes in.
    """
    if any(not 0 <= int(seed) < 2**32 for seed in seeds):
        raise SigdegError("seeds must lie between 0 and 2^32 - 1")
    return [Generator().manual_seed(int(seed)) for seed in seeds]


def seeded(seed: int, build: Callable[[], T]) -> T:
    """Build a network with initial weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def randn(
    shape: Sequence[int],
    generator: Generators | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Standard normals with shape (batch, \*), from one stream or from one stream a sample.

    A sequence of generators gives sample $i$ the same numbers whatever the batch it is drawn in.
    Numbers are drawn on the generator's own device, then moved, so that a CPU seed means the same
    sample on every device.

    Raises:
        SigdegError: If the number of generators is not the batch size.
    """
    return draw(torch.randn, shape, generator, dtype, device)


def rand(
    shape: Sequence[int],
    generator: Generators | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Uniform numbers in [0, 1) with shape (batch, \*), drawn as `randn` draws."""
    return draw(torch.rand, shape, generator, dtype, device)


def draw(
    source: Callable[..., Tensor],
    shape: Sequence[int],
    generator: Generators | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Tensor:
    """What a function of torch draws, each row from the stream of its sample."""
    if generator is None or isinstance(generator, Generator):
        place = generator.device if generator is not None else device
        return source(*shape, generator=generator, dtype=dtype, device=place).to(device)
    if len(generator) != shape[0]:
        raise SigdegError(
            f"{len(generator)} generators were given for a batch of {shape[0]}: give one a sample"
        )
    rows = [source(*shape[1:], generator=g, dtype=dtype, device=g.device) for g in generator]
    return torch.stack(rows).to(device) if rows else torch.empty(*shape, dtype=dtype, device=device)
