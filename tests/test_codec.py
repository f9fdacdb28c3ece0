"""Decoders: latents become the images that diffusers makes of them, or one line says why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sigdeg.codec import (
    WEIGHTS,
    Decoder,
    Identity,
    find_codec,
    load_decoder,
    save_decoder,
)
from sigdeg.errors import SigdegError
from sigdeg.networks import Autoencoder, ResidualMLP
from sigdeg.schedule import VPLinear
from sigdeg.student import SignatureStudent

BLOCKS = {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (4, 8),
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
    "latent_channels": 2,
    "norm_num_groups": 2,
    "sample_size": 16,
}
MAKERS: dict[str, Callable[[], nn.Module]] = {
    "Autoencoder": lambda: Autoencoder(latent_channels=2, width=8, size=16),
    "AutoencoderKL": lambda: AutoencoderKL(**BLOCKS, scaling_factor=0.3),
    "VQModel": lambda: VQModel(**BLOCKS, num_vq_embeddings=16, scaling_factor=2.0),
    "AutoencoderTiny": lambda: AutoencoderTiny(
        in_channels=1,
        out_channels=1,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=2,
    ),
}
SCALES = {"AutoencoderKL": 0.3, "VQModel": 2.0, "AutoencoderTiny": 1.0}


def make(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return MAKERS[kind]().eval()


def close(first: Tensor, second: Tensor) -> None:
    """Equal up to the rounding of kernels, which depends on where weights lie in memory."""
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


def latents(n: int = 5, side: int = 8) -> Tensor:
    return torch.randn(n, 2, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", SCALES)
def test_diffusers_models_are_given_what_their_pipelines_give_them(kind: str) -> None:
    model, z = make(kind), latents()
    images = Decoder(model)(z)
    assert images.shape == (5, 1, 16, 16)
    assert not images.requires_grad
    assert images.std() > 1e-3
    expected = model.decode(z / SCALES[kind]).sample
    close(images, expected)


def test_attention_under_its_first_names_is_read(tmp_path: Path) -> None:
    model = make("VQModel")
    save_decoder(Decoder(model), tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(tmp_path / WEIGHTS)
    for new, name in old.items():
        weights = {key.replace(f".{new}.", f".{name}."): v for key, v in weights.items()}
    assert any(".proj_attn." in key for key in weights)
    save_file(weights, tmp_path / WEIGHTS)
    config = json.loads((tmp_path / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("_weights", "_digest")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    close(load_decoder(tmp_path)(latents()), Decoder(model)(latents()))


def test_our_own_takes_standardised_latents() -> None:
    model = make("Autoencoder")
    model.mean.fill_(5.0)  # of the encoder alone
    images = Decoder(model)(latents(side=4))
    assert images.shape == (5, 1, 16, 16)
    close(images, model.decode(latents(side=4)))


def test_many_latents_go_in_batches() -> None:
    model, sizes = make("Autoencoder"), []
    model.decoder.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    z = latents(7, 4)
    images = Decoder(model)(z, batch_size=3)
    assert sizes == [3, 3, 1]
    torch.testing.assert_close(images, model.decode(z))


@pytest.mark.parametrize("kind", MAKERS)
def test_round_trip(kind: str, tmp_path: Path) -> None:
    decoder, z = Decoder(make(kind)), latents(side=4)
    save_decoder(decoder, tmp_path)
    again = load_decoder(tmp_path)
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    close(again(z), decoder(z))
    weights = again.state_dict()
    assert all(torch.equal(weights[name], v) for name, v in decoder.state_dict().items())
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    if kind != "Autoencoder":  # and diffusers reads it too
        theirs = type(decoder.autoencoder).from_pretrained(tmp_path)
        close(theirs.decode(z).sample, decoder.autoencoder.decode(z).sample)


@pytest.mark.parametrize("kind", SCALES)
def test_what_diffusers_wrote_is_read(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    model.save_pretrained(tmp_path)
    close(load_decoder(tmp_path)(latents()), Decoder(model)(latents()))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("UNet2DModel", r"holds a UNet2DModel, a decoder is one of Autoencoder, AutoencoderKL, "),
        ("ResidualMLP", r"holds a ResidualMLP, a decoder is one of "),
        (None, r"holds a None, a decoder is one of "),
        ("AutoencoderKL", r"AutoencoderKL cannot be built|weight .* is"),
    ],
)
def test_another_class_is_refused(name: str | None, message: str, tmp_path: Path) -> None:
    save_decoder(Decoder(make("Autoencoder")), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": name}))
    with pytest.raises(SigdegError, match=message) as caught:
        load_decoder(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "no readable config.json"),
        ("diffusion_pytorch_model.safetensors", "is a pickle and is never opened"),
    ],
)
def test_missing_files_are_refused(file: str, message: str, tmp_path: Path) -> None:
    save_decoder(Decoder(make("Autoencoder")), tmp_path)
    (tmp_path / file).unlink()
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(SigdegError, match=message):
        load_decoder(tmp_path)


def test_a_decoder_lies_in_the_students_folder_or_where_its_config_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = tmp_path / "digits"
    shared, own = Decoder(make("AutoencoderKL")), Decoder(make("Autoencoder"))
    save_decoder(shared, tmp_path / "digits-teacher" / "vqvae")
    save_decoder(shared, tmp_path / "other" / "vqvae")
    network = ResidualMLP(SignatureStudent.in_channels(2, 2), 2, 8, 1)
    made = SignatureStudent(network, VPLinear(), 2)
    made.save_pretrained(student)
    assert isinstance(find_codec(student), Identity)  # a name proves nothing
    made.save_pretrained(student, decoder="other")
    assert SignatureStudent.from_pretrained(student).channels == 2
    monkeypatch.chdir(student)  # where the folder is named by a dot
    for folder in (student, Path()):
        found = find_codec(folder)
        assert isinstance(found, Decoder)
        assert isinstance(found.autoencoder, AutoencoderKL)
    made.save_pretrained(student, decoder="gone")
    with pytest.raises(SigdegError, match=r"vqvae holds no readable config\.json"):
        find_codec(student)
    made.save_pretrained(student, decoder="../other")
    with pytest.raises(SigdegError, match="names a decoder that is no folder beside it"):
        find_codec(student)
    save_decoder(own, student / "decoder")
    found = find_codec(Path())
    assert isinstance(found, Decoder)
    assert isinstance(found.autoencoder, Autoencoder)


def test_a_vq_model_of_before_scaling_factors_is_given_its_latents(tmp_path: Path) -> None:
    model, z = make("VQModel"), latents()
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    del config["scaling_factor"]
    file.write_text(json.dumps(config))
    decoder = load_decoder(tmp_path)
    close(decoder(z), model.decode(z).sample)
    save_decoder(decoder, tmp_path / "again")
    close(load_decoder(tmp_path / "again")(z), model.decode(z).sample)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"shift_factor": 0.4}, lambda z: z / 0.3 + 0.4),
        (
            {"latents_mean": (0.5, -1.0), "latents_std": (2.0, 0.25)},
            lambda z: (
                z * torch.tensor([2.0, 0.25]).view(1, 2, 1, 1) / 0.3
                + torch.tensor([0.5, -1.0]).view(1, 2, 1, 1)
            ),
        ),
    ],
    ids=["shift", "standardised"],
)
def test_latents_are_shifted_back(
    options: dict[str, Any], expected: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    """As pipelines do: the shift after the factor, means and deviations channel by channel."""
    torch.manual_seed(0)
    model = AutoencoderKL(**BLOCKS, scaling_factor=0.3, **options).eval()
    model.save_pretrained(tmp_path)
    z = latents()
    close(load_decoder(tmp_path)(z), model.decode(expected(z)).sample)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latents_mean": (0.5,) * 3}, "one a channel of 2, got"),
        ({"latents_std": "wide"}, "one a channel of 2, got 'wide'"),
        ({"latents_mean": (0.5, 1.0), "shift_factor": 1.0}, "latents_mean or a shift_factor"),
    ],
)
def test_shifts_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    model = AutoencoderKL(**BLOCKS, **options)
    with pytest.raises(SigdegError, match=message):
        Decoder(model)


@pytest.mark.parametrize("kind", ["Autoencoder", "VQModel"])
def test_samples_that_are_no_latents_are_refused(kind: str) -> None:
    decoder = Decoder(make(kind))
    for shape in ((1, 3, 8, 8), (1, 2, 8)):
        with pytest.raises(SigdegError, match="takes latents of 2 channels, got samples of shape"):
            decoder(torch.zeros(shape))
