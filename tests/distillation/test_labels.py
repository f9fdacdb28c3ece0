"""Conditional teachers: labels stay with their paths, and the student follows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Generator, Tensor, nn

from sigdeg.denoiser import Denoiser
from sigdeg.distillation import Batch, CachedPaths, Distilled, TeacherPaths, distill
from sigdeg.errors import SigdegError
from sigdeg.grids import coarse_grid, refine
from sigdeg.guidance import ClassifierFreeGuidance
from sigdeg.networks import ResidualMLP
from sigdeg.sampling import sample
from sigdeg.schedule import VPLinear, expand
from sigdeg.steps import Exponential
from sigdeg.student import SignatureStudent

SCHEDULE = VPLinear()
STD = 0.3
MEANS = torch.tensor([-2.0, 1.0, 3.0, 0.0])  # the last one stands for none
GRID = coarse_grid(SCHEDULE, 2)
ROWS = list(refine(SCHEDULE, GRID, 6))


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


class Classes(Denoiser):
    r"""Exact denoiser of $N(\mu_c, 0.3^2)$, a Gaussian for each class."""

    def forward(self, x: Tensor, t: Tensor, *, class_labels: Tensor) -> Tensor:
        t = torch.as_tensor(t)
        alpha, sigma = expand(self.schedule.alpha(t), x), expand(self.schedule.sigma(t), x)
        mean = MEANS[class_labels][:, None].to(x)
        return mean + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * mean)


class Conditional(nn.Module):
    """A residual MLP that is told the class."""

    def __init__(self, inputs: int, width: int = 16) -> None:
        super().__init__()
        self.inner = ResidualMLP(inputs + 3, 1, width, 1)
        for i, (name, p) in enumerate(self.inner.named_parameters()):
            if not name.startswith("head"):
                nn.init.uniform_(p, -(width**-0.5), width**-0.5, generator=seeded(i))

    def forward(self, x: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        told = nn.functional.one_hot(class_labels, 3).to(x)
        out: Tensor = self.inner(torch.cat([x, told], dim=1), timestep)
        return out


class Tell(nn.Module):
    """A teacher whose states are the labels it was called with."""

    order = nfe = 1
    schedule = SCHEDULE

    def forward(self, x: Tensor, t: Any, s: Any, signature: Any, *, class_labels: Tensor) -> Tensor:
        return class_labels[:, None].expand_as(x).to(x)


def untrained(**options: Any) -> SignatureStudent:
    network = Conditional(SignatureStudent.in_channels(1, 2, **options))
    return SignatureStudent(network, SCHEDULE, 1, 2, data_std=STD, steps=(2,), **options)


def run(folder: Path, student: SignatureStudent | None = None, **options: Any) -> Distilled:
    arguments: dict[str, Any] = {
        "teacher": Exponential(Classes(SCHEDULE)),
        "labels": torch.arange(3),
        "iterations": 5,
        "batch_size": 16,
        "paths": 30,
        "held_out": 10,
        "refinement": 6,
        "tracker": "none",
        "device": "cpu",
        "progress": False,
        "judge": 0,
        **options,
    }
    return distill(student or untrained(), arguments.pop("teacher"), folder, **arguments)


class TestBatch:
    """Labels go wherever their segments go."""

    def batch(self) -> Batch:
        """Segments whose states are all equal to their label."""
        labels = torch.arange(6)
        states = labels[:, None, None] * torch.ones(6, 5, 2)
        noise = torch.randn(6, 4, 3, 2, generator=seeded())
        return Batch(torch.zeros(6, dtype=torch.int64), states, noise, labels)

    def test_whatever_is_done_to_it(self) -> None:
        batch = self.batch()
        grid = torch.linspace(1, 0, 5, dtype=torch.float64)
        for seen in (
            batch,
            batch.take(torch.tensor([4, 1, 1])),
            batch.take(slice(1, None, 2)),
            batch.window(2, seeded()),
            batch.coarsen(grid, 2),
            batch.with_noise_of(1),
            batch.to("cpu"),
        ):
            assert seen.labels is not None
            told = seen.labels[:, None, None].expand_as(seen.states)
            assert torch.equal(seen.states, told.to(seen.states))
            assert set(seen.condition) == {"class_labels"}
            assert seen.condition["class_labels"] is seen.labels
            assert set(seen.tensors) == {"start", "states", "coefficients", "labels"}
        assert batch.to("meta").condition["class_labels"].device.type == "meta"
        assert batch.to("meta").start.device.type == "cpu"

    def test_without_labels_there_is_no_condition(self) -> None:
        batch = Batch(**{k: v for k, v in self.batch().tensors.items() if k != "labels"})
        assert batch.condition == {}
        assert set(batch.tensors) == {"start", "states", "coefficients"}
        assert batch.window(2, seeded()).labels is None


class TestPaths:
    """The teacher is called with the labels that are kept."""

    @pytest.mark.parametrize("data", [None, torch.zeros(4, 1)])
    def test_the_teacher_is_told(self, data: Tensor | None) -> None:
        paths = TeacherPaths(Tell(), ROWS, (1,), 2, data, labels=torch.tensor([2, 0, 1, 1]))
        batch = paths.draw(50, seeded())
        assert batch.labels is not None
        assert torch.equal(batch.states[:, 1, 0].long(), batch.labels)
        assert torch.equal(batch.states[:, -1, 0].long(), batch.labels)
        assert len(batch.labels.unique()) == 3

    def test_shares_are_those_of_the_labels(self) -> None:
        labels = torch.tensor([0, 2, 2, 2])
        paths = TeacherPaths(Exponential(Classes(SCHEDULE)), ROWS, (1,), 2, labels=labels)
        batch = paths.draw(4000, seeded())
        assert batch.labels is not None
        counts = torch.bincount(batch.labels, minlength=3).tolist()
        assert counts == pytest.approx([1000, 0, 3000], abs=120)  # four standard deviations
        ends = batch.states[:, -1, 0]
        for k in (0, 2):
            own = ends[batch.labels == k]
            assert float(own.mean()) == pytest.approx(float(MEANS[k]), abs=0.05)

    @pytest.mark.parametrize("steps", [1, 2])
    def test_labels_are_those_of_the_data(self, steps: int) -> None:
        """States tell which sample they started from: it is far larger than the noise."""
        labels = torch.randint(3, (40,), generator=seeded())
        data = 1e6 * (1 + labels[:, None].float())
        paths = TeacherPaths(Tell(), ROWS, (1,), 2, data, steps, labels=labels)
        batch = paths.draw(200, seeded(1))
        assert batch.labels is not None
        alpha = SCHEDULE.alpha(GRID[batch.start])
        told = batch.states[:, 0, 0] / alpha / 1e6 - 1
        torch.testing.assert_close(told, batch.labels.double(), rtol=0, atol=1e-2)
        assert torch.equal(batch.states[:, -1, 0].long(), batch.labels)

    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
    def test_cached_shards_keep_them(self, tmp_path: Path, dtype: torch.dtype) -> None:
        labels = torch.arange(3, dtype=dtype)
        paths = TeacherPaths(Tell(), ROWS, (1,), 2, labels=labels)
        cache = CachedPaths(paths, tmp_path, 25, held_out=5, shard_size=10)
        assert len(list(tmp_path.iterdir())) == 3
        files = [load_file(file)["labels"] for file in sorted(tmp_path.iterdir())]
        whole = torch.cat(files)
        assert whole.dtype == dtype
        for batch in (cache.held_out(5), cache.batch(50, seeded())):
            assert batch.labels is not None
            assert torch.equal(batch.states[:, -1, 0].to(dtype), batch.labels)
        assert torch.equal(cache.held_out(5).tensors["labels"], whole[-5:])
        for other in (None, torch.arange(2)):
            again = TeacherPaths(Tell(), ROWS, (1,), 2, labels=other)
            with pytest.raises(SigdegError, match="another simulation"):
                CachedPaths(again, tmp_path, 25, held_out=5, shard_size=10)


class TestDistil:
    """A student of a conditional teacher."""

    def test_it_follows_the_labels(self, tmp_path: Path) -> None:
        """Each class is drawn with its own exact law."""
        student = untrained()
        result = run(
            tmp_path,
            student,
            iterations=250,
            batch_size=64,
            learning_rate=1e-2,
            warmup=10,
            ema=0.97,
            paths=1500,
            held_out=200,
        )
        assert result.history[-1, 2] < 0.05  # the untrained student's loss is 1
        for k in range(3):
            labels = torch.full((2000,), k)
            drawn = sample(
                result.student, GRID, (2000, 1), generator=seeded(k), class_labels=labels
            )
            assert float(drawn.mean()) == pytest.approx(float(MEANS[k]), abs=0.12)
            assert float(drawn.std()) == pytest.approx(STD, abs=0.1)

    @pytest.mark.parametrize(
        "options",
        [{"paths": 0}, {"q": 0}, {"residual_noise": "energy"}, {"states": "data"}],
        ids=str,
    )
    def test_every_kind_takes_labels(self, tmp_path: Path, options: dict[str, Any]) -> None:
        kinds = {k: options[k] for k in options if k == "residual_noise"}
        options = {k: v for k, v in options.items() if k not in kinds}
        if options.get("states") == "data":
            options |= {"data": torch.randn(3, 1, generator=seeded())}
        first = run(tmp_path / "a", untrained(**kinds), **options)
        again = run(tmp_path / "b", untrained(**kinds), **options)
        assert torch.equal(first.history, again.history)
        with pytest.raises(SigdegError, match=r"another run \(it differs in labels\)"):
            run(tmp_path / "a", untrained(**kinds), **options, labels=torch.tensor([0, 1, 1]))

    def test_the_teacher_may_be_guided(self, tmp_path: Path) -> None:
        r"""Guidance at 2 of these Gaussians has the mean $2 \mu_c - \mu_\emptyset$."""
        none = {"class_labels": torch.tensor([3])}
        guided = ClassifierFreeGuidance(Classes(SCHEDULE), 2.0, none)
        run(tmp_path, teacher=Exponential(guided), labels=torch.tensor([1]), paths=600)
        kept = load_file(tmp_path / "paths" / "paths-00000.safetensors")
        assert float(kept["states"][:, -1].mean()) == pytest.approx(2.0, abs=0.06)
        assert bool((kept["labels"] == 1).all())

    def test_as_many_labels_as_samples(self, tmp_path: Path) -> None:
        with pytest.raises(SigdegError, match="5 samples need as many labels, got 3"):
            run(tmp_path / "run", states="data", data=torch.zeros(5, 1))
        assert not (tmp_path / "run").exists()

    def test_no_labels_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(SigdegError, match="there are no labels to draw from"):
            run(tmp_path / "run", labels=torch.arange(0))
        assert not (tmp_path / "run").exists()

    def test_a_conditional_teacher_without_labels_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SigdegError, match="class_labels") as caught:
            run(tmp_path / "run", labels=None)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()
