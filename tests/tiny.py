"""Networks that several test modules share: small and random."""

from typing import Any

from diffusers import UNet2DModel


def tiny_unet(channels: int = 1, **options: Any) -> UNet2DModel:
    """A U-Net of 8 x 8 images, of two levels without attention."""
    return UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        **options,
    )
