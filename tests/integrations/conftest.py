"""A tiny teacher, saved as diffusers saves one."""

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel


def make_unet(channels=1, **options):
    torch.manual_seed(0)
    defaults = {
        "sample_size": 8,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DModel(**{**defaults, **options}).eval()


def make_pipeline(kind="DDPM", unet=None, timesteps=20, **options):
    options = {"clip_sample_range": 0.7, "beta_end": 0.4, **options}
    if kind == "DDIM":
        scheduler = DDIMScheduler(num_train_timesteps=timesteps, **options)
        pipeline = DDIMPipeline(unet or make_unet(), scheduler)
    else:
        scheduler = DDPMScheduler(num_train_timesteps=timesteps, **options)
        pipeline = DDPMPipeline(unet or make_unet(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def unet():
    """Maker of tiny U-Nets with attention."""
    return make_unet


@pytest.fixture
def pipeline():
    """Maker of tiny pipelines."""
    return make_pipeline


@pytest.fixture
def teacher_folder(tmp_path):
    """A saved tiny pipeline."""
    folder = tmp_path / "tiny"
    make_pipeline().save_pretrained(folder)
    return folder
