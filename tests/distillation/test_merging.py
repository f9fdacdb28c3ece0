"""Plans carried out: what each round merges, what it costs, and that it ends where it should."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from sigdeg.datasets.mixture import GaussianMixture1D
from sigdeg.denoiser import Denoiser, GaussianDenoiser, GaussianMixtureDenoiser
from sigdeg.distillation import Distilled, distill
from sigdeg.distillation.merging import PartlyMerged, rounds
from sigdeg.errors import SigdegError
from sigdeg.grids import coarse_grid, refine
from sigdeg.metrics import w1_exact
from sigdeg.networks import ResidualMLP
from sigdeg.planning import Plan, hybrid, merges, progressive, seq_boot, seq_consistency, vanilla
from sigdeg.planning.theory.programmes import all_plans
from sigdeg.rng import seeded as build
from sigdeg.sampling import march, sample
from sigdeg.schedule import VPLinear
from sigdeg.signature import PartialSignature
from sigdeg.steps import EulerMaruyama, Exponential
from sigdeg.student import SignatureStudent

SCHEDULE = VPLinear()
LAW = GaussianMixture1D()
MIXTURE = GaussianMixtureDenoiser(LAW.means, LAW.stds, LAW.weights, SCHEDULE)
FINE = list(refine(SCHEDULE, coarse_grid(SCHEDULE, 2), 8))


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def student(steps: int = 2, width: int = 16, **options: Any) -> SignatureStudent:
    network = build(0, lambda: ResidualMLP(SignatureStudent.in_channels(1, 2), 1, width, 1))
    return SignatureStudent(
        network, SCHEDULE, 1, data_std=LAW.variance**0.5, steps=(steps,), **options
    )


def run(folder: Path, teacher: Any = None, start: Any = None, **options: Any) -> Distilled:
    arguments: dict[str, Any] = {
        "iterations": 3,
        "batch_size": 16,
        "paths": 40,
        "held_out": 8,
        "refinement": 8,
        "tracker": "none",
        "device": "cpu",
        "progress": False,
        "judge": 0,
        **options,
    }
    return distill(start or student(), teacher or Exponential(MIXTURE), folder, **arguments)


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_rounds_of_a_progressive_plan() -> None:
    """Two coarse steps of four leaves, each two fine steps: pairs; then pairs of pairs."""
    first, second = rounds(progressive(4), FINE)
    a, b = FINE
    assert [row.tolist() for row in first.rows] == [
        row.tolist() for row in (a[:5], a[4:], b[:5], b[4:])
    ]
    assert first.merged == [0, 1, 2, 3]
    assert first.made == [None] * 8
    assert [row.tolist() for row in second.rows] == [a[[0, 4, 8]].tolist(), b[[0, 4, 8]].tolist()]
    assert second.merged == [0, 1]
    assert second.made == [0, 0, 0, 0]
    assert second.starts == [float(v) for v in (a[0], a[4], b[0], b[4])]


def test_rounds_of_a_plan_from_the_noise() -> None:
    """BOOT: the noisiest pair, then one leaf more a round; what is not merged stays as it is."""
    _, middle, last = rounds(seq_boot(4), FINE[:1])
    (a,) = FINE[:1]
    assert (
        [row.tolist() for row in middle.rows]
        == [
            a[[0, 4, 5, 6]].tolist(),  # the pair that was merged, and a leaf of two fine steps
            a[6:].tolist(),
        ]
    )
    assert (middle.merged, middle.made) == ([0], [0, None, None])
    assert (last.merged, last.made) == ([0], [1, None])


@pytest.mark.parametrize("plan", list(all_plans(4)), ids=str)
def test_every_round_tiles_the_time_axis(plan: Plan) -> None:
    """Rows join end to end, only merged ones have several parts, and each merge happens once."""
    spans = []
    for part in rounds(plan, FINE):
        ends = [(float(row[0]), float(row[-1])) for row in part.rows]
        assert [end for _, end in ends[:-1]] == [start for start, _ in ends[1:]]
        assert (ends[0][0], ends[-1][1]) == (1.0, 0.0)
        spans += [ends[i] for i in part.merged]
    expected = [
        (float(row[8 - 2 * m.stop]), float(row[8 - 2 * m.start]))
        for row in FINE
        for m in merges(plan)
    ]
    assert sorted(spans) == sorted(expected)


def test_blocks_are_the_steps_that_they_hold() -> None:
    """Marching blocks is marching each step over its own times."""
    teacher, other = Exponential(MIXTURE), EulerMaruyama(MIXTURE)
    grid = torch.tensor([1.0, 0.8, 0.6, 0.3], dtype=torch.float64)
    blocks = PartlyMerged(teacher, [other], [1.0, 0.8, 0.6], [None, 0, None])
    x = torch.randn(10, 1, generator=seeded())
    paths = [PartialSignature.sample(0.2, (10, 1), 2, seeded(i)) for i in range(3)]
    found = march(blocks, x, grid, paths)
    for k, step in enumerate((teacher, other, teacher)):
        x = step(x, grid[k], grid[k + 1], paths[k])
    assert torch.equal(found, x)
    times = (1.0, 0.9, 0.8, 0.61, 0.6, 0.1)
    assert [blocks.kind(t) for t in times] == [0, 0, 1, 1, 0, 0]
    assert [blocks.calls(t, 0.05) for t in times] == [1, 1, 0, 0, 1, 1]


def test_the_vanilla_plan_is_distilling_at_once(tmp_path: Path) -> None:
    whole = run(tmp_path / "a")
    planned = run(tmp_path / "b", plan="vanilla")
    assert torch.equal(weights(whole.student), weights(planned.student))
    assert whole.teacher_nfe == planned.teacher_nfe
    loaded = SignatureStudent.from_pretrained(tmp_path / "b" / "student")
    assert torch.equal(weights(loaded), weights(planned.student))
    assert torch.equal(loaded.grid(), student().grid())


class Counter(Denoiser):
    """A denoiser that counts the samples it is asked for."""

    def __init__(self) -> None:
        super().__init__(SCHEDULE)
        self.asked = 0

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        self.asked += x.shape[0]
        return MIXTURE(x, t)


@pytest.mark.parametrize("states", ["teacher", "data"])
@pytest.mark.parametrize(
    "plan", [vanilla(4), progressive(4), seq_boot(4), seq_consistency(4), hybrid(4, 3)], ids=str
)
def test_teacher_calls_are_counted(tmp_path: Path, plan: Plan, states: Any) -> None:
    """Merged steps are students' and cost the teacher nothing."""
    counter = Counter()
    data = LAW.sample(500, seeded(1)) if states == "data" else None
    result = run(
        tmp_path, Exponential(counter), plan=plan, states=states, data=data, paths=30, iterations=2
    )
    # Segments from data begin at random, so what they cost is known in the mean.
    tolerance = 0.0 if states == "teacher" else 0.15
    assert result.teacher_nfe == pytest.approx(counter.asked, rel=tolerance)
    if plan == progressive(4):  # whole paths once; or pairs of leaves of two fine steps
        assert result.teacher_nfe == 30 * (16 if states == "teacher" else 4)


def test_segments_that_cost_nothing_are_drawn_anew(tmp_path: Path) -> None:
    """From data, rounds of students' steps alone keep no segments; whole paths are all kept."""
    data = LAW.sample(500, seeded(1))
    for states, kept in (("data", [True, False]), ("teacher", [True, True])):
        given: dict[str, Any] = {"states": states, "data": data if states == "data" else None}
        folder = tmp_path / states
        run(folder, plan=progressive(4), **given)
        rounds_of = sorted((folder / "rounds").iterdir())
        assert [(part / "paths").is_dir() for part in rounds_of] == kept


def test_an_interrupted_plan_goes_on_to_the_bit(tmp_path: Path) -> None:
    whole = run(tmp_path / "a", plan="(1 (2 3))", refinement=6)
    real, calls = SignatureStudent.save_pretrained, 0

    def stop(self: SignatureStudent, folder: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        real(self, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SignatureStudent, "save_pretrained", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "b", plan="(1 (2 3))", refinement=6)
    again = run(tmp_path / "b", plan="(1 (2 3))", refinement=6)
    assert torch.equal(weights(whole.student), weights(again.student))
    assert again.history[:, 0].tolist() == [3.0, 6.0]
    with pytest.raises(SigdegError, match=r"another run \(it differs in plan"):
        run(tmp_path / "b", plan="((1 2) 3)", refinement=6)


def test_targets_are_compositions_on_the_same_path(tmp_path: Path) -> None:
    """A student that does not move is scored in each round against what a merge stands for."""
    law = GaussianDenoiser(0.0, 0.6, SCHEDULE)
    teacher, own = Exponential(law), student(1)
    data = 0.6 * torch.randn(5000, 1, generator=seeded(3))
    result = run(
        tmp_path,
        teacher,
        own,
        plan="(1 (2 3))",
        states="data",
        data=data,
        refinement=6,
        learning_rate=1e-12,
        normalise=False,
        iterations=1,
        paths=4000,
        held_out=2000,
    )
    (fine,) = refine(SCHEDULE, own.grid(), 6)
    n, total = 20_000, None
    x = torch.randn(n, 1, generator=seeded(4))
    # The two noisy leaves: four fine teacher steps against one of the student.
    y, generator = x, seeded(5)
    for t, s in pairwise(fine[:5]):
        path = PartialSignature.sample(t - s, (n, 1), 2, generator)
        y = teacher(y, t, s, path)
        total = path if total is None else PartialSignature.concatenate(total, path)
    assert total is not None
    merged = own(x, fine[0], fine[4], total)
    first = (merged - y).square().mean()
    # That step of the student, and the teacher's last leaf, against one step of the student.
    y = merged
    for t, s in pairwise(fine[4:]):
        path = PartialSignature.sample(t - s, (n, 1), 2, generator)
        y = teacher(y, t, s, path)
        total = PartialSignature.concatenate(total, path)
    second = (own(x, fine[0], fine[6], total) - y).square().mean()
    expected = torch.stack([first, second]).detach().double()
    torch.testing.assert_close(result.history[:, 2], expected, rtol=0.08, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["progressive", "hybrid-3", "consistency"])
def test_plans_learn(tmp_path: Path, plan: str) -> None:
    """Two steps on 1DN in rounds of merges, from data: each plan ends near the true law."""
    result = run(
        tmp_path,
        EulerMaruyama(MIXTURE),
        student(2, 32),
        plan=plan,
        states="data",
        data=LAW.sample(4000, seeded(1)),
        refinement=32 if plan == "progressive" else 4,
        iterations=500,
        batch_size=256,
        learning_rate=5e-3,
        warmup=10,
        ema=0.98,
        paths=0,
    )

    def distance(step: SignatureStudent) -> float:
        return w1_exact(sample(step, step.grid(), (20_000, 1), generator=seeded(9)), LAW)

    assert distance(result.student) < 0.5 * distance(student(2, 32))


@pytest.mark.parametrize(
    ("start", "options", "line"),
    [
        ({}, {"plan": "best"}, "unknown plan 'best': choose from vanilla"),
        ({}, {"plan": "(1 (2 3))"}, "got 3 leaves and 8 fine steps"),
        ({}, {"plan": 1}, "merges two leaves or more"),
        ({}, {"plan": "boot", "q": 2}, "one step count, with q=1"),
        ({"elastic": True}, {"plan": "boot"}, "one step count, with q=1"),
        ({}, {"grid": "best"}, "grid must be planned"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, start: dict[str, Any], options: dict[str, Any], line: str
) -> None:
    own = student()
    if start:
        own.steps = (2, 1)
    with pytest.raises(SigdegError, match=line):
        run(tmp_path / "run", start=own, **options)
    assert not (tmp_path / "run").exists()


def test_a_planned_grid(tmp_path: Path) -> None:
    """The student's times move to where the mixture decides, and measuring is paid for."""
    counter = Counter()
    result = run(tmp_path, Exponential(counter), student(3), grid="planned", paths=20)
    assert result.teacher_nfe == counter.asked
    assert result.student.steps == (3,)
    assert not torch.allclose(result.student.grid(), student(3).grid())
    elastic = student(4)
    elastic.steps = (4, 2)
    planned = run(tmp_path / "elastic", start=elastic, grid="planned", paths=20).student
    assert torch.equal(planned.grid(2), planned.grid(4)[::2])
