"""A saved pipeline becomes a teacher that samples exactly as diffusers does, or is refused."""

import json
import pickle
import subprocess
import sys

import huggingface_hub
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from sigdeg.errors import SigdegError
from sigdeg.integrations import load_teacher
from sigdeg.sampling import march
from sigdeg.schedule import EDM, RectifiedFlow
from sigdeg.signature import PartialSignature
from sigdeg.steps import Exponential

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def ancestral(teacher, n, seed):
    """March the exponential step over the teacher's own timesteps, on a pipeline's noise."""
    generator = torch.Generator().manual_seed(seed)
    N = len(teacher.denoiser.schedule.log_snrs)
    grid = torch.arange(N, -1, -1, dtype=torch.float64) / N
    x = torch.randn(n, *teacher.shape, generator=generator)
    noise = (
        PartialSignature(torch.tensor(1 / N), torch.randn(x.shape, generator=generator)[:, None])
        for _ in range(N)
    )
    with torch.no_grad():
        return march(Exponential(teacher.denoiser), x, grid, noise)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", ["DDPM", "DDIM"])
def test_the_ancestral_sampler_equals_the_pipeline(pipeline, tmp_path, kind, prediction, clip):
    """DDPM with the posterior variance, and DDIM at eta = 1, on the same numbers."""
    made = pipeline(kind, prediction_type=prediction, clip_sample=clip)
    made.save_pretrained(tmp_path / "teacher")
    teacher = load_teacher(tmp_path / "teacher")
    assert teacher.denoiser.clip == (0.7 if clip else None)
    assert teacher.denoiser.prediction_type == prediction
    assert teacher.shape == (1, 8, 8)
    assert teacher.name == "teacher"
    options = {"eta": 1.0, "use_clipped_model_output": clip} if kind == "DDIM" else {}
    generator = torch.Generator().manual_seed(3)
    images = made(
        3, generator=generator, num_inference_steps=20, output_type="np", **options
    ).images
    x = ancestral(teacher, 3, seed=3)
    ours = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(ours, torch.from_numpy(images), rtol=0, atol=1e-4)
    assert ours.std() > 0.05


def predicted(scheduler, index, x, output):
    """A scheduler's own E[x_0 | x_t] at the noise level of one of its steps."""
    timestep = scheduler.timesteps[index]
    if hasattr(scheduler, "_init_step_index"):
        scheduler._init_step_index(timestep)
    if hasattr(scheduler, "convert_model_output"):
        return scheduler.convert_model_output(output, sample=x)
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):  # x_s = x + (s - sigma) v, at s = 0
        return x - scheduler.sigmas[index] * output
    if isinstance(scheduler, HeunDiscreteScheduler):  # d = (x - x_0) / sigma
        scheduler.step(output, timestep, x)
        return x - scheduler.sigmas[index] * scheduler.prev_derivative
    return scheduler.step(output, timestep, x).pred_original_sample


def flow(**options):
    return DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", **options
    )


SCHEDULERS = {
    "flow matching": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow sigmas": flow(flow_shift=2.0),
    "flow sigmas of x_0": DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="sample"
    ),
    "edm": EDMEulerScheduler(sigma_max=20.0, sigma_data=0.7),
    "edm multistep": EDMDPMSolverMultistepScheduler(),
    "zero terminal SNR": DDIMScheduler(
        rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"
    ),
    "trained betas": DDPMScheduler(trained_betas=[0.0001 * 1.005**k for k in range(1000)]),
    "leading and clipped at two": DDIMScheduler(
        timestep_spacing="leading", steps_offset=1, clip_sample_range=2.0
    ),
    "cosine": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    "euler of v": EulerDiscreteScheduler(
        beta_schedule="scaled_linear", prediction_type="v_prediction", timestep_spacing="trailing"
    ),
    "heun of betas": HeunDiscreteScheduler(beta_schedule="exp"),
    "unipc of what was clipped": UniPCMultistepScheduler.from_config(
        DDPMScheduler(clip_sample=True).config  # which says so, and is not heeded
    ),
    "karras levels": DPMSolverMultistepScheduler(use_karras_sigmas=True),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_mean_is_that_of_any_scheduler(pipeline, tmp_path, name):
    """At its own noise levels, in its own coordinates, to the rounding of single precision."""
    made, scheduler = pipeline(), SCHEDULERS[name]
    made.scheduler = scheduler
    made.save_pretrained(tmp_path)
    denoiser = load_teacher(tmp_path).denoiser
    schedule, generator = denoiser.schedule, torch.Generator().manual_seed(0)
    # At zero terminal SNR the very last level, of no signal at all, is kept just above it.
    for index in range(2 if "zero" in name else 0, 9, 2):
        x = torch.randn(2, 1, 8, 8, generator=generator)
        scheduler.set_timesteps(10)
        timestep = scheduler.timesteps[index]
        sigma = getattr(scheduler, "sigmas", {index: timestep})[index].double()
        if isinstance(schedule, RectifiedFlow):
            time = time_of(schedule.sigma, sigma)
        elif hasattr(scheduler, "sigmas"):  # timesteps may be rounded to whole ones
            time = time_of(lambda t: -schedule.log_snr(t), sigma.log())
        else:
            time = time_of(schedule.timestep, timestep)
        # Some hold x_0 + sigma noise, and show it to their network scaled down.
        shown = getattr(scheduler, "scale_model_input", lambda x, _: x)(x, timestep)
        own = x if isinstance(denoiser.schedule, EDM) else shown
        with torch.no_grad():
            told = schedule.timestep(time).float()
            expected = predicted(scheduler, index, x, made.unet(shown, told).sample)
            ours = denoiser(own, time)
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(ours / scale, expected / scale, rtol=0, atol=1e-5)


def time_of(function, value):
    """Where an increasing function of time has a value, by bisection."""
    low, high = (torch.tensor(v, dtype=torch.float64) for v in (1e-9, 1.0))
    for _ in range(60):
        middle = (low + high) / 2
        late = function(middle) > value
        low, high = (low, middle) if late else (middle, high)
    return high


def test_rectangular_samples_and_a_learned_variance(pipeline, unet, tmp_path):
    network = unet(2, sample_size=(8, 16), out_channels=4)
    pipeline(unet=network, variance_type="learned_range").save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path)
    assert teacher.shape == (2, 8, 16)
    assert teacher.denoiser(torch.randn(3, 2, 8, 16), torch.tensor(0.5)).shape == (3, 2, 8, 16)


def test_the_oldest_layout_on_the_hub_is_read(teacher_folder, tmp_path):
    """All files in the root, attention under its first names."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        (flat / file.split("/")[-1]).write_bytes((teacher_folder / file).read_bytes())
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(teacher_folder / WEIGHTS)
    for new, name in old.items():
        weights = {key.replace(f".{new}.", f".{name}."): v for key, v in weights.items()}
    assert any(".proj_attn." in key for key in weights)
    save_file(weights, flat / "diffusion_pytorch_model.safetensors")
    theirs = DDPMPipeline.from_pretrained(flat, use_safetensors=True).unet
    ours = load_teacher(flat).denoiser.network
    plain = load_teacher(teacher_folder).denoiser.network
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(ours(x, 7).sample, theirs(x, 7).sample)
    assert torch.equal(ours(x, 7).sample, plain(x, 7).sample)


def test_half_precision_weights_are_read_into_single_precision(teacher_folder):
    weights = load_file(teacher_folder / WEIGHTS)
    save_file({name: v.half() for name, v in weights.items()}, teacher_folder / WEIGHTS)
    own = load_teacher(teacher_folder).denoiser.network.state_dict()
    assert all(torch.equal(own[name], v.half().float()) for name, v in weights.items())


@pytest.mark.parametrize(
    "options",
    [{"variant": "fp16"}, {"max_shard_size": "20KB"}, {"variant": "x", "max_shard_size": "20KB"}],
)
def test_shards_and_a_variant_are_read(pipeline, tmp_path, options):
    made = pipeline()
    made.save_pretrained(tmp_path, **options)
    assert not (tmp_path / WEIGHTS).exists()
    own = load_teacher(tmp_path).denoiser.network.state_dict()
    assert all(torch.equal(own[name], v) for name, v in made.unet.state_dict().items())
    if "max_shard_size" in options:
        shard = sorted((tmp_path / "unet").glob("*-of-*.safetensors"))[1]
        shard.unlink()
        with pytest.raises(SigdegError, match=f"{shard.name} is missing"):
            load_teacher(tmp_path)
    else:
        made.save_pretrained(tmp_path, variant="bf16")
        with pytest.raises(
            SigdegError, match=r"more than one variant: .*bf16.*, .*fp16\.safetensors"
        ):
            load_teacher(tmp_path)


def test_an_index_names_files_beside_it(pipeline, tmp_path):
    pipeline().save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / f"{WEIGHTS}.index.json"
    for bad in ({}, {"weight_map": {"a": "../other.safetensors"}}, {"weight_map": {"a": 1}}):
        index.write_text(json.dumps(bad))
        with pytest.raises(SigdegError, match="names no files beside it"):
            load_teacher(tmp_path)


def test_another_network_of_the_folder_is_named(pipeline, unet, tmp_path):
    made = pipeline()
    made.save_pretrained(tmp_path / "t")
    other = unet()
    torch.nn.init.normal_(other.conv_in.bias)
    other.save_pretrained(tmp_path / "t" / "unet_ema")
    x, t = torch.randn(2, 1, 8, 8), torch.tensor(0.35, dtype=torch.float64)
    path = f"{tmp_path / 't'}:unet_ema"
    for teacher in (load_teacher(path), load_teacher(tmp_path / "t:unet_ema")):
        assert teacher.name == "t:unet_ema"
        assert torch.equal(teacher.denoiser.network(x, 6).sample, other(x, 6).sample)
    both = load_teacher(tmp_path / "t").guided(0.0, weak=load_teacher(path))
    assert torch.equal(both.step.denoiser(x, t), load_teacher(path).denoiser(x, t))
    with pytest.raises(SigdegError, match=r"holds no unet_e: .* \(there are unet, unet_ema\)"):
        load_teacher(f"{tmp_path / 't'}:unet_e")


def test_a_hub_id_is_fetched_without_its_pickles(teacher_folder, monkeypatch):
    asked = {}

    def snapshot_download(repo_id, allow_patterns):
        asked.update(repo_id=repo_id, allow_patterns=allow_patterns)
        return str(teacher_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load_teacher("someone/tiny:unet").name == load_teacher("someone/tiny").name
    assert load_teacher("someone/tiny").name == "someone/tiny"
    texts = ["*.txt", "*.model"]  # of tokenizers
    patterns = ["*.json", "*.safetensors", *texts]
    assert asked == {"repo_id": "someone/tiny", "allow_patterns": patterns}


def test_a_hub_id_that_cannot_be_fetched_is_one_line(monkeypatch):
    def snapshot_download(repo_id, allow_patterns):
        raise LocalEntryNotFoundError("cannot find it\nand more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(SigdegError, match=r"someone/tiny is no folder here .* cannot find it$"):
        load_teacher("someone/tiny")


def edit(folder, file, **changes):
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**config, **changes}))


def cut(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def reweigh(folder, change):
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)


def schedule_with(scheduler):
    return lambda folder: scheduler.save_pretrained(folder / "scheduler")


UNET, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
BROKEN = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "no readable model_index.json"),
    "index of text": (lambda f: (f / "model_index.json").write_text("{"), "no readable model_ind"),
    "index of a list": (lambda f: (f / "model_index.json").write_text("[]"), "no JSON object"),
    "conditional": (
        lambda f: edit(f, "model_index.json", _class_name="StableDiffusionPipeline"),
        "holds a StableDiffusionPipeline: .* is distilled by calls or prompts",
    ),
    "no scheduler": (lambda f: (f / SCHEDULER).unlink(), "holds no scheduler: scheduler/sched"),
    "no unet": (lambda f: (f / UNET).unlink(), "holds no unet: unet/config.json is missing"),
    "unknown scheduler": (lambda f: edit(f, SCHEDULER, _class_name="Mine"), "Mine is no scheduler"),
    "unknown betas": (
        lambda f: edit(f, SCHEDULER, beta_schedule="curly"),
        "scheduler DDPMScheduler cannot be built: curly",
    ),
    "thresholding": (lambda f: edit(f, SCHEDULER, thresholding=True), "dynamic thresholding"),
    "prediction": (lambda f: edit(f, SCHEDULER, prediction_type="x"), "prediction_type 'x' is not"),
    "edm that predicts the data": (
        schedule_with(EDMDPMSolverMultistepScheduler(prediction_type="sample")),
        "of prediction_type 'sample' is not supported: it must predict epsilon or v_prediction",
    ),
    "flow that predicts noise": (
        schedule_with(DPMSolverMultistepScheduler(use_flow_sigmas=True)),
        "prediction_type 'epsilon' is not supported: it must predict flow_prediction or sample",
    ),
    "a flow without flow sigmas": (
        schedule_with(DPMSolverMultistepScheduler(prediction_type="flow_prediction")),
        "unknown prediction_type|'flow_prediction' is not supported",
    ),
    "noise at zero terminal SNR": (
        schedule_with(DDPMScheduler(rescale_betas_zero_snr=True, clip_sample=False)),
        r"zero terminal SNR \(rescale_betas_zero_snr\) needs v_prediction or sample, got epsilon",
    ),
    "betas that end in nothing": (
        schedule_with(DDIMScheduler(num_train_timesteps=3, trained_betas=[0.1, 0.5, 1.0])),
        "zero terminal SNR .* needs v_prediction",
    ),
    "a consistency model": (
        schedule_with(LCMScheduler()),
        "LCMScheduler is for consistency models, which jump to the data",
    ),
    "a flow map": (
        schedule_with(FlowMapEulerDiscreteScheduler()),
        "FlowMapEulerDiscreteScheduler is for flow maps, which jump to the data",
    ),
    "no clip": (
        lambda f: edit(f, SCHEDULER, clip_sample_range="abc"),
        "clip_sample_range must be a number .*, got 'abc'",
    ),
    "other net": (lambda f: edit(f, UNET, _class_name="VQModel"), "a VQModel, a teacher has a UN"),
    "bad blocks": (lambda f: edit(f, UNET, block_out_channels=[8]), "UNet2DModel cannot be built"),
    "sizeless": (lambda f: edit(f, UNET, sample_size=None), "needs a sample_size"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "safetensors is missing: weights are read"),
    "truncated": (cut, "not a whole safetensors file"),
    "empty": (lambda f: (f / WEIGHTS).write_bytes(b""), "not a whole safetensors file"),
    "no safetensors": (lambda f: (f / WEIGHTS).write_text("x" * 99), "not a whole safetensors"),
    "wrong shape": (
        lambda f: edit(f, UNET, in_channels=2, out_channels=2),
        r"conv_in\.weight has shape \(8, 1, 3, 3\) in .*, the network needs \(8, 2, 3, 3\)",
    ),
    "missing weight": (
        lambda f: reweigh(f, lambda w: w.pop("conv_out.bias")),
        r"conv_out\.bias is missing from",
    ),
    "extra weight": (
        lambda f: reweigh(f, lambda w: w.update(extra=torch.zeros(1))),
        "weight extra is unknown to the network",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_teacher_is_refused_in_one_line(case, teacher_folder):
    break_it, message = BROKEN[case]
    break_it(teacher_folder)
    with pytest.raises(SigdegError, match=message) as caught:
        load_teacher(teacher_folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_embed_type": "timestep"}, "class_embed_type 'timestep' is not supported"),
        ({"time_embedding_type": "fourier"}, "must be positional, got 'fourier'"),
        ({"out_channels": 3}, "as many output as input channels"),
    ],
)
def test_a_unet_that_is_no_denoiser_of_ours_is_refused(pipeline, unet, tmp_path, options, message):
    pipeline(unet=unet(**options)).save_pretrained(tmp_path)
    with pytest.raises(SigdegError, match=message):
        load_teacher(tmp_path)


@pytest.mark.parametrize("path", ["nowhere", "./no/where", "/no/where", "a/b/c"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(path):
    with pytest.raises(SigdegError, match=r"neither a folder.* nor a hub id such as user/name$"):
        load_teacher(path)


class Trap:
    """Unpickling it leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def test_a_pickle_is_refused_and_never_opened(teacher_folder, tmp_path):
    mark = tmp_path / "opened"
    (teacher_folder / WEIGHTS).unlink()
    for place in (teacher_folder / "unet", teacher_folder):
        (place / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(SigdegError, match=r"diffusion_pytorch_model\.bin is a pickle"):
        load_teacher(teacher_folder)
    assert not mark.exists()


def test_diffusers_is_imported_only_when_a_teacher_is_loaded():
    code = "import sys, sigdeg.integrations, sigdeg.student; assert 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_teacher_is_the_network_that_was_saved(teacher_folder):
    theirs = UNet2DModel.from_pretrained(teacher_folder / "unet")
    ours = load_teacher(teacher_folder).denoiser
    assert not ours.training
    assert all(torch.equal(v, ours.network.state_dict()[k]) for k, v in theirs.state_dict().items())
