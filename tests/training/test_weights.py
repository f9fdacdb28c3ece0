"""Weights in training: frozen ones are neither copied, averaged nor saved; averages stand in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sigdeg.errors import SigdegError
from sigdeg.files import read_tensors, save_tensors
from sigdeg.rng import seeded
from sigdeg.training import Job, TrainConfig, Trained, train
from sigdeg.training.weights import Average, copied, ema_update, kept
from tests.tiny import tiny_unet

PARTS = ("weight", "bias")


class Adapted(nn.Module):
    """A frozen layer in half precision between two that learn, and a buffer that is prepared."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.frozen, self.last = seeded(0, lambda: [nn.Linear(3, 3) for _ in "abc"])
        self.frozen.to(torch.bfloat16).requires_grad_(False)
        self.register_buffer("shift", torch.zeros(3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.frozen(self.first(x).bfloat16()).float()
        return {"loss": (self.last(hidden) + self.shift - x.sin()).square().mean()}


def prepare(objective: Adapted) -> None:
    objective.shift.fill_(0.5)


def learn(objective: Adapted, folder: Path, until: int = 21) -> Trained[Adapted]:
    """Train for 20 steps, or be interrupted before."""
    steps = iter(range(until))

    def batch(generator: torch.Generator) -> Tensor:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return torch.randn(16, 3, generator=generator)

    held_out = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
    config = TrainConfig(iterations=20, checkpoint_every=8, ema=0.9, tracker="none")
    job = Job(objective, batch, held_out, {}, prepare)
    return train(job, folder, config, device="cpu", progress=False)


def test_a_copy_shares_what_is_frozen() -> None:
    module = Adapted()
    other = copied(module)
    assert other.frozen.weight.data_ptr() == module.frozen.weight.data_ptr()
    assert other.first.weight.data_ptr() != module.first.weight.data_ptr()
    assert [p.requires_grad for p in other.parameters()] == [
        p.requires_grad for p in module.parameters()
    ]
    assert list(kept(other)) == ["shift", *(f"{k}.{n}" for k in ("first", "last") for n in PARTS)]
    other.to(torch.float64)  # where a copy goes, the other need not
    assert module.frozen.weight.dtype == torch.bfloat16


def test_what_is_frozen_stays_and_is_shared(tmp_path: Path) -> None:
    objective = Adapted()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    found = learn(objective, tmp_path).objective
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    assert found.frozen.weight.data_ptr() == objective.frozen.weight.data_ptr()
    assert not torch.equal(found.first.weight, objective.first.weight)
    assert torch.equal(found.shift, torch.full((3,), 0.5))
    saved = read_tensors(tmp_path / "checkpoints" / "last.safetensors")[0]
    assert not [name for name in saved if "frozen" in name]
    assert {name for name in saved if name.startswith("average.")} == {
        f"average.{k}.{n}" for k in ("first", "last") for n in PARTS
    }


@pytest.mark.parametrize("earlier", [False, True], ids=["this version", "earlier version"])
def test_an_interrupted_training_goes_on_exactly(tmp_path: Path, earlier: bool) -> None:
    """From a checkpoint of an earlier version, which held frozen weights twice, too."""
    whole = learn(Adapted(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        learn(Adapted(), tmp_path / "cut", until=13)
    if earlier:
        file = tmp_path / "cut" / "checkpoints" / "last.safetensors"
        tensors, metadata = read_tensors(file)
        for name, value in Adapted().frozen.named_parameters():
            tensors |= {f"{k}.frozen.{name}": value.clone() for k in ("objective", "average")}
        tensors["average.shift"] = tensors["objective.shift"].clone()
        save_tensors(file, tensors, {k: metadata[k] for k in ("step", "run")})
    resumed = learn(Adapted(), tmp_path / "cut")
    for name, value in whole.objective.state_dict().items():
        assert torch.equal(value, resumed.objective.state_dict()[name]), name
    assert torch.equal(whole.history, resumed.history)
    assert resumed.memory > 2**20


def test_a_checkpoint_with_unknown_weights_is_another_models(tmp_path: Path) -> None:
    learn(Adapted(), tmp_path)
    file = tmp_path / "checkpoints" / "last.safetensors"
    tensors, metadata = read_tensors(file)
    more = {**tensors, "objective.more": torch.zeros(1)}
    save_tensors(file, more, {k: metadata[k] for k in ("step", "run")})
    with pytest.raises(SigdegError, match=r"belongs to another model: it has no more$"):
        learn(Adapted(), tmp_path)


def test_averages_stand_in_for_weights() -> None:
    r"""$\bar w \leftarrow \beta \bar w + (1 - \beta) w$, and what was there comes back."""
    module = Adapted()
    average, first = Average(module), module.first.weight.detach().clone()
    with torch.no_grad():
        module.first.weight.add_(1.0)
    ema_update(average, module, 0.75)
    with average.in_place():
        torch.testing.assert_close(module.first.weight, first + 0.25)
        assert torch.equal(average.named(module)["first.weight"], first + 1)
    assert torch.equal(module.first.weight, first + 1)
    assert average.named(module).keys() == kept(module).keys() - {"shift"}


def test_tied_weights_are_saved_once(tmp_path: Path) -> None:
    objective = Adapted()
    objective.last.weight = objective.first.weight
    assert "last.weight" not in kept(objective)
    found = learn(objective, tmp_path).objective
    assert found.last.weight is found.first.weight


class Denoise(nn.Module):
    """A U-Net of diffusers on noise."""

    def __init__(self) -> None:
        super().__init__()
        self.network = seeded(0, tiny_unet)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.network(x, 0.5).sample - x).square().mean()}


def test_activations_computed_anew_give_the_same_weights(tmp_path: Path) -> None:
    """And the training is the same one: it may go on either way."""
    found, saved = {}, {}
    for anew in (False, True):
        held: list[int] = []
        config = TrainConfig(
            iterations=2, batch_size=2, tracker="none", gradient_checkpointing=anew
        )
        job = Job(
            Denoise(), lambda g: torch.randn(2, 1, 8, 8, generator=g), torch.ones(2, 1, 8, 8), {}
        )

        def keep(value: Tensor, held: list[int] = held) -> Tensor:
            held.append(value.numel())
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            trained = train(job, tmp_path / str(anew), config, device="cpu", progress=False)
        found[anew], saved[anew] = trained.objective, sum(held)
    assert saved[True] < saved[False] / 3
    for one, other in zip(found[False].parameters(), found[True].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert not found[True].network.is_gradient_checkpointing
    assert config.identity() == TrainConfig(iterations=2, batch_size=2, tracker="none").identity()


class Lone(Adapted):
    """With a weight that is a single number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"gradient_checkpointing": True}, r"^gradient_checkpointing is for networks that have it"),
        ({"sharding": "fsdp"}, r"^weight scale is a single number, which has no parts to share"),
    ],
)
def test_what_networks_cannot_do_is_refused(tmp_path: Path, options: dict, line: str) -> None:
    job = Job(Lone(), lambda _: torch.zeros(2, 3), torch.zeros(2, 3), {})
    with pytest.raises(SigdegError, match=line):
        train(job, tmp_path / "a", TrainConfig(tracker="none", **options), device="cpu")
    assert not (tmp_path / "a").exists()
