"""Pipelines: what a student's costs beyond its network calls, and beside diffusers' own sampler.

Text is embedded beforehand and latents are not decoded: what is left of a pipeline is its loop. The
student is the default one, which looks ahead and takes energy noise, untrained: it costs the same.
"""

from __future__ import annotations

import copy
from typing import Any

import diffusers
import torch
from torch import Generator

from benchmarks import Row, compare
from sigdeg.pipelines import PipelineRecipe, SigDEGScheduler, add_signature, trace
from sigdeg.pipelines.prepare import first_step

__all__ = ["measure", "student_of", "text_pipeline"]

STEPS, TEXT = 5, 64


def text_pipeline(widths: tuple[int, ...] = (64, 128, 128), latents: int = 32) -> Any:
    """A pipeline like Stable Diffusion's, with DDIM and a smaller network."""
    levels = len(widths)
    network = diffusers.UNet2DConditionModel(
        sample_size=latents,
        layers_per_block=1,
        block_out_channels=widths,
        cross_attention_dim=TEXT,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
    )
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipe = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=(32,) * 4, norm_num_groups=4),
        unet=network.eval(),
        scheduler=diffusers.DDIMScheduler(**betas, clip_sample=False, steps_offset=1),
        requires_safety_checker=False,
        **absent,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def student_of(pipe: Any, call: dict[str, Any]) -> Any:
    """The pipeline with the student that it gets by default, untrained."""
    step = first_step(pipe, PipelineRecipe((STEPS,)))
    step.response.set_data_std(1.0)
    known = trace(pipe, call)
    network = add_signature(copy.deepcopy(pipe.unet), known, step.order, "benchmark")
    scheduler = SigDEGScheduler.like(pipe.scheduler, **step.written, student="benchmark")
    made = copy.copy(pipe)
    made.register_modules(unet=network, scheduler=scheduler)
    return made


def measure(
    batch: int = 4,
    widths: tuple[int, ...] = (64, 128, 128),
    latents: int = 32,
    pairs: int = 9,
) -> list[Row]:
    """All rows, on one thread: the time of the processor counts.

    Arguments:
        batch: Samples of a call.
        widths: Widths of the network.
        latents: Height and width of the latents.
        pairs: How often each two are compared.
    """
    pipe = text_pipeline(widths, latents)
    generator = Generator().manual_seed(0)
    call: dict[str, Any] = {
        "prompt_embeds": torch.randn(batch, 8, TEXT, generator=generator),
        "guidance_scale": 1.0,
        "height": latents * pipe.vae_scale_factor,
        "width": latents * pipe.vae_scale_factor,
        "output_type": "latent",
    }
    student = student_of(pipe, call)

    def draw(which: Any) -> Any:
        return which(**call, num_inference_steps=STEPS, generator=generator)

    inputs: list[tuple[Any, Any]] = []
    hook = pipe.unet.register_forward_pre_hook(
        lambda _, args, kwargs: inputs.append((args, dict(kwargs))), with_kwargs=True
    )
    draw(pipe)
    hook.remove()

    @torch.no_grad()
    def bare() -> None:
        for args, kwargs in inputs:
            pipe.unet(*args, **kwargs)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [
            compare(
                f"pipeline, {what}",
                ("student's pipeline, 5 steps", lambda: draw(student)),
                (label, work),
                pairs,
                own_time=True,
                at_most=1.03,
                input=[batch, 4, latents, latents],
            )
            for what, label, work in (
                ("student / its teacher's network", "5 network calls", bare),
                ("student / DDIM", "teacher's pipeline, DDIM, 5 steps", lambda: draw(pipe)),
            )
        ]
    finally:
        torch.set_num_threads(threads)
