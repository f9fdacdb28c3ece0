"""A pipeline or calls of it that cannot be distilled: one line that says why, before any work."""

import copy

import pytest
import torch

import sigdeg
from sigdeg.errors import SigdegError
from sigdeg.pipelines import PipelineRecipe, distill_pipeline, pipeline_config
from sigdeg.pipelines.trace import call_pipeline
from tests.pipelines.zoo import FAMILIES

SIZE = {"height": 16, "width": 16}
BUDGET = dict(iterations=2, paths=16, held_out=8, batch_size=8, refinement=2, tracker="none")


@pytest.fixture(scope="module")
def pipe():
    return FAMILIES["sd15"]().pipe


def changed(pipe, **parts):
    """The pipeline with other parts; the networks of the fixture stay as they are."""
    made = copy.copy(pipe)
    for name, part in parts.items():
        setattr(made, name, part)
    return made


def refused(pipe, out, said, **options):
    given = {"prompts": ["a cat"], "steps": 2, "progress": False, **SIZE, **BUDGET, **options}
    with pytest.raises(SigdegError, match=said) as error:
        sigdeg.distill(pipe, out=out / "run", **given)
    assert "\n" not in str(error.value)
    assert not (out / "run").exists()


@pytest.mark.parametrize("name", ["unet", "tokenizer"])
def test_a_part_that_is_missing_is_named(pipe, tmp_path, name):
    refused(changed(pipe, **{name: None}), tmp_path, rf"fails: .* \(it has no {name}\)")


def test_a_pipeline_without_its_scheduler_is_refused(pipe, tmp_path):
    refused(changed(pipe, scheduler=None), tmp_path, "has no scheduler")


def test_parts_of_several_types_are_named(pipe, tmp_path):
    half = copy.deepcopy(pipe.text_encoder).half()
    said = r"of several types: .*text_encoder float16, .*unet float32"
    refused(changed(pipe, text_encoder=half), tmp_path, said)


def test_weights_that_are_nowhere_are_refused(pipe, tmp_path):
    refused(
        changed(pipe, unet=copy.deepcopy(pipe.unet).to("meta")), tmp_path, "cannot be moved: .*meta"
    )


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # when it decodes them
def test_values_that_are_no_numbers_are_refused(pipe, tmp_path):
    broken = copy.deepcopy(pipe.unet)
    with torch.no_grad():
        broken.conv_in.weight[0] = torch.nan
    refused(changed(pipe, unet=broken), tmp_path, "gave NaN or infinite values")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompts": "a cat"}, "prompts are a list"),
        ({"prompts": None, "calls": {"prompt": "a cat"}}, "calls are a list of arguments"),
        ({"prompts": None, "calls": ["a cat"]}, "calls are a list of arguments"),
        ({"prompts": [3]}, "has to be of type"),
        ({"batch": 0}, "batch of a call must be at least 1"),
        ({"steps": 0}, "a step count must be at least 1"),
        ({"steps": (5, 2)}, "must divide the largest"),
        ({"paths": 0}, "must be at least 1"),
        ({"height": 15}, "divisible by 8"),
        ({"prompts": [{"prompt": "a"}, {"prompt": "b", "height": 32}]}, "several shapes"),
        ({"prompts": [{"prompt": "a"}, {"negative_prompt": "b"}]}, "Provide either `prompt`"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_run(pipe, tmp_path, options, said):
    refused(pipe, tmp_path, said, **options)


def from_image(tmp_path, strength, steps, **options):
    family = FAMILIES["sd_img2img"](2)
    config = pipeline_config(steps, **{**BUDGET, **options})
    recipe = PipelineRecipe(steps, order=2)
    call = {**family.call, "strength": strength}
    return call, distill_pipeline(
        family.pipe, [call], tmp_path / "run", recipe, config, progress=False
    )


def test_a_start_between_the_steps_of_a_count_is_refused(tmp_path):
    with pytest.raises(
        SigdegError, match=r"starts this call after 3 of 4 steps, .* whole ones of 2"
    ):
        from_image(tmp_path, 0.25, (4, 2))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("q", [1, 0])
def test_an_elastic_student_starts_from_an_image_at_each_of_its_counts(tmp_path, q):
    call, made = from_image(tmp_path, 0.5, (4, 2), q=q)
    assert [level.calls for level in made.verdict.levels] == [4, 2]
    for count in (4, 2):
        images = call_pipeline(made.pipe, {**call, **made.off}, count, torch.Generator())[0]
        assert bool(torch.isfinite(torch.as_tensor(images)).all())
        assert made.pipe.scheduler.k == count


def test_a_network_that_was_not_traced_is_asked_for(tmp_path):
    """Two experts, of which the second begins where two steps do not come."""
    family = FAMILIES["wan"](1)
    expert = copy.deepcopy(family.pipe.transformer)
    family.pipe.register_modules(transformer_2=expert)
    family.pipe.register_to_config(boundary_ratio=0.1)
    with pytest.raises(SigdegError, match="does not call the transformer"):
        distill_pipeline(
            family.pipe, [family.call], tmp_path / "run", PipelineRecipe((10,), order=2),
            pipeline_config((10,), **BUDGET), progress=False,
        )  # fmt: skip
    assert not (tmp_path / "run").exists()
