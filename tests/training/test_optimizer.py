"""Muon for hidden matrices, Adam beside it: what each takes, how far it moves, and resuming."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sigdeg.errors import SigdegError
from sigdeg.networks import ModulatedMLP
from sigdeg.training import Job, TrainConfig, train
from sigdeg.training.optimizer import make_optimizers

MUON = {"optimizer": "muon", "warmup": 0, "tracker": "none"}


def test_muon_takes_the_hidden_matrices() -> None:
    """Vectors, the first layer and the last are Adam's: they are narrow one way."""
    network = ModulatedMLP(10, 2, width=64, blocks=2)
    adam, muon = make_optimizers(network, TrainConfig(**MUON))
    taken = {id(p) for group in muon.param_groups for p in group["params"]}
    own = [layer.weight for block in network.blocks for layer in (block[0], block[2])]
    hidden = [network.time[2].weight, network.modulation.weight, *own]
    assert taken == {id(p) for p in hidden}
    every = taken | {id(p) for group in adam.param_groups for p in group["params"]}
    assert every == {id(p) for p in network.parameters()}


def test_muon_moves_along_all_directions_alike() -> None:
    r"""Whatever the gradient, weights move $0.2 \sqrt{128}$ rates along each of its directions.

    Up to what five Newton-Schulz iterations leave: singular values between 0.6 and 1.3.
    """
    torch.manual_seed(0)
    layer = nn.Linear(64, 128, bias=False)
    left, right = torch.linalg.qr(torch.randn(128, 64))[0], torch.linalg.qr(torch.randn(64, 64))[0]
    gradient = left @ torch.diag(torch.logspace(0, -3, 64)) @ right.T
    before = layer.weight.detach().clone()
    (optimizer,) = make_optimizers(layer, TrainConfig(learning_rate=1e-2, **MUON))
    layer.weight.grad = gradient
    optimizer.step()
    moved = (before - layer.weight.detach()) / (1e-2 * 0.2 * 128**0.5)
    along = left.T @ moved @ right
    assert torch.linalg.svdvals(moved)[:40].min() > 0.6
    assert torch.linalg.svdvals(moved).max() < 1.3
    assert along.diagonal()[:40].min() > 0.6  # bfloat16 loses the smallest directions


class Regression(nn.Module):
    """A network that learns a function."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.network = ModulatedMLP(2, 1, width=64, blocks=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        target = (3 * x[:, :1]).sin() * x[:, 1:]
        return {"loss": (self.network(x, torch.zeros(len(x))) - target).square().mean()}


def learn(folder: Path, until: int = 31) -> dict[str, Tensor]:
    """Train for 30 steps, or be interrupted before."""
    steps = iter(range(until))

    def batch(generator: torch.Generator) -> Tensor:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return torch.randn(256, 2, generator=generator)

    held_out = torch.randn(256, 2, generator=torch.Generator().manual_seed(2))
    config = TrainConfig(iterations=30, checkpoint_every=10, **MUON)
    job = Job(Regression(), batch, held_out, {})
    return train(job, folder, config, device="cpu", progress=False).objective.state_dict()


def test_an_interrupted_training_goes_on_exactly(tmp_path: Path) -> None:
    """The momentum of both optimisers is in the checkpoint."""
    whole = learn(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "cut", until=16)
    resumed = learn(tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(SigdegError, match=r"^unknown optimizer 'sgd': choose from adam, muon$"):
        TrainConfig(optimizer="sgd")
