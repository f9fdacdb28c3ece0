r"""Plans carried out: a student distilled in rounds of merges instead of at once.

A plan (`sigdeg.planning.plans`) is a tree over the T leaves inside every coarse step, leaf 1
nearest to the data. A leaf is the teacher over a few fine steps. A merge is one regression: a
single step of the student, from its last leaf's start to its first leaf's end, on the composition
of its children, leaves or steps merged before, driven by the same path; signatures concatenate.
Merges of one height do not depend on each other and are trained in one *round*, in all coarse
steps at once. What is merged calls the teacher no more: two network calls a target, not a march.

References:
    Operator merging (arXiv 2505.16024): plans.
    Salimans and Ho, *Progressive distillation for fast sampling of diffusion models* (2022).
"""

from __future__ import annotations

import bisect
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from operator import neg
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sigdeg.distillation.regression import Distilled, Task, distill_steps, fine_rows
from sigdeg.errors import SigdegError
from sigdeg.planning.plans import Plan, format_plan, merges, parse_plan, plan_steps
from sigdeg.runs import fingerprint
from sigdeg.schedule import Schedule
from sigdeg.signature import PartialSignature
from sigdeg.steps import GaussianStep, Time
from sigdeg.student import SignatureStudent
from sigdeg.training import claim, make_accelerator

__all__ = ["PartlyMerged", "Round", "distill_rounds", "rounds"]


class PartlyMerged(GaussianStep):
    """Steps that tile the time axis, as one step: what a plan has made so far.

    Arguments:
        teacher: The teacher's step.
        students: Students of the rounds done.
        starts: Start of every block, decreasing from the first time of the grid.
        made: Round whose student covers each block, None for the teacher.
    """

    def __init__(
        self,
        teacher: GaussianStep,
        students: Sequence[GaussianStep],
        starts: Sequence[float],
        made: Sequence[int | None],
    ) -> None:
        super().__init__()
        self.operators = nn.ModuleList([teacher, *students])
        self.starts = tuple(starts)
        self.which = tuple(0 if index is None else index + 1 for index in made)

    @property
    def kinds(self) -> list[GaussianStep]:
        """The teacher's step and the students."""
        return cast(list[GaussianStep], list(self.operators))

    @property
    def order(self) -> int:
        """Order of the signature that the most demanding of them needs."""
        return max(step.order for step in self.kinds)

    @property
    def nfe(self) -> int:
        """Network calls of the teacher's step."""
        return self.kinds[0].nfe

    @property
    def schedule(self) -> Schedule:  # type: ignore[override]  # the teacher's
        """The schedule of the diffusion."""
        return self.kinds[0].schedule

    def kind(self, t: Time) -> int:
        """Which step goes on from a time: 0 is the teacher."""
        return self.which[bisect.bisect_right(self.starts, 1e-9 - float(t), key=neg) - 1]

    def calls(self, t: float, s: float) -> int:
        """Calls of the teacher: what is merged takes none."""
        return 0 if self.kind(t) else self.kinds[0].calls(t, s)

    def forward(
        self, x: Tensor, t: Time, s: Time, signature: PartialSignature, **condition: Any
    ) -> Tensor:
        """One step, see `sigdeg.protocols.Step`."""
        return self.kinds[self.kind(t)](x, t, s, signature, **condition)


@dataclass(frozen=True)
class Round:
    """Merges of one height.

    Arguments:
        rows: Times of every tile that the time axis has after it: the ends of its parts.
        merged: Which of the tiles are merged now.
        starts: Start of every block that there was before it.
        made: Round that made each of those, None for the teacher's leaves.
    """

    rows: list[Tensor]
    merged: list[int]
    starts: list[float]
    made: list[int | None]


def rounds(plan: Plan, fine: Sequence[Tensor]) -> list[Round]:
    """The rounds of a plan inside every coarse step.

    Arguments:
        plan: The plan over T leaves.
        fine: Fine times of each coarse step; each leaf covers as many of them.

    Raises:
        SigdegError: If the leaves do not divide the fine steps.
    """
    leaves = plan_steps(plan)
    if leaves == 1 or any((len(row) - 1) % leaves for row in fine):
        raise SigdegError(
            f"a plan merges two leaves or more, which divide the fine steps of a coarse step: got "
            f"{leaves} leaves and {len(fine[0]) - 1} fine steps"
        )
    heights: dict[tuple[int, int], int] = {}
    for merge in merges(plan):
        inside = [h for (a, b), h in heights.items() if merge.start <= a and b <= merge.stop]
        heights[merge.start, merge.stop] = 1 + max(inside, default=0)

    def times(row: Tensor, start: int, stop: int) -> Tensor:
        each = (len(row) - 1) // leaves
        return row[(leaves - stop) * each : (leaves - start) * each + 1]

    tiles: dict[tuple[int, int], int | None] = {(t - 1, t): None for t in range(leaves, 0, -1)}
    done = []
    for number in range(max(heights.values())):
        now = {span for span, height in heights.items() if height == number + 1}
        # Noise first, as grids are: every tile with the blocks that it is made of.
        parts: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for span in tiles:
            whole = next((new for new in now if new[0] <= span[0] and span[1] <= new[1]), span)
            parts.setdefault(whole, []).append(span)
        rows = []
        for row in fine:
            for blocks in parts.values():
                pieces = [
                    own if tiles[span] is None else own[[0, -1]]
                    for span in blocks
                    for own in [times(row, *span)]
                ]
                rows.append(torch.cat([*(piece[:-1] for piece in pieces), pieces[-1][-1:]]))
        done.append(
            Round(
                rows,
                [i for i, whole in enumerate([*parts] * len(fine)) if whole in now],
                [float(times(row, *span)[0]) for row in fine for span in tiles],
                list(tiles.values()) * len(fine),
            )
        )
        tiles = {whole: number if whole in now else tiles[whole] for whole in parts}
    return done


def distill_rounds(
    student: SignatureStudent,
    teacher: GaussianStep,
    out_dir: Path,
    task: Task,
    plan: Plan | str,
    fine: Tensor | None,
) -> Distilled:
    """Distil in the rounds of a plan, each in a folder of its own that resumes."""
    config = task.config
    if student.elastic or config.q != 1:
        raise SigdegError("a plan is for a student of one step count, with q=1")
    coarse = fine_rows(student, student.grid(), config, fine)
    if isinstance(plan, str):
        plan = parse_plan(plan, len(coarse[0]) - 1)
    todo = rounds(plan, coarse)
    identity = {
        **config.identity(),
        "teacher": fingerprint(teacher),
        "student": fingerprint(student),
        "plan": format_plan(plan),
        "fine": [row.tolist() for row in coarse],
    }
    claim(make_accelerator(config, out_dir, task.device), out_dir, identity, task.resume)
    made: list[SignatureStudent] = []
    found: list[Distilled] = []
    for number, part in enumerate(todo):
        times = torch.stack([*(row[0] for row in part.rows), part.rows[-1][-1]])
        stage = (made[-1] if made else student).at_times(times)
        merged = PartlyMerged(teacher, made, part.starts, part.made)
        folder = out_dir / "rounds" / f"{number + 1:02d}"
        found.append(distill_steps(stage, merged, folder, task, rows=part.rows, starts=part.merged))
        made.append(found[-1].student)
    final = copy.deepcopy(made[-1])
    final.times, final.steps = student.times, student.steps
    final.save_pretrained(out_dir / "student")
    clock = torch.tensor([[i * config.iterations, 0, 0] for i in range(len(found))])
    return Distilled(
        final.eval(),
        torch.cat([result.history + start for result, start in zip(found, clock, strict=True)]),
        sum(result.seconds for result in found),
        sum(result.teacher_nfe for result in found),
        memory=max(result.memory for result in found),
    )
