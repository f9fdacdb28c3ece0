"""Parts beside the networks: encoders are asked once, and make room for training."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sigdeg.pipelines.parts import Memory, remembered, set_aside
from sigdeg.pipelines.trace import call_pipeline
from tests.pipelines.zoo import FAMILIES


@pytest.fixture
def counted():
    """A pipeline with text encoders, and how often they have been at work."""
    family, calls = FAMILIES["sdxl"](), []
    for name in ("text_encoder", "text_encoder_2"):
        parts = getattr(family.pipe, name).named_modules()
        layer = next(part for place, part in parts if place.endswith("final_layer_norm"))
        layer.register_forward_hook(lambda *_, name=name: calls.append(name))
    return family, calls


def draw(family, **more):
    call = {**family.call, **more}
    made = call_pipeline(family.pipe, call, 1, torch.Generator().manual_seed(0))[0]
    return torch.as_tensor(made)


def test_the_same_prompt_is_encoded_once(counted):
    family, calls = counted
    plain = draw(family)
    once = len(calls)
    calls.clear()
    with remembered(family.pipe):
        assert all(torch.equal(draw(family), plain) for _ in range(3))
        assert len(calls) == once
        other = draw(family, prompt=["nine"])
        assert len(calls) == once + 2  # the negative prompt is known
        assert not torch.equal(other, plain)
    calls.clear()
    assert torch.equal(draw(family), plain)
    assert len(calls) == once


def test_what_there_is_no_room_for_is_encoded_again(counted):
    family, calls = counted
    plain = draw(family)
    once = len(calls)
    calls.clear()
    with remembered(family.pipe, room=1):
        assert all(torch.equal(draw(family), plain) for _ in range(2))
    assert len(calls) == 2 * once


def test_the_last_answers_are_the_ones_that_are_kept():
    asked = []
    memory = Memory(lambda x, **_: asked.append(int(x[0])) or x, 2 * torch.ones(1).nbytes)
    for value in (1, 2, 1, 3, 1, 2):
        assert memory(torch.tensor([float(value)])) == value
    assert asked == [1, 2, 3, 2]
    assert memory(torch.ones(1), of=object()) == 1  # what has no digest is not kept
    assert asked == [1, 2, 3, 2, 1]


class Far(nn.Module):
    """A module that says it is on a device that this machine has not."""

    def __init__(self, device):
        super().__init__()
        self.device, self.seen = torch.device(device), []

    def to(self, device):
        self.seen.append(str(device))
        self.device = torch.device(device)


def test_parts_leave_their_device_while_others_train():
    parts = {name: Far("cuda:0") for name in ("vae", "unet", "image_encoder")}
    parts |= {"text_encoder": Far("cpu"), "tokenizer": object()}
    parts["image_encoder"]._hf_hook = object()
    pipe = SimpleNamespace(components=parts)
    with set_aside(pipe, ["unet"]):
        assert parts["vae"].device.type == "cpu"
    assert parts["vae"].seen == ["cpu", "cuda:0"]
    assert parts["unet"].seen == parts["text_encoder"].seen == parts["image_encoder"].seen == []
