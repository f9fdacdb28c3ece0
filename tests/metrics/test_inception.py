"""The FID Inception: the published architecture, and the loading of its weights."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sigdeg.errors import SigdegError
from sigdeg.metrics import InceptionExtractor
from sigdeg.metrics.inception import FIDInception, Mixed
from sigdeg.metrics.inception_weights import load_inception

# Channels and size of the activations behind each block, as torchvision's source lists them.
ACTIVATIONS = {
    "Conv2d_1a_3x3": (32, 149),
    "Conv2d_2a_3x3": (32, 147),
    "Conv2d_2b_3x3": (64, 147),
    "maxpool1": (64, 73),
    "Conv2d_3b_1x1": (80, 73),
    "Conv2d_4a_3x3": (192, 71),
    "maxpool2": (192, 35),
    "Mixed_5b": (256, 35),
    "Mixed_5c": (288, 35),
    "Mixed_5d": (288, 35),
    "Mixed_6a": (768, 17),
    "Mixed_6b": (768, 17),
    "Mixed_6c": (768, 17),
    "Mixed_6d": (768, 17),
    "Mixed_6e": (768, 17),
    "Mixed_7a": (1280, 8),
    "Mixed_7b": (2048, 8),
    "Mixed_7c": (2048, 8),
}
SHAPES = {
    "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
    "Conv2d_4a_3x3.bn.running_var": (192,),
    "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
    "Mixed_5d.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
    "Mixed_5d.branch_pool.conv.weight": (64, 288, 1, 1),
    "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
    "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
    "Mixed_6b.branch7x7_3.conv.weight": (192, 128, 7, 1),
    "Mixed_6d.branch7x7dbl_4.conv.weight": (160, 160, 7, 1),
    "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
    "Mixed_7a.branch3x3_2.conv.weight": (320, 192, 3, 3),
    "Mixed_7a.branch7x7x3_2.conv.weight": (192, 192, 1, 7),
    "Mixed_7a.branch7x7x3_3.conv.weight": (192, 192, 7, 1),
    "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
    "Mixed_7b.branch3x3dbl_2.conv.weight": (384, 448, 3, 3),
    "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
    "Mixed_7c.branch_pool.bn.weight": (192,),
    "fc.weight": (1008, 2048),
    "fc.bias": (1008,),
}
# Channels of each part of a block's output, in the order in which torchvision concatenates them.
PARTS = {
    "Mixed_5b": {"branch1x1": 64, "branch5x5_2": 64, "branch3x3dbl_3": 96, "branch_pool": 32},
    "Mixed_6a": {"branch3x3": 384, "branch3x3dbl_3": 96, "": 288},
    "Mixed_6c": {"branch1x1": 192, "branch7x7_3": 192, "branch7x7dbl_5": 192, "branch_pool": 192},
    "Mixed_7a": {"branch3x3_2": 320, "branch7x7x3_4": 192, "": 768},
    "Mixed_7c": {
        "branch1x1": 320,
        "branch3x3_2a": 384,
        "branch3x3_2b": 384,
        "branch3x3dbl_3a": 384,
        "branch3x3dbl_3b": 384,
        "branch_pool": 192,
    },
}


@pytest.fixture(scope="module")
def network() -> FIDInception:
    """Random weights that keep the scale of activations, and statistics as after training."""
    torch.manual_seed(0)
    network = FIDInception().eval()
    for name, value in network.state_dict().items():
        if value.ndim == 4:
            nn.init.kaiming_normal_(value)
        elif "running" in name:
            value.uniform_(0.5, 1.5).sub_(1.0 if "mean" in name else 0.0)
    return network


@pytest.fixture(scope="module")
def weights(network: FIDInception, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The published file's format: torch's older one, without the counts of batches."""
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    state = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    yield path
    path.unlink()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save(value: object, path: Path) -> Path:
    torch.save(value, path)
    return path


def images(n: int = 2, channels: int = 3, size: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.rand(n, channels, size, size, generator=generator) - 1


def test_the_architecture_is_the_published_one(network: FIDInception) -> None:
    state = network.state_dict()
    # Keras documents 21,768,352 trainable weights without the top and without 17,216 factors of
    # batch normalisation, and twice these as running statistics; on top 2048 × 1008 and 1008.
    parameters = 21_768_352 + 17_216 + 2048 * 1008 + 1008
    assert sum(p.numel() for p in network.parameters()) == parameters == 23_850_960
    floats = {k: v for k, v in state.items() if "num_batches" not in k}
    assert sum(v.numel() for v in floats.values()) == parameters + 2 * 17_216 == 23_885_392
    assert len(floats) == 5 * 94 + 2
    assert len(state) == 6 * 94 + 2
    assert {name: tuple(state[name].shape) for name in SHAPES} == SHAPES
    assert {m.eps for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}


def test_activations_have_the_published_sizes(network: FIDInception) -> None:
    seen = {}
    hooks = [
        child.register_forward_hook(
            lambda _, __, output, name=name: seen.__setitem__(name, tuple(output.shape))
        )
        for name, child in network.named_children()
    ]
    with torch.no_grad():
        network(images(1))
    for hook in hooks:
        hook.remove()
    assert seen == {name: (1, c, size, size) for name, (c, size) in ACTIVATIONS.items()}
    assert list(seen) == list(ACTIVATIONS)


@pytest.mark.parametrize("name", PARTS)
def test_branches_are_concatenated_in_the_published_order(name: str) -> None:
    block = FIDInception().eval().get_submodule(name)
    assert isinstance(block, Mixed)
    parts = PARTS[name]
    for layer in block.values():
        nn.init.zeros_(layer.conv.weight)
    for i, layer in enumerate(parts):
        if layer:  # the output of a convolution of weight 0 is the shift of its normalisation
            nn.init.constant_(block[layer].bn.bias, 1.0 + i)
    inputs = ACTIVATIONS[list(ACTIVATIONS)[list(ACTIVATIONS).index(name) - 1]][0]
    output = block(torch.full((1, inputs, 5, 5), 50.0))[0, :, 0, 0]
    expected = [value for i, n in enumerate(parts.values()) for value in [1.0 + i] * n]
    if "" in parts:  # the pool's own output passes through
        expected[-parts[""] :] = [50.0] * parts[""]
    assert output.tolist() == expected


@pytest.mark.parametrize("name", ["Mixed_5b", "Mixed_6b", "Mixed_7b", "Mixed_7c"])
def test_average_pools_leave_padding_out_and_the_last_block_takes_maxima(name: str) -> None:
    block = FIDInception().eval().get_submodule(name)
    pool = block["branch_pool"]
    nn.init.zeros_(pool.conv.weight)
    with torch.no_grad():
        pool.conv.weight[0, 0] = (1 + 1e-3) ** 0.5  # normalisation divides by it: the identity
    x = torch.zeros(1, pool.conv.in_channels, 4, 4)
    x[0, 0, 0, 0], x[0, 0, 3, 3] = 36, 1
    pooled = block(x)[0, -pool.conv.out_channels]
    if name == "Mixed_7c":
        expected = F.max_pool2d(x[:, :1], 3, 1, 1)[0, 0]
    else:  # by hand: the corner's 36 over the 4, 6 or 9 pixels of the window inside the image
        expected = torch.tensor([[9, 6, 0, 0], [6, 4, 0, 0], [0] * 4, [0] * 4]).float()
        expected += torch.tensor([[0] * 4, [0] * 4, [0, 0, 1 / 9, 1 / 6], [0, 0, 1 / 6, 1 / 4]])
    torch.testing.assert_close(pooled, expected)


def test_images_are_resized_grey_is_repeated_and_logits_have_no_bias(
    network: FIDInception,
) -> None:
    grey = images(channels=1)
    resized = F.interpolate((grey + 1) / 2, (299, 299), mode="bilinear", align_corners=False)
    with torch.no_grad():
        features, logits = network(grey)
        expected, _ = network((2 * resized - 1).repeat(1, 3, 1, 1))  # pytorch-fid's order
    assert features.shape == (2, 2048)
    assert features.std(0).max() > 0.1  # a network without activity would compare equal
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(logits, features @ network.fc.weight.T)


def test_weights_of_the_older_format_load(network: FIDInception, weights: Path) -> None:
    loaded, digest = load_inception(weights, sha256(weights))
    assert digest == sha256(weights)
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_weights_of_the_newer_format_load_from_the_data_folder(
    network: FIDInception, tmp_path: Path
) -> None:
    (tmp_path / "inception").mkdir()
    path = save(
        network.state_dict(), tmp_path / "inception" / "pt_inception-2015-12-05-6726825d.pth"
    )
    loaded, digest = load_inception(sha256=sha256(path), data_dir=tmp_path)
    assert digest == sha256(path)
    assert torch.equal(loaded.fc.weight, network.fc.weight)
    with pytest.raises(
        SigdegError, match="damaged or incomplete: expected content of sha256 67268"
    ):
        InceptionExtractor.load(data_dir=tmp_path)  # not the published file


def test_safetensors_load_and_the_extractor_works(network: FIDInception, tmp_path: Path) -> None:
    path = tmp_path / "inception.safetensors"
    save_file({k: v for k, v in network.state_dict().items() if "num_batches" not in k}, path)
    extractor = InceptionExtractor.load(path, batch=2)
    assert (extractor.name, extractor.digest) == ("inception", sha256(path))
    three = images(3, channels=1)
    features, probabilities = extractor.extract(three)
    assert features.shape == (3, 2048)
    assert probabilities.shape == (3, 1008)
    single = InceptionExtractor(network, "", batch=1).features(three)
    torch.testing.assert_close(features, single, rtol=1e-4, atol=1e-5)
    assert features.std(0).max() > 0.1
    with pytest.raises(SigdegError, match="1 or 3 channels, got 2"):
        extractor.features(images(channels=2))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SigdegError, match="not a whole safetensors file"):
        load_inception(path)
    with pytest.raises(SigdegError, match=r"cannot read .*: No such file"):
        load_inception(tmp_path / "none.safetensors")


def test_a_wrong_digest_is_refused(weights: Path) -> None:
    with pytest.raises(SigdegError, match="expected content of sha256 6726825d0af5"):
        load_inception(weights)
    with pytest.raises(SigdegError, match="expected content of sha256 0000"):
        load_inception(weights, "0" * 64)


def test_a_truncated_file_is_refused(network: FIDInception, weights: Path, tmp_path: Path) -> None:
    whole = sha256(weights)
    path = tmp_path / "half.pth"
    for content in (weights.read_bytes(), save({"fc": torch.ones(99)}, path).read_bytes(), b"??"):
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(SigdegError, match="damaged or incomplete"):
            load_inception(path, whole)
        with pytest.raises(SigdegError, match="not a whole file of weights") as caught:
            load_inception(path, sha256(path))
        assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(network: FIDInception, tmp_path: Path) -> None:
    state = network.state_dict()
    path = tmp_path / "other.pth"

    def refuse(value: object, message: str) -> None:
        save(value, path)
        with pytest.raises(SigdegError, match=message):
            load_inception(path, sha256(path))

    missing = {k: v for k, v in state.items() if k != "fc.bias"}
    refuse(missing, r"fc.bias is missing there, \(1008,\) in the FID Inception")
    refuse({**state, "fc.more": torch.ones(1)}, r"fc.more is \(1,\) there, unknown in")
    refuse({**state, "fc.bias": torch.ones(1000)}, r"fc.bias is \(1000,\) there, \(1008,\) in")
    refuse([torch.ones(1)], "no dictionary of tensors")


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    trap = tmp_path / "trap"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (trap,)

    path = save({"fc.bias": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(SigdegError, match="not a whole file of weights"):
        load_inception(path, sha256(path))
    assert not trap.exists()
