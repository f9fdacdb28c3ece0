"""Students as pipelines: whatever is done with a pipeline is done with them."""

import copy
from concurrent.futures import ThreadPoolExecutor

import diffusers
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import CpuOffload, add_hook_to_module
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from sigdeg import SigdegError
from sigdeg.pipelines import SigDEGScheduler
from tests.pipelines.parts import WIDTH, images, masks, randomised
from tests.pipelines.student import STEPS, apart, draw, seeded, student_of
from tests.pipelines.zoo import FAMILIES

SAME = 5e-6  # of a sample in batches of other sizes


@pytest.fixture
def student():
    return student_of("sd15", residual_noise="energy", lookahead=0.5)


@pytest.fixture
def elastic():
    return student_of("sd15", "elastic", steps=(4, 2))


def variant(kind: str, pipe, **more):
    """Another pipeline around the networks of one."""
    made = getattr(diffusers, f"StableDiffusion{kind}Pipeline").from_pipe(pipe, **more)
    made.set_progress_bar_config(disable=True)
    return made


def test_a_seed_is_a_sample_in_any_batch(student):
    pipe, call = student
    two = {**call, "prompt": ["one", "seven"], "negative_prompt": ["blurred"] * 2}
    both = draw(pipe, two, [0, 1])
    for i in range(2):
        alone = {**call, "prompt": two["prompt"][i]}
        assert apart(both[i : i + 1], draw(pipe, alone, i)) <= SAME
        assert torch.equal(draw(pipe, alone, i), draw(pipe, alone, [i]))
    assert apart(both[:1], both[1:]) > 0.1


def test_several_samples_of_a_prompt_have_paths_of_their_own(student):
    pipe, call = student
    drawn = draw(pipe, call, [0, 1], num_images_per_prompt=2)
    for i in range(2):
        assert apart(drawn[i : i + 1], draw(pipe, call, i)) <= SAME
    one = draw(pipe, call, num_images_per_prompt=2)  # of one generator
    assert apart(one[:1], one[1:]) > 0.1


def test_neither_global_seed_nor_earlier_runs_matter(student):
    pipe, call = student
    torch.manual_seed(0)
    first = draw(pipe, call)
    torch.manual_seed(1)
    draw(pipe, call, 5)
    assert torch.equal(draw(pipe, call), first)


def test_latents_are_the_sample(student):
    pipe, call = student
    latents = torch.randn(1, 4, 8, 8, generator=seeded(0))
    assert torch.equal(draw(pipe, call, 99, latents=latents), draw(pipe, call))


def test_set_noise_gives_each_sample_its_path_for_one_run(student):
    pipe, call = student
    pipe.scheduler.set_noise([seeded(7)])
    alone = draw(pipe, call)
    assert apart(alone, draw(pipe, call)) > 0.1
    two = {**call, "prompt": ["one", "one"], "negative_prompt": ["blurred"] * 2}
    pipe.scheduler.set_noise([seeded(8), seeded(7)])
    assert apart(draw(pipe, two, [1, 0])[1:], alone) <= SAME
    pipe.scheduler.set_noise([seeded(8), seeded(7)])
    with pytest.raises(SigdegError, match="2 generators were set for the noise of 1 samples"):
        draw(pipe, call)


def test_a_callback_sees_every_step_and_may_change_it(student):
    pipe, call = student
    seen = []

    def look(pipe, k, timestep, values):
        seen.append((k, float(timestep)))
        return {"latents": values["latents"] * (1 if len(seen) < STEPS else 2)}

    assert torch.equal(draw(pipe, call, callback_on_step_end=look), 2 * draw(pipe, call))
    assert seen == list(enumerate(pipe.scheduler.timesteps.tolist()))


def test_an_elastic_student_takes_its_counts_over_one_path(elastic):
    pipe, call = elastic
    paths = {}
    for count in (4, 2, 1):
        draw(pipe, call, num_inference_steps=count)
        noise, x = pipe.scheduler.noise, torch.zeros(1, 4, 8, 8)
        grid = pipe.scheduler.grid
        h = (grid[:-1] - grid[1:]).tolist()
        # The path's increment over all of time.
        paths[count] = sum(d**0.5 * noise.step(k, x)[:, 0] for k, d in enumerate(h))
    for count in (2, 1):
        torch.testing.assert_close(paths[count], paths[4], rtol=1e-5, atol=1e-5)


def test_more_steps_than_it_knows_are_refused(student, elastic):
    for (pipe, call), told in ((student, "4 steps, got 5"), (elastic, "4, 2 steps, got 5")):
        with pytest.raises(SigdegError, match=f"was distilled for {told}"):
            draw(pipe, call, num_inference_steps=5)


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_it_starts_from_an_image(student, strength):
    pipe, call = student
    given = {k: v for k, v in call.items() if k not in ("height", "width")}
    given |= {"image": images(1), "strength": strength}
    drawn = draw(variant("Img2Img", pipe), given)
    steps = int(STEPS * strength)
    assert pipe.scheduler.asked == set(range(STEPS - steps, STEPS))
    two = {**given, "prompt": ["one", "one"], "negative_prompt": ["blurred"] * 2}
    assert apart(draw(variant("Img2Img", pipe), two, [1, 0])[1:], drawn) <= SAME


def test_a_strength_of_no_step_is_one_line(student):
    pipe, call = student
    given = {k: v for k, v in call.items() if k not in ("height", "width")}
    with pytest.raises(SigdegError, match="0 of 4 steps are left: strength must be at least 1/4"):
        draw(variant("Img2Img", pipe), given, image=images(1), strength=0.2)


def test_the_kind_of_pipeline_may_be_found_by_diffusers(student):
    pipe, call = student
    made = diffusers.AutoPipelineForImage2Image.from_pipe(pipe)
    assert type(made) is diffusers.StableDiffusionImg2ImgPipeline
    made = diffusers.AutoPipelineForText2Image.from_pipe(made)
    made.set_progress_bar_config(disable=True)
    assert torch.equal(draw(made, call), draw(pipe, call))


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_it_fills_what_a_mask_leaves_out(student, strength):
    pipe, call = student
    mask, made = masks(1), variant("Inpaint", pipe)
    given = {"image": images(1), "mask_image": mask, "strength": strength}
    drawn = draw(made, call, **given)
    pipe.scheduler.set_noise(seeded(1))  # of another path, from the same start
    other = draw(made, call, **given)
    latent = torch.nn.functional.interpolate(mask, size=(8, 8)).bool().expand_as(drawn)
    assert torch.equal(drawn[~latent], other[~latent])
    assert apart(drawn[latent], other[latent]) > 0.1


def test_a_video_starts_late_though_its_pipeline_does_not_say_so():
    pipe, call = student_of("wan")
    parts = {k: pipe.components[k] for k in ("tokenizer", "text_encoder", "transformer", "vae")}
    made = diffusers.WanVideoToVideoPipeline(**parts, scheduler=pipe.scheduler)
    made.set_progress_bar_config(disable=True)
    frames = [image for n in range(5) for image in images(1).add(n / 10).clamp(0, 1)]
    given = {k: v for k, v in call.items() if k != "num_frames"} | {"video": [frames]}
    draw(made, given, strength=0.5)
    assert pipe.scheduler.asked == {2, 3}


def test_controlnet_guides_it(student):
    pipe, call = student
    control = diffusers.ControlNetModel.from_unet(
        pipe.unet, conditioning_channels=3, conditioning_embedding_out_channels=(4, 8)
    )
    given = {**call, "image": images(1)}
    plain = draw(pipe, call)
    made = variant("ControlNet", pipe, controlnet=control)  # whose last layers are at zero
    assert torch.equal(draw(made, given), plain)
    made = variant("ControlNet", pipe, controlnet=randomised(control, seed=1))
    assert apart(draw(made, given), plain) > 0.1


def test_a_picture_prompts_it(student):
    pipe, call = student
    plain = draw(pipe, call)
    layers = {
        f"{2 * i + 1}.to_{kind}_ip.weight": torch.randn(p.shape, generator=seeded(i))
        for i, name in enumerate(n for n in pipe.unet.attn_processors if "attn2" in n)
        for kind in "kv"
        for p in [pipe.unet.get_submodule(name.removesuffix(".processor")).to_k.weight]
    }
    projection = {
        "proj.weight": torch.randn(4 * WIDTH, WIDTH, generator=seeded(8)),
        "proj.bias": torch.zeros(4 * WIDTH),
        "norm.weight": torch.ones(WIDTH),
        "norm.bias": torch.zeros(WIDTH),
    }
    pipe.unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": layers}])
    seen = [torch.randn(1, 1, WIDTH, generator=seeded(9))]
    pipe.set_ip_adapter_scale(0.0)
    assert apart(draw(pipe, call, ip_adapter_image_embeds=seen), plain) <= SAME
    pipe.set_ip_adapter_scale(1.0)
    assert apart(draw(pipe, call, ip_adapter_image_embeds=seen), plain) > 0.1


@pytest.mark.filterwarnings("ignore:.*adapter:UserWarning")
def test_adapters_of_styles_come_and_go(student, tmp_path):
    pipe, call = student
    plain, styled = draw(pipe, call), copy.deepcopy(pipe)
    layers = ["to_q", "to_v"]
    config = LoraConfig(r=2, lora_alpha=2, target_modules=layers, init_lora_weights=False)
    with torch.random.fork_rng():
        styled.unet.add_adapter(config, "style")
    whole = draw(styled, call)
    assert apart(whole, plain) > 1e-2
    own = get_peft_model_state_dict(styled.unet, adapter_name="style")
    styled.save_lora_weights(tmp_path, unet_lora_layers=own)
    pipe.load_lora_weights(tmp_path, adapter_name="style")
    assert torch.equal(draw(pipe, call), whole)
    pipe.set_adapters(["style"], [0.0])
    assert apart(draw(pipe, call), plain) <= SAME
    pipe.set_adapters(["style"], [1.0])
    pipe.fuse_lora()
    assert apart(draw(pipe, call), whole) < 5e-5
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert apart(draw(pipe, call), plain) < 5e-5


@pytest.mark.parametrize(("dtype", "near"), [(torch.bfloat16, 0.03), (torch.float16, 0.005)])
def test_half_precision_follows_the_same_path(student, dtype, near):
    pipe, call = student
    expected = draw(pipe, call)
    seeds = pipe.scheduler.noise.seeds
    drawn = draw(pipe.to(dtype), call)
    assert drawn.dtype == dtype
    assert pipe.scheduler.noise.seeds == seeds
    assert float((drawn.float() - expected).norm() / expected.norm()) < near
    assert torch.equal(pipe.scheduler.timesteps, draw_times(pipe))


def draw_times(pipe):
    """The timesteps, which half precision would round."""
    grid = pipe.scheduler.core.grid(STEPS)
    looks = pipe.scheduler.core.response.looks_at(grid[:-1], grid[1:])
    return pipe.scheduler.core.schedule.timestep(looks).float()


def test_weights_may_be_kept_in_eight_bits(student):
    pipe, call = student
    expected = draw(pipe.to(torch.bfloat16), call).float()
    eight = torch.float8_e4m3fn
    pipe.unet.enable_layerwise_casting(storage_dtype=eight, compute_dtype=torch.bfloat16)
    assert pipe.unet.mid_block.resnets[0].conv1.weight.dtype == eight
    assert pipe.unet.signature.extra.weight.dtype == torch.bfloat16
    assert float((draw(pipe, call).float() - expected).norm() / expected.norm()) < 0.1


@pytest.mark.parametrize("how", ["pipeline", "hook", "layers"])
def test_offloading_changes_nothing(student, how):
    pipe, call = student
    expected = draw(pipe, call)
    if how == "pipeline":
        pipe.enable_model_cpu_offload(device="cpu")
    elif how == "hook":
        add_hook_to_module(pipe.unet, CpuOffload(execution_device="cpu"))
    else:
        cpu_offload(pipe.unet, torch.device("cpu"))  # each layer as it is called
        assert pipe.unet.signature.extra.weight.device.type == "meta"
    assert torch.equal(draw(pipe, call), expected)


def test_threads_share_a_network():
    # Embeddings are given: the text encoders of transformers mix up threads that share one.
    pipe, call = student_of("sd2_v")

    def work(first: int) -> list[torch.Tensor]:
        own = copy.copy(pipe)
        own.scheduler = SigDEGScheduler.from_config(pipe.scheduler.config)
        return [draw(own, call, first + i) for i in range(2)]

    one_by_one = [work(0), work(10)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(work, (0, 10)))
    for mine, expected in zip(together, one_by_one, strict=True):
        assert torch.equal(torch.stack(mine), torch.stack(expected))


def test_copies_are_independent(student):
    pipe, call = student
    expected, copied = draw(pipe, call), copy.deepcopy(pipe)
    assert torch.equal(draw(copied, call), expected)
    with torch.no_grad():
        copied.unet.signature.extra.weight.zero_()
    assert apart(draw(copied, call), expected) > 1e-3
    assert torch.equal(draw(pipe, call), expected)


def test_another_scheduler_is_refused(student):
    pipe, call = student
    draw(pipe, call)
    own = pipe.scheduler
    pipe.scheduler = diffusers.DDIMScheduler.from_config(own.config)
    with pytest.raises(SigdegError, match="keep its SigDEGScheduler"):
        draw(pipe, call)
    own.set_timesteps(STEPS)  # a run of it has begun, but it is no part of this one
    with pytest.raises(SigdegError, match=r"keep its SigDEGScheduler.* was told timestep"):
        draw(pipe, call, num_inference_steps=30)


def test_another_network_is_refused(student):
    pipe, call = student
    pipe.unet = FAMILIES["sd15"]().pipe.unet
    with pytest.raises(SigdegError, match="another network was called"):
        draw(pipe, call)


def test_a_second_network_that_was_not_distilled_is_refused():
    pipe, call = student_of("wan")
    other = FAMILIES["wan"]().pipe.transformer
    pipe.register_modules(transformer_2=other)
    pipe.register_to_config(boundary_ratio=0.6)
    with pytest.raises(SigdegError, match="another network was called"):
        draw(pipe, call, guidance_scale_2=1.0)


def test_students_of_two_teachers_are_told_apart(student, elastic):
    (pipe, call), (other, _) = student, elastic
    pipe.scheduler = other.scheduler
    with pytest.raises(SigdegError, match="keep its SigDEGScheduler"):
        draw(pipe, call)
