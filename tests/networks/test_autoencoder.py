"""Autoencoder and classifier: exact padding, standardised latents, scaled features."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from sigdeg.errors import SigdegError
from sigdeg.files import load_weights, save_tensors
from sigdeg.networks import (
    Autoencoder,
    Classifier,
    Mixer,
    ResidualMLP,
    build_network,
    class_labels,
    network_config,
    set_null_class,
    widen,
)


def pictures(n: int, size: int = 28, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return 2 * torch.rand(n, channels, size, size, generator=generator) - 1


def small(size: int = 28, channels: int = 1) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(channels, latent_channels=3, width=8, size=size).eval()


@pytest.mark.parametrize(("size", "side"), [(28, 8), (32, 8), (27, 8), (20, 6)])
def test_a_side_shrinks_fourfold_and_comes_back(size: int, side: int) -> None:
    network, images = small(size, 2), pictures(2, size, 2)
    latents = network.encode(images)
    assert network.latent_shape == (3, side, side) == tuple(latents.shape[1:])
    assert network.decode(latents).shape == images.shape
    torch.testing.assert_close(network(images), network.decode(latents))


@pytest.mark.parametrize("size", [28, 27, 32])
def test_padding_is_background_and_is_cropped_exactly(size: int) -> None:
    """With an encoder and a decoder that only move pixels every image comes back to the bit."""
    network, images = small(size), pictures(3, size)
    network.encoder, network.decoder = nn.Sequential(nn.PixelUnshuffle(4)), nn.Sequential()
    network.decoder.append(nn.PixelShuffle(4))
    padded = network.decoder(network.raw(images))
    assert padded.shape == (3, 1, 32, 32)
    assert torch.equal(network.decode(network.raw(images)), images)
    assert float((padded + 1).sum() - (images + 1).sum()) == pytest.approx(0, abs=1e-2)
    first = (32 - size) // 2
    padded[..., first : first + size, first : first + size] = -1
    assert bool((padded == -1).all())


def test_latents_are_standardised_by_the_buffers() -> None:
    network, images = small(), pictures(20)
    raw = network.raw(images).detach()
    torch.testing.assert_close(network.encode(images), raw)  # they start as 0 and 1
    std, mean = torch.std_mean(raw, dim=(0, 2, 3))
    network.mean.copy_(mean[:, None, None])
    network.std.copy_(std[:, None, None])
    latents = network.encode(images).detach()
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(3), rtol=1e-5, atol=0)
    torch.testing.assert_close(latents * std[:, None, None] + mean[:, None, None], raw)


@pytest.mark.parametrize("kind", [Classifier, Mixer])
def test_features_are_scaled_and_logits_are_not(kind: type[Classifier]) -> None:
    torch.manual_seed(0)
    network, images = kind(classes=3, features=5, width=8).eval(), pictures(4)
    with torch.no_grad():
        features, logits = network.features(images), network(images)
        network.scale.fill_(4.0)
        torch.testing.assert_close(network.features(images), features / 4)
        torch.testing.assert_close(network(images), logits)
        torch.testing.assert_close(network.head(features), logits)
    assert features.shape == (4, 5)
    assert logits.shape == (4, 3)
    assert len(logits.unique()) == 12  # and it sees the images


@pytest.mark.parametrize("kind", ["autoencoder", "classifier", "mixer"])
def test_round_trip_through_a_folder(kind: str, tmp_path: Path) -> None:
    """Buffers are part of the weights: a loaded network standardises as the saved one."""
    torch.manual_seed(0)
    classifiers = {"classifier": Classifier, "mixer": Mixer}
    own: nn.Module = classifiers[kind](classes=4, width=8) if kind in classifiers else small()
    for buffer in own.buffers():
        buffer.uniform_(0.5, 2)
    save_tensors(tmp_path / "model.safetensors", own.state_dict())
    again = build_network(json.loads(json.dumps(network_config(own))))
    load_weights(again, tmp_path / "model.safetensors")
    assert type(again) is type(own)
    assert network_config(again) == network_config(own)
    images = pictures(2)
    method = "features" if kind in classifiers else "encode"
    for name in ("forward", method):
        torch.testing.assert_close(getattr(again, name)(images), getattr(own, name)(images))
    assert all(torch.equal(again.state_dict()[name], v) for name, v in own.state_dict().items())


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"class": "Autoencoder", "config": {"depth": 3}}, "Autoencoder cannot be built: .*depth"),
        ({"class": "Autoencoder", "config": {"width": 12}}, "Autoencoder cannot be built"),
        ({"class": "Classifier"}, "Classifier comes without its configuration"),
        (
            {"class": "Other"},
            "'Other': Autoencoder, Classifier, Mixer, ModulatedMLP, ResidualMLP, TokenMLP",
        ),
    ],
)
def test_bad_descriptions_are_refused_in_one_line(
    description: dict[str, object], message: str
) -> None:
    with pytest.raises(SigdegError, match=message) as caught:
        build_network(description)
    assert "\n" not in str(caught.value)


def test_an_autoencoder_cannot_be_widened() -> None:
    with pytest.raises(SigdegError, match="Autoencoder cannot be widened"):
        widen(small(), 1, 2)


def test_no_class_embedding_stands_for_none_unless_it_is_said() -> None:
    options = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
    }
    conditional = UNet2DModel(num_class_embeds=4, **options)
    assert class_labels(conditional) == class_labels(widen(conditional, 3, 7)) == [0, 1, 2, 3]
    for null_class, labels in ((3, [0, 1, 2]), (0, [1, 2, 3])):
        set_null_class(conditional, null_class)
        for again in (conditional, widen(conditional, 3, 7), copy.deepcopy(conditional)):
            assert class_labels(again) == labels
    for null_class in (4, -1, "none"):
        with pytest.raises(SigdegError, match="null_class must be one of 0 to 3"):
            set_null_class(conditional, null_class)  # type: ignore[arg-type]  # the point
    only = UNet2DModel(num_class_embeds=1, **options)
    assert class_labels(only) == [0]
    with pytest.raises(SigdegError, match="beside which there are other classes"):
        set_null_class(only, 0)
    with pytest.raises(SigdegError, match="knows no classes"):
        set_null_class(UNet2DModel(**options), 0)
    for other in (UNet2DModel(**options), ResidualMLP(1, 1, 8, 1), Classifier(), nn.Linear(1, 1)):
        assert class_labels(other) is None
