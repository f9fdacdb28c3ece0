"""One set of whole paths for many students: of fewer steps, of lower orders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from sigdeg.denoiser import Denoiser, GaussianDenoiser, GaussianMixtureDenoiser
from sigdeg.distillation import Distilled, distill
from sigdeg.errors import SigdegError
from sigdeg.grids import coarse_grid, refine
from sigdeg.networks import ResidualMLP
from sigdeg.paths import CachedPaths, SharedPaths, TeacherPaths
from sigdeg.schedule import VPLinear
from sigdeg.signature import PartialSignature
from sigdeg.steps import Exponential
from sigdeg.student import SignatureStudent
from sigdeg.training import job

SCHEDULE = VPLinear()
GRID = coarse_grid(SCHEDULE, 4)
ROWS = list(refine(SCHEDULE, GRID, 3))
MIXTURE = GaussianMixtureDenoiser([-2.0, 2.0], [0.5, 0.5], [0.5, 0.5], SCHEDULE)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


class Counter(Denoiser):
    """A denoiser that counts the samples it is asked for."""

    def __init__(self) -> None:
        super().__init__(SCHEDULE)
        self.inner, self.asked = MIXTURE, [0]

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        self.asked[0] += x.shape[0]
        return self.inner(x, t)


def make_cache(folder: Path, teacher: Exponential | None = None, **options: Any) -> CachedPaths:
    """Forty paths over four steps, with five coefficients."""
    arguments: dict[str, Any] = {"order": 5, **options}
    paths = TeacherPaths(teacher or Exponential(MIXTURE), ROWS, (1,), **arguments)
    return CachedPaths(paths, folder, 40, seed=3, held_out=10, shard_size=16)


@pytest.mark.parametrize("order", [1, 2, 5])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_seen_is_what_coarser_paths_would_have_been(tmp_path: Path, steps: int, order: int) -> None:
    """Against paths simulated with coarse steps from the start, and against Chen's identity."""
    cache, stride = make_cache(tmp_path), 4 // steps
    shared = SharedPaths(cache, coarse_grid(SCHEDULE, steps), order)
    batch = shared.see(cache.paths.draw(7, seeded()))
    joined = []
    for k in range(0, 4, stride):
        first, *rest = ROWS[k : k + stride]
        joined.append(torch.cat([first, *(row[1:] for row in rest)]))
    direct = TeacherPaths(cache.paths.teacher, joined, (1,), 5).draw(7, seeded())
    assert torch.equal(batch.states, direct.states)
    assert batch.coefficients.shape == (7, steps, order, 1)
    torch.testing.assert_close(
        batch.coefficients, direct.coefficients[:, :, :order], rtol=1e-5, atol=1e-5
    )
    fine = cache.paths.draw(7, seeded()).coefficients
    for k in range(steps):
        parts = [
            PartialSignature(GRID[j] - GRID[j + 1], fine[:, j])
            for j in range(k * stride, (k + 1) * stride)
        ]
        folded = PartialSignature.fold(parts).coefficients[:, :order]
        torch.testing.assert_close(batch.coefficients[:, k], folded, rtol=1e-5, atol=1e-5)


def test_batches_and_held_out_paths_are_the_caches_own(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    shared = SharedPaths(cache, coarse_grid(SCHEDULE, 2), 2)
    batch, whole = shared.batch(6, seeded()), cache.batch(6, seeded())
    assert torch.equal(batch.states, whole.states[:, ::2])
    assert torch.equal(shared.held_out(8).states, cache.held_out(8).states[:, ::2])
    assert len(shared.held_out(100).start) == 10
    plain = SharedPaths(cache, GRID, 3)
    assert torch.equal(plain.batch(6, seeded()).coefficients, whole.coefficients[:, :, :3])


@pytest.mark.parametrize(
    ("grid", "order", "message"),
    [
        (coarse_grid(SCHEDULE, 3), 2, "paths of 4 steps do not pass through the times of 3"),
        (coarse_grid(SCHEDULE, 8), 2, "paths of 4 steps do not pass through the times of 8"),
        (coarse_grid(SCHEDULE, 2, "uniform"), 2, "do not pass through .* multiple of the student"),
        (coarse_grid(SCHEDULE, 2), 6, "paths of order 6 or more, it holds whole paths of order 5"),
    ],
)
def test_paths_that_do_not_tell_enough_are_refused(
    tmp_path: Path, grid: Tensor, order: int, message: str
) -> None:
    with pytest.raises(SigdegError, match=message) as caught:
        SharedPaths(make_cache(tmp_path), grid, order)
    assert "\n" not in str(caught.value)


def test_segments_from_data_are_refused(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, data=torch.zeros(5, 1))
    with pytest.raises(SigdegError, match="it holds segments that start from data"):
        SharedPaths(cache, GRID, 2)


def untrained(order: int = 2, **options: Any) -> SignatureStudent:
    noise = options.get("residual_noise")
    network = ResidualMLP(SignatureStudent.in_channels(1, order, residual_noise=noise), 1, 8, 1)
    for i, p in enumerate(network.parameters()):
        nn.init.uniform_(p, -0.1, 0.1, generator=seeded(i))
    return SignatureStudent(network, SCHEDULE, 1, order, data_std=2.06, **options)


def run(folder: Path, student: SignatureStudent, **options: Any) -> Distilled:
    arguments: dict[str, Any] = {
        "teacher": Exponential(MIXTURE),
        "iterations": 12,
        "batch_size": 12,
        "held_out": 10,
        "checkpoint_every": 5,
        "ema": 0.9,
        "tracker": "none",
        "device": "cpu",
        "progress": False,
        "judge": 0,
        **options,
    }
    return distill(student, arguments.pop("teacher"), folder, **arguments)


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


STUDENTS: dict[str, dict[str, Any]] = {
    "two steps": {"steps": (2,)},
    "one step, order 5": {"steps": (1,), "order": 5},
    "elastic": {"steps": (1, 2, 4), "order": 3},
    "energy": {"steps": (2,), "order": 4, "residual_noise": "energy"},
}


def test_one_simulation_serves_many_students(tmp_path: Path) -> None:
    """No path is simulated again; each student is told what the paths cost."""
    teacher = Exponential(Counter())
    cache = make_cache(tmp_path / "cache", teacher)
    calls = teacher.denoiser.asked
    assert calls == [40 * 12]
    for name, options in STUDENTS.items():
        student = untrained(**options)
        result = run(tmp_path / name, student, teacher=teacher, cache=cache)
        assert not torch.equal(weights(result.student), weights(student))
        assert result.teacher_nfe == 40 * 12
        assert not (tmp_path / name / "paths").exists()
        again = run(tmp_path / name, student, teacher=teacher, cache=cache)
        assert torch.equal(weights(again.student), weights(result.student))
    assert calls == [40 * 12]


def test_it_is_the_distillation_from_paths_of_ones_own(tmp_path: Path) -> None:
    """With the student's own grid and order nothing but the place of the shards is different."""
    student = untrained(5, steps=(4,))
    shards = {"paths": 40, "held_out": 10, "seed": 3, "shard_size": 16, "refinement": 3}
    own = run(tmp_path / "own", student, **shards)
    cache = make_cache(tmp_path / "cache")
    shared = run(tmp_path / "shared", student, **shards, cache=cache)
    assert torch.equal(weights(shared.student), weights(own.student))
    assert torch.equal(shared.history, own.history)


def test_interrupted_it_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, student = make_cache(tmp_path / "cache"), untrained(steps=(1, 2))
    whole = run(tmp_path / "whole", student, cache=cache)
    update, steps = job.ema_update, []

    def stop(*arguments: Any) -> None:
        steps.append(1)
        if len(steps) == 8:
            raise KeyboardInterrupt
        update(*arguments)

    monkeypatch.setattr(job, "ema_update", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", student, cache=cache)
    again = run(tmp_path / "parts", student, cache=make_cache(tmp_path / "cache"))
    assert len(steps) == 8 + 12 - 5
    assert torch.equal(weights(again.student), weights(whole.student))
    assert torch.equal(again.history, whole.history)
    with pytest.raises(SigdegError, match=r"another run \(it differs in cache"):
        run(tmp_path / "parts", student, refinement=3)


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    other = Exponential(GaussianDenoiser(0.0, 1.0, SCHEDULE))
    for student, options, message in [
        (untrained(steps=(2,)), {"teacher": other}, "holds the paths of another teacher"),
        (untrained(steps=(2,)), {"states": "data", "data": torch.zeros(5, 1)}, "leave the data"),
        (untrained(steps=(3,)), {}, "do not pass through the times of 3"),
        (untrained(6, steps=(2,)), {}, "whole paths of order 6 or more"),
        (untrained(5, steps=(2,), residual_noise="energy"), {}, "whole paths of order 6 or more"),
    ]:
        with pytest.raises(SigdegError, match=message) as caught:
            run(tmp_path / "run", student, cache=cache, **options)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()


def test_labels_of_the_cache_reach_teacher_and_student(tmp_path: Path) -> None:
    told: list[Tensor] = []

    class Told(Exponential):
        def forward(self, x: Tensor, t: Any, s: Any, signature: Any, **condition: Any) -> Tensor:
            told.append(condition["class_labels"])
            return super().forward(x, t, s, signature)

    class Listening(nn.Linear):
        def forward(self, x: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
            told.append(class_labels)
            return super().forward(x)

    teacher = Told(MIXTURE)
    cache = make_cache(tmp_path / "cache", teacher, condition={"class_labels": torch.tensor([7])})
    network = Listening(SignatureStudent.in_channels(1, 2), 1)
    student = SignatureStudent(network, SCHEDULE, 1, 2, data_std=2.06, steps=(2,))
    run(tmp_path / "run", student, teacher=teacher, cache=cache)
    assert all(bool((labels == 7).all()) for labels in told)
    assert {len(labels) for labels in told} >= {10, 12}
