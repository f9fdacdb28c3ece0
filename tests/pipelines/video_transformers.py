"""Families of videos and of sound whose denoiser is a transformer."""

from __future__ import annotations

import warnings

import diffusers
import torch
from diffusers.pipelines.stable_audio import StableAudioProjectionModel

from tests.pipelines.family import ATTENTION, GUIDED, LATENT, SIZE, Family
from tests.pipelines.parts import (
    BETAS,
    TOKENS,
    WIDTH,
    attention_masks,
    embeddings,
    randomised,
    rows,
)


def wan(n: int = 1) -> Family:
    network = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=16,
        num_layers=2,
        rope_max_seq_len=32,
    )
    vae = diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=randomised(vae),
        transformer=randomised(network),
        scheduler=scheduler,
    )
    return Family(pipe, embeddings(n) | {"num_frames": 5} | GUIDED | SIZE | LATENT)


def ltx(n: int = 1) -> Family:
    network = diffusers.LTXVideoTransformer3DModel(
        **ATTENTION,
        in_channels=8,
        out_channels=8,
        cross_attention_dim=WIDTH,
        num_layers=1,
        caption_channels=WIDTH,
    )
    sides = {
        "block_out_channels": (8,) * 4,
        "layers_per_block": (1,) * 5,
        "spatio_temporal_scaling": (True, True, False, False),
    }
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        patch_size=1,
        patch_size_t=1,
        **{prefix + key: v for prefix in ("", "decoder_") for key, v in sides.items()},
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )
    pipe = diffusers.LTXPipeline(
        scheduler=scheduler,
        vae=randomised(vae),
        text_encoder=None,
        tokenizer=None,
        transformer=randomised(network),
    )
    size = {"height": 32, "width": 32, "num_frames": 9}
    return Family(pipe, embeddings(n) | attention_masks(n) | size | GUIDED | LATENT)


def cogvideox(n: int = 1) -> Family:
    network = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=WIDTH,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        patch_size=2,
        max_text_seq_length=TOKENS,
        use_rotary_positional_embeddings=True,
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        latent_channels=4,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    scheduler = diffusers.CogVideoXDDIMScheduler(
        **BETAS,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    pipe = diffusers.CogVideoXPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=randomised(vae),
        transformer=randomised(network),
        scheduler=scheduler,
    )
    size = {"height": 32, "width": 32, "num_frames": 9}
    return Family(pipe, embeddings(n) | size | GUIDED | LATENT)


def stable_audio(n: int = 1) -> Family:
    width = 8
    network = diffusers.StableAudioDiTModel(
        **ATTENTION,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_key_value_attention_heads=1,
        cross_attention_dim=width,
        time_proj_dim=8,
        global_states_input_dim=2 * width,
        cross_attention_input_dim=width,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*weight_norm", FutureWarning)  # its layers still use it
        vae = diffusers.AutoencoderOobleck(
            encoder_hidden_size=4,
            downsampling_ratios=[2, 2],
            channel_multiples=[1, 1],
            decoder_channels=4,
            decoder_input_channels=4,
            audio_channels=1,
            sampling_rate=4,
        )
    times = StableAudioProjectionModel(width, width, min_value=0, max_value=32)
    pipe = diffusers.StableAudioPipeline(
        vae=randomised(vae),
        text_encoder=None,
        projection_model=randomised(times),
        tokenizer=None,
        transformer=randomised(network),
        scheduler=diffusers.CosineDPMSolverMultistepScheduler(
            sigma_min=0.3, sigma_max=500.0, prediction_type="v_prediction"
        ),
    )
    full = torch.ones(n, TOKENS, dtype=torch.long)
    text = {
        "prompt_embeds": rows(n, TOKENS, width, seed=1),
        "negative_prompt_embeds": rows(n, TOKENS, width, seed=2),
        "attention_mask": full,
        "negative_attention_mask": full,
    }
    return Family(pipe, text | {"audio_end_in_s": 4.0} | GUIDED | LATENT)
