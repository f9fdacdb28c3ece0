r"""The loss: student and teacher driven by the same path, compared at the coarse times."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sigdeg.distillation.paths import Batch
from sigdeg.signature import PartialSignature
from sigdeg.student import SignatureStudent

__all__ = ["Objective"]


class Objective(nn.Module):
    r"""Regression of a student on teacher states over q consecutive coarse steps.

    $$ L = \frac1q \sum_{j=1}^{q} \frac{1}{\rho_{k+j}}
           \left\| \hat x_{t_{k+j}} - x_{t_{k+j}} \right\|^2, \qquad \hat x_{t_k} = x_{t_k}, $$

    the student unrolled from the teacher's state at $t_k$ (Eq. 11; $q = K$ is the global loss of
    Eq. 10). $\rho$ is the error of the untrained student at that step: without it the low-noise
    steps, whose errors are small in size yet decide the fine structure, would starve.

    Regression learns the conditional mean. A student with a `gaussian` head is trained by the
    Gaussian likelihood instead, and one with `energy` noise by the energy score

    $$ \frac{1}{\sqrt{d \rho}} \left( \tfrac12 \| \hat x - x \| + \tfrac12 \| \hat x' - x \|
       - \tfrac12 \| \hat x - \hat x' \| \right), $$

    $\hat x, \hat x'$ two draws that share all but their noise, $d$ the size of a sample. It is
    least exactly where the draws have the conditional law of $x$ (Gneiting and Raftery, 2007). The
    noise is the last coefficient, borrowed from other segments: their own would tell of the path.

    Arguments:
        student: The student.
        grids: Nested grids, one a stride: the finest first (several for an elastic student).
    """

    scales: Tensor

    def __init__(self, student: SignatureStudent, grids: list[Tensor]) -> None:
        super().__init__()
        self.student = student
        self.grids = grids
        # Row by row; what lies behind the end of a shorter grid is never looked up.
        self.times = nn.utils.rnn.pad_sequence(grids, batch_first=True)
        self.register_buffer("scales", torch.ones(len(grids), self.times.shape[1] - 1))

    def errors(self, batch: Batch, level: int | Tensor) -> Tensor:
        """Loss a segment and step, shape (batch, q); a level for all, or one for each segment."""
        level = torch.as_tensor(level).expand(len(batch.start))
        if self.student.residual_noise != "energy":
            return self.regression(batch, level)
        target = batch.states[:, 1:]
        both = Batch.join([batch.with_noise_of(1), batch.with_noise_of(2)])
        first, second = self.march(both, level.repeat(2))[0].chunk(2)

        def distance(x: Tensor, y: Tensor) -> Tensor:
            # The smallest normal keeps the gradient finite where two draws coincide.
            return ((x - y).flatten(2).pow(2).mean(2) + 1e-12).sqrt()

        score = distance(first, target) + distance(second, target) - distance(first, second)
        return score / (2 * self.scale(batch, level).sqrt())

    def regression(self, batch: Batch, level: Tensor) -> Tensor:
        """Square error, or Gaussian likelihood, a segment and step."""
        mean, std = self.march(batch, level)
        square = (mean - batch.states[:, 1:]) ** 2
        if std is None:
            return square.flatten(2).mean(2) / self.scale(batch, level)
        return (square / (2 * std**2) + std.log()).flatten(2).mean(2)

    def scale(self, batch: Batch, level: Tensor) -> Tensor:
        r"""$\rho$ a segment and step, shape (batch, q)."""
        steps = batch.start[:, None] + torch.arange(batch.coefficients.shape[1])
        return self.scales[level[:, None].to(self.scales.device), steps.to(self.scales.device)]

    def march(self, batch: Batch, level: Tensor) -> tuple[Tensor, Tensor | None]:
        """Means and standard deviations of the unrolled student, each (batch, q, *)."""
        x, means, stds = batch.states[:, 0], [], []
        for j in range(batch.coefficients.shape[1]):
            k = batch.start + j
            t, s = self.times[level, k], self.times[level, k + 1]
            alike = bool((t == t[0]).all() and (s == s[0]).all())
            t, s = (t[0], s[0]) if alike else (t.to(x.device), s.to(x.device))
            signature = PartialSignature((t - s).to(x), batch.coefficients[:, j])
            x, std = self.student.predict(x, t, s, signature, **batch.condition)
            means.append(x)
            if std is not None:
                stds.append(std)
                x = x + std * signature.coefficients[:, self.student.seen]
        return torch.stack(means, dim=1), torch.stack(stds, dim=1) if stds else None

    def forward(self, batches: list[Batch]) -> Tensor:
        """Mean over the batches, one a level, of their mean loss; the network sees all at once."""
        sizes = [len(batch.start) for batch in batches]
        level = torch.arange(len(batches)).repeat_interleave(torch.tensor(sizes))
        errors = self.errors(Batch.join(batches), level)
        return torch.stack([part.mean() for part in errors.split(sizes)]).mean()

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
                    coarse.labels,
                )
                error = self.regression(one, torch.full((len(one.start),), level))
                error = error[:, 0].float().cpu()
                sums.index_add_(0, one.start, error)
                counts.index_add_(0, one.start, torch.ones(len(one.start)))
            mean = sums / counts.clamp(min=1)
            self.scales[level] = torch.where(counts > 0, mean.clamp(min=1e-12), 1.0)
