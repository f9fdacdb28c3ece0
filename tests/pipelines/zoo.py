"""The families of diffusers' pipelines: one tiny pipeline each, and a call of it.

Four have text encoders and take prompts; the others are handed the embeddings. `diffusers` is asked
for a class by its name when a family is built: no pipeline is imported but the one that is needed.
"""

from collections.abc import Callable

from tests.pipelines import image_transformers, unets, video_transformers
from tests.pipelines.family import Family

__all__ = ["FAMILIES", "Family"]

FAMILIES: dict[str, Callable[..., Family]] = {  # FAMILIES[name](n): a call of n samples, or of one
    make.__name__: make
    for make in (
        unets.ddpm,
        unets.ldm,
        unets.sd15,
        unets.sd2_v,
        unets.sd_img2img,
        unets.sd_inpaint4,
        unets.sd_inpaint9,
        unets.ip2p,
        unets.sd_controlnet,
        unets.sdxl,
        unets.svd,
        unets.kandinsky22,
        image_transformers.dit,
        image_transformers.pixart,
        image_transformers.hunyuandit,
        image_transformers.sd3,
        image_transformers.flux,
        image_transformers.sana,
        image_transformers.aura,
        image_transformers.qwen,
        image_transformers.lumina2,
        image_transformers.cogview4,
        image_transformers.zimage,
        video_transformers.wan,
        video_transformers.ltx,
        video_transformers.cogvideox,
        video_transformers.stable_audio,
    )
}
