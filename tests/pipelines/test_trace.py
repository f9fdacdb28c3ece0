"""What a run tells of a pipeline, where it is not as in most, and what is refused in one line."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet1DModel,
)
from torch import nn

from sigdeg.errors import SigdegError
from sigdeg.pipelines.calls import Calls, Kept, fitted, keep_calls, read_calls
from sigdeg.pipelines.facts import Trace
from sigdeg.pipelines.layer import Called, find_layer
from sigdeg.pipelines.relation import find_relation
from sigdeg.pipelines.scheduler import SigDEGScheduler
from sigdeg.pipelines.stepped import Logged
from sigdeg.pipelines.trace import (
    find_state,
    recorded,
    steps_of,
    trace,
    unguided,
)
from tests.pipelines.inventory import follow
from tests.pipelines.parts import (
    BETAS,
    conditional_unet,
    embeddings,
    images,
    randomised,
    rows,
    unet,
)
from tests.pipelines.zoo import FAMILIES


class Beside(nn.Module):
    """A network that puts what it is told beside the state, before its first layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.told = layer, nn.Linear(3, 5)

    def forward(self, x, told):
        channels = self.told(told)[:, :, None].expand(-1, -1, x.shape[2])
        return self.layer(torch.cat([channels, x.flip(1)], dim=1))


@pytest.mark.parametrize("length", [4, 300])  # the last one's elements have two digits
def test_a_layer_may_see_more_than_the_state(length):
    network = Beside(nn.Conv1d(7, 1, 1))
    state = torch.zeros(1, 2, length)
    name, place = find_layer(network, Called("net", 0, (state, torch.rand(1, 3)), {}), 0)
    numbers = torch.arange(2 * length).reshape(1, 2, length)
    assert name == "layer"
    assert torch.equal(place, torch.cat([torch.full((1, 5, length), -1), numbers.flip(1)], 1))


def test_a_unet_of_sounds_sees_its_time_beside_the_sound():
    width, told = 8, 16  # it is told the time by twice its first width
    network = UNet1DModel(
        sample_size=32,
        in_channels=2,
        out_channels=2,
        extra_in_channels=told,
        block_out_channels=(width, width),
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D"),
        up_block_types=("UpBlock1D", "UpBlock1DNoSkip"),
        flip_sin_to_cos=True,
    )
    state = torch.zeros(1, 2, 32)
    _, place = find_layer(network, Called("unet", 0, (state, torch.tensor(0.3)), {}), 0)
    assert torch.equal(place[:, :2], torch.arange(64).reshape(1, 2, 32))
    assert (place[:, 2:] == -1).all()


def test_a_network_whose_layers_see_no_whole_state_has_no_input_layer():
    network = nn.Sequential(nn.AvgPool1d(2), nn.Conv1d(2, 2, 1))
    assert find_layer(network, Called("net", 0, (torch.zeros(1, 2, 8),), {}), 0) == (None, None)


def test_the_state_may_stand_behind_other_channels():
    scheduler = SigDEGScheduler()
    scheduler.set_timesteps(2)
    image, state, other = images(6).split(2)
    given = torch.cat([image, state], 1)
    found = find_state(Called("unet", 0, (given,), {}), state, scheduler)
    assert found == (0, 1, 3, 1, None)
    facts = {"axis": 1, "channels": 3, "begin": 3, "listed": None, "networks": ["unet"]}
    others = dict.fromkeys(("state", "copies", "calls", "time", "time_scale", "time_shift"), 0)
    read = Trace.read({**facts, **others, "relation": "same", "layer": "conv_in", "samples": 2})
    assert torch.equal(read.part(given), state)
    assert torch.equal(read.filled(given, other), torch.cat([image, other], 1))


@pytest.mark.parametrize(("sign", "relation"), [(1, "same"), (-1, "negated")])
def test_the_output_may_be_stepped_on_where_the_state_stands(sign, relation):
    output = images(6).reshape(2, 3, 3, *images(1).shape[2:])
    axis, begin = 2, 1
    for said in (0, begin):  # a film without its last picture, and one without its first
        given = output.narrow(axis, said, 2)
        called = Called("net", 0, (), {}, sign * output)
        assert find_relation([called], given, given + 1, axis, begin) == (relation, said, 0)
        facts = {"axis": axis, "channels": 2, "begin": begin, "said": said, "listed": None}
        others = dict.fromkeys(("state", "copies", "calls", "time", "time_scale", "time_shift"), 0)
        told = {**facts, **others, "relation": relation, "layer": "conv_in", "samples": 2}
        read = Trace.read({"networks": ["net"], **told})
        calls, around = Calls(read, [], torch.zeros(0, 2)), torch.tensor([[1.0, 0.0]] * len(given))
        assert torch.equal(calls.related(sign * output, given, around), given)
    assert find_relation([called], given + 1, given + 1, axis, begin) == (None, 0, 0)


class Adapted(nn.Module):
    """A network that empties the list it is given, as U-Nets do with what adapters say."""

    def forward(self, x, told):
        return x + told.pop(0)


def test_calls_are_recorded_as_they_were_made():
    network, scheduler = Adapted(), SimpleNamespace(k=0, first=0)
    x, told = torch.zeros(2), [torch.ones(2)]
    with recorded(SimpleNamespace(components={"unet": network}), scheduler) as calls:
        network(x, told=told)
    x.add_(5)  # and some pipelines write the next state into the last one
    assert torch.equal(calls[0].argument(0), torch.zeros(2))
    assert torch.equal(calls[0].argument("told")[0], torch.ones(2))


def test_a_march_logs_states_that_a_pipeline_writes_over():
    scheduler = SigDEGScheduler()
    scheduler.set_timesteps(2)
    scheduler.log = []
    x = first = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    kept = first.clone()
    new = scheduler.step(torch.zeros_like(x), scheduler.timesteps[0], x).prev_sample
    first.fill_(0), new.fill_(0)
    assert torch.equal(scheduler.log[0].before, kept)
    assert scheduler.log[0].after.abs().max() > 0


@pytest.mark.parametrize(("strength", "steps"), [(1.0, 2), (0.5, 4), (0.3, 7)])
def test_two_steps_are_left_to_an_image(strength, steps):
    family = FAMILIES["sd_img2img"]()
    assert steps_of(family.pipe, {**family.call, "strength": strength}) == steps
    assert int(steps * strength) == 2
    assert steps_of(FAMILIES["ddpm"]().pipe, {}) == 2


def test_a_call_that_leaves_little_to_do_is_traced():
    family = FAMILIES["sd_img2img"]()
    assert trace(family.pipe, {**family.call, "strength": 0.1}).layer == "conv_in"


def test_experts_are_traced_together():
    family = FAMILIES["wan"]()
    pipe = family.pipe
    second = randomised(type(pipe.transformer).from_config(pipe.transformer.config), seed=1)
    pipe.register_modules(transformer_2=second)
    pipe.register_to_config(boundary_ratio=0.6)
    assert unguided(pipe, family.call)[1].networks == ("transformer", "transformer_2")


class AlwaysGuided(DiffusionPipeline):
    """Asks its network for both outputs, whatever the scale: in one call or in two."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        prompt_embeds,
        negative_prompt_embeds,
        num_inference_steps,
        generator,
        guidance_scale,
        way,
    ):
        n = len(prompt_embeds)
        x = torch.randn(n, *images(1).shape[1:], generator=generator)
        beside = rows(n, 2, *images(1).shape[2:], seed=3)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            texts = [prompt_embeds, negative_prompt_embeds]
            seen = torch.cat([x, beside], 1)
            if way == "copies":
                both = self.unet(torch.cat([seen] * 2), t, torch.cat(texts[::-1])).sample
                without, asked = both.chunk(2)
            else:
                asked, without = (self.unet(seen, t, text).sample for text in texts)
            said = without + guidance_scale * (asked - without)
            if way == "gradients":
                with torch.enable_grad():
                    known = x.requires_grad_()
                    self.unet(torch.cat([known, beside], 1), t, prompt_embeds)
                    x = x.detach()
            x = self.scheduler.step(said, t, x).prev_sample
        return (x,)


def always_guided(way):
    network = conditional_unet(5, out_channels=3)
    call = {**embeddings(2), "guidance_scale": 3.0, "way": way}
    return AlwaysGuided(network, DDIMScheduler(**BETAS)), call


@pytest.mark.parametrize(("way", "which"), [("copies", 1), ("calls", 0)])
def test_what_is_asked_for_and_left_out_is_not_learned(way, which):
    pipe, call = always_guided(way)
    off, found = unguided(pipe, call)
    assert off == {**call, "guidance_scale": 1.0}
    assert (found.which, found.relation, found.single) == (which, "same", False)
    assert follow(pipe, call) == "unet: conv_in"


def test_states_that_gradients_change_are_refused():
    with pytest.raises(SigdegError, match="changes its states by gradients of its unet"):
        unguided(*always_guided("gradients"))


class Tabled(DiffusionPipeline):
    """Noises its image by a table of its own; its scheduler is not told where it starts."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, image, num_inference_steps, generator, strength=0.7):
        self.scheduler.set_timesteps(num_inference_steps)
        left = self.scheduler.timesteps[num_inference_steps - int(strength * num_inference_steps) :]
        noise = torch.randn(image.shape, generator=generator)
        kept = DDIMScheduler(**BETAS).alphas_cumprod[left[0]]
        x = kept**0.5 * image + (1 - kept) ** 0.5 * noise
        for t in left:
            x = self.scheduler.step(self.unet(x, t).sample, t, x).prev_sample
        return (x,)


def test_timesteps_are_whole_where_a_pipeline_looks_tables_up_by_them():
    pipe, call = Tabled(unet(3, 16), DDIMScheduler(**BETAS)), {"image": images(2)}
    assert unguided(pipe, call)[1].timesteps == "integer"
    assert follow(pipe, call) == "unet: conv_in"
    pipe = Tabled(unet(3, 16), EulerDiscreteScheduler(**BETAS))  # whose own are not
    with pytest.raises(SigdegError, match="Tabled fails: tensors used as indices"):
        unguided(pipe, call)


class SaysMeans(DiffusionPipeline):
    """Its network says means; what its scheduler takes is made of them and the states."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, num_inference_steps, generator, batch_size=1, part=1.0):
        x = torch.randn(batch_size, *images(1).shape[1:], generator=generator).to(self.dtype)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            velocity = (x - self.unet(x, t).sample) / (t / 1000).clamp(min=0.8)
            x = self.scheduler.step(part * velocity, t, x).prev_sample
        return (x,)


def test_means_are_turned_into_what_is_stepped_on_as_the_pipeline_does_it():
    pipe = SaysMeans(unet(3, 16), FlowMatchEulerDiscreteScheduler())
    with pytest.raises(SigdegError, match="what it steps on is not what its network said"):
        unguided(pipe, {"part": 0.5})
    assert unguided(pipe.to(torch.bfloat16), {})[1].relation == "mean"
    assert unguided(pipe.to(torch.float32), {"batch_size": 2})[1].relation == "mean"
    assert follow(pipe, {"batch_size": 2}) == "unet: conv_in"  # one of two steps is clamped


def test_weights_of_means_and_states_are_found_and_kept():
    said, state = images(6).split(3)
    called = Called("net", 2, (state,), {}, said)
    log = [Logged(2, state, state, state, 3 * said - 2 * state, len(state))]
    facts = dict.fromkeys(("copies", "calls", "channels", "time_scale", "time_shift", "samples"), 1)
    others = {"state": 0, "axis": None, "time": None, "relation": "mean", "layer": "conv_in"}
    known = Trace.read({"networks": ["net"], **facts, **others})
    (made,) = fitted([called], log, known)
    assert made.around == pytest.approx((3, -2), abs=1e-5)
    kept = Kept.of(made, known, len(state))
    assert read_calls(*keep_calls({"3.2": kept}))["3.2"].around == made.around
    related = Calls(known, [], torch.zeros(0, 2)).related(said, state, torch.tensor([made.around]))
    torch.testing.assert_close(related, log[0].output)


def test_what_is_no_single_diffusion_is_refused():
    class Upscaler(DiffusionPipeline):
        def __init__(self, unet):
            super().__init__()
            self.register_modules(unet=unet)

        def __call__(self):
            return self.unet

    with pytest.raises(SigdegError, match="Upscaler has no scheduler of its own"):
        trace(Upscaler(unet(3, 8)), {})


def test_a_call_that_fails_says_so_and_not_that_it_is_guided():
    family = FAMILIES["sd_controlnet"]()
    with pytest.raises(SigdegError, match="StableDiffusionControlNetPipeline fails: "):
        unguided(family.pipe, {**family.call, "image": images(3)[:, :, 0]})
