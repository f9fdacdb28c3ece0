"""Teachers of tokens: they learn exact marginals, and stop and go on to the bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sigdeg.discrete import (
    Absorbing,
    ExactDenoiser,
    Latent,
    MixtureStudent,
    NetworkTokenDenoiser,
    Uniform,
)
from sigdeg.discrete.process import DiscreteProcess
from sigdeg.discrete.teacher import TokenObjective, train_teacher
from sigdeg.errors import SigdegError
from sigdeg.training import job

LAW = torch.tensor([[0, 0], [1, 1], [0, 1]])
WEIGHTS = torch.tensor([0.5, 0.3, 0.2])
DATA = LAW.repeat_interleave((1000 * WEIGHTS).long(), 0)
DATA = DATA[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]


class Table(nn.Module):
    """Logits of every state of two positions, looked up; of classes, of each on its own."""

    def __init__(self, states: int = 3, classes: int = 1) -> None:
        super().__init__()
        self.states = states
        self.logits = nn.Parameter(torch.zeros(classes, states**2, 2, states))

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        own = 0 if class_labels is None else class_labels
        return self.logits[own, x[:, 0] * self.states + x[:, 1]]


def run(folder: Path, denoiser: NetworkTokenDenoiser | None = None, **options: Any) -> Any:
    arguments: dict[str, Any] = {
        "iterations": 120,
        "batch_size": 256,
        "learning_rate": 0.15,
        "gradient_clip": 100.0,
        "warmup": 5,
        "ema": 0.97,
        "seed": 1,
        "tracker": "none",
        "device": "cpu",
        "progress": False,
        **options,
    }
    denoiser = denoiser or NetworkTokenDenoiser(Table(), Absorbing(2), 2)
    return train_teacher(denoiser, arguments.pop("data", DATA), folder, **arguments)


@pytest.mark.parametrize(
    ("weighting", "process"),
    [
        ("nelbo", Absorbing(2)),
        ("plain", Absorbing(2)),
        ("nelbo", Absorbing(2, schedule="cosine")),
    ],
)
def test_it_learns_the_exact_marginals(
    tmp_path: Path, weighting: str, process: DiscreteProcess
) -> None:
    """At every state, whatever the weighting: of an absorbing process time changes nothing."""
    denoiser = NetworkTokenDenoiser(Table(), process, 2)
    learned, history = run(tmp_path, denoiser, weighting=weighting)
    x, t = torch.tensor([[2, 2], [0, 2], [1, 2], [2, 0], [2, 1]]), torch.tensor(0.5)
    exact = ExactDenoiser(LAW, WEIGHTS, process)(x, t).exp()
    assert float((learned(x, t).exp() - exact).abs().max()) < 0.1
    assert bool((denoiser.network.logits == 0).all())  # the one that was given stays as it is
    assert bool(history.isfinite().all())


def test_the_loss_of_the_exact_marginals_is_the_entropy(tmp_path: Path) -> None:
    """In nats a token: each sequence is found position by position."""
    objective = TokenObjective(ExactDenoiser(LAW, WEIGHTS, Absorbing(2)), "nelbo")
    n = 40_000
    generator = torch.Generator().manual_seed(1)
    clean = LAW[torch.multinomial(WEIGHTS, n, True, generator=generator)]
    uniform = torch.rand(n, 2, generator=generator)
    t = 1 - (torch.arange(n) + torch.rand(n, generator=generator, dtype=torch.float64)) / n
    t = t[torch.randperm(n, generator=generator)]
    loss = float(objective((clean, uniform, t, {}))["loss"])
    entropy = -sum(w * math.log(w) for w in WEIGHTS.tolist())
    assert loss == pytest.approx(entropy / 2, abs=0.015)


def test_other_processes_train_by_the_same_loss(tmp_path: Path) -> None:
    """Time is in no table: the best is a mean over times, between the law's and certainty."""
    denoiser = NetworkTokenDenoiser(Table(2), Uniform(2), 2)
    learned, _ = run(tmp_path, denoiser, iterations=60)
    p = learned(torch.tensor([[0, 0], [1, 1]]), torch.tensor(0.5)).exp()
    assert float(p[0, :, 0].min()) > 0.7
    assert float(p[1, :, 1].min()) > 0.6


def test_labels_are_learned_and_withheld(tmp_path: Path) -> None:
    denoiser = NetworkTokenDenoiser(Table(classes=3), Absorbing(2), 2)
    learned, _ = run(tmp_path, denoiser, labels=DATA[:, 0], unlabelled=0.3)
    masked, t = torch.tensor([[2, 2]] * 3), torch.tensor(1.0)
    p = learned(masked, t, class_labels=torch.arange(3)).exp()[:, 0, 0]
    assert p.tolist() == pytest.approx([1, 0, 0.7], abs=0.08)


def test_interrupted_it_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"iterations": 20, "checkpoint_every": 5}
    whole, history = run(tmp_path / "whole", **options)
    update, steps = job.ema_update, []

    def stop(*arguments: Any) -> None:
        steps.append(1)
        if len(steps) == 13:
            raise KeyboardInterrupt
        update(*arguments)

    monkeypatch.setattr(job, "ema_update", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", **options)
    again, rest = run(tmp_path / "parts", **options)
    assert torch.equal(again.network.logits, whole.network.logits)
    assert torch.equal(rest, history)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": DATA[:, :1]}, r"sequences \(n, 2\)"),
        ({"data": DATA + 1}, "hold the mask symbol 2"),
        ({"data": DATA[:5]}, "at least 20 samples"),
        ({"labels": DATA}, "need as many labels"),
        ({"weighting": "elbo"}, "unknown weighting 'elbo': choose from nelbo, plain"),
        (
            {"denoiser": MixtureStudent(Table(), Absorbing(2), 2, Latent())},
            "a mixture has a latent",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(SigdegError, match=said) as caught:
        run(tmp_path / "run", **change)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
