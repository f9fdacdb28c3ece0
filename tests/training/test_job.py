"""The training job: rates of their own, named losses, batches that processes share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sigdeg.errors import SigdegError, TrainingError
from sigdeg.training import Job, TrainConfig, make_accelerator, train
from sigdeg.training.job import rows_of, start_tracking
from sigdeg.training.optimizer import parameter_groups


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

    def forward(self, target: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.value + self.fast.value - target).abs().sum()}


def job(objective: Pair, target: float = 1.0) -> Job[Pair]:
    return Job(objective, lambda _: torch.full((4,), target), torch.full((4,), target), {})


def test_a_module_may_learn_faster(tmp_path: Path) -> None:
    """Adam moves by its rate a step, whatever the gradient: three times as far with the factor."""
    groups = parameter_groups(Pair())
    assert [group["factor"] for group in groups] == [1.0, 3.0]
    config = TrainConfig(iterations=5, learning_rate=1e-2, warmup=0, ema=0.0, tracker="none")

    found = train(job(Pair(), 10.0), tmp_path, config, device="cpu", progress=False)
    slow, fast = found.objective.value, found.objective.fast.value
    torch.testing.assert_close(fast, 3 * slow, rtol=1e-4, atol=0)
    assert float(slow.mean()) > 0.01


class Broken(Pair):
    """A loss that is no number."""

    def forward(self, target: Tensor) -> dict[str, Tensor]:
        return {"loss": super().forward(target)["loss"] * float("nan")}


def test_a_bar_ends_with_its_line(tmp_path: Path, capsys) -> None:
    """What is said of a training that fails begins on a line of its own."""
    config = TrainConfig(iterations=5, tracker="none")
    with pytest.raises(TrainingError):
        train(job(Broken()), tmp_path, config, device="cpu")
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
        start_tracking(accelerator, config)
    if not torch.cuda.is_available():
        with pytest.raises(SigdegError, match=r"^no GPU is to be seen"):
            make_accelerator(config, tmp_path, "cuda")


class Named(Pair):
    """A loss of two parts."""

    def forward(self, target: Tensor) -> dict[str, Tensor]:
        loss = super().forward(target)["loss"]
        return {"loss": loss, "half": loss / 2}


def test_what_is_named_is_logged(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrainConfig(iterations=3)
    found = train(job(Named()), tmp_path, config, device="cpu", progress=False)
    (events,) = {
        p.parent for p in (tmp_path / "events").rglob("events.out.*") if p.stat().st_size > 200
    }
    log = EventAccumulator(str(events)).Reload()
    assert {"loss", "half", "held_out", "learning_rate"} <= set(log.Tags()["scalars"])
    (half,) = log.Scalars("half")
    assert half.step == 3
    assert half.value == pytest.approx(float(found.history[0, 1]) / 2)


def test_processes_share_the_rows_of_a_batch() -> None:
    """Of tensors in tuples and dictionaries alike, in the order they were drawn in."""
    batch = (torch.arange(6), {"told": torch.arange(12).reshape(6, 2)}, "a word")
    parts = [rows_of(batch, process, 3) for process in range(3)]
    assert torch.equal(torch.cat([part[0] for part in parts]), batch[0])
    assert torch.equal(torch.cat([part[1]["told"] for part in parts]), batch[1]["told"])
    assert [len(part[0]) for part in parts] == [2, 2, 2]
