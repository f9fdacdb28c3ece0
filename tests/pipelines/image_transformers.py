"""Families of images whose denoiser is a transformer."""

from __future__ import annotations

import diffusers
import torch

from tests.pipelines.family import ATTENTION, GUIDED, LATENT, SIZE, Family
from tests.pipelines.parts import (
    BETAS,
    TOKENS,
    WIDTH,
    attention_masks,
    autoencoder,
    clip_text_encoder,
    clip_tokenizer,
    embeddings,
    prompts,
    randomised,
    rows,
    t5_encoder,
    t5_tokenizer,
)


def dit(n: int = 1) -> Family:
    network = diffusers.DiTTransformer2DModel(
        **ATTENTION,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        norm_num_groups=4,
        num_embeds_ada_norm=1000,
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    pipe = diffusers.DiTPipeline(randomised(network), autoencoder(), scheduler)
    return Family(pipe, {"class_labels": list(range(n)), "output_type": "np"} | GUIDED)


def pixart(n: int = 1) -> Family:
    network = diffusers.PixArtTransformer2DModel(
        **ATTENTION,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
        sample_size=8,
        use_additional_conditions=False,
    )
    pipe = diffusers.PixArtSigmaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(),
        vae=autoencoder(),
        transformer=randomised(network),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )
    call = {
        "max_sequence_length": 2 * TOKENS,
        "clean_caption": False,
        "use_resolution_binning": False,
    }
    return Family(pipe, prompts(n) | call | GUIDED | SIZE | LATENT)


def hunyuandit(n: int = 1) -> Family:
    network = diffusers.HunyuanDiT2DModel(
        **ATTENTION,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=WIDTH,
        num_layers=2,
        cross_attention_dim=WIDTH,
        cross_attention_dim_t5=WIDTH,
        pooled_projection_dim=4,
        text_len=TOKENS,
        text_len_t5=TOKENS,
        activation_fn="gelu-approximate",
    )
    betas = {**BETAS, "beta_end": 0.018}
    scheduler = diffusers.DDPMScheduler(**betas, prediction_type="v_prediction", clip_sample=False)
    absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipe = diffusers.HunyuanDiTPipeline(
        vae=autoencoder(),
        transformer=randomised(network),
        scheduler=scheduler,
        requires_safety_checker=False,
        **absent,
    )
    second = {f"{name}_2": value for name, value in embeddings(n).items()}
    text = embeddings(n) | second | attention_masks(n) | attention_masks(n, "_2")
    return Family(pipe, text | GUIDED | SIZE | LATENT | {"use_resolution_binning": False})


def sd3(n: int = 1) -> Family:
    network = diffusers.SD3Transformer2DModel(
        **ATTENTION,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=8,
    )
    half = WIDTH // 2
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=randomised(network),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(shift_factor=0.06),
        text_encoder=clip_text_encoder(half, projection=half),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text_encoder(half, projection=half, seed=1),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(),
        tokenizer_3=t5_tokenizer(),
    )
    return Family(pipe, prompts(n) | {"max_sequence_length": 2 * TOKENS} | GUIDED | SIZE | LATENT)


def flux(n: int = 1) -> Family:
    network = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
        shift=3.0,
    )
    absent = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = diffusers.FluxPipeline(
        scheduler=scheduler, vae=autoencoder(), transformer=randomised(network), **absent
    )
    text = {
        "prompt_embeds": rows(n, TOKENS, WIDTH, seed=1),
        "pooled_prompt_embeds": rows(n, WIDTH, seed=3),
    }
    # Its guidance is an input of the network: there is none to turn off.
    return Family(pipe, text | {"guidance_scale": 3.5} | SIZE | LATENT, {})


def sana(n: int = 1) -> Family:
    network = diffusers.SanaTransformer2DModel(
        **ATTENTION,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
        sample_size=8,
    )
    sides = {
        "block_types": ("ResBlock", "ResBlock"),
        "block_out_channels": (8, 8),
        "layers_per_block": (1, 1),
        "qkv_multiscales": ((), ()),
    }
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        upsample_block_type="interpolate",
        downsample_block_type="stride_conv",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
        **{f"{side}_{key}": v for side in ("encoder", "decoder") for key, v in sides.items()},
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.SanaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=randomised(vae),
        transformer=randomised(network),
        scheduler=scheduler,
    )
    text = embeddings(n) | attention_masks(n) | {"negative_prompt": None}
    size = {"height": 32, "width": 32, "use_resolution_binning": False}
    return Family(pipe, text | size | GUIDED | LATENT)


def aura(n: int = 1) -> Family:
    network = diffusers.AuraFlowTransformer2DModel(
        **ATTENTION,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH,
        pos_embed_max_size=64,
    )
    pipe = diffusers.AuraFlowPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=autoencoder(),
        transformer=randomised(network),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
    )
    return Family(pipe, embeddings(n) | attention_masks(n) | GUIDED | SIZE | LATENT)


def qwen(n: int = 1) -> Family:
    network = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=256,
        max_image_seq_len=8192,
        shift_terminal=0.02,
    )
    pipe = diffusers.QwenImagePipeline(
        scheduler=scheduler,
        vae=randomised(vae),
        text_encoder=None,
        tokenizer=None,
        transformer=randomised(network),
    )
    full = torch.ones(n, TOKENS, dtype=torch.long)
    text = embeddings(n) | {"prompt_embeds_mask": full, "negative_prompt_embeds_mask": full}
    call = text | {"height": 64, "width": 64, "true_cfg_scale": 3.0} | LATENT
    return Family(pipe, call, {"true_cfg_scale": 1.0})


def lumina2(n: int = 1) -> Family:
    network = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=WIDTH,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(32, 32, 32),
        cap_feat_dim=WIDTH,
    )
    pipe = diffusers.Lumina2Pipeline(
        transformer=randomised(network),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=autoencoder(),
        text_encoder=None,
        tokenizer=None,
    )
    size = {"height": 64, "width": 64}
    return Family(pipe, embeddings(n) | attention_masks(n) | size | GUIDED | LATENT)


def zimage(n: int = 1) -> Family:
    network = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=WIDTH,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 2, 2],
        axes_lens=[64, 32, 32],
    )
    pipe = diffusers.ZImagePipeline(
        transformer=randomised(network),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(shift_factor=0.1),
        text_encoder=None,
        tokenizer=None,
    )
    # Its samples, and their texts, are lists.
    return Family(
        pipe,
        {name: list(text) for name, text in embeddings(n).items()} | GUIDED | SIZE | LATENT,
        {"guidance_scale": 0.0},
    )


def cogview4(n: int = 1) -> Family:
    network = diffusers.CogView4Transformer2DModel(
        **ATTENTION,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=8,
        rope_axes_dim=(8, 8),
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        base_shift=0.25,
        max_shift=0.75,
        base_image_seq_len=256,
        use_dynamic_shifting=True,
        time_shift_type="linear",
    )
    pipe = diffusers.CogView4Pipeline(
        tokenizer=None,
        text_encoder=None,
        vae=autoencoder(),
        transformer=randomised(network),
        scheduler=scheduler,
    )
    return Family(pipe, embeddings(n) | GUIDED | SIZE | LATENT)
