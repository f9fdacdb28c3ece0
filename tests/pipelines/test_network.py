"""The layer beside a network's input layer."""

import copy
import json

import diffusers
import pytest
import torch
from torch import nn

import sigdeg
from sigdeg import SigdegError
from sigdeg.networks import sinusoidal
from sigdeg.pipelines import add_signature, served, signature_class, trace
from sigdeg.pipelines.network import FEATURES
from tests.pipelines.parts import conditional_unet
from tests.pipelines.student import draw, seeded, student_of
from tests.pipelines.zoo import FAMILIES

FAMILY = FAMILIES["sd15"]()
TRACE = trace(FAMILY.pipe, FAMILY.unguided)
TEXT = torch.randn(2, 3, 16, generator=seeded(1))


def beside(order: int = 2, weights: float = 0.0):
    """A student's network and what it was made of, with weights of a size beside."""
    base = copy.deepcopy(FAMILY.pipe.unet)
    network = add_signature(copy.deepcopy(base), TRACE, order, "a")
    with torch.no_grad():
        for i, p in enumerate(network.signature.parameters()):
            p.copy_(weights * torch.randn(p.shape, generator=seeded(i)))
    return base, network


def call(network: nn.Module, size: tuple[int, int] = (8, 8), order: int = 2, times=(0.3, 0.2)):
    x = torch.randn(2, 4, *size, generator=seeded(2))
    c = torch.randn(2, order, 4, *size, generator=seeded(3))
    given = {} if times is None else {"sigdeg": (c, torch.tensor(times, dtype=torch.float64))}
    return x, c, network(x, 500, TEXT, **given)[0]


def test_it_starts_as_its_teacher_to_the_bit():
    base, network = beside()
    *_, told = call(network)
    *_, expected = call(base, times=None)
    assert torch.equal(told, expected)


@pytest.mark.parametrize("order", [1, 3])
def test_it_is_an_input_layer_of_more_channels(order):
    base, network = beside(order, 0.1)
    x, c, told = call(network, order=order)
    own, side = base.conv_in, network.signature
    wide = nn.Conv2d(4 * (1 + order), own.out_channels, 3, padding=1)
    with torch.no_grad():
        wide.weight.copy_(torch.cat([own.weight, side.extra.weight], dim=1))
        wide.bias.copy_(own.bias)
    features = side.features(sinusoidal(torch.tensor([0.3, 0.2]), FEATURES).float())
    seen = torch.cat([x, c.flatten(1, 2)], dim=1)

    def input_layer(state):
        return wide(seen) + features[:, :, None, None]

    base.conv_in.forward = input_layer
    expected = base(x, 500, TEXT)[0]
    torch.testing.assert_close(told, expected, rtol=1e-5, atol=1e-5)


def test_other_resolutions_and_adapters_around_the_layer_do_not_matter():
    from peft import LoraConfig

    _, network = beside(weights=0.1)
    expected = [call(network, size)[2] for size in ((8, 8), (16, 8))]
    layers = ["conv_in", "to_q", "features", "extra"]
    network.add_adapter(LoraConfig(r=2, target_modules=layers), "style")  # which start at zero
    network.signature._places.clear()
    for size, told in zip(((8, 8), (16, 8)), expected, strict=True):
        torch.testing.assert_close(call(network, size)[2], told)


def test_path_and_end_of_the_step_reach_its_output_and_gradients_come_back():
    _, network = beside(weights=0.1)
    *_, told = call(network)
    told.square().mean().backward()
    for p in network.signature.parameters():
        assert float(p.grad.abs().max()) > 0
    *_, other = call(network, times=(0.3, 0.1))
    assert torch.equal(told[0], other[0])
    assert not torch.equal(told[1], other[1])


def test_copies_have_layers_of_their_own():
    _, network = beside(weights=0.1)
    copied = copy.deepcopy(network)
    *_, told = call(network)
    with torch.no_grad():
        copied.signature.extra.weight.zero_()
    assert torch.equal(call(network)[2], told)
    assert not torch.equal(call(copied)[2], told)
    with pytest.raises(SigdegError, match="is a student's already"):
        add_signature(copied, TRACE, 2, "b")


def test_its_class_is_its_teachers_with_one_argument_more():
    cls = signature_class(diffusers.UNet2DConditionModel)
    assert signature_class(diffusers.UNet2DConditionModel) is cls
    assert issubclass(cls, diffusers.UNet2DConditionModel)
    assert cls == diffusers.UNet2DConditionModel != cls.__base__.__base__
    assert cls not in (diffusers.UNet2DModel, signature_class(diffusers.UNet2DModel))
    assert sigdeg.SigDEGUNet2DConditionModel is cls is served("SigDEGUNet2DConditionModel")
    _, network = beside(weights=0.1)
    made = cls.from_config(network.config)
    assert made.state_dict().keys() == network.state_dict().keys()
    assert not hasattr(cls.from_config(conditional_unet().config), "signature")


@pytest.mark.parametrize("name", ["SigDEGNothing", "SigDEG", "SigDEGlogging", "Nothing"])
def test_no_other_names_are_served(name):
    with pytest.raises(AttributeError, match=f"no attribute '{name}'"):
        getattr(sigdeg, name)


def test_a_network_by_itself_is_refused():
    _, network = beside()
    with pytest.raises(SigdegError, match="keep its SigDEGScheduler, and call it by its pipeline"):
        network(torch.zeros(1, 4, 8, 8), 500, TEXT[:1])
    with pytest.raises(SigdegError, match="called without its state"):
        network(timestep=500, encoder_hidden_states=TEXT)


def test_a_transformer_and_its_student_compile_as_one_graph():
    pipe, call = student_of("sd3", lookahead=0.5)
    generator = {"generator": seeded(0), "num_inference_steps": 4}
    expected = pipe(**call, **generator)[0]
    torch._dynamo.reset()
    pipe.transformer = torch.compile(pipe.transformer, backend="eager", fullgraph=True)
    generator["generator"] = seeded(0)
    told = pipe(**call, **generator)[0]
    counts = torch._dynamo.utils.counters
    assert torch.equal(told, expected)
    assert not counts["graph_break"]
    assert counts["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"state": [1]}, "state must be"),
        ({"state": True}, "state must be"),
        ({"time": {}}, "time must be"),
        ({"state": 1}, "is not its student's state"),
        ({"listed": []}, "is not its student's state"),
        ({"time": "x"}, "called without its time, x"),
        ({"axis": 3}, "path of this run is of shape"),
    ],
)
def test_wrong_facts_are_one_line(tmp_path, changed, told):
    pipe, call = student_of("sd15", lookahead=0.5)
    pipe.unet.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["sigdeg"]["trace"] |= changed
    (tmp_path / "config.json").write_text(json.dumps(config))

    def drawn():
        pipe.unet = type(pipe.unet).from_pretrained(tmp_path)
        return draw(pipe, call)

    with pytest.raises(SigdegError, match=told):
        drawn()
