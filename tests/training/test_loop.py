"""The training loop: parameters that learn at rates of their own."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Generator, Tensor, nn

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
