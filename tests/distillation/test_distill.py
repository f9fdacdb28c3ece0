"""Distilling: it learns, it accounts for what it spends, and it refuses what cannot work."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from sigdeg.datasets.mixture import GaussianMixture1D
from sigdeg.denoiser import (
    Denoiser,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    NetworkDenoiser,
)
from sigdeg.distillation import DistillConfig, Distilled, Objective, TeacherPaths, distill
from sigdeg.distillation.levels import neyman_split
from sigdeg.distillation.objective import Segments
from sigdeg.errors import SigdegError
from sigdeg.grids import coarse_grid, refine
from sigdeg.metrics import w1_exact
from sigdeg.networks import ResidualMLP
from sigdeg.sampling import sample
from sigdeg.schedule import Cosine, DiscreteVP, VPLinear
from sigdeg.steps import EulerMaruyama, Exponential, ShARK
from sigdeg.student import PlainStudent, SignatureStudent
from sigdeg.training.config import learning_rate
from sigdeg.training.weights import Average, ema_update

SCHEDULE = VPLinear()
LAW = GaussianMixture1D()
MIXTURE = GaussianMixtureDenoiser(LAW.means, LAW.stds, LAW.weights, SCHEDULE)
TEACHER = Exponential(MIXTURE)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def untrained(order: int = 2, width: int = 8, **options: Any) -> SignatureStudent:
    noise = options.get("residual_noise")
    inputs = SignatureStudent.in_channels(1, order, residual_noise=noise)
    network = ResidualMLP(inputs, 1, width, 2)
    for i, (name, p) in enumerate(network.named_parameters()):
        if not name.startswith("head"):
            nn.init.uniform_(p, -(width**-0.5), width**-0.5, generator=seeded(i))
    arguments: dict[str, Any] = {"data_std": 2.06, "steps": (4,), **options}
    return SignatureStudent(network, SCHEDULE, 1, order, **arguments)


def run(folder: Path, student: SignatureStudent | None = None, **options: Any) -> Distilled:
    """A distillation of a few steps."""
    arguments: dict[str, Any] = {
        "teacher": TEACHER,
        "iterations": 5,
        "batch_size": 16,
        "paths": 30,
        "held_out": 10,
        "refinement": 3,
        "tracker": "none",
        "device": "cpu",
        "progress": False,
        "judge": 0,
        **options,
    }
    return distill(student or untrained(), arguments.pop("teacher"), folder, **arguments)


def distance(step: SignatureStudent, steps: int | None = None) -> float:
    return w1_exact(sample(step, step.grid(steps), (20_000, 1), generator=seeded(9)), LAW)


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_it_learns(tmp_path: Path) -> None:
    """1DN in four calls: both losses fall and samples come near the true law."""
    student = untrained(width=32)
    before = weights(student).clone()
    result = run(
        tmp_path,
        student,
        iterations=700,
        batch_size=256,
        learning_rate=4e-3,
        warmup=20,
        ema=0.99,
        paths=3000,
        held_out=500,
        refinement=16,
    )
    first, last = result.history[0], result.history[-1]
    assert result.history[:, 0].tolist() == [100, 200, 300, 400, 500, 600, 700]
    assert last[1] < 0.6 * first[1]
    assert last[2] < 0.6 * first[2]
    assert distance(student) > 0.5
    assert distance(result.student) < 0.15
    assert torch.equal(weights(student), before)  # the one that was given stays as it is
    loaded = SignatureStudent.from_pretrained(tmp_path / "student")
    assert torch.equal(weights(loaded), weights(result.student))
    assert result.seconds > 0


class Counter(Denoiser):
    """A denoiser that counts the samples it is asked for."""

    def __init__(self, inner: Denoiser = MIXTURE) -> None:
        super().__init__(SCHEDULE)
        self.inner, self.asked = inner, 0

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        self.asked += x.shape[0]
        return self.inner(x, t)


@pytest.mark.parametrize("options", [{}, {"paths": 0}, {"q": 0}, {"shard_size": 7}], ids=str)
@pytest.mark.parametrize("step", [EulerMaruyama, Exponential, ShARK])
def test_teacher_calls_are_counted(tmp_path: Path, step: Any, options: dict[str, Any]) -> None:
    counter = Counter()
    result = run(tmp_path, teacher=step(counter), **options)
    assert result.teacher_nfe == counter.asked > 0


def test_progressive_merging(tmp_path: Path) -> None:
    """A student of 4 steps teaches one of 2: two calls a pair, and it follows its teacher."""
    grid = coarse_grid(SCHEDULE, 4)
    teacher = untrained(width=16)
    nn.init.normal_(teacher.network.head.weight, std=0.3, generator=seeded())
    calls = []
    teacher.network.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    student = untrained(width=16)
    student.network.load_state_dict(teacher.network.state_dict())
    student = SignatureStudent(student.network, SCHEDULE, 1, data_std=2.06, steps=(2,))
    result = run(
        tmp_path,
        student,
        teacher=teacher,
        fine=grid,
        iterations=300,
        batch_size=128,
        learning_rate=1e-2,
        warmup=10,
        ema=0.98,
        paths=2000,
        held_out=500,
    )
    assert result.teacher_nfe == 2000 * 4 == sum(calls)
    assert result.history[-1, 2] < 0.3 * 1  # the untrained student's loss is 1
    assert torch.equal(student.grid(), grid[::2])


def test_the_teachers_grid_contains_the_students(tmp_path: Path) -> None:
    for fine in (coarse_grid(SCHEDULE, 6), coarse_grid(SCHEDULE, 8, "uniform")):
        with pytest.raises(SigdegError, match="must contain every time of the student's"):
            run(tmp_path / "a", fine=fine)
    assert not (tmp_path / "a").exists()
    whole = run(tmp_path / "b", fine=refine(SCHEDULE, coarse_grid(SCHEDULE, 4), 3).unique().flip(0))
    assert torch.equal(weights(whole.student), weights(run(tmp_path / "c").student))


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "two steps": ({}, {"q": 2}),
    "global": ({}, {"q": 0}),
    "energy": ({"residual_noise": "energy"}, {"q": 2}),
    "elastic energy": ({"residual_noise": "energy", "steps": (2, 4)}, {}),
    "elastic": ({"steps": (1, 2, 4)}, {}),
    "fresh": ({}, {"paths": 0}),
    "data": ({}, {"states": "data", "data": torch.randn(50, 1, generator=seeded())}),
    "data in runs": (
        {},
        {"states": "data", "q": 3, "data": torch.randn(50, 1, generator=seeded())},
    ),
    "fresh data": ({}, {"states": "data", "paths": 0, "data": torch.zeros(5, 1)}),
    "plain": ({}, {}),
    "order 5": ({"order": 5}, {}),
    "bf16": ({}, {"mixed_precision": "bf16"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_runs_reproducibly(tmp_path: Path, kind: str) -> None:
    options, arguments = KINDS[kind]
    if kind == "plain":
        network = ResidualMLP(PlainStudent.in_channels(1), 1, 8, 1)
        student: SignatureStudent = PlainStudent(network, SCHEDULE, 1, steps=(4,))
    else:
        student = untrained(**options)
    first, second = (run(tmp_path / name, student, **arguments) for name in "ab")
    assert torch.equal(weights(first.student), weights(second.student))
    assert torch.equal(first.history, second.history)
    assert not torch.equal(weights(first.student), weights(student))
    other = run(tmp_path / "c", student, seed=1, **arguments)
    assert not torch.equal(weights(first.student), weights(other.student))


@pytest.mark.parametrize("paths", [0, 30])
def test_lower_precision_is_the_networks_alone(
    tmp_path: Path, paths: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teacher states and signatures reach the loss as exact as they were drawn."""
    forward, seen = Objective.forward, []

    def watched(self: Objective, drawn: Segments) -> dict[str, Tensor]:
        seen.extend(drawn.levels)
        return forward(self, drawn)

    monkeypatch.setattr(Objective, "forward", watched)
    student = untrained(steps=(2, 4))
    for name, precision in (("a", "no"), ("b", "bf16")):
        run(tmp_path / name, student, paths=paths, mixed_precision=precision)
    half = len(seen) // 2
    for exact, lower in zip(seen[:half], seen[half:], strict=True):
        assert torch.equal(lower.states, exact.states)
        assert torch.equal(lower.coefficients, exact.coefficients)


def test_lower_precision_leaves_the_response_to_the_path_exact() -> None:
    """An untrained student is an exact formula: nothing of it may be rounded to 8 bits."""
    from sigdeg.signature import PartialSignature

    student = untrained()
    x, path = (
        torch.randn(50, 1, generator=seeded()),
        PartialSignature.sample(0.3, (50, 1), 2, seeded(1)),
    )
    exact = student(x, 0.5, 0.2, path)
    with torch.autocast("cpu", torch.bfloat16):
        lower = student(x, 0.5, 0.2, path)
    torch.testing.assert_close(lower, exact, rtol=1e-5, atol=1e-5)


def test_elastic_learns_from_one_set_of_paths(tmp_path: Path) -> None:
    """Whole paths, simulated once, serve every step count: the loss of each level falls."""
    counter = Counter()
    student = untrained(4, 32, steps=(1, 2, 4))
    result = run(
        tmp_path,
        student,
        teacher=Exponential(counter),
        iterations=250,
        batch_size=192,
        learning_rate=5e-3,
        warmup=20,
        ema=0.98,
        paths=1500,
        held_out=300,
        refinement=6,
        late=0,  # so few iterations have none to spare for late steps
    )
    assert counter.asked == 1500 * 24
    grids = [student.grid(k) for k in (4, 2, 1)]
    unseen = TeacherPaths(Exponential(MIXTURE), list(refine(SCHEDULE, grids[0], 6)), (1,), 4)
    segments = unseen.draw(1000, seeded(5))
    objective = Objective(student, grids)
    objective.normalise(segments)
    objective.student = result.student
    for level in range(3):  # the untrained student's loss is 1
        view = segments.coarsen(grids[0], 2**level).window(1, seeded(6))
        assert float(objective.errors([view], [level])[0].detach().mean()) < 0.8
    assert distance(result.student, 1) < 0.75 * distance(student, 1)


def test_shares_of_a_batch() -> None:
    """All of it is dealt out; of all splits at its cost it leaves the least noise."""
    assert neyman_split(64, [1, 1, 1, 1]) == [16] * 4
    costs = [9, 4, 1]
    found = neyman_split(1100, costs)
    assert found == [200, 300, 600]
    budget = sum(n * c for n, c in zip(found, costs, strict=True))
    noise = {
        (a, b): 1 / a + 1 / b + 1 / (budget - 9 * a - 4 * b)
        for a in range(10, 400, 10)
        for b in range(10, 600, 10)
        if budget > 9 * a + 4 * b
    }
    assert min(noise, key=noise.__getitem__) == (200, 300)
    for n in range(4, 100):
        assert sum(neyman_split(n, [10, 5, 2, 1])) == n


@pytest.mark.parametrize(
    ("student", "options", "message"),
    [
        ({}, {"q": 5}, "q must lie between 1 and 4 steps, got 5"),
        ({"steps": (2, 4)}, {"q": 5}, "q must lie between 1 and 4 steps, got 5"),
        ({"steps": (3, 4)}, {}, "step counts must divide the largest"),
        ({"steps": (1, 2, 4)}, {"batch_size": 2}, "at least 3 segments in a batch and held out"),
        ({"steps": (1, 2, 4)}, {"held_out": 2}, "at least 3 segments in a batch and held out"),
        ({"steps": (1, 2, 4)}, {"paths": 0, "held_out": 0}, "at least 3 segments"),
        ({"residual_noise": "energy", "steps": (2, 4)}, {"batch_size": 9}, "at least 10 segments"),
        (
            {"residual_noise": "energy", "steps": (2, 4)},
            {"batch_size": 10, "q": 0},
            "at least 11 segments",
        ),
        ({}, {"states": "data"}, "needs data"),
        ({}, {"data": torch.zeros(5, 1)}, 'states="teacher" takes none'),
        ({"steps": (2, 4)}, {"states": "data", "data": torch.zeros(5, 1)}, "whole paths"),
        ({}, {"states": "data", "data": torch.zeros(5, 2)}, r"shape \(2,\), the student \(1,\)"),
        ({}, {"states": "data", "data": torch.zeros(0, 1)}, "no samples to train on"),
        (
            {},
            {"states": "data", "data": torch.tensor([[0.0], [math.nan], [math.inf]])},
            "2 of 3 samples hold NaN or infinite values",
        ),
        (
            {},
            {"teacher": Exponential(NetworkDenoiser(ResidualMLP(2, 2, 8, 1), SCHEDULE, "edm"))},
            r"no samples of the student's shape \(1,\): mat1 and mat2",
        ),
        (
            {},
            {"teacher": Exponential(GaussianDenoiser(torch.zeros(3), 1.0, SCHEDULE))},
            r"no samples of the student's shape \(1,\): it gives \(3,\)",
        ),
        ({}, {"states": "noise"}, "unknown states 'noise'"),
        ({}, {"iterations": 0}, "iterations must be at least 1, got 0"),
        ({}, {"batch_size": 0}, "batch_size must be at least 1"),
        ({}, {"paths": -1}, "paths must be at least 0"),
        ({}, {"held_out": -1}, "held_out must be at least 0"),
        ({}, {"refinement": 0}, "refinement must be at least 1"),
        ({}, {"refinement": 1}, "refinement must be at least 2"),
        ({}, {"checkpoint_every": 0}, "checkpoint_every must be at least 1"),
        ({}, {"shard_size": 0}, "shard_size must be at least 1"),
        ({}, {"learning_rate": 0.0}, "learning_rate"),
        ({}, {"ema": 1.0}, "ema must lie in"),
        ({}, {"gradient_clip": 0.0}, "gradient_clip"),
        ({}, {"seed": -1}, "seed must be at least 0"),
        ({}, {"iterations": 2.5}, "iterations must be a whole number, got 2.5"),
        ({}, {"paths": "2"}, "paths must be a whole number, got '2'"),
        ({}, {"batch_size": True}, "batch_size must be a whole number, got True"),
        ({}, {"q": None}, "q must be a whole number, got None"),
        ({}, {"late": -1}, "late must be at least 0, got -1"),
        ({}, {"late": 5}, "late must lie between 0 and 4, got 5"),
    ],
)
def test_refused_before_anything_is_written(
    tmp_path: Path, student: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SigdegError, match=message) as caught:
        run(tmp_path / "run", untrained(**student), **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


class TestFolder:
    """A folder belongs to one run."""

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            ({"seed": 1}, "seed"),
            ({"iterations": 6}, "iterations"),
            ({"student": untrained(width=9)}, "student"),
            ({"student": untrained(data_std=1.0)}, "student"),
            ({"student": untrained(power=1.0)}, "grids"),
            ({"student": untrained(3)}, "order"),
            ({"teacher": EulerMaruyama(MIXTURE)}, "teacher"),
            ({"teacher": Exponential(MIXTURE, data_std=1.0)}, "teacher"),
            ({"teacher": Exponential(GaussianDenoiser(0.0, 1.0, SCHEDULE))}, "teacher"),
            ({"teacher": Exponential(GaussianDenoiser(0.0, 1.0, Cosine()))}, "teacher"),
            ({"fine": refine(SCHEDULE, coarse_grid(SCHEDULE, 4), 5).unique().flip(0)}, "fine"),
        ],
    )
    def test_another_run_is_refused(
        self, tmp_path: Path, change: dict[str, Any], word: str
    ) -> None:
        base: dict[str, Any] = {"paths": 0}
        if "Cosine" in str(change.get("teacher", "")):
            base["teacher"] = Exponential(GaussianDenoiser(0.0, 1.0, SCHEDULE))
        run(tmp_path, **base)
        with pytest.raises(SigdegError, match=rf"holds another run \(.*\b{word}\b") as caught:
            run(tmp_path, **{**base, **change})
        assert "\n" not in str(caught.value)

    def test_other_data(self, tmp_path: Path) -> None:
        run(tmp_path, states="data", data=torch.zeros(5, 1))
        with pytest.raises(SigdegError, match=r"another run \(.*data"):
            run(tmp_path, states="data", data=torch.ones(5, 1))

    def test_the_teachers_schedule_is_part_of_it(self, tmp_path: Path) -> None:
        run(tmp_path, teacher=Exponential(GaussianDenoiser(0.0, 1.0, SCHEDULE)))
        other = Exponential(GaussianDenoiser(0.0, 1.0, VPLinear(beta_max=19.0)))
        with pytest.raises(SigdegError, match=r"another run \(.*teacher"):
            run(tmp_path, teacher=other)

    def test_the_mode_of_a_module_is_not(self, tmp_path: Path) -> None:
        """A teacher comes back from a first run in evaluation mode: it is the same teacher."""
        student = untrained()
        first = run(tmp_path, student.train(), teacher=copy.deepcopy(TEACHER).train())
        again = run(tmp_path, student.eval(), teacher=copy.deepcopy(TEACHER).eval())
        assert torch.equal(weights(first.student), weights(again.student))

    def test_no_resuming(self, tmp_path: Path) -> None:
        run(tmp_path, resume=False)
        with pytest.raises(SigdegError, match="holds this run already: resume it or choose"):
            run(tmp_path, resume=False)
        run(tmp_path)

    def test_foreign_folder(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("dear")
        with pytest.raises(SigdegError, match="not empty and holds no such run"):
            run(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]

    @pytest.mark.parametrize("text", ["", "[]", "{"])
    def test_damaged_identity(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(SigdegError, match=r"config\.json is damaged"):
            run(tmp_path)

    @pytest.mark.parametrize("place", ["file", "file/run", "/proc/run"])
    def test_no_place_to_write(self, tmp_path: Path, place: str) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(SigdegError, match="cannot write") as caught:
            run(tmp_path / place)
        assert "\n" not in str(caught.value)
        assert [p.name for p in tmp_path.iterdir()] == ["file"]

    def test_full_disk(self, tmp_path: Path) -> None:
        """The run stops at what does not fit, leaves nothing half written, and goes on later."""
        import resource
        import signal

        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for size, fits in ((4096, "config.json"), (12_000, "paths-00000.safetensors")):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
            try:
                with pytest.raises(SigdegError, match=r"cannot write .*File too large"):
                    run(tmp_path, paths=40, batch_size=4)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            assert fits in [p.name for p in tmp_path.rglob("*") if p.is_file()]
            assert not [p for p in tmp_path.rglob(".*")]
        signal.signal(signal.SIGXFSZ, handler)
        assert bool(torch.isfinite(run(tmp_path, paths=40, batch_size=4).history).all())


def test_options_and_config_say_the_same(tmp_path: Path) -> None:
    work = {"iterations": 5, "batch_size": 16, "paths": 30, "held_out": 10, "refinement": 3}
    config = DistillConfig.for_samples((1,), 4, **work, tracker="none")
    other = distill(untrained(), TEACHER, tmp_path / "a", config, device="cpu", progress=False)
    assert torch.equal(weights(other.student), weights(run(tmp_path / "b").student))


def test_averaged_weights_are_the_ones_kept(tmp_path: Path, monkeypatch: Any) -> None:
    r"""After step n, $\bar w = \beta \bar w + (1 - \beta) w$, $\beta = \min(ema, (1+n)/(10+n))$."""
    from sigdeg.training import job

    trace: list[Tensor] = []

    def watched(average: Average, model: nn.Module, decay: float) -> None:
        trace.append(weights(model).clone())
        ema_update(average, model, decay)

    monkeypatch.setattr(job, "ema_update", watched)
    student = untrained()
    result = run(tmp_path, student, iterations=12, ema=0.5)
    expected = weights(student)
    for step, now in enumerate(trace):
        beta = min(0.5, (1 + step) / (10 + step))
        expected = beta * expected + (1 - beta) * now
    torch.testing.assert_close(weights(result.student), expected)
    assert not torch.equal(trace[-1], expected)


def test_learning_rate_warms_up_and_fades() -> None:
    config = DistillConfig(iterations=110, warmup=10, learning_rate=2.0)
    rates = [learning_rate(step, config) for step in range(110)]
    assert rates[:10] == pytest.approx([0.2 * k for k in range(1, 11)])
    assert rates[10] == 2.0
    assert rates[60] == pytest.approx(1.0)
    for k in (25, 75, 99):
        assert rates[10 + k] == pytest.approx(2 * math.cos(math.pi * k / 200) ** 2)
    assert learning_rate(0, dataclasses.replace(config, warmup=0)) == 2.0


def test_trained_at_that_rate_with_clipped_gradients(tmp_path: Path, monkeypatch: Any) -> None:
    """The first Adam step moves each weight by the rate of step 0, whatever the gradient."""
    from sigdeg.training import job

    trace: list[Tensor] = []

    def watched(average: Average, model: nn.Module, decay: float) -> None:
        trace.append(weights(model).clone())
        ema_update(average, model, decay)

    monkeypatch.setattr(job, "ema_update", watched)
    student = untrained()
    run(tmp_path, student, iterations=1, warmup=4, learning_rate=0.01)
    moved = (trace[0] - weights(student)).abs()
    assert moved.max() == pytest.approx(0.01 / 4, rel=1e-3)


def test_tensorboard_holds_the_curves(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run(tmp_path, iterations=200, tracker="tensorboard")
    (events,) = {
        p.parent for p in (tmp_path / "events").rglob("events.out.*") if p.stat().st_size > 200
    } or {None}
    log = EventAccumulator(str(events)).Reload()
    for column, name in ((1, "loss"), (2, "held_out")):
        read = [(e.step, e.value) for e in log.Scalars(name)]
        expected = [(int(row[0]), float(row[column])) for row in result.history]
        assert read == [(k, pytest.approx(v, rel=1e-6)) for k, v in expected]


def test_progress_shows_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "a", progress=True)
    shown = capsys.readouterr().err
    assert "teacher paths" in shown
    assert "loss=" in shown
    assert "held_out=" in shown
    run(tmp_path / "b", progress=False)
    assert capsys.readouterr().err == ""


def test_a_teacher_of_other_noise_levels_is_refused(tmp_path: Path) -> None:
    """Before anything is written; an equal schedule may be another object."""
    network = ResidualMLP(SignatureStudent.in_channels(1, 2), 1, 8, 1)
    student = SignatureStudent(network, VPLinear(), 1, data_std=1.0, steps=(2,))
    for other in (VPLinear(beta_max=10.0), Cosine(), DiscreteVP((3.0, 0.0, -4.0))):
        with pytest.raises(SigdegError, match="the teacher has other noise levels"):
            distill(student, Exponential(GaussianDenoiser(0.0, 1.0, other)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    table = torch.linspace(1, 1 / 1000, 1000, dtype=torch.float64)
    fine = VPLinear().log_snr(table.flip(0))
    assert not VPLinear().equals(DiscreteVP(tuple((fine + 1e-3).tolist())))
    assert DiscreteVP(tuple(fine.tolist())).equals(DiscreteVP(tuple((fine + 1e-9).tolist())))
