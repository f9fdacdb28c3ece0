"""Pipelines of digits: what a network is trained on is what the pipeline asks it for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Generator, Tensor, nn

from sigdeg.denoiser import NetworkDenoiser
from sigdeg.experiments import mnist_networks
from sigdeg.experiments.digit_pipelines import (
    KINDS,
    NAMES,
    PIXEL_VARIANCE,
    crop,
    encode,
    evidence,
    make_autoencoder,
    make_scheduler,
    make_tokenizer,
    pad,
    train_autoencoder,
    train_denoiser,
)
from sigdeg.integrations import describe
from sigdeg.rng import seeded
from sigdeg.training import TrainConfig

SIZES: dict[str, dict[str, Any]] = {
    "names": {"block_out_channels": (16, 16), "layers_per_block": 1, "attention_head_dim": 4},
    "classes": {
        "num_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "patch_size": 2,
    },
}
CONFIG = TrainConfig(iterations=4, batch_size=8, warmup=1, ema=0.5, tracker="none")
OPTIONS: dict[str, Any] = {"device": "cpu", "progress": False}


def images(n: int = 60) -> Tensor:
    """Squares at random places."""
    made, generator = -torch.ones(n, 1, 28, 28), Generator().manual_seed(0)
    for image, (i, j) in zip(
        made, torch.randint(4, 18, (n, 2), generator=generator).tolist(), strict=True
    ):
        image[0, i : i + 6, j : j + 6] = 1.0
    return made


def rough(network: nn.Module) -> nn.Module:
    """A network whose zeros, which would hide what it is asked for, are random."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return network.eval()


def test_each_name_is_one_token() -> None:
    tokenizer = make_tokenizer()
    for name in NAMES:
        begin, word, end = tokenizer(name).input_ids
        assert (begin, end) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert tokenizer.decode([word]) == name
    assert len({tokenizer(name).input_ids[1] for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_pipeline_asks_for_what_the_network_was_trained_on(kind: str, guidance: float) -> None:
    """One step of DDIM is the guided posterior mean, decoded; also when saved and loaded."""
    parts = KINDS[kind](0)
    network = seeded(1, lambda: rough(parts.network(**SIZES[kind])))
    autoencoder = seeded(2, make_autoencoder).eval()
    scheduler, labels = make_scheduler(), [3, 8]
    pipeline = parts.pipeline(network, autoencoder, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    asked = {"num_inference_steps": 1, "guidance_scale": guidance, "output_type": "pt"}

    noise = torch.randn(2, 4, 8, 8, generator=Generator().manual_seed(5))
    drawn = pipeline(**parts.ask(labels), **asked, generator=Generator().manual_seed(5)).images

    def call(network: nn.Module, x: Tensor, t: Tensor, condition: Any) -> Any:
        return parts.call(network, x, t, condition["class_labels"])

    told = describe(scheduler)
    denoiser = NetworkDenoiser(network, told.schedule, told.prediction, call=call)
    with torch.no_grad():
        asked_for, none = (
            denoiser(noise, torch.tensor(told.schedule.t_max), class_labels=torch.tensor(given))
            for given in (labels, [len(NAMES)] * 2)
        )
        mean = none + guidance * (asked_for - none)
        expected = autoencoder.decode(mean / autoencoder.config.scaling_factor).sample
    assert (asked_for - none).abs().max() > 0.1
    torch.testing.assert_close(drawn, (expected / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_pipelines_are_those_of_diffusers(kind: str, tmp_path: Path) -> None:
    parts = KINDS[kind](0)
    made = parts.pipeline(
        seeded(0, lambda: parts.network(**SIZES[kind])), make_autoencoder(), make_scheduler()
    )
    made.save_pretrained(tmp_path)
    found = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(found) is type(made)
    asked = {**parts.ask([7]), "num_inference_steps": 2, "output_type": "pt"}
    first, second = (
        pipeline(**asked, generator=Generator().manual_seed(0)).images for pipeline in (made, found)
    )
    torch.testing.assert_close(first, second)


def test_the_autoencoder_learns_and_scales_its_latents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist_networks, "HELD_OUT", 12)
    pictures = images()
    network, history = train_autoencoder(pictures, tmp_path, CONFIG, **OPTIONS)
    latents = encode(network, pictures)
    assert latents.shape == (60, 4, 8, 8)
    assert float(latents.std()) == pytest.approx(1, abs=1e-5)
    untrained = seeded(CONFIG.seed, make_autoencoder)
    noise = torch.randn(12, 4, 8, 8, generator=Generator().manual_seed(1))
    with torch.no_grad():
        before, after = (float(evidence(n, pictures[-12:], noise)) for n in (untrained, network))
    assert after < before
    assert torch.isfinite(history).all()


def test_the_evidence_bound_is_that_of_gaussians() -> None:
    """Of a decoder that forgets its latents, against the closed form of both terms."""
    network, pictures = seeded(0, make_autoencoder).eval(), images(6)
    with torch.no_grad():
        law = network.encode(pad(pictures)).latent_dist
        kl = 0.5 * (law.mean**2 + law.var - 1 - law.var.log()).sum((1, 2, 3))
        network.decoder.conv_out.weight.zero_()
        network.decoder.conv_out.bias.fill_(0.25)
        found = evidence(network, pictures, torch.randn(6, 4, 8, 8))
    square = (0.25 - pad(pictures)).square().mean()
    assert float(found) == pytest.approx(
        float(square + 2 * PIXEL_VARIANCE * kl.mean() / 32**2), rel=1e-5
    )
    torch.testing.assert_close(crop(pad(pictures)), pictures)


@pytest.mark.parametrize("kind", KINDS)
def test_training_reaches_all_that_is_asked_for(kind: str, tmp_path: Path) -> None:
    """The embeddings of classes and of none learn, and the same call gives the same weights."""
    parts, latents = KINDS[kind](0), torch.randn(40, 4, 8, 8)
    labels = torch.arange(40) % 10
    before = seeded(0, lambda: parts.network(**SIZES[kind]))
    trained, history = train_denoiser(
        parts, before, latents, labels, tmp_path, CONFIG, **OPTIONS, unlabelled=0.5
    )
    again, _ = train_denoiser(
        parts, before, latents, labels, tmp_path, CONFIG, **OPTIONS, unlabelled=0.5
    )
    own, first = dict(before.named_parameters()), dict(trained.named_parameters())
    moved = {name for name, value in first.items() if not torch.equal(value, own[name])}
    assert any("attn2" in name or "class_embedder" in name for name in moved)
    for name, value in again.named_parameters():
        assert torch.equal(value, first[name])
    assert history[-1, 0] == CONFIG.iterations
