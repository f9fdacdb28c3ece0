"""The step of a pipeline's student: arithmetic, JSON, modes."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import nn

from sigdeg import SignatureStudent
from sigdeg.errors import SigdegError
from sigdeg.pipelines import PipelineStudent, SigDEGScheduler
from sigdeg.schedule import DiscreteVP, RectifiedFlow
from sigdeg.signature import PartialSignature

OPTIONS = dict(prediction_type="v_prediction", lookahead=0.5, residual_noise="energy", steps=(4, 2))


@pytest.fixture
def step():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    schedule = DiscreteVP.from_alphas_cumprod((1 - betas).cumprod(0))
    return PipelineStudent(None, schedule, 3, response_std=0.8, sample_shape=(2, 4), **OPTIONS)


def test_it_is_the_arithmetic_of_a_signature_student(step):
    """Of the same data: state, mean and noise of the step are those of the student of vectors."""
    other = SignatureStudent(
        nn.Identity(), step.schedule, 2, 3, data_std=0.8, sample_shape=(2, 4), **OPTIONS
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 2, 4, generator=generator)
    t, s = step.grid()[1], step.grid()[2]
    noise = PartialSignature.sample(t - s, x.shape, step.order, generator)
    own, its = step.inputs(x, t, s, noise), other.inputs(x, t, s, noise)
    assert torch.equal(own.state, its.state)
    assert torch.equal(own.inputs, its.inputs[:, :2])
    output = torch.randn(x.shape, generator=generator)
    assert torch.equal(step.outputs(output, own), other.outputs(output, its))


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("most", [1.0, 1.2, 3.0])  # clipped, cut at the largest, as the data says
def test_dynamic_thresholding_is_the_schedulers_own(kind, most):
    scheduler = kind(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=most)
    scheduler.set_timesteps(10)
    march = SigDEGScheduler.like(scheduler)
    x, output = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x[1] *= 3  # each sample has a threshold of its own
    timestep = scheduler.timesteps[4]
    t = march.core.schedule.time_at(log_snr_of(scheduler, timestep))
    found = march.core.mean(output, x, march.core.preconditioning(x, t))
    theirs = scheduler.step(output, timestep, x).pred_original_sample
    assert (found - theirs).abs().max() <= 1e-5
    assert found.abs().max() <= 1 < x[1].abs().max()


def log_snr_of(scheduler, timestep):
    """Half the logarithm of the ratio of signal to noise at a timestep."""
    kept = scheduler.alphas_cumprod[timestep].double()
    return (kept / (1 - kept)).log() / 2


def test_states_of_other_resolutions_pass(step):
    t, s = step.grid()[0], step.grid()[1]
    x = torch.ones(1, 7, 3)
    assert (
        step.inputs(x, t, s, PartialSignature((t - s).float(), torch.ones(1, 4, 7, 3))).state.shape
        == x.shape
    )


def test_its_json_gives_it_back_exactly(step):
    told = json.loads(json.dumps(step.written))
    assert told == step.written  # lists, no tuples: as JSON has it
    again = PipelineStudent.read(told)
    assert again.written == step.written
    assert again.grids == step.grids
    flow = PipelineStudent(
        None, RectifiedFlow(), prediction_type="flow", times=(0.999, 0.5, 0), steps=(2,)
    )
    assert PipelineStudent.read(json.loads(json.dumps(flow.written))).times == flow.times


@pytest.mark.parametrize(
    "change",
    [
        {"order": 0},
        {"order": "2"},
        {"lookahead": 2.0},
        {"steps": [0]},
        {"more": 1},
        {"threshold": [0.9]},
        {"times": [1, 2]},
        {"schedule": {"kind": "none"}},
    ],
)
def test_json_that_does_not_fit_is_refused(step, change):
    with pytest.raises(SigdegError):
        PipelineStudent.read({**step.written, **change})


def test_networks_learn_as_they_sample(step):
    network = nn.ModuleDict({"unet": nn.Dropout()})
    student = PipelineStudent.read(step.written, network).train()
    assert not student.training
    assert not network["unet"].training


def test_a_network_alone_is_not_called(step):
    t, s = step.grid()[0], step.grid()[1]
    with pytest.raises(SigdegError, match="by its pipeline"):
        step(torch.ones(1, 2, 4), t, s, PartialSignature((t - s).float(), torch.ones(1, 4, 2, 4)))
