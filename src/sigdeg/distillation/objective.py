r"""The loss: student and teacher driven by the same path, compared at the coarse times."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sigdeg.distillation.matching import Matching
from sigdeg.paths import Batch
from sigdeg.paths.batch import Part
from sigdeg.signature import PartialSignature
from sigdeg.student import SignatureStudent

__all__ = ["Objective", "Segments"]


class Segments(NamedTuple):
    """What an objective is shown: segments of each level, and the part that it learns from.

    Every process has all of them, because they lend one another noise.

    Arguments:
        levels: Segments of each level.
        seed: Seed of the noise of distribution matching; without one only paths are compared.
        process: Which one of them learns.
        processes: The number of them.
    """

    levels: list[Batch]
    seed: int | None = None
    process: int = 0
    processes: int = 1

    def share(self, process: int, processes: int) -> Segments:
        """The same segments, for one process of several to learn from its part."""
        return self._replace(process=process, processes=processes)

    def rows(self) -> list[slice]:
        """The part of each level."""
        ends = [
            [len(batch) * p // self.processes for p in (self.process, self.process + 1)]
            for batch in self.levels
        ]
        return [slice(*pair) for pair in ends]


class Objective(nn.Module):
    r"""Regression of a student on teacher states over q consecutive coarse steps.

    $$ L = \frac1q \sum_{j=1}^{q} \frac{1}{\rho_{k+j}}
           \left\| \hat x_{t_{k+j}} - x_{t_{k+j}} \right\|^2, \qquad \hat x_{t_k} = x_{t_k}, $$

    the student unrolled from the teacher's state at $t_k$ (Eq. 11; $q = K$ is the global loss of
    Eq. 10). $\rho$ is the error of the untrained student at that step: without it the low-noise
    steps, whose errors are small in size yet decide the fine structure, would starve.

    Regression learns the conditional mean. A student with `energy` noise is trained by the energy
    score instead,

    $$ \frac{1}{m \sqrt{d \rho}} \left( \sum_{i=1}^{m} \| \hat x_i - x \|
       - \frac{1}{m - 1} \sum_{i < j} \| \hat x_i - \hat x_j \| \right), $$

    $\hat x_1, \dots, \hat x_m$ draws that share all but their noise, $d$ the size of a sample. It
    is least exactly where the draws have the conditional law of $x$ (Gneiting and Raftery, 2007).
    The noise is the last coefficient, borrowed from other segments: their own would tell of the
    path.

    Arguments:
        student: The student.
        grids: Nested grids, one a stride: the finest first (several for an elastic student).
        matching: Distribution matching beside the loss on paths, if any.
        weight: Its weight.
        draws: The number $m$ of draws of the energy score, at least 2.
    """

    scales: Tensor

    def __init__(
        self,
        student: SignatureStudent,
        grids: list[Tensor],
        matching: Matching | None = None,
        weight: float = 1.0,
        draws: int = 2,
    ) -> None:
        super().__init__()
        self.student = student
        self.grids = grids
        self.matching = matching
        self.weight = weight
        self.draws = draws
        # Row by row; what lies behind the end of a shorter grid is never looked up.
        longest = max(map(len, grids)) - 1
        self.register_buffer("scales", torch.ones(len(grids), longest))

    def errors(self, batches: list[Batch], levels: Sequence[int]) -> list[Tensor]:
        """Losses a segment and step, each (batch, q), of batches on their levels' grids."""
        return self.unroll(batches, levels, [slice(None)] * len(batches))[0]

    def unroll(
        self, whole: list[Batch], levels: Sequence[int], rows: Sequence[slice]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The losses, and where the student ends: all draws of a segment for the energy score."""
        batches = [batch.take(own) for batch, own in zip(whole, rows, strict=True)]
        if self.student.residual_noise != "energy":
            return self.regression(batches, levels)
        draws = [
            batch.with_noise_of(shift).take(own)
            for shift in range(1, self.draws + 1)
            for batch, own in zip(whole, rows, strict=True)
        ]
        marched = self.march(draws, [*levels] * self.draws)

        def distance(x: Tensor, y: Tensor) -> Tensor:
            # The smallest normal keeps the gradient finite where two draws coincide.
            return ((x - y).flatten(2).pow(2).mean(2) + 1e-12).sqrt()

        errors, ends = [], []
        for i, (batch, level) in enumerate(zip(batches, levels, strict=True)):
            drawn, target = marched[i :: len(batches)], batch.states[:, 1:]
            far = torch.stack([distance(x, target) for x in drawn]).sum(0)
            apart = torch.stack([distance(x, y) for x, y in combinations(drawn, 2)]).sum(0)
            score = far - apart / (self.draws - 1)
            errors.append(score / (self.draws * self.scale(batch, level).sqrt()))
            ends.append(torch.cat([x[:, -1] for x in drawn]))
        return errors, ends

    def regression(
        self, batches: list[Batch], levels: Sequence[int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Square error a segment and step; and the student's ends."""
        marched = self.march(batches, levels)
        errors = [
            (states - batch.states[:, 1:]).square().flatten(2).mean(2) / self.scale(batch, level)
            for batch, level, states in zip(batches, levels, marched, strict=True)
        ]
        return errors, [states[:, -1] for states in marched]

    def scale(self, batch: Batch, level: int) -> Tensor:
        r"""$\rho$ a segment and step, shape (batch, q)."""
        steps = batch.start[:, None] + torch.arange(batch.coefficients.shape[1])
        return self.scales[level, steps.to(self.scales.device)]

    def march(self, batches: list[Batch], levels: Sequence[int]) -> list[Tensor]:
        """States of the unrolled student, each (batch, q, *).

        The network sees all batches at once; one of fewer steps drops out when it has ended.
        """
        x = [batch.states[:, 0] for batch in batches]
        states: list[list[Tensor]] = [[] for _ in batches]
        for j in range(max(batch.coefficients.shape[1] for batch in batches)):
            on = [i for i, batch in enumerate(batches) if j < batch.coefficients.shape[1]]
            t, s = (
                torch.cat([self.grids[levels[i]][batches[i].start + k] for i in on])
                for k in (j, j + 1)
            )
            now, c = (
                torch.cat(parts)
                for parts in ([x[i] for i in on], [batches[i].coefficients[:, j] for i in on])
            )
            alike = bool((t == t[0]).all() and (s == s[0]).all())
            t, s = (t[0], s[0]) if alike else (t.to(now.device), s.to(now.device))
            condition = {
                name: torch.cat([batches[i].condition[name] for i in on])
                for name in batches[0].condition
            }
            signature = PartialSignature((t - s).to(now), c)
            ends = self.student(now, t, s, signature, **condition)
            for i, end in zip(on, ends.split([len(x[i]) for i in on]), strict=True):
                states[i].append(end)
                x[i] = end
        return [torch.stack(steps, dim=1) for steps in states]

    def forward(self, drawn: Segments) -> dict[str, Tensor]:
        """Mean over the batches, one a level, of their mean loss, and what it is made of.

        Over the processes that share the segments the mean is that of the whole.
        """
        batches, rows = drawn.levels, drawn.rows()
        errors, ends = self.unroll(batches, range(len(batches)), rows)
        weights = [drawn.processes * len(e) / len(b) for e, b in zip(errors, batches, strict=True)]
        paths = torch.stack([w * e.mean() for w, e in zip(weights, errors, strict=True)]).mean()
        if self.matching is None or drawn.seed is None:
            return {"loss": paths}
        conditions, places, first = [], [], 0  # of the student's draws among those of all processes
        for batch, own, error, end in zip(batches, rows, errors, ends, strict=True):
            draws = len(end) // len(error)
            conditions.append(
                {k: torch.cat([value[own]] * draws) for k, value in batch.condition.items()}
            )
            for _ in range(draws):
                places.append(first + torch.arange(len(batch))[own])
                first += len(batch)
        noise = Part(torch.Generator().manual_seed(drawn.seed), first, torch.cat(places))
        share = drawn.processes * len(noise.rows) / noise.n
        divergence, denoising = (share * v for v in self.matching(ends, conditions, noise))
        total = paths + self.weight * divergence + denoising
        return {"loss": total, "paths": paths, "divergence": divergence, "critic": denoising}

    @torch.no_grad()
    def normalise(self, batch: Batch) -> None:
        r"""Set $\rho$ from the errors of the student as it is, on segments of the finest grid."""
        finest = self.grids[0]
        for level, grid in enumerate(self.grids):
            coarse = batch.coarsen(finest, (len(finest) - 1) // (len(grid) - 1))
            sums, counts = torch.zeros(2, self.scales.shape[1])
            for first in range(coarse.coefficients.shape[1]):
                window = slice(first, first + 2)
                one = Batch(
                    coarse.start + first,
                    coarse.states[:, window],
                    coarse.coefficients[:, first : first + 1],
                    coarse.condition,
                )
                (error,), _ = self.regression([one], [level])
                error = error[:, 0].float().cpu()
                sums.index_add_(0, one.start, error)
                counts.index_add_(0, one.start, torch.ones(len(one.start)))
            mean = sums / counts.clamp(min=1)
            self.scales[level] = torch.where(counts > 0, mean.clamp(min=1e-12), 1.0)
