"""Widening changes nothing, and networks survive the trip through their configuration."""

import json

import pytest
import torch
from diffusers import UNet1DModel, UNet2DConditionModel, UNet2DModel
from torch import nn

from sigdeg.errors import SigdegError
from sigdeg.networks import ModulatedMLP, ResidualMLP, build_network, network_config, widen

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


@pytest.mark.parametrize("extra", [0, 1, 37])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_widened_network_computes_the_same_whatever_the_new_inputs_hold(kind, extra):
    torch.manual_seed(0)
    make, shape = NETWORKS[kind]
    network = make().double().eval()
    x = torch.randn(4, *shape, dtype=torch.float64)
    t = torch.tensor([0.0, 0.31, 1.7, 999.0], dtype=torch.float64)
    noise = 100 * torch.randn(4, extra, *shape[1:], dtype=torch.float64)
    wide = widen(network, shape[0] + extra, 2 * shape[0])
    out = output(wide, torch.cat([x, noise], dim=1), t)
    expected = output(network, x, t)
    torch.testing.assert_close(out[:, : shape[0]], expected, rtol=1e-12, atol=1e-12)
    assert bool((out[:, shape[0] :] == 0).all())
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize("kind", ["mlp", "unet"])
def test_new_inputs_and_outputs_can_learn_and_the_original_stays_as_it_was(kind):
    make, shape = NETWORKS[kind]
    network = make().eval().requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    wide = widen(network, shape[0] + 2, shape[0] + 1)
    assert not wide.training
    assert network_config(wide)["config"]["in_channels"] == shape[0] + 2
    x = torch.randn(5, shape[0] + 2, *shape[1:])
    (output(wide, x, torch.rand(5)) - 1).square().mean().backward()
    first = wide.embed if kind == "mlp" else wide.conv_in
    last = wide.head if kind == "mlp" else wide.conv_out
    assert first.weight.grad[:, shape[0] : shape[0] + 2].abs().min() > 0
    assert last.weight.grad[shape[0] :].abs().max() > 0
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.add_(1)
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in before)


def test_outputs_that_are_not_kept_start_at_zero():
    """A learned variance takes the rows that the student's own head is to have."""
    network = tiny_unet(1, outputs=2).double()
    x, t = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([3.0, 4.0])
    expected = output(network, x, t)
    out = output(widen(network, 1, 2, keep=1), x, t)
    torch.testing.assert_close(out[:, :1], expected[:, :1], rtol=1e-12, atol=1e-12)
    assert bool((out[:, 1:] == 0).all())
    torch.testing.assert_close(output(widen(network, 1, 1, keep=1), x, t), expected[:, :1])


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
    wide = widen(network, 5)
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
        (lambda: nn.Linear(2, 2), "Linear cannot be widened"),
        (lambda: UNet1DModel(block_out_channels=(32, 32, 64)), "UNet1DModel cannot be widened"),
        (
            lambda: tiny_unet(
                3,
                down_block_types=("SkipDownBlock2D", "SkipDownBlock2D"),
                up_block_types=("SkipUpBlock2D", "SkipUpBlock2D"),
                block_out_channels=(16, 16),
            ),
            "without skip blocks",
        ),
        (lambda: busy_mlp(8, 3), "8 to 3 channels cannot be widened to 7 to 3"),
        (lambda: busy_mlp(3, 8), "3 to 8 channels cannot be widened to 7 to 3"),
    ],
)
def test_what_cannot_be_widened_is_refused(make, message):
    with pytest.raises(SigdegError, match=message):
        widen(make(), 7, 3)


def test_a_network_changed_after_it_was_built_is_refused():
    network = busy_mlp()
    network.adapter = nn.Linear(1, 1)
    with pytest.raises(SigdegError, match=r"adapter\.bias .* or the network was changed"):
        widen(network, 4)


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
