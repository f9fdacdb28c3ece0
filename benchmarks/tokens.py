"""Tokens: what the latent of a mixture costs in a step, and what its loss costs in time and memory.

A mixture's step draws a latent and its network takes it in; the product's step beside it is the
same network without. The loss gathers what sequences ask for before they meet latents; beside it
stands the formula as it is written, which makes a tensor of both with all symbols. All on one
thread, in processor time; steps in operations, too, which no other work on the machine disturbs.
"""

from __future__ import annotations

import math
import multiprocessing
import re
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import Row, compare
from sigdeg.discrete import Absorbing, Ancestral, Latent, MixtureStudent, NetworkTokenDenoiser
from sigdeg.discrete.losses import joint, scores
from sigdeg.networks import TokenTransformer, TokenUNet

__all__ = ["measure"]

Sizes = tuple[int, int, int, int]  # batch, latents, positions, symbols


def steps(name: str, build: Callable[..., Any], batch: int, pairs: int) -> Row:
    """A step of a mixture against one of a product, of one network with and without a latent."""
    latent = Latent()
    made = [build(latent=given) for given in ({"kind": latent.kind, "size": latent.size}, None)]
    length, process = made[0].length, Absorbing(made[0].states - 1)
    mixture = Ancestral(MixtureStudent(made[0], process, length, latent)).eval()
    product = Ancestral(NetworkTokenDenoiser(made[1], process, length)).eval()
    x, generator = process.prior((batch, length)), Generator().manual_seed(0)

    def draw(step: Ancestral) -> Callable[[], Tensor]:
        @torch.no_grad()
        def work() -> Tensor:
            noise = step.noise(1.0, 0.5, x.shape, generator)
            moved: Tensor = step(x, 1.0, 0.5, noise)
            return moved

        return work

    works = draw(mixture), draw(product)
    operations = [count(work) for work in works]
    return compare(
        f"step of tokens, mixture / product, {name}",
        ("a step of the mixture", works[0]),
        ("a step of the product", works[1]),
        pairs,
        at_most=1.03,
        own_time=True,
        input=[batch, length],
        states=process.states,
        operations=float(f"{operations[0] / operations[1]:.4f}"),
    )


def count(work: Callable[[], object]) -> int:
    """Floating-point operations of products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def gathered(log_p: Tensor, tokens: Tensor) -> Tensor:
    """The joint loss of the package."""
    return joint(scores(log_p, tokens))


def expanded(log_p: Tensor, tokens: Tensor) -> Tensor:
    """The joint loss as its formula is written: every sequence beside every latent's laws."""
    batch, latents, length, states = log_p.shape
    count = tokens.shape[1]
    every = log_p[:, None].expand(batch, count, latents, length, states)
    index = tokens[:, :, None, :, None].expand(batch, count, latents, length, 1)
    found = every.gather(4, index)[..., 0].sum(3)
    return (math.log(latents) - found.logsumexp(2)).mean(1)


LOSSES = {"gathered": gathered, "expanded": expanded}


def work(loss: str, sizes: Sizes) -> Callable[[], None]:
    """A loss and its gradient, with as many sequences as latents."""
    batch, latents, length, states = sizes
    generator = Generator().manual_seed(0)
    logits = torch.randn(*sizes, generator=generator).requires_grad_()
    tokens = torch.randint(states, (batch, latents, length), generator=generator)

    def once() -> None:
        logits.grad = None
        LOSSES[loss](logits.log_softmax(-1), tokens).sum().backward()

    return once


def largest(loss: str, sizes: Sizes) -> int:
    """The most megabytes that this process has ever held, after a loss and its gradient."""
    work(loss, sizes)()
    status = Path("/proc/self/status")
    if status.exists():  # what the system counts for a process starts with its parent's
        held = re.search(r"VmHWM:\s*(\d+)", status.read_text())
        return int(held[1]) // 2**10 if held else 0
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


def memory(sizes: Sizes) -> dict[str, int]:
    """`largest` of both losses, the smaller one first, in a process that does nothing before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return {loss: pool.submit(largest, loss, sizes).result() for loss in LOSSES}


def measure(
    texts: int = 4,
    images: int = 16,
    text: tuple[int, int] = (128, 256),
    width: int = 32,
    losses: tuple[Sizes, ...] = ((8, 16, 128, 64), (8, 16, 784, 16)),
    pairs: int = 101,
) -> list[Row]:
    """All rows.

    Arguments:
        texts: Batch of the transformer.
        images: Batch of the U-Net.
        text: Positions and width of the transformer.
        width: Width of the U-Net.
        losses: Batch, latents, positions and symbols of the losses.
        pairs: How often each two are compared.
    """
    length, wide = text

    def transformer(**options: Any) -> TokenTransformer:
        return TokenTransformer(length, 66, width=wide, **options)

    def unet(**options: Any) -> TokenUNet:
        return TokenUNet((28, 28), 17, width=width, **options)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [
            steps("transformer", transformer, texts, pairs),
            steps("U-Net", unet, images, pairs),
            *(losses_of(sizes, pairs) for sizes in losses),
        ]
    finally:
        torch.set_num_threads(threads)


def losses_of(sizes: Sizes, pairs: int) -> Row:
    """The joint loss as its formula is written against that of the package, and their memory."""
    return compare(
        "joint loss, expanded / gathered",
        ("loss and gradient, expanded", work("expanded", sizes)),
        ("loss and gradient, gathered", work("gathered", sizes)),
        pairs,
        at_least=5.0,
        own_time=True,
        log_p=list(sizes),
        megabytes=memory(sizes),
    )
