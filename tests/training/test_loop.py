"""The training loop: parameters that learn at rates of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

from sigdeg.errors import SigdegError, TrainingError
from sigdeg.training import TrainConfig, fit, make_accelerator
from sigdeg.training.loop import parameter_groups


class Fast(nn.Module):
    """Learns three times as fast."""

    rate_factor = 3.0

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(4))


class Pair(nn.Module):
    """Two parameters with one gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(4))
        self.fast = Fast()

    def forward(self, target: Tensor) -> Tensor:
        return (self.value + self.fast.value - target).abs().sum()


def test_a_module_may_learn_faster(tmp_path: Path) -> None:
    """Adam moves by its rate a step, whatever the gradient: three times as far with the factor."""
    groups = parameter_groups(Pair())
    assert [group["factor"] for group in groups] == [1.0, 3.0]
    config = TrainConfig(iterations=5, learning_rate=1e-2, warmup=0, ema=0.0, tracker="none")

    def draw(generator: Generator) -> Tensor:
        return torch.full((4,), 10.0)

    accelerator = make_accelerator(config, tmp_path, "cpu")
    found = fit(Pair(), draw, draw(Generator()), config, accelerator, tmp_path, progress=False)
    slow, fast = found.objective.value, found.objective.fast.value
    torch.testing.assert_close(fast, 3 * slow, rtol=1e-4, atol=0)
    assert float(slow.mean()) > 0.01


class Broken(Pair):
    """A loss that is no number."""

    def forward(self, target: Tensor) -> Tensor:
        return super().forward(target) * float("nan")


def test_a_bar_ends_with_its_line(tmp_path: Path, capsys) -> None:
    """What is said of a training that fails begins on a line of its own."""
    config = TrainConfig(iterations=5, tracker="none")
    accelerator = make_accelerator(config, tmp_path, "cpu")
    with pytest.raises(TrainingError):
        fit(Broken(), lambda _: torch.ones(4), torch.ones(4), config, accelerator, tmp_path)
    shown = capsys.readouterr().err
    assert "train" in shown
    assert shown.endswith("\n")


def test_a_tracker_that_cannot_start_is_named(tmp_path: Path, monkeypatch) -> None:
    """In one line, where no login is to be had; the device is not said to be its fault."""
    config = TrainConfig(iterations=5, tracker="tensorboard")
    accelerator = make_accelerator(config, tmp_path, "cpu")

    def refuse(name: str) -> None:
        raise RuntimeError("no API key configured.\nUse wandb login")

    monkeypatch.setattr(accelerator, "init_trackers", refuse)
    with pytest.raises(TrainingError, match=r"^tracker 'tensorboard': no API key configured.$"):
        fit(Pair(), lambda _: torch.ones(4), torch.ones(4), config, accelerator, tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(SigdegError, match=r"^no GPU is to be seen"):
            make_accelerator(config, tmp_path, "cuda")
