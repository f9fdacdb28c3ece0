"""Widening changes nothing, and networks survive the trip through their configuration."""

import json

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet1DModel, UNet2DConditionModel, UNet2DModel
from torch import nn

from sigdeg.errors import SigdegError
from sigdeg.networks import (
    ModulatedMLP,
    ResidualMLP,
    Widened,
    build_network,
    network_config,
    widen,
)

BLOCKS = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 8,
}


def tiny_unet(channels=1, outputs=None, attention=False, **options):
    down, up = ("AttnDownBlock2D", "AttnUpBlock2D") if attention else ("DownBlock2D", "UpBlock2D")
    defaults = {
        "in_channels": channels,
        "out_channels": outputs or channels,
        "down_block_types": ("DownBlock2D", down),
        "up_block_types": (up, "UpBlock2D"),
        "attention_head_dim": 4,
    }
    return UNet2DModel(**{**BLOCKS, **defaults, **options})


def busy_mlp(inputs=3, outputs=3):
    """An MLP whose last layer is not zero, as after training."""
    network = ResidualMLP(inputs, outputs, width=16, blocks=2, time_dim=6)
    nn.init.normal_(network.head.weight)
    nn.init.normal_(network.head.bias)
    return network


def busy_modulated(inputs=3, outputs=3):
    """One whose zeros are gone, as after training."""
    network = ModulatedMLP(inputs, outputs, width=16, blocks=2, time_dim=6)
    for layer in (network.head, network.modulation):
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return network


def output(network, x, t):
    value = network(x, t)
    return value if isinstance(value, torch.Tensor) else value[0]


NETWORKS = {
    "mlp": (lambda: busy_mlp(), (3,)),
    "modulated": (lambda: busy_modulated(), (3,)),
    "unet": (lambda: tiny_unet(3), (3, 8, 8)),
    "unet-attention": (lambda: tiny_unet(1, attention=True), (1, 8, 8)),
    "unet-centred": (lambda: tiny_unet(2, center_input_sample=True), (2, 8, 8)),
}


@pytest.mark.parametrize("extra", [1, 37])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_widened_network_computes_the_same_whatever_the_new_inputs_hold(kind, extra):
    torch.manual_seed(0)
    make, shape = NETWORKS[kind]
    network = make().double().eval()
    x = torch.randn(4, *shape, dtype=torch.float64)
    t = torch.tensor([0.0, 0.31, 1.7, 999.0], dtype=torch.float64)
    noise = 100 * torch.randn(4, extra, *shape[1:], dtype=torch.float64)
    wide = widen(network, shape[0], shape[0] + extra)
    out = output(wide, torch.cat([x, noise], dim=1), t)
    expected = output(network, x, t)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize("kind", ["mlp", "modulated", "unet"])
def test_new_inputs_can_learn_and_the_original_stays_as_it_was(kind):
    make, shape = NETWORKS[kind]
    network = make().eval().requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    wide = widen(network, shape[0], shape[0] + 2)
    assert not wide.training
    x = torch.randn(5, shape[0] + 2, *shape[1:])
    (output(wide, x, torch.rand(5)) - 1).square().mean().backward()
    assert wide.beside.weight.grad.abs().min() > 0
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.add_(1)
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in before)


@pytest.mark.parametrize("kind", ["mlp", "unet"])
def test_a_layer_beside_the_first_is_one_wider_layer(kind):
    """What earlier versions did: the network built anew, with more columns in its first layer."""
    torch.manual_seed(0)
    make, shape = NETWORKS[kind]
    wide = widen(make(), shape[0], shape[0] + 4)
    nn.init.normal_(wide.beside.weight)
    description = network_config(wide.network)
    description["config"]["in_channels"] = shape[0] + 4
    whole = build_network(description)
    weights = wide.network.state_dict()
    name = "embed.weight" if kind == "mlp" else "conv_in.weight"
    own, more = weights[name][:, : shape[0]], weights[name][:, shape[0] :]
    weights[name] = torch.cat([own, wide.beside.weight, more], dim=1)
    whole.load_state_dict(weights)
    x, t = torch.randn(4, shape[0] + 4, *shape[1:]), torch.rand(4)
    expected = output(whole, x, t)
    difference = (output(wide, x, t) - expected).abs().max() / expected.abs().max()
    assert float(difference.detach()) < 1e-6


def test_what_is_inside_is_shared_with_whoever_has_it():
    """A student of its teacher's own weights: they are neither copied nor renamed."""
    network = tiny_unet(2)
    wide = Widened(network, "conv_in", "as it is", 2, 7, 1)
    own = {id(p) for p in network.parameters()}
    assert own < {id(p) for p in wide.parameters()}
    assert [n for n, p in wide.named_parameters() if id(p) not in own] == ["beside.weight"]


def test_a_transformer_of_patches_is_widened():
    """Its first layer is found by a call, and takes the patches of the further channels."""
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=2,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=4,
        norm_num_groups=4,
    ).eval()
    nn.init.normal_(network.proj_out_2.weight)
    x, t, labels = torch.randn(3, 2, 8, 8), torch.tensor([1, 5, 9]), torch.tensor([0, 1, 2])
    wide = widen(network, 2, 5, (x[:1], t[:1]), {"class_labels": labels[:1]})
    assert wide.layer == "pos_embed.proj"
    inputs = torch.cat([x, torch.randn(3, 3, 8, 8)], dim=1)
    with torch.no_grad():
        first = wide(inputs, t, class_labels=labels)[0]
        torch.testing.assert_close(first, network(x, t, class_labels=labels)[0])
        nn.init.normal_(wide.beside.weight)
        assert not torch.allclose(wide(inputs, t, class_labels=labels)[0], first)


def test_a_conditional_unet_is_widened_too():
    network = UNet2DConditionModel(
        in_channels=2,
        out_channels=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=6,
        attention_head_dim=4,
        **BLOCKS,
    ).double()
    x, text = torch.randn(2, 2, 8, 8).double(), torch.randn(2, 5, 6).double()
    wide = widen(network, 2, 5)
    inputs = torch.cat([x, torch.randn(2, 3, 8, 8).double()], dim=1)
    torch.testing.assert_close(
        wide(inputs, 7, encoder_hidden_states=text)[0],
        network(x, 7, encoder_hidden_states=text)[0],
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(3, 3), "Linear cannot be widened without an example"),
        (lambda: UNet1DModel(block_out_channels=(32, 32, 64)), "UNet1DModel cannot be widened"),
        (lambda: busy_mlp(8, 3), "of 8 channels cannot be widened from 3 to 7"),
    ],
)
def test_what_cannot_be_widened_is_refused(make, message):
    with pytest.raises(SigdegError, match=message):
        widen(make(), 3, 7)


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_round_trip_through_json(kind):
    make, shape = NETWORKS[kind]
    network = make().eval()
    again = build_network(json.loads(json.dumps(network_config(network)))).eval()
    assert type(again) is type(network)
    again.load_state_dict(network.state_dict())
    x, t = torch.randn(2, *shape), torch.tensor([0.1, 0.9])
    assert torch.equal(output(again, x, t), output(network, x, t))
    assert json.dumps(network_config(again)) == json.dumps(network_config(network))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"class": "Nonesuch", "config": {}}, "unknown network class 'Nonesuch'"),
        ({"class": "DDPMScheduler", "config": {}}, "unknown network class 'DDPMScheduler'"),
        ({"class": "utils", "config": {}}, "unknown network class 'utils'"),
        ({}, "unknown network class None"),
        (network_config(nn.Linear(1, 1)), "unknown network class 'Linear'"),
        ({"class": "ResidualMLP"}, "without its configuration"),
        ({"class": "ResidualMLP", "config": {"depth": 3}}, "ResidualMLP cannot be built: .*depth"),
        (
            {"class": "UNet2DModel", "config": {"block_out_channels": [32]}},
            "UNet2DModel cannot be built: .*same number",
        ),
    ],
)
def test_descriptions_that_build_no_network_are_refused_in_one_line(description, message):
    with pytest.raises(SigdegError, match=message) as caught:
        build_network(description)
    assert "\n" not in str(caught.value)
