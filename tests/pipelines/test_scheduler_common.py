"""What diffusers asks of each of its schedulers in its own `SchedulerCommonTest`, of ours.

All of it but two things. One are `betas` (`test_trained_betas`): a student keeps a schedule, which
a flow has too; instead trained betas are to come back as that. The other are tests that draw from
the hub (`SchedulerBaseTests`, `SchedulerPushToHubTester`): they try diffusers' own loading.
"""

import inspect
import warnings

import diffusers
import pytest
import torch

from sigdeg.pipelines import SigDEGScheduler
from tests.pipelines.student import seeded

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")

SHORT = {"num_train_timesteps": 100}
STEP = {"order": 2, "steps": [20, 4], "response_std": 0.7}


def plain(**options):
    return SigDEGScheduler(**SHORT | options)


def of(scheduler):
    return lambda: SigDEGScheduler.like(scheduler, **STEP)


MADE = {
    "betas": plain,
    "trained betas": lambda: plain(trained_betas=[0.02 + 0.001 * k for k in range(100)]),
    **{
        kind: lambda kind=kind: plain(beta_schedule=kind)
        for kind in ("scaled_linear", "squaredcos_cap_v2")
    },
    **{kind: lambda kind=kind: plain(prediction_type=kind) for kind in ("sample", "v_prediction")},
    "few timesteps": lambda: plain(num_train_timesteps=5),
    "DDIM's": of(diffusers.DDIMScheduler(**SHORT, clip_sample_range=2.0)),
    "a flow's": of(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)),
    "a flow's to the data": of(diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)),
    "EDM's": of(diffusers.EDMEulerScheduler()),
    "one of continuous times": of(
        diffusers.EulerDiscreteScheduler(
            **SHORT, timestep_type="continuous", prediction_type="v_prediction", sigma_max=700.0
        )
    ),
    "Stable Audio's": of(diffusers.CosineDPMSolverMultistepScheduler()),
    "Dance Diffusion's": of(diffusers.IPNDMScheduler()),
}
every = pytest.mark.parametrize("name", MADE)


def states(seed=0):
    return torch.randn(4, 3, 8, 8, generator=seeded(seed))


def stepped(scheduler, count, index, **more):
    """What a scheduler makes of one step."""
    scheduler.set_timesteps(count)
    timestep = scheduler.timesteps[index]
    scheduler.scale_model_input(states(), timestep)
    return scheduler.step(0.1 * states(1), timestep, states(), **more)


def reloaded(scheduler, folder):
    scheduler.save_pretrained(folder)
    return type(scheduler).from_pretrained(folder)


@every
def test_what_is_saved_and_loaded_steps_as_before(name, tmp_path):
    own = MADE[name]()
    other = reloaded(own, tmp_path)
    known = {k: v for k, v in own.config.items() if k != "_use_default_values"}
    assert known == dict(other.config)
    for count in (1, 2, 10, 50):
        made = [stepped(scheduler, count, 0).prev_sample for scheduler in (own, other)]
        assert torch.equal(*made)
        assert bool(made[0].isfinite().all())


@every
def test_steps_keep_the_shape_of_a_state_and_give_an_output_or_a_tuple(name):
    scheduler = MADE[name]()
    for index in (0, 1):
        output = stepped(scheduler, 4, index)
        pair = stepped(scheduler, 4, index, return_dict=False)
        assert output.prev_sample.shape == states().shape
        assert torch.equal(output.prev_sample, pair[0])
        assert torch.equal(output.pred_original_sample, pair[1])


@every
def test_the_protocol_of_pipelines(name):
    scheduler = MADE[name]()
    assert scheduler.init_noise_sigma >= 1
    assert scheduler.scale_model_input(states(), 0.0).shape == states().shape
    scheduler.set_timesteps(10)
    for add in ("add_noise", "scale_noise"):
        given = [states(), states(1)]
        given.insert(1 if add == "scale_noise" else 2, scheduler.timesteps[5][None])
        assert getattr(scheduler, add)(*given).shape == states().shape
    assert scheduler.scale_model_input(states(), scheduler.timesteps[-1]).shape == states().shape


@pytest.mark.parametrize("name", ["betas", "DDIM's", "a flow's"])
def test_schedulers_that_pipelines_may_exchange_take_its_configuration_and_give_it_back(name):
    own = MADE[name]()
    known = set(inspect.signature(SigDEGScheduler.__init__).parameters)
    assert len(own.compatibles) > 10
    for kind in own.compatibles:
        back = SigDEGScheduler.from_config(kind.from_config(own.config).config)
        told = dict(back.config)
        assert {k: told[k] for k in own.config} == dict(own.config)
        assert not known & (told.keys() - own.config.keys())


def test_no_argument_is_swallowed():
    assert "kwargs" not in inspect.signature(SigDEGScheduler.__init__).parameters
    assert not SigDEGScheduler._deprecated_kwargs


def test_trained_betas_come_back_as_their_schedule(tmp_path):
    betas = torch.tensor([0.1, 0.3])
    for given in (betas.tolist(), betas.numpy()):
        other = reloaded(SigDEGScheduler(trained_betas=given), tmp_path)
        t = torch.tensor([0.5, 1.0], dtype=torch.float64)
        expected = (1 - betas).cumprod(0).sqrt().double()
        torch.testing.assert_close(other.core.schedule.alpha(t), expected, rtol=1e-6, atol=0)


def test_attributes_are_found_and_settings_point_to_the_configuration():
    scheduler = plain()
    scheduler.note = 5
    scheduler.register_to_config(noted=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scheduler.note == 5
        assert scheduler.save_pretrained == scheduler.save_pretrained
    with pytest.warns(FutureWarning, match="noted"):
        assert scheduler.noted == 5
    with pytest.raises(AttributeError, match="'SigDEGScheduler' object has no attribute 'nothing'"):
        scheduler.nothing  # noqa: B018  # looking it up is the test
