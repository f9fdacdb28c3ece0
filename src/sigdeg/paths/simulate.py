r"""Teacher paths: the teacher's fine march seen at the coarse times, with its noise summarised.

For every coarse step the fine signatures are folded on the way into one coarse signature (Chen), so
that student and teacher are driven by the same Brownian path. A *segment* is a run of consecutive
coarse steps: a whole path from pure noise (`states="teacher"`, data-free), or a short run that
starts from noised data (`states="data"`, the paper).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor

from sigdeg.errors import SigdegError
from sigdeg.paths.batch import Batch, Part, draw_starts, integers, normals
from sigdeg.rng import Generators, randn
from sigdeg.runs import fingerprint
from sigdeg.sampling import network_calls
from sigdeg.signature import PartialSignature, restriction
from sigdeg.steps import GaussianStep

__all__ = ["TeacherPaths", "simulate"]


@torch.no_grad()
def simulate(
    teacher: GaussianStep,
    rows: Sequence[Tensor],
    x: Tensor,
    order: int,
    generator: Generators | Part,
    **condition: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""March the teacher over fine rows, keeping the coarse states and signatures.

    Each fine signature is drawn at the full order and folded exactly, so the coarse coefficients
    are independent N(0, 1) whatever the refinement.

    Arguments:
        teacher: Any step; its order may be lower than `order`.
        rows: Fine times of each coarse step, as from `sigdeg.grids.refine`.
        x: States at the first time, shape (batch, \*).
        order: Order of the signatures.
        generator: The stream of the noise, one a sample, or the part of a stream that x is.
        condition: Passed on to the teacher.

    Returns:
        States (batch, q + 1, \*) and coefficients (batch, q, order, \*).

    Raises:
        SigdegError: If the teacher gives a value that is not finite.
    """
    kept, order = order, max(order, teacher.order)
    states, coefficients = [x], []
    for row in rows:
        fractions = (row[0] - row) / (row[0] - row[-1])
        total: Tensor | float = 0.0
        matrices = restriction(order, fractions[:-1], fractions[1:])
        signatures = draw_signatures(row, x, order, generator)
        for (t, s), matrix, fine in zip(pairwise(row), matrices, signatures, strict=True):
            if len(x):  # a process may have no part in these
                x = teacher(x, t, s, fine, **condition)
            c = fine.coefficients
            total = total + (matrix.to(c) @ c.flatten(2)).reshape(c.shape)
        if not bool(torch.isfinite(x).all()):
            raise SigdegError(
                f"the teacher gave NaN or infinite values between times {float(row[0]):.4g} and "
                f"{float(row[-1]):.4g}: check its weights, schedule and prediction type"
            )
        assert isinstance(total, Tensor)
        states.append(x)
        coefficients.append(total[:, :kept])  # no lower coefficient needs a higher one
    return torch.stack(states, dim=1), torch.stack(coefficients, dim=1)


def draw_signatures(
    row: Tensor, x: Tensor, order: int, generator: Generators | Part
) -> Iterator[PartialSignature]:
    """The signatures of fine steps, drawn one by one, or from streams of samples all at once."""
    if isinstance(generator, Part):
        whole = x.new_empty(generator.n, *x.shape[1:])
        for fine in draw_signatures(row, whole, order, generator.generator):
            yield PartialSignature(fine.dt, fine.coefficients[generator.rows])
        return
    if isinstance(generator, Generator):
        for dt in row[:-1] - row[1:]:
            yield PartialSignature.sample(dt, x.shape, order, generator, x.dtype, x.device)
        return
    drawn = randn((len(x), len(row) - 1, order, *x.shape[1:]), generator, x.dtype)
    for dt, coefficients in zip(row[:-1] - row[1:], drawn.unbind(1), strict=True):
        yield PartialSignature(dt, coefficients.to(x.device))


@dataclass(frozen=True)
class TeacherPaths:
    r"""What to simulate: a teacher on a fine grid, started from noise or from noised data.

    Arguments:
        teacher: The teacher's step.
        rows: Fine times of each of the K coarse steps.
        shape: Shape of one sample.
        order: Order of the signatures.
        data: Clean data (n, \*) to start segments from; None starts whole paths from pure noise.
        q: Length of the segments that start from data, in coarse steps.
        device: Where the teacher lives.
        condition: For a conditional teacher, what it is called with beside the signature: tensors
            by name, whose rows belong together. Each path draws a row; with data it is the sample's
            own.
        starts: Coarse steps that a segment from data may begin with; by default all that leave room
            for its length.
        late: How much rather it begins with a late one, see `draw_starts`.

    Raises:
        SigdegError: If a condition is no tensor, or has no rows, or others than the rest have.
    """

    teacher: GaussianStep
    rows: Sequence[Tensor]
    shape: tuple[int, ...]
    order: int
    data: Tensor | None = None
    q: int = 1
    device: torch.device | str = "cpu"
    condition: Mapping[str, Tensor] = field(default_factory=dict)
    starts: Sequence[int] | None = None
    late: int = 0

    def __post_init__(self) -> None:
        needed = None if self.data is None else len(self.data)
        for name, value in self.condition.items():
            if not isinstance(value, Tensor) or not value.ndim or not len(value):
                raise SigdegError(
                    f"there are no rows of {name} to draw from: give a tensor of them"
                )
            if needed is not None and len(value) != needed:
                kind = "rows of the others" if self.data is None else "samples"
                raise SigdegError(
                    f"{needed:,} {kind} need as many rows of {name}, got {len(value):,}"
                )
            needed = len(value)

    @property
    def teacher_nfe(self) -> float:
        """Mean number of teacher calls a segment costs."""
        calls = [network_calls(self.teacher, row) for row in self.rows]
        if self.data is None:
            return float(sum(calls))
        starts = self.starts or range(len(calls) - self.q + 1)
        shares = [(k + 1) ** self.late for k in starts]
        return statistics.fmean((sum(calls[k : k + self.q]) for k in starts), shares)

    def identity(self) -> dict[str, Any]:
        """JSON values that tell these paths from any others."""
        return {
            "teacher": fingerprint(self.teacher),
            "data": None if self.data is None else fingerprint(self.data),
            "condition": {name: fingerprint(value) for name, value in self.condition.items()},
            "order": self.order,
            "fine": [row.tolist() for row in self.rows],
            "shape": self.shape,
            "q": self.q,
            "starts": self.starts,
            "late": self.late,
        }

    def draw(self, n: int, generator: Generators) -> Batch:
        """Simulate n segments, from one stream or from one a segment."""
        return self.batch(self.segments(n, generator))

    def batch(self, segments: Mapping[str, Tensor]) -> Batch:
        """What `segments` gives, with the rows of the condition that each was told."""
        condition, states = {}, segments["states"]
        if "row" in segments:
            row = segments["row"]
            condition = {k: value[row].to(states.device) for k, value in self.condition.items()}
        return Batch(segments["start"], states, segments["coefficients"], condition)

    def segments(self, n: int, generator: Generators | Part) -> dict[str, Tensor]:
        """What `draw` simulates, by name; of a condition the numbers of rows: they may be large."""
        whole = generator.generator if isinstance(generator, Part) else generator
        if self.data is None:
            x = self.teacher.schedule.prior((n, *self.shape), whole, device=self.device)
            if isinstance(generator, Part):
                x = x[generator.rows]
            told = next(iter(self.condition.values()), None)
            row = None if told is None else integers(len(told), n, generator)
            return self.march(0, self.rows, x, row, generator)
        # One group of samples a starting step: times stay scalars, rows may differ in length.
        starts = draw_starts(n, len(self.rows), self.q, whole, self.starts, self.late)
        parts, places = [], []
        for k in starts.unique().tolist():
            place = (starts == k).nonzero()[:, 0]
            m, own = len(place), part_of(generator, place)
            row = integers(len(self.data), m, own)
            clean = self.data[row].to(self.device)
            noise = normals(m, self.shape, own, self.device)
            rows = self.rows[k : k + self.q]
            noised = self.teacher.schedule.corrupt(clean, rows[0][0], noise)
            parts.append(self.march(k, rows, noised, row, own))
            places.append(place[own.rows] if isinstance(own, Part) else place)
        # Back in the order drawn: the held-out segments, the last ones, have to cover every step.
        order = torch.cat(places).argsort()
        return {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}

    def march(
        self,
        start: int,
        rows: Sequence[Tensor],
        x: Tensor,
        row: Tensor | None,
        generator: Generators | Part,
    ) -> dict[str, Tensor]:
        """Simulate segments that begin with one coarse step, each told a row of the condition."""
        found = {"start": torch.full((len(x),), start)}
        condition: dict[str, Tensor] = {}
        if self.condition and row is not None:
            found["row"] = row
            condition = {k: value[row].to(self.device) for k, value in self.condition.items()}
        states, coefficients = simulate(self.teacher, rows, x, self.order, generator, **condition)
        return found | {"states": states, "coefficients": coefficients}


def part_of(generator: Generators | Part, place: Tensor) -> Generators | Part:
    """The streams of some samples of a batch; a stream of all of them goes on."""
    if isinstance(generator, Generator):
        return generator
    if isinstance(generator, Part):
        mine = torch.isin(place, generator.rows).nonzero()[:, 0]
        return Part(generator.generator, len(place), mine)
    return [generator[i] for i in place]
