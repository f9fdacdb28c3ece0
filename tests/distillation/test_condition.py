"""Conditional teachers: what a path is told stays with it, and the student follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Generator, Tensor, nn

from sigdeg.denoiser import Denoiser
from sigdeg.distillation import Distilled, distill
from sigdeg.errors import SigdegError
from sigdeg.grids import coarse_grid, refine
from sigdeg.guidance import ClassifierFreeGuidance
from sigdeg.networks import ResidualMLP
from sigdeg.paths import Batch, CachedPaths, TeacherPaths
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
        "condition": {"class_labels": torch.arange(3)},
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
    """Conditions go wherever their segments go."""

    def batch(self) -> Batch:
        """Segments whose states are all equal to their label, and so is a sequence of vectors."""
        labels = torch.arange(6)
        states = labels[:, None, None] * torch.ones(6, 5, 2)
        noise = torch.randn(6, 4, 3, 2, generator=seeded())
        told = {"class_labels": labels, "encoder_hidden_states": states[:, :3]}
        return Batch(torch.zeros(6, dtype=torch.int64), states, noise, told)

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
            assert list(seen.condition) == ["class_labels", "encoder_hidden_states"]
            labels, vectors = seen.condition.values()
            told = labels[:, None, None].expand_as(seen.states)
            assert torch.equal(seen.states, told.to(seen.states))
            assert torch.equal(vectors, told[:, :1].expand(len(seen), 3, 2).to(vectors))
        assert batch.to("meta").condition["class_labels"].device.type == "meta"
        assert batch.to("meta").start.device.type == "cpu"


class TestPaths:
    """The teacher is called with the condition that is kept."""

    @pytest.mark.parametrize("data", [None, torch.zeros(4, 1)])
    def test_the_teacher_is_told(self, data: Tensor | None) -> None:
        told = {"class_labels": torch.tensor([2, 0, 1, 1])}
        batch = TeacherPaths(Tell(), ROWS, (1,), 2, data, condition=told).draw(50, seeded())
        labels = batch.condition["class_labels"]
        assert torch.equal(batch.states[:, 1, 0].long(), labels)
        assert torch.equal(batch.states[:, -1, 0].long(), labels)
        assert len(labels.unique()) == 3

    def test_shares_are_those_of_the_labels(self) -> None:
        told = {"class_labels": torch.tensor([0, 2, 2, 2])}
        paths = TeacherPaths(Exponential(Classes(SCHEDULE)), ROWS, (1,), 2, condition=told)
        batch = paths.draw(4000, seeded())
        labels = batch.condition["class_labels"]
        counts = torch.bincount(labels, minlength=3).tolist()
        assert counts == pytest.approx([1000, 0, 3000], abs=120)  # four standard deviations
        ends = batch.states[:, -1, 0]
        for k in (0, 2):
            own = ends[labels == k]
            assert float(own.mean()) == pytest.approx(float(MEANS[k]), abs=0.05)

    @pytest.mark.parametrize("steps", [1, 2])
    def test_labels_are_those_of_the_data(self, steps: int) -> None:
        """States tell which sample they started from: it is far larger than the noise."""
        labels = torch.randint(3, (40,), generator=seeded())
        data = 1e6 * (1 + labels[:, None].float())
        told = {"class_labels": labels}
        paths = TeacherPaths(Tell(), ROWS, (1,), 2, data, steps, condition=told)
        batch = paths.draw(200, seeded(1))
        labels = batch.condition["class_labels"]
        alpha = SCHEDULE.alpha(GRID[batch.start])
        seen = batch.states[:, 0, 0] / alpha / 1e6 - 1
        torch.testing.assert_close(seen, labels.double(), rtol=0, atol=1e-2)
        assert torch.equal(batch.states[:, -1, 0].long(), labels)

    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
    def test_cached_shards_keep_their_rows(self, tmp_path: Path, dtype: torch.dtype) -> None:
        labels = torch.tensor([1, 0, 2], dtype=dtype)
        told = {"class_labels": labels, "prompt": 10.0 * labels[:, None]}

        class TellOne(Tell):
            def forward(self, *given: Any, prompt: Tensor, **told: Tensor) -> Tensor:
                return super().forward(*given, **told)

        paths = TeacherPaths(TellOne(), ROWS, (1,), 2, condition=told)
        cache = CachedPaths(paths, tmp_path, 25, held_out=5, shard_size=10)
        assert len(list(tmp_path.iterdir())) == 3
        files = [load_file(file)["row"] for file in sorted(tmp_path.iterdir())]
        whole = labels[torch.cat(files)]
        for batch in (cache.held_out(5), cache.batch(50, seeded())):
            kept = batch.condition["class_labels"]
            assert kept.dtype == dtype
            assert torch.equal(batch.states[:, -1, 0].to(dtype), kept)
            assert torch.equal(batch.condition["prompt"], 10.0 * kept[:, None])
        assert torch.equal(cache.held_out(5).condition["class_labels"], whole[-5:])
        for other in ({"class_labels": labels}, {**told, "prompt": labels[:, None].float()}):
            again = TeacherPaths(TellOne(), ROWS, (1,), 2, condition=other)
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
        other = {"class_labels": torch.tensor([0, 1, 1])}
        with pytest.raises(SigdegError, match=r"another run \(it differs in condition\)"):
            run(tmp_path / "a", untrained(**kinds), **options, condition=other)

    def test_the_teacher_may_be_guided(self, tmp_path: Path) -> None:
        r"""Guidance at 2 of these Gaussians has the mean $2 \mu_c - \mu_\emptyset$."""
        none = {"class_labels": torch.tensor([3])}
        guided = ClassifierFreeGuidance(Classes(SCHEDULE), 2.0, none)
        told = {"class_labels": torch.tensor([5, 1])[1:]}
        run(tmp_path, teacher=Exponential(guided), condition=told, paths=600)
        kept = load_file(tmp_path / "paths" / "paths-00000.safetensors")
        assert float(kept["states"][:, -1].mean()) == pytest.approx(2.0, abs=0.06)
        assert bool((kept["row"] == 0).all())

    @pytest.mark.parametrize(
        ("options", "line"),
        [
            (
                {"states": "data", "data": torch.zeros(5, 1)},
                "5 samples need as many rows of class_labels, got 3",
            ),
            (
                {"condition": {"class_labels": torch.arange(3), "prompt": torch.zeros(2, 4)}},
                "3 rows of the others need as many rows of prompt, got 2",
            ),
            ({"condition": {"class_labels": torch.arange(0)}}, "no rows of class_labels to draw"),
            ({"condition": {"class_labels": [0, 1]}}, "class_labels to draw from: give a tensor"),
            ({"condition": None}, "the teacher is told 'class_labels' too: give condition="),
            (
                {"labels": torch.arange(3)},
                r"labels= is given as condition=.\"class_labels\": labels",
            ),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, tmp_path: Path, options: dict[str, Any], line: str
    ) -> None:
        with pytest.raises(SigdegError, match=line) as caught:
            run(tmp_path / "run", **options)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()


def attend(query: Tensor, vectors: Tensor) -> Tensor:
    """Single-headed attention of a number to a sequence of vectors (key, value), shape (n, 1)."""
    weights = torch.softmax(query * vectors[..., 0], dim=1)
    return (weights * vectors[..., 1]).sum(1, keepdim=True)


class Prompted(Denoiser):
    """Exact denoiser of a Gaussian whose mean is told by a sequence of vectors."""

    def forward(self, x: Tensor, t: Tensor, *, encoder_hidden_states: Tensor) -> Tensor:
        alpha, sigma = (expand(f(torch.as_tensor(t)), x) for f in (SCHEDULE.alpha, SCHEDULE.sigma))
        mean = attend(torch.ones_like(x), encoder_hidden_states.to(x))
        return mean + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * mean)


class Reads(nn.Module):
    """A residual MLP that reads a class and a sequence of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Conditional(SignatureStudent.in_channels(1, 2) + 1)

    def forward(
        self, x: Tensor, timestep: Tensor, class_labels: Tensor, encoder_hidden_states: Tensor
    ) -> Tensor:
        read = attend(torch.ones_like(x[:, :1]), encoder_hidden_states)
        out: Tensor = self.inner(torch.cat([x, read], dim=1), timestep, class_labels)
        return out


def test_a_prompt_is_drawn_with_its_class(tmp_path: Path) -> None:
    """Two conditions of different shapes, whose rows belong together, reach both networks."""

    class Both(Prompted):
        def forward(self, x: Tensor, t: Tensor, *, class_labels: Tensor, **told: Tensor) -> Tensor:
            prompts = told["encoder_hidden_states"]
            assert torch.equal(prompts[:, 0, 1], MEANS[class_labels])
            return super().forward(x, t, **told)

    # Attention sees both vectors alike: the mean is half of the class's.
    prompts = torch.stack([torch.zeros(3, 2), MEANS[:3, None].expand(3, 2)], dim=2)
    prompts[:, 1, 1] = 0.0
    student = SignatureStudent(Reads(), SCHEDULE, 1, 2, data_std=STD, steps=(2,))
    found = run(
        tmp_path,
        student,
        teacher=Exponential(Both(SCHEDULE)),
        condition={"class_labels": torch.arange(3), "encoder_hidden_states": prompts},
        iterations=250,
        batch_size=64,
        learning_rate=1e-2,
        warmup=10,
        ema=0.97,
        paths=1000,
        held_out=100,
    )
    assert set(load_file(tmp_path / "paths" / "paths-00000.safetensors")) == {
        "coefficients",
        "row",
        "start",
        "states",
    }
    for k in range(3):
        told = {"class_labels": torch.full((1000,), k), "encoder_hidden_states": prompts[k]}
        told["encoder_hidden_states"] = prompts[k].expand(1000, 2, 2)
        drawn = sample(found.student, GRID, (1000, 1), generator=seeded(k), **told)
        assert float(drawn.mean()) == pytest.approx(float(MEANS[k]) / 2, abs=0.15)
