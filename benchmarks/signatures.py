"""Drawing signatures: against bare random numbers, and against a Brownian tree.

A signature of order 2 of one scalar path is two normal numbers. The tree is torchsde's
`BrownianInterval` with space-time Levy area: it gives the same law, W and H, over consecutive
intervals. It comes in two settings. By default its path depends on the order of the queries; with
`halfway_tree` and a tolerance, as diffusers' SDE samplers use it, the seed alone decides.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torchsde
from torch import Generator

from benchmarks import Row, compare
from sigdeg.rng import seed_generators
from sigdeg.signature import PartialSignature

__all__ = ["measure"]

HALFWAY: dict[str, Any] = {"halfway_tree": True, "tol": 1e-6}


def sample(shape: Sequence[int], source: Generator | Sequence[Generator]) -> PartialSignature:
    """Signatures of order 2 over one step."""
    return PartialSignature.sample(0.1, shape, generator=source)


def ours(intervals: int, batch: int, area: bool = False) -> Callable[[], None]:
    """Signatures over consecutive intervals of [0, 1]; `area` turns them into W and A as well."""
    generator = Generator().manual_seed(0)

    def draw() -> None:
        for _ in range(intervals):
            signature = PartialSignature.sample(1 / intervals, (batch, 1), generator=generator)
            if area:
                _ = signature.W, signature.time_integral

    return draw


def tree(intervals: int, batch: int, **options: Any) -> Callable[[], None]:
    """The same from a Brownian tree: W and A over each interval, another path every time."""
    entropy = itertools.count()

    def draw() -> None:
        motion = torchsde.BrownianInterval(
            size=(batch, 1),
            entropy=next(entropy),
            levy_area_approximation="space-time",
            **options,
        )
        for k in range(intervals):
            motion(k / intervals, (k + 1) / intervals, return_U=True)

    return draw


def measure(scalars: int = 10**7, pairs: int = 9) -> list[Row]:
    """All rows.

    Arguments:
        scalars: Scalar paths of the largest draws; a multiple of 1000.
        pairs: How often each two are compared.
    """
    rows = []
    generator = Generator().manual_seed(0)
    for shape in ((scalars, 1), (scalars // 1000, 1000)):
        rows.append(
            compare(
                "drawing signatures",
                ("PartialSignature.sample, order 2", partial(sample, shape, generator)),
                ("torch.randn", partial(torch.randn, 2 * scalars, generator=generator)),
                pairs,
                at_most=1.3,
                shape=list(shape),
            )
        )
        # A stream a sample: ten million of them would fill the memory.
        streams = seed_generators(range(scalars // 1000))
        shape = (len(streams), shape[1])
        rows.append(
            compare(
                "a generator a sample",
                ("a list of generators", partial(sample, shape, streams)),
                ("one generator", partial(sample, shape, generator)),
                pairs,
                shape=list(shape),
            )
        )

    few, many, small = (10, scalars // 10), (300, scalars // 10_000), (10, scalars // 1000)
    for name, size, options, area, target in (
        ("Brownian tree", few, {}, False, 20.0),
        ("Brownian tree", few, {}, True, None),
        ("Brownian tree, many steps", many, {}, False, None),
        ("Brownian tree, many steps, dt given", many, {"dt": 1 / many[0]}, False, None),
        ("Brownian tree, fixed by its seed", small, HALFWAY, False, None),
        ("Brownian tree, fixed by its seed", small, HALFWAY, True, None),
    ):
        rows.append(
            compare(
                name + (" / W and A" if area else " / coefficients"),
                ("torchsde.BrownianInterval", tree(*size, **options)),
                ("PartialSignature" + (", W and A" if area else ""), ours(*size, area)),
                pairs,
                at_least=target,
                intervals=size[0],
                scalars=size[1],
            )
        )
    return rows
