r"""Judgement: whether a distillation worked, told by paths that training has not seen.

$2n$ whole paths of the teacher, the held-out ones first, are replayed by the student and by the
untrained step, so that all three answer to the same noise. Then, for each step count,

- `distance`: sliced Wasserstein-1 distance of n samples to n others of the teacher, each direction
  over the teacher's spread there, averaged over random splits of the paths. Its floor is that of
  the teacher to itself, whose spread over the splits is the noise of one such distance (a
  permutation test).
- `off`: share of samples farther from the teacher's than all but `OUTSIDE` of its own are: what
  lies between modes, which no projection sees.
- `missed`: share of the teacher's samples as far from the student's: what it never draws.
- `path`: root mean square distance to the teacher's sample of the same noise, over its spread.

Of 420 pairs of sets of one law (mixtures in 2-D, normal and heavy-tailed numbers, series, pictures;
250 or 1,000 in a set) it told four apart. It sees 5% of samples between the modes of a law in 2-D,
not all that a network sees in images: compare those with data as well.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from tqdm.auto import tqdm

from sigdeg.errors import SigdegError
from sigdeg.paths import Batch, TeacherPaths
from sigdeg.results import count_calls
from sigdeg.rng import Stream, derive_generator
from sigdeg.runs import keep, kept
from sigdeg.steps import Exponential, GaussianStep
from sigdeg.student import SignatureStudent

if TYPE_CHECKING:
    from sigdeg.distillation.config import DistillConfig
    from sigdeg.distillation.regression import Distilled

__all__ = [
    "Level",
    "Measured",
    "Samples",
    "Score",
    "Verdict",
    "compare",
    "judge",
    "judge_run",
    "replay",
]

OUTSIDE = 0.01  # share of the teacher's own samples that count as off its support
TOLERANCE = 1.3  # a larger multiple of the teacher's distance is a failure, not only a difference
SPLITS, DIRECTIONS = 20, 128
FLAT = 0.02  # of the largest spread: a direction with less says nothing, as a picture's border
LEAST, MOST = 32, 2000  # samples in a set: what says anything, and what says enough
SHARE = 1 / 8  # of the training's teacher calls: what judging may cost
TINY, HUGE = 1e-12, 1e9  # the latter in place of what is not finite: JSON has no name for it


class Measured(NamedTuple):
    """A number and its standard error."""

    mean: float
    se: float = 0.0

    def above(self, other: Measured, errors: float = 2) -> bool:
        """Whether it is larger by more than so many standard errors of the difference."""
        return self.mean - other.mean > errors * math.hypot(self.se, other.se)


@dataclass(frozen=True)
class Score:
    """One measure of a student, of the untrained step, and of the teacher against itself."""

    student: Measured
    untrained: Measured
    floor: Measured


@dataclass(frozen=True)
class Level:
    """A student at one step count: see the module's docstring for the measures.

    Arguments:
        calls: The step count.
        n: Samples in each of the two sets.
    """

    calls: int
    n: int
    distance: Score
    off: Score
    missed: Score
    path: Score

    @property
    def ratio(self) -> float:
        """How many times the teacher's own the student's distance is."""
        return self.distance.student.mean / max(self.distance.floor.mean, TINY)

    @property
    def learnt(self) -> bool:
        """Whether it is nearer to the teacher than the untrained step is."""
        near, shares = self.distance, (self.off, self.missed)
        better = near.untrained.above(near.student) or any(
            share.untrained.above(share.student, errors=3) for share in shares
        )
        return better and not near.student.above(near.untrained)

    @property
    def equal(self) -> bool:
        """Whether no measure tells its samples from the teacher's."""
        return not self.differences

    @property
    def failed(self) -> bool:
        """Whether it learnt nothing, or a difference is one that matters."""
        return not self.learnt or any(large for _, large in self.differences)

    @property
    def differences(self) -> list[tuple[str, bool]]:
        """What tells its samples from the teacher's, in words, and whether it is large."""
        near, off, missed = self.distance, self.off, self.missed
        found = []
        if near.student.mean > near.floor.mean + 2 * near.floor.se:
            found.append((f"{self.ratio:.2g} times the teacher's distance", self.ratio > TOLERANCE))
        # Three standard errors: neighbours come in clusters, and this is asked twice.
        for share, what in (
            (off, f"of its samples where the teacher has {OUTSIDE:.0%} of its own"),
            (missed, "of the teacher's samples beyond its reach"),
        ):
            if share.student.above(share.floor, errors=3):
                mean = share.student.mean
                found.append((f"{mean:.0%} {what}", mean > 3 * OUTSIDE))
        return found

    @property
    def says(self) -> str:
        """What came out, in words."""
        if self.distance.student.above(self.distance.untrained):
            return "worse than the untrained step"
        if not self.learnt:
            return "no better than the untrained step"
        return ", ".join(told for told, _ in self.differences) or (
            f"as good as the teacher, as far as {2 * self.n:,} samples tell"
        )


@dataclass(frozen=True)
class Verdict:
    """What fresh samples say of a student.

    Arguments:
        n: Samples in a set; there are two sets.
        teacher_calls: Calls of one sample of the teacher.
        teacher_nfe: Teacher calls that judging took.
        advice: What to try where it failed.
        levels: One a step count, most calls first.
    """

    n: int
    teacher_calls: int
    teacher_nfe: float
    advice: str
    levels: Sequence[Level]

    @property
    def best(self) -> Level:
        """The fewest calls that are as good as the teacher, else those that come nearest."""
        good = [level for level in self.levels if level.learnt and level.equal]
        if good:
            return min(good, key=lambda level: level.calls)
        return min(self.levels, key=lambda level: (level.failed, level.ratio))

    def headline(self) -> str:
        """One line of what came out."""
        best = self.best
        near = best.distance
        return (
            f"{count_calls(best.calls)} instead of {self.teacher_calls:,}: {best.says} "
            f"(distance to the teacher's samples {near.student.mean:.2g} ± {near.student.se:.1g}, "
            f"of others of the teacher {near.floor.mean:.2g} ± {near.floor.se:.1g}, of the "
            f"untrained step {near.untrained.mean:.2g}; two sets of {self.n:,})"
        )

    @property
    def warnings(self) -> list[str]:
        """One line for all the step counts that failed, if any did, with what to try."""
        bad = [level for level in self.levels if level.failed]
        told = "; ".join(f"at {count_calls(level.calls)}: {level.says}" for level in bad)
        # Where untrained step and student pass for the teacher, so few samples tell nothing.
        blind = any(
            not (level.learnt or near.untrained.above(near.floor) or near.student.above(near.floor))
            for level in bad
            for near in (level.distance,)
        )
        more = "more samples to judge by, " if blind else ""
        return [f"{told}; try {more}{self.advice}"] if bad else []

    def save(self, path: Path) -> None:
        """Write it as JSON, atomically."""
        keep(path, asdict(self), path.parent)

    @classmethod
    def load(cls, path: Path) -> Verdict:
        """Read what `save` wrote.

        Raises:
            SigdegError: If the file is missing or damaged.
        """
        try:
            found = kept(path, path.parent)
            levels = [
                Level(level["calls"], level["n"], **{name: score(level[name]) for name in MEASURES})
                for level in found.pop("levels")
            ]
            return cls(**found, levels=levels)
        except (SigdegError, KeyError, TypeError):  # the latter two of a verdict of other versions
            raise SigdegError(f"{path} holds no verdict of this run: delete it") from None


def score(found: dict[str, list[float]]) -> Score:
    """A score as JSON has it."""
    return Score(**{of: Measured(*found[of]) for of in OF})


MEASURES, OF = ("distance", "off", "missed", "path"), ("student", "untrained", "floor")


def compare(calls: int, teacher: Tensor, student: Tensor, untrained: Tensor) -> Level:
    r"""Compare samples that answer to the same noise.

    Arguments:
        calls: The student's step count.
        teacher: Samples of the teacher, shape (2n, \*).
        student: Those of the student, sample i driven by the path of the teacher's sample i.
        untrained: Those of the untrained step.

    Raises:
        SigdegError: If the sets have different shapes or fewer than 4 samples.
    """
    shapes = {tuple(value.shape) for value in (teacher, student, untrained)}
    if len(shapes) > 1 or len(teacher) < 4:
        raise SigdegError(f"judging needs three sets of one shape, at least 4 each, got {shapes}")
    # Near neighbours need the digits; where there are many dimensions there are none that near.
    kind = torch.float64 if teacher[0].numel() <= 64 else torch.float32
    sets = [v[: len(v) // 2 * 2].detach().cpu().to(kind) for v in (teacher, student, untrained)]
    distances = split_distances(sets)
    sets = [v.flatten(1) for v in sets]
    own = sets[0]
    threshold = crossed(own, own)[0].quantile(1 - OUTSIDE)
    measures: dict[str, list[Measured]] = {name: [] for name in MEASURES}
    for samples, apart in zip(sets, distances, strict=True):
        measures["distance"].append(Measured(float(apart.mean()), float(apart.std())))
        for name, nearest in zip(("off", "missed"), crossed(samples, own), strict=True):
            # Not a share of those that are near: what is not a number is off.
            share = 1 - float((nearest <= threshold).double().mean())
            measures[name].append(Measured(share, math.sqrt(share * (1 - share) / len(own))))
        errors = (samples - own).double().square().mean(1).nan_to_num(HUGE, HUGE)
        root, spread = errors.mean().sqrt(), own.std().clamp(min=TINY)
        slope = 2 * root.clamp(min=TINY) * len(own) ** 0.5
        measures["path"].append(
            Measured(float(root / spread), float(errors.std() / slope / spread))
        )
    return Level(
        calls, len(own) // 2, **{name: Score(s, u, t) for name, (t, s, u) in measures.items()}
    )


def split_distances(sets: list[Tensor]) -> list[Tensor]:
    """Sliced distances of each set's samples to the first set's others, one a random split."""
    n = len(sets[0]) // 2
    generator = Generator().manual_seed(0)
    directions = draw_directions(sets[0].shape[1:], generator).to(sets[0])
    projected = [(v.flatten(1) @ directions.flatten(1).T).T.float().numpy() for v in sets]
    spread = projected[0].std(axis=1)
    kept = spread >= FLAT * spread.max()
    scale = np.maximum(spread[kept], TINY)[:, None]
    projected = [v[kept] / scale for v in projected]
    found = []
    for _ in range(SPLITS):
        first = (torch.randperm(2 * n, generator=generator) < n).numpy()
        others = np.sort(projected[0][:, ~first])  # numpy's is many times as fast as torch's
        parts = (np.sort(part[:, first]) for part in projected)
        found.append([np.abs(part - others).mean() for part in parts])
    return list(torch.tensor(found, dtype=torch.float64).nan_to_num(HUGE, HUGE).T)


def draw_directions(shape: Sequence[int], generator: Generator) -> Tensor:
    r"""Random directions in samples of a shape, (k, \*shape).

    Each lives in a random box of the dimensions after the first, from one element to the whole:
    long sums are close to normal whatever the samples, what lies in details shows in short ones.
    """
    if math.prod(shape) == 1:
        return torch.ones(1, *shape)
    directions = torch.randn(DIRECTIONS, *shape, generator=generator)
    largest = math.log(max(shape[1:], default=1))
    for direction in directions:
        size = math.exp(-largest * float(torch.rand((), generator=generator)))
        for axis, length in enumerate(shape[1:], start=1):
            width = max(1, round(size * length))
            at = int(torch.randint(length - width + 1, (), generator=generator))
            outside = torch.arange(length)
            outside = outside[(outside < at) | (outside >= at + width)]
            direction.index_fill_(axis, outside, 0.0)
    return directions


def crossed(samples: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of each half to the nearest of the other half's counterparts in `own`, and back."""
    n = len(own) // 2
    pairs = ((samples[:n], own[n:]), (samples[n:], own[:n]))
    apart = [torch.cdist(a, b) for a, b in pairs]
    return (torch.cat([d.amin(1) for d in apart]), torch.cat([d.amin(0) for d in apart]))


class Samples(NamedTuple):
    r"""Samples of the same noise, shape (2n, \*), by step count, and how many paths were drawn."""

    teacher: Tensor
    student: dict[int, Tensor]
    untrained: dict[int, Tensor]
    fresh: int


@torch.no_grad()
def replay(
    student: SignatureStudent,
    paths: TeacherPaths,
    n: int,
    seed: int = 0,
    held_out: Batch | None = None,
    decode: Callable[[Tensor], Tensor] = lambda x: x,
    batch_size: int = 64,
    progress: bool = False,
) -> Samples:
    """Draw from teacher, student and untrained step on the same paths, at each step count.

    Arguments:
        student: The student, on the device of the paths.
        paths: The teacher's whole paths on the student's finest grid, of the student's order.
        n: Samples in each of two sets.
        seed: Seed of the paths that are drawn.
        held_out: Whole paths that training has not seen, used first.
        decode: From states to samples.
        batch_size: Paths at a time.
        progress: Show a progress bar.

    Raises:
        SigdegError: If there are fewer than 2 samples in a set.
    """
    if n < 2:
        raise SigdegError(f"judging needs at least 2 samples in a set, got {n}")
    counts = sorted(student.steps, reverse=True)
    finest = student.grid(counts[0])
    models: tuple[GaussianStep, GaussianStep] = student, untrained_step(student, paths.teacher)
    first = 0 if held_out is None else min(len(held_out.start), 2 * n)
    known = (
        held_out.take(slice(k, min(k + batch_size, first)))
        for k in range(0, first, batch_size)
        if held_out is not None
    )
    fresh = (
        paths.draw(min(batch_size, 2 * n - k), derive_generator(seed, Stream.JUDGEMENT, k))
        for k in range(first, 2 * n, batch_size)
    )
    ends: list[Tensor] = []
    found: dict[int, tuple[list[Tensor], list[Tensor]]] = {count: ([], []) for count in counts}
    with tqdm(total=2 * n, desc="judge", unit="path", disable=not progress) as bar:
        for whole in itertools.chain(known, fresh):
            batch = whole.to(paths.device)
            ends.append(decode(batch.states[:, -1]).cpu())
            for count, sets in found.items():
                seen, grid = batch.coarsen(finest, counts[0] // count), student.grid(count)
                for model, samples in zip(models, sets, strict=True):
                    samples.append(decode(seen.replay(model, grid)).cpu())
            bar.update(len(batch.start))
    own, other = ({count: torch.cat(sets[i]) for count, sets in found.items()} for i in (0, 1))
    return Samples(torch.cat(ends), own, other, 2 * n - first)


def judge(student: SignatureStudent, paths: TeacherPaths, drawn: Samples) -> Verdict:
    """Judge a student by what `replay` drew from it and from its teacher's paths."""
    levels = [
        compare(count, drawn.teacher, own, drawn.untrained[count])
        for count, own in drawn.student.items()
    ]
    calls = paths.teacher_nfe
    n = len(drawn.teacher) // 2
    return Verdict(n, round(calls), drawn.fresh * calls, advice(student), levels)


def untrained_step(student: SignatureStudent, teacher: GaussianStep) -> GaussianStep:
    """What takes no training: the exponential step of the teacher's denoiser, else its own."""
    denoiser = getattr(teacher, "denoiser", None)
    return teacher if denoiser is None else Exponential(denoiser, student.seen)


def advice(student: SignatureStudent) -> str:
    """What may help a student that falls short."""
    ways = ["more iterations", "more teacher paths"]
    if student.kind == "warm" and not student.lookahead:
        ways.append("lookahead=0.5")
    if student.seen < 4:
        ways.append("order 4 or more")
    if student.residual_noise != "energy" and min(student.steps) <= 2:
        ways.append("energy noise")
    return ", ".join([*ways, "a wider network"])


def judge_run(
    found: Distilled,
    paths: TeacherPaths,
    folder: Path,
    config: DistillConfig,
    n: int | None = None,
    progress: bool = False,
) -> Verdict:
    """Judge what a distillation gave, in its folder: held-out paths are used, a verdict is kept.

    Of n samples in a set, by default as many as `SHARE` of the training's teacher calls give, from
    `LEAST` to `MOST`.
    """
    file = folder / "verdict.json"
    if file.exists():
        verdict = Verdict.load(file)
        if n in (None, verdict.n):
            return verdict
    if n is None:
        fresh = found.teacher_nfe * SHARE / max(1.0, paths.teacher_nfe)
        fresh += 0 if found.held_out is None else len(found.held_out.start)
        n = min(max(LEAST, int(fresh) // 2), MOST)
    student = copy.deepcopy(found.student).to(paths.device)
    size = config.batch_size
    drawn = replay(
        student, paths, n, config.seed, found.held_out, batch_size=size, progress=progress
    )
    verdict = judge(student, paths, drawn)
    verdict.save(file)
    return verdict
