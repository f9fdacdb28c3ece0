"""The networks around the diffusion of MNIST learn, resume to the bit, and scale what they give."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sigdeg.errors import SigdegError
from sigdeg.experiments import mnist_networks
from sigdeg.experiments.mnist_networks import (
    in_batches,
    train_autoencoder,
    train_classifier,
)
from sigdeg.files import save_json, save_tensors
from sigdeg.metrics.extractors import load_classifier
from sigdeg.networks import Autoencoder, Classifier, network_config
from sigdeg.training import TrainConfig, job

HELD_OUT = 20
CONFIG = TrainConfig(
    iterations=12,
    batch_size=10,
    learning_rate=3e-3,
    warmup=2,
    ema=0.5,
    checkpoint_every=4,
    tracker="none",
)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images held out, and a loss curve of more than one point."""
    monkeypatch.setattr(mnist_networks, "HELD_OUT", HELD_OUT)
    monkeypatch.setattr(job, "LOG_EVERY", 4)


def digits(n: int = 100) -> tuple[Tensor, Tensor]:
    """Bars at one of ten heights, on background."""
    labels = torch.arange(n) % 10
    images = -torch.ones(n, 1, 28, 28)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, 4 + 2 * label : 6 + 2 * label, 6:22] = 1.0
    return images, labels


def train(kind: str, folder: Path, images: Tensor | None = None) -> tuple[nn.Module, Tensor]:
    own, labels = digits()
    images = own if images is None else images
    if kind == "autoencoder":
        return train_autoencoder(images, folder, CONFIG, device="cpu", progress=False)
    return train_classifier(images, labels, folder, CONFIG, device="cpu", progress=False)


def same(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_autoencoder_learns_and_standardises_its_latents(tmp_path: Path) -> None:
    network, history = train("autoencoder", tmp_path)
    assert isinstance(network, Autoencoder)
    assert history[:, 0].tolist() == [4, 8, 12]
    assert history[-1, 1] < 0.8 * history[0, 1]
    assert history[-1, 2] < 0.8 * history[0, 2]
    latents = in_batches(network, "encode", digits()[0][:-HELD_OUT])
    assert not latents.requires_grad
    zeros, ones = torch.zeros(4), torch.ones(4)
    torch.testing.assert_close(latents.mean((0, 2, 3)), zeros, rtol=0, atol=1e-4)
    torch.testing.assert_close(latents.std((0, 2, 3)), ones, rtol=1e-4, atol=0)


def test_the_classifier_learns_and_scales_its_features(tmp_path: Path) -> None:
    network, history = train("classifier", tmp_path)
    assert isinstance(network, Classifier)
    assert history[-1, 2] < history[0, 2] < math.log(10) + 0.2
    features = in_batches(network, "features", digits()[0][:-HELD_OUT])
    assert features.shape == (80, 64)
    assert float(features.var(0).mean()) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("kind", ["autoencoder", "classifier"])
def test_interrupted_it_goes_on_to_the_same_bits(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, history = train(kind, tmp_path / "whole")
    update, steps = job.ema_update, []

    def stop(*arguments: object) -> None:
        steps.append(1)
        if len(steps) == 7:
            raise KeyboardInterrupt
        update(*arguments)

    monkeypatch.setattr(job, "ema_update", stop)
    with pytest.raises(KeyboardInterrupt):
        train(kind, tmp_path / "parts")
    again, rest = train(kind, tmp_path / "parts")
    assert len(steps) == 7 + 12 - 4  # from the checkpoint at 4, not from the start
    assert same(again, whole)
    assert torch.equal(rest, history)
    other = -digits()[0]
    with pytest.raises(SigdegError, match=r"another run \(it differs in data\)"):
        train(kind, tmp_path / "parts", other)


@pytest.mark.parametrize("kind", ["autoencoder", "classifier"])
def test_images_that_are_held_out_teach_nothing(kind: str, tmp_path: Path) -> None:
    images = digits()[0]
    images[-HELD_OUT:] = images[-HELD_OUT:].flip(-2) * 0.3
    network, history = train(kind, tmp_path / "a", images)
    plain, curve = train(kind, tmp_path / "b")
    assert same(network, plain)
    assert torch.equal(history[:, 1], curve[:, 1])
    assert not torch.equal(history[:, 2], curve[:, 2])


def test_many_images_go_in_batches() -> None:
    torch.manual_seed(0)
    network, images = Classifier(width=8).eval(), digits(23)[0]
    seen = []
    network.head.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    found = in_batches(network, "forward", images, size=10)
    assert seen == [10, 10, 3]
    assert not found.requires_grad
    torch.testing.assert_close(found, network(images))


class TestLoading:
    """A classifier from a folder, or one line that says why not."""

    @pytest.fixture
    def save(self, tmp_path: Path) -> Callable[[nn.Module], Path]:
        def write(network: nn.Module) -> Path:
            save_json(tmp_path / "config.json", network_config(network))
            save_tensors(tmp_path / "model.safetensors", network.state_dict())
            return tmp_path

        return write

    def test_as_it_was_saved(self, save: Callable[[nn.Module], Path]) -> None:
        network = Classifier(classes=3, width=8)
        network.scale.fill_(2.5)
        loaded = load_classifier(save(network))
        assert not loaded.training
        assert same(loaded, network)
        images = digits(2)[0]
        torch.testing.assert_close(loaded.features(images), network.features(images))

    def test_another_class(self, save: Callable[[nn.Module], Path]) -> None:
        with pytest.raises(SigdegError, match=r"holds a Autoencoder, not a Classifier$"):
            load_classifier(save(Autoencoder(width=8)))

    def test_no_class(self, save: Callable[[nn.Module], Path]) -> None:
        with pytest.raises(SigdegError, match="unknown network class 'Linear'"):
            load_classifier(save(nn.Linear(1, 1)))

    def test_no_weights(self, save: Callable[[nn.Module], Path]) -> None:
        folder = save(Classifier(width=8))
        (folder / "model.safetensors").unlink()
        with pytest.raises(SigdegError, match=r"model\.safetensors is missing"):
            load_classifier(folder)
