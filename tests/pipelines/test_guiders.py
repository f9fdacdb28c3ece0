"""Pipelines that are guided by a component: it guides the teacher, and is off in the student."""

import pytest
import torch
from diffusers import ClassifierFreeGuidance, DDIMScheduler, DiffusionPipeline

import sigdeg
from sigdeg.pipelines import PipelineRecipe, distill_pipeline, pipeline_config, unguided
from sigdeg.pipelines.prepare import identify
from sigdeg.pipelines.trace import call_pipeline
from tests.pipelines.parts import BETAS, conditional_unet, embeddings

STEPS, SHAPE = 2, (4, 8, 8)


class GuidedPipeline(DiffusionPipeline):
    """As Motif's: the guider says how often the network is called, and joins what it says."""

    def __init__(self, unet, scheduler, guider):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, guider=guider)

    @torch.no_grad()
    def __call__(self, prompt_embeds, negative_prompt_embeds, num_inference_steps, generator=None):
        x = torch.randn(len(prompt_embeds), *SHAPE, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for i, t in enumerate(self.scheduler.timesteps):
            self.guider.set_state(i, num_inference_steps, t)
            asked = self.guider.prepare_inputs({"text": (prompt_embeds, negative_prompt_embeds)})
            for one in asked:
                self.guider.prepare_models(self.unet)
                one.noise_pred = self.unet(x, t, encoder_hidden_states=one.text).sample
                self.guider.cleanup_models(self.unet)
            x = self.scheduler.step(self.guider(asked).pred, t, x, return_dict=False)[0]
        return (x,)


def guided(scale=3.0, **options):
    guider = ClassifierFreeGuidance(scale, **options)
    return GuidedPipeline(conditional_unet(), DDIMScheduler(**BETAS), guider), embeddings(2)


def draw(pipe, call):
    return call_pipeline(pipe, call, STEPS, torch.Generator().manual_seed(0))[0]


@pytest.mark.parametrize("options", [{}, {"start": 0.5}])  # which guides the second of two steps
def test_a_guider_is_turned_off_for_a_call(options):
    pipe, call = guided(**options)
    own = pipe.guider
    off, found = unguided(pipe, call)
    assert (found.copies, found.calls, found.relation) == (1, 1, "same")
    assert torch.equal(draw(pipe, off), draw(*guided(scale=1.0)))
    assert not torch.equal(draw(pipe, off), draw(pipe, call))
    assert pipe.guider is own


def test_another_guider_is_another_teacher():
    one, other = (identify(guided(scale)[0]) for scale in (3.0, 5.0))
    assert one != other
    assert one == identify(guided(3.0)[0])


def test_a_student_has_its_guider_off(tmp_path):
    pipe, call = guided()
    budget = dict(paths=12, held_out=4, batch_size=4, refinement=2, iterations=2, tracker="none")
    recipe, config = PipelineRecipe(steps=(STEPS,), order=2), pipeline_config((STEPS,), **budget)
    made = distill_pipeline(pipe, [call], tmp_path, recipe, config, progress=False)
    assert made.off == {}
    expected = draw(made.pipe, call)
    loaded = GuidedPipeline.from_pretrained(tmp_path / "student")
    attached = sigdeg.attach(guided(7.0)[0], tmp_path)
    for student in (loaded, attached):
        assert torch.equal(draw(student, call), expected)
        assert student.guider.num_conditions == 1  # one call of the network
    assert "its guider is off" in (tmp_path / "student" / "README.md").read_text()
    assert pipe.guider.num_conditions == 2
