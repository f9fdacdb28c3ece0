"""The scheduler of a student: its times, its step, its noise, its configuration."""

import json

import diffusers
import pytest
import torch

from sigdeg import EDM, RectifiedFlow, SigdegError, coarse_grid
from sigdeg.integrations import describe
from sigdeg.pipelines import SigDEGScheduler
from sigdeg.pipelines.noise import PathNoise, path_seed
from sigdeg.response import exponential_coefficients, response
from tests.pipelines.parts import BETAS
from tests.pipelines.student import seeded

OWN = diffusers.DDIMScheduler(**BETAS, clip_sample=False)
FLOW = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def states(n: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 4, 8, 8, generator=seeded(seed))


@pytest.mark.parametrize("own", [OWN, FLOW])
def test_a_step_is_the_exponential_one_over_the_path(own):
    scheduler = SigDEGScheduler.like(own, order=3, steps=[4], response_std=0.7)
    schedule, x, output = scheduler.core.schedule, states(), states(seed=1)
    scheduler.set_timesteps(4)
    path = PathNoise(scheduler.grid, 3)
    path.start(x)
    for k, timestep in enumerate(scheduler.timesteps):
        t, s = scheduler.grid[k], scheduler.grid[k + 1]
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x0 = x - sigma * output if own is FLOW else (x - sigma * output) / alpha
        a, b = exponential_coefficients(schedule, t, s)
        w = response(schedule, t, s, 3, 0.7)
        expected = a * x + b * x0 + torch.einsum("k,nk...->n...", w, path.step(k, x).double())
        made = scheduler.step(output, timestep, x)
        torch.testing.assert_close(made.prev_sample, expected.float(), rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(made.pred_original_sample, x0.float(), rtol=2e-5, atol=2e-5)
        x = made.prev_sample
    with pytest.raises(SigdegError, match="all steps of this run are done"):
        scheduler.step(output, timestep, x)


def test_timesteps_may_be_whole_and_their_alphas_are_those_of_the_table():
    told = SigDEGScheduler.like(OWN, steps=[4])
    rounded = SigDEGScheduler.like(OWN, steps=[4], timesteps="integer")
    for scheduler in (told, rounded):
        scheduler.set_timesteps(4)
    assert torch.equal(rounded.timesteps, told.timesteps.round().long())
    assert (told.timesteps != rounded.timesteps).any()
    torch.testing.assert_close(rounded.alphas_cumprod, OWN.alphas_cumprod, rtol=1e-5, atol=0)
    assert not hasattr(SigDEGScheduler.like(FLOW), "alphas_cumprod")
    with pytest.raises(SigdegError, match="is for students"):
        describe(told)


def test_a_state_that_is_noised_again_within_a_step_begins_no_path():
    x, scheduler = states(), SigDEGScheduler.like(OWN, steps=[4])
    scheduler.set_timesteps(4)
    scheduler.scale_model_input(torch.cat([x, x]), scheduler.timesteps[0])
    scheduler.add_noise(x, states(seed=1), scheduler.timesteps[:1])
    assert scheduler.noise.seeds == [path_seed(row) for row in x]


def test_rows_of_a_film_are_stepped_as_one_sample():
    films, output = (torch.randn(2, 3, 4, 8, 8, generator=seeded(seed)) for seed in (0, 1))
    whole = SigDEGScheduler.like(OWN, order=2, steps=[4])
    rows = SigDEGScheduler.like(OWN, order=2, steps=[4], rows=3)
    for scheduler in (whole, rows):
        scheduler.set_timesteps(4)
    noised = rows.add_noise(torch.zeros(6, 4, 8, 8), films.flatten(0, 1), rows.timesteps[:1])
    whole.add_noise(torch.zeros_like(films), films, whole.timesteps[:1])
    made = rows.step(output.flatten(0, 1), rows.timesteps[0], noised)
    expected = whole.step(output, whole.timesteps[0], noised.unflatten(0, (2, 3)))
    for one, other in zip(made.to_tuple(), expected.to_tuple(), strict=True):
        assert torch.equal(one, other.flatten(0, 1))
    assert rows.noise.seeds == whole.noise.seeds
    with pytest.raises(SigdegError, match=r"sigdeg\.rows must be a whole number from 1"):
        SigDEGScheduler.like(OWN, rows=0)


def test_times_and_levels_are_those_of_its_grid():
    scheduler = SigDEGScheduler.like(OWN, steps=[5], power=1.5)
    scheduler.set_timesteps(5)
    schedule = scheduler.core.schedule
    grid = coarse_grid(schedule, 5, power=1.5)
    assert torch.equal(scheduler.grid, grid)
    levels = (1 - OWN.alphas_cumprod) / OWN.alphas_cumprod
    told = scheduler.timesteps
    assert told.dtype == torch.float32
    assert told[0] == 999
    torch.testing.assert_close(scheduler.sigmas[0], levels[-1].sqrt(), rtol=1e-5, atol=0)
    assert scheduler.sigmas[-1] == 0
    flow = SigDEGScheduler.like(FLOW, steps=[5])
    flow.set_timesteps(sigmas=[1.0, 0.8, 0.6, 0.4, 0.2], mu=1.2)  # of which only the number counts
    assert isinstance(flow.core.schedule, RectifiedFlow)
    torch.testing.assert_close(flow.timesteps, 1000 * flow.sigmas[:-1])


@pytest.mark.parametrize("begun", ["set_begin_index", "timestep", "noise"])
def test_a_run_may_begin_late(begun):
    scheduler = SigDEGScheduler.like(OWN, steps=[4])
    scheduler.set_timesteps(4)
    timesteps, x = scheduler.timesteps[2:], states()
    if begun == "set_begin_index":
        scheduler.set_begin_index(2)
    elif begun == "noise":
        x = scheduler.add_noise(x, states(seed=1), timesteps[:1])
        assert scheduler.step_index == 2
    for timestep in timesteps.half():  # 784.4 becomes 784.5
        scheduler.step(states(seed=2), timestep, x)
    assert scheduler.step_index == 4


def test_the_path_of_an_image_is_that_of_its_noise():
    scheduler, x = SigDEGScheduler.like(OWN, steps=[4]), 100 * torch.ones(2, 4, 8, 8)
    noise, seeds = states(), []
    for late in (0, 2, 3):
        scheduler.set_timesteps(4)
        t = scheduler.grid[late]
        noisy = scheduler.add_noise(x, noise, scheduler.timesteps[late : late + 1].repeat(2))
        alpha, sigma = scheduler.core.schedule.alpha(t), scheduler.core.schedule.sigma(t)
        torch.testing.assert_close(noisy, (alpha * x + sigma * noise).float())
        seeds.append(scheduler.noise.seeds)
    assert seeds[0] == seeds[1] == seeds[2]
    assert len(set(seeds[0])) == 2  # though all signs of the images are the same


def test_a_strength_that_leaves_no_step_is_refused():
    scheduler = SigDEGScheduler.like(OWN, steps=[4])
    scheduler.set_timesteps(4)
    with pytest.raises(SigdegError, match="0 of 4 steps are left: strength must be at least 1/4"):
        scheduler.add_noise(states(), states(seed=1), scheduler.timesteps[4:].repeat(2))


def test_half_of_a_learned_variance_goes():
    marches = [SigDEGScheduler.like(OWN, steps=[4]) for _ in range(2)]
    output, x = states(seed=1), states()
    wide = torch.cat([output, states(seed=2)], dim=1)
    for scheduler in marches:
        scheduler.set_timesteps(4)
    made = [s.step(o, 999, x)[0] for s, o in zip(marches, (output, wide), strict=True)]
    assert torch.equal(*made)


def test_a_count_that_it_was_not_distilled_for_is_refused():
    one = SigDEGScheduler.like(OWN, steps=[4], student="a")
    with pytest.raises(SigdegError, match="was distilled for 4 steps, got 3"):
        one.set_timesteps(3)
    with pytest.raises(SigdegError, match="give num_inference_steps"):
        one.set_timesteps(None)
    elastic = SigDEGScheduler.like(OWN, steps=[8, 4], student="a")
    with pytest.raises(SigdegError, match="was distilled for 8, 4 steps, got 9"):
        elastic.set_timesteps(9)
    elastic.set_timesteps(2)  # of its finest grid's times
    teacher = SigDEGScheduler.like(OWN)  # knows any
    teacher.set_timesteps(37)
    assert len(teacher.timesteps) == 37


def test_its_configuration_is_json_and_keeps_that_of_the_teacher(tmp_path):
    step = {"order": 2, "steps": [4, 2], "response_std": 0.5, "lookahead": 0.5, "student": "a"}
    scheduler = SigDEGScheduler.like(OWN, **step)
    assert json.loads(scheduler.to_json_string())["sigdeg"] == scheduler.config.sigdeg
    scheduler.save_pretrained(tmp_path)
    for other in (
        SigDEGScheduler.from_pretrained(tmp_path),
        SigDEGScheduler.from_config(scheduler.config),
        SigDEGScheduler.like(scheduler),
    ):
        assert dict(other.config)["sigdeg"] == scheduler.config.sigdeg
        assert other.core.written == scheduler.core.written
        assert other.student == "a"
    back = diffusers.DDIMScheduler.from_config(scheduler.config)
    assert torch.equal(back.alphas_cumprod, OWN.alphas_cumprod)


def test_without_a_step_it_is_that_of_plain_betas():
    scheduler = SigDEGScheduler(**BETAS, num_train_timesteps=500)
    alpha = diffusers.DDPMScheduler(**BETAS, num_train_timesteps=500).alphas_cumprod[-1].sqrt()
    torch.testing.assert_close(scheduler.core.scales(states(), 1.0)[0].flatten(), alpha[None])
    assert len(scheduler) == len(scheduler.timesteps) == 500
    assert not scheduler.student


@pytest.mark.parametrize(
    ("damaged", "told"),
    [
        ({"order": "2"}, "order"),
        ({"steps": []}, "at least one step count"),
        ({"lookahead": 1.5}, "lookahead"),
        ({"schedule": {"kind": "Linear"}}, "Linear"),
        ({"colour": 1}, "colour"),
        ({"guidance": "high"}, "guidance must be a number"),
        ({"guidance": {}}, "guidance must be a number"),
        ({"guidance": []}, "guidance must be a number"),
        ({"prediction_type": "noise"}, "prediction type"),
    ],
)
def test_a_damaged_configuration_is_one_line(damaged, told, tmp_path):
    SigDEGScheduler.like(OWN, steps=[4]).save_pretrained(tmp_path)
    file = tmp_path / "scheduler_config.json"
    config = json.loads(file.read_text())
    config["sigdeg"] |= damaged
    file.write_text(json.dumps(config))
    with pytest.raises(SigdegError, match=told) as error:
        SigDEGScheduler.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_states_of_variance_exploding_schedules_start_at_their_own_scale():
    own = diffusers.EDMEulerScheduler(sigma_max=20.0)
    scheduler = SigDEGScheduler.like(own, steps=[4])
    assert isinstance(scheduler.core.schedule, EDM)
    assert scheduler.init_noise_sigma == pytest.approx(20.0)
    assert SigDEGScheduler.like(OWN).init_noise_sigma == 1
    x = states()
    scheduler.set_timesteps(4)
    scaled = scheduler.scale_model_input(20 * x, scheduler.timesteps[0])
    torch.testing.assert_close(scaled, 20 * x / (20**2 + own.config.sigma_data**2) ** 0.5)
    student = SigDEGScheduler.like(own, steps=[4], student="a")
    student.set_timesteps(4)
    assert torch.equal(student.scale_model_input(x, 0), x)  # its network asks for its own
