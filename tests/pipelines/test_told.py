"""Times that a network is told: the same by its pipeline's own scheduler and by ours."""

import diffusers
import pytest
import torch

from sigdeg import SigdegError
from sigdeg.pipelines import trace
from sigdeg.pipelines.told import check_told
from tests.pipelines.parts import clip_text_encoder
from tests.pipelines.student import seeded
from tests.pipelines.zoo import FAMILIES

WIDTH, STATES = 32, 4
TEXT = (
    ("prompt_embeds", 5),
    ("negative_prompt_embeds", 5),
    ("prompt_embeds_pooled", 1),
    ("negative_prompt_embeds_pooled", 1),
)


def cascade():
    """A pipeline that divides the timestep by the last one, unless its scheduler is Würstchen's."""
    block = ["SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"]
    sides = ("down_num_layers_per_block", "up_num_layers_per_block")
    widths = ("clip_text_in_channels", "clip_text_pooled_in_channels", "clip_image_in_channels")
    prior = diffusers.StableCascadeUNet(
        in_channels=STATES,
        out_channels=STATES,
        conditioning_dim=WIDTH,
        block_out_channels=[WIDTH, WIDTH],
        num_attention_heads=[2, 2],
        switch_level=(False,),
        block_types_per_layer=[block, block],
        **{side: [1, 1] for side in sides},
        **dict.fromkeys(widths, WIDTH),
    )
    absent = dict.fromkeys(("tokenizer", "feature_extractor", "image_encoder"))
    pipe = diffusers.StableCascadePriorPipeline(
        prior=prior,
        text_encoder=clip_text_encoder(),
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        **absent,
    )
    call = {name: torch.randn(1, n, WIDTH, generator=seeded(n)) for name, n in TEXT}
    return pipe, {**call, "height": 128, "width": 128, "output_type": "pt"}


@pytest.mark.parametrize("family", ["sd15", "sd_img2img", "flux", "lumina2", "svd", "wan"])
def test_what_is_told_the_same_is_let_through(family):
    """Whole or a thousandth, of the noise or of the data, from the start or from an image."""
    pipe, call = FAMILIES[family]().pipe, FAMILIES[family]().unguided
    check_told(pipe, call, trace(pipe, call))


def test_a_pipeline_that_asks_for_its_scheduler_is_refused_in_one_line():
    pipe, call = cascade()
    with pytest.raises(
        SigdegError,
        match=r"StableCascadePriorPipeline tells .* its DDPMWuerstchenScheduler: it cannot be",
    ) as error:
        check_told(pipe, call, trace(pipe, call))
    assert "\n" not in str(error.value)
    assert "step" not in vars(pipe.scheduler)
    assert not pipe.prior._forward_pre_hooks
