"""Families whose denoiser is a U-Net."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from tests.pipelines.family import GUIDED, LATENT, SIZE, Family
from tests.pipelines.parts import (
    BETAS,
    WIDTH,
    autoencoder,
    clip_text_encoder,
    clip_tokenizer,
    conditional_unet,
    embeddings,
    image_encoder,
    images,
    masks,
    pictures,
    prompts,
    quantiser,
    randomised,
    rows,
    unet,
)


def stable_diffusion(pipeline: str, scheduler: Any, **parts: Any) -> Any:
    """A pipeline like Stable Diffusion's, without safety checker; its texts are embeddings."""
    absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    return getattr(diffusers, pipeline)(
        **absent | {"vae": autoencoder(), "scheduler": scheduler} | parts,
        requires_safety_checker=False,
    )


def ddim(**options: Any) -> diffusers.DDIMScheduler:
    return diffusers.DDIMScheduler(**BETAS, clip_sample=False, steps_offset=1, **options)


def ddpm(n: int = 1) -> Family:
    pipe = diffusers.DDPMPipeline(unet(3, 16), diffusers.DDPMScheduler())
    return Family(pipe, {"batch_size": n, "output_type": "np"}, {})


def ldm(n: int = 1) -> Family:
    pipe = diffusers.LDMPipeline(quantiser(3), unet(3, 8), diffusers.DDIMScheduler())
    return Family(pipe, {"batch_size": n, "output_type": "np"}, {})


def sd15(n: int = 1) -> Family:
    scheduler = diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1)
    text = {"text_encoder": clip_text_encoder(), "tokenizer": clip_tokenizer()}
    pipe = stable_diffusion("StableDiffusionPipeline", scheduler, unet=conditional_unet(), **text)
    return Family(pipe, prompts(n) | GUIDED | SIZE | LATENT)


def sd2_v(n: int = 1) -> Family:
    scheduler = ddim(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    pipe = stable_diffusion("StableDiffusionPipeline", scheduler, unet=conditional_unet())
    return Family(pipe, embeddings(n) | GUIDED | {"guidance_rescale": 0.7} | SIZE | LATENT)


def sd_img2img(n: int = 1) -> Family:
    pipe = stable_diffusion("StableDiffusionImg2ImgPipeline", ddim(), unet=conditional_unet())
    return Family(pipe, embeddings(n) | GUIDED | {"image": images(n), "strength": 0.6} | LATENT)


def inpaint(n: int, channels: int) -> Family:
    pipe = stable_diffusion(
        "StableDiffusionInpaintPipeline", ddim(), unet=conditional_unet(channels)
    )
    given = {"image": images(n), "mask_image": masks(n)}
    return Family(pipe, embeddings(n) | given | GUIDED | SIZE | LATENT)


def sd_inpaint4(n: int = 1) -> Family:
    return inpaint(n, 4)


def sd_inpaint9(n: int = 1) -> Family:
    return inpaint(n, 9)


def ip2p(n: int = 1) -> Family:
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**BETAS)
    pipe = stable_diffusion(
        "StableDiffusionInstructPix2PixPipeline", scheduler, unet=conditional_unet(8)
    )
    return Family(pipe, embeddings(n) | GUIDED | {"image": images(n)} | LATENT)


def sd_controlnet(n: int = 1) -> Family:
    network = conditional_unet()
    control = diffusers.ControlNetModel.from_unet(
        network, conditioning_channels=3, conditioning_embedding_out_channels=(4, 8)
    )
    pipe = stable_diffusion(
        "StableDiffusionControlNetPipeline",
        diffusers.UniPCMultistepScheduler(**BETAS),
        unet=network,
        controlnet=randomised(control, seed=1),
    )
    return Family(pipe, embeddings(n) | GUIDED | {"image": images(n)} | SIZE | LATENT)


def sdxl(n: int = 1) -> Family:
    time_width = 4
    network = conditional_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=time_width,
        projection_class_embeddings_input_dim=6 * time_width + WIDTH,
    )
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=clip_text_encoder(WIDTH // 2),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text_encoder(WIDTH // 2, projection=WIDTH, seed=1),
        tokenizer_2=clip_tokenizer(),
        unet=network,
        scheduler=diffusers.EulerDiscreteScheduler(
            **BETAS, timestep_spacing="leading", steps_offset=1
        ),
        add_watermarker=False,
    )
    return Family(pipe, prompts(n) | GUIDED | SIZE | LATENT)


def svd(n: int = 1) -> Family:
    levels = (32, 32)
    network = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=levels,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=3 * 8,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        num_attention_heads=(2, 2),
        num_frames=2,
    )
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=levels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        **BETAS,
        prediction_type="v_prediction",
        timestep_type="continuous",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_spacing="leading",
        steps_offset=1,
    )
    pipe = diffusers.StableVideoDiffusionPipeline(
        randomised(vae),
        image_encoder(),
        randomised(network),
        scheduler,
        transformers.CLIPImageProcessor(),
    )
    call = {"image": pictures(n), "num_frames": 2, "max_guidance_scale": 2.5}
    return Family(pipe, call | SIZE | LATENT, {"max_guidance_scale": 1.0})


def kandinsky22(n: int = 1) -> Family:
    network = conditional_unet(
        out_channels=8,
        addition_embed_type="image",
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="image_proj",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
    )
    scheduler = diffusers.DDPMScheduler(**BETAS, variance_type="learned_range", clip_sample=False)
    pipe = diffusers.KandinskyV22Pipeline(network, scheduler, quantiser(4))
    condition = {
        "image_embeds": rows(n, WIDTH, seed=1),
        "negative_image_embeds": rows(n, WIDTH, seed=2),
    }
    return Family(pipe, condition | {"height": 64, "width": 64} | GUIDED | LATENT)
