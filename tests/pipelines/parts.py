"""Tiny parts of pipelines: random, the same in every process, built in milliseconds."""

from __future__ import annotations

import string
from typing import Any, TypeVar

import diffusers
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)

WIDTH = 16  # of every text embedding
TOKENS = 6  # of every text embedding that is handed over rather than computed
PIXELS = 16  # height and width of every image that conditions
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEVELS = {  # of the autoencoders of images: two, so a latent is half as wide as its image
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
}


def randomised(network: Network, seed: int = 0) -> Network:
    """Every parameter drawn anew: a layer that starts at zero would hide what stands before it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in network.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim > 1:
                p.copy_(noise / p[0].numel() ** 0.5)
            else:
                p.copy_(float(name.endswith("weight")) + noise / 10)
    return network.eval()


def rows(n: int, *shape: int, seed: int) -> Tensor:
    """Normal numbers (n, *shape): a row is the same however many there are."""
    generator = torch.Generator()
    return torch.stack(
        [torch.randn(shape, generator=generator.manual_seed(1000 * seed + i)) for i in range(n)]
    )


def images(n: int) -> Tensor:
    """Images (n, 3, height, width) in [0, 1]."""
    return rows(n, 3, PIXELS, PIXELS, seed=5).sigmoid()


def masks(n: int) -> Tensor:
    """Masks (n, 1, height, width), of 0 and 1."""
    return (rows(n, 1, PIXELS, PIXELS, seed=6) > 0).float()


def pictures(n: int) -> list[Image.Image]:
    """The images as PIL has them."""
    values = (images(n) * 255).byte().permute(0, 2, 3, 1)
    return [Image.fromarray(image.numpy()) for image in values]


def embeddings(n: int) -> dict[str, Tensor]:
    """Text embeddings of prompts and of negative prompts, (n, TOKENS, WIDTH)."""
    return {
        "prompt_embeds": rows(n, TOKENS, WIDTH, seed=1),
        "negative_prompt_embeds": rows(n, TOKENS, WIDTH, seed=2),
    }


def attention_masks(n: int, suffix: str = "") -> dict[str, Tensor]:
    """Masks of the embeddings that hide nothing."""
    full = torch.ones(n, TOKENS, dtype=torch.long)
    names = f"prompt_attention_mask{suffix}", f"negative_prompt_attention_mask{suffix}"
    return dict.fromkeys(names, full)


def prompts(n: int) -> dict[str, Any]:
    """Texts, for pipelines with text encoders."""
    return {"prompt": ["one", "seven"][:n], "negative_prompt": ["blurred"] * n}


def clip_tokenizer(length: int = 2 * TOKENS) -> transformers.CLIPTokenizer:
    """Spells its words: every letter is a token."""
    letters = [c + end for end in ("", "</w>") for c in string.ascii_lowercase]
    vocabulary = {word: i for i, word in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=length)


def clip_text_encoder(
    width: int = WIDTH, projection: int | None = None, seed: int = 0
) -> transformers.CLIPTextModel | transformers.CLIPTextModelWithProjection:
    """A text encoder of one layer for `clip_tokenizer`."""
    config = transformers.CLIPTextConfig(
        vocab_size=len(clip_tokenizer()),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=2 * TOKENS,
        projection_dim=projection or width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    if projection is None:
        return randomised(transformers.CLIPTextModel(config), seed)
    return randomised(transformers.CLIPTextModelWithProjection(config), seed)


def t5_tokenizer() -> transformers.T5Tokenizer:
    """Spells its words, too."""
    letters = [(c, -3.0) for c in string.ascii_lowercase]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return transformers.T5Tokenizer(vocab=special + letters, extra_ids=0)


def t5_encoder() -> transformers.T5EncoderModel:
    """A text encoder of one layer for `t5_tokenizer`."""
    config = transformers.T5Config(
        vocab_size=len(t5_tokenizer()),
        d_model=WIDTH,
        d_kv=8,
        d_ff=WIDTH,
        num_layers=1,
        num_heads=2,
    )
    return randomised(transformers.T5EncoderModel(config))


def image_encoder() -> transformers.CLIPVisionModelWithProjection:
    """An encoder of images of four patches."""
    config = transformers.CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=224,
        patch_size=112,
        projection_dim=WIDTH,
    )
    return randomised(transformers.CLIPVisionModelWithProjection(config))


def autoencoder(channels: int = 4, **options: Any) -> diffusers.AutoencoderKL:
    """An autoencoder of images whose latents are half as wide."""
    return randomised(
        diffusers.AutoencoderKL(latent_channels=channels, norm_num_groups=4, **LEVELS, **options)
    )


def quantiser(channels: int) -> diffusers.VQModel:
    """An autoencoder of images with a codebook."""
    return randomised(
        diffusers.VQModel(
            latent_channels=channels, num_vq_embeddings=16, norm_num_groups=4, **LEVELS
        )
    )


def unet(channels: int, size: int) -> diffusers.UNet2DModel:
    """A U-Net without conditions."""
    return randomised(
        diffusers.UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            layers_per_block=1,
            attention_head_dim=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
    )


def conditional_unet(in_channels: int = 4, **options: Any) -> diffusers.UNet2DConditionModel:
    """A U-Net that listens to text."""
    defaults = {
        "out_channels": 4,
        "sample_size": PIXELS // 2,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return randomised(
        diffusers.UNet2DConditionModel(in_channels=in_channels, **{**defaults, **options})
    )
