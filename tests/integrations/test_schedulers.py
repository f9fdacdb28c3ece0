"""Every scheduler of diffusers: its levels, its networks' inputs and its own x_0, or one line."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any, get_args

import diffusers
import pytest
import torch
from diffusers import schedulers
from torch import Tensor

from sigdeg.denoiser import NetworkDenoiser
from sigdeg.errors import SigdegError
from sigdeg.grids import Spacing, coarse_grid, fine_grid
from sigdeg.integrations.schedulers import describe, from_scheduler
from sigdeg.prediction import preconditioning
from sigdeg.response import LinearResponse, exponential_coefficients, response
from sigdeg.schedule import EDM, Cosine, Schedule, VPLinear, schedule_from_config

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TO_ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
# The same noise in fewer timesteps: some schedulers take a second to go through a thousand.
SHORT = {"num_train_timesteps": 200, "beta_schedule": "scaled_linear"} | {
    "beta_start": 0.00425,
    "beta_end": 0.06,
}
SPACINGS = {
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading", "steps_offset": 1},
    "trailing": {"timestep_spacing": "trailing"},
}
STEPS = 6
INDICES = (0, 2, 4)  # even: methods of second order begin a step there


def kinds() -> dict[str, Any]:
    """Every class of schedulers that diffusers exports, by name."""
    found = {**vars(schedulers), **{name: getattr(schedulers, name) for name in dir(schedulers)}}
    return {
        name: kind
        for name, kind in found.items()
        if isinstance(kind, type)
        and issubclass(kind, diffusers.SchedulerMixin)
        and kind is not diffusers.SchedulerMixin
    }


def takes(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


# --- what is parity-tested: every class x prediction x spacing ------------------------------------

# What each class of the table takes for prediction_type.
BOTH, ALL = ("epsilon", "v_prediction"), ("epsilon", "v_prediction", "sample")
TABLE: dict[str, tuple[str, ...]] = {
    "CogVideoXDDIMScheduler": ALL,
    "CogVideoXDPMScheduler": ALL,
    "DDIMInverseScheduler": ALL,
    "DDIMParallelScheduler": ALL,
    "DDIMScheduler": ALL,
    "DDPMParallelScheduler": ALL,
    "DDPMScheduler": ALL,
    "DEISMultistepScheduler": ALL,
    "DPMSolverMultistepInverseScheduler": ALL,
    "DPMSolverMultistepScheduler": ALL,
    "DPMSolverSDEScheduler": BOTH,
    "DPMSolverSinglestepScheduler": ALL,
    "EulerAncestralDiscreteScheduler": BOTH,
    "EulerDiscreteScheduler": ALL,
    "HeunDiscreteScheduler": BOTH,
    "KDPM2AncestralDiscreteScheduler": BOTH,
    "KDPM2DiscreteScheduler": BOTH,
    "LMSDiscreteScheduler": BOTH,
    "PNDMScheduler": BOTH,
    "RePaintScheduler": ("epsilon",),
    "SASolverScheduler": ALL,
    "UnCLIPScheduler": ("epsilon", "sample"),
    "UniPCMultistepScheduler": ALL,
}
FLOWS: dict[str, list[dict[str, Any]]] = {
    "DEISMultistepScheduler": [{"flow_shift": 3.0}],
    "DPMSolverMultistepScheduler": [{"flow_shift": 3.0}, {"prediction_type": "sample"}],
    "DPMSolverSinglestepScheduler": [{}],
    "FlowMatchEulerDiscreteScheduler": [
        {},
        {"shift": 3.0},
        {"use_dynamic_shifting": True},
        {"invert_sigmas": True},  # Mochi
    ],
    "FlowMatchHeunDiscreteScheduler": [{"shift": 3.0}],
    "HeliosScheduler": [{"stages": 1}],
    "LTXEulerAncestralRFScheduler": [{"eta": 0.0}],
    "MiniMaxH3Scheduler": [{}, {"shift": 3.0}],
    "SASolverScheduler": [{}],
    "UniPCMultistepScheduler": [{"flow_shift": 5.0}],
}
EDMS: dict[str, list[dict[str, Any]]] = {
    "EDMEulerScheduler": [{}, {"sigma_schedule": "exponential"}, {"sigma_data": 1.0, "rho": 5.0}],
    "EDMDPMSolverMultistepScheduler": [{}, {"sigma_schedule": "exponential"}],
    "CosineDPMSolverMultistepScheduler": [{}, {"sigma_data": 0.5, "sigma_max": 80.0}],
}
SVD = {"use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0} | {
    "timestep_type": "continuous",
    "prediction_type": "v_prediction",
}


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and options of every scheduler that is tested."""
    every = kinds()
    for name, predictions in TABLE.items():
        heeds = takes(every[name].__init__)
        spacings: list[dict[str, Any]] = (
            list(SPACINGS.values()) if "timestep_spacing" in heeds else [{}]
        )
        if "Inverse" in name or "CogVideoX" in name:  # know no linspace
            spacings = spacings[1:]
        betas = SHORT if "beta_start" in heeds else {}
        further = {key: False for key in ("clip_sample",) if key in heeds}
        for told in predictions:
            said = {"prediction_type": told} if "prediction_type" in heeds else {}
            for spacing in spacings:
                yield name, {**betas, **further, **said, **spacing}
            if "use_karras_sigmas" in heeds:
                yield name, {**betas, **further, **said, "use_karras_sigmas": True}
            if "rescale_betas_zero_snr" in heeds and told != "epsilon":
                yield name, {**betas, **TO_ZERO, **further, **said}
        if "clip_sample" in heeds:
            yield name, {"clip_sample": True, **betas}
    for name, variants in FLOWS.items():
        heeds = takes(every[name].__init__)
        flow = {key: value for key, value in FLOW.items() if key in heeds}
        yield from ((name, {**flow, **variant}) for variant in variants)
    for name, variants in EDMS.items():
        for told in BOTH:
            yield from ((name, {"prediction_type": told, **variant}) for variant in variants)
    yield "EulerDiscreteScheduler", SVD
    yield "EulerDiscreteScheduler", {**STABLE, "timestep_type": "continuous"}
    yield "IPNDMScheduler", {}


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def build(name: str, options: dict[str, Any], index: int) -> Any:
    """A scheduler in the middle of a run."""
    further = {"SASolverScheduler": {"algorithm_type": "data_prediction"}}
    further["PNDMScheduler"] = {"skip_prk_steps": True}
    scheduler = kinds()[name](**further.get(name, {}), **options)
    scheduler.set_timesteps(STEPS, **({"mu": 0.8} if "use_dynamic_shifting" in options else {}))
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(index)
    return scheduler


def level(scheduler: Any, index: int) -> tuple[float, float]:
    """Signal and noise scale at a step of a run, in a scheduler's own coordinates."""
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[index])
        return float(alpha), float(sigma)
    if hasattr(scheduler, "add_noise") or hasattr(scheduler, "alphas_cumprod"):
        told = scheduler.timesteps[index : index + 1]
        if getattr(scheduler, "begin_index", None) is not None:
            scheduler.set_begin_index(index)
        if not hasattr(scheduler, "add_noise") or "mask" in takes(scheduler.step):
            scheduler = diffusers.DDPMScheduler.from_config(scheduler.config)
        one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        noised = (scheduler.add_noise(*pair, told) for pair in ((one, zero), (zero, one)))
        return next(noised).item(), next(noised).item()
    if hasattr(scheduler, "alphas"):
        return float(scheduler.alphas[index]), float(scheduler.betas[index])
    sigma = float(scheduler.sigmas[index])
    return (sigma, 1 - sigma) if scheduler.config.get("invert_sigmas") else (1 - sigma, sigma)


def next_level(scheduler: Any, index: int) -> tuple[float, float]:
    """The same where a step of a method of first order goes."""
    if not isinstance(scheduler, diffusers.PNDMScheduler):
        return level(scheduler, index + 1)
    back = scheduler.config.num_train_timesteps // STEPS
    a = float(scheduler.alphas_cumprod[scheduler.timesteps[index] - back])
    return a**0.5, (1 - a) ** 0.5


def own_mean(scheduler: Any, index: int, output: Tensor, x: Tensor) -> Tensor:
    """The x_0 that a scheduler itself makes of its state and an output."""
    timestep, (alpha, sigma) = scheduler.timesteps[index], level(scheduler, index)
    if hasattr(scheduler, "convert_model_output"):
        scheduler._init_step_index(timestep)
        converted = scheduler.convert_model_output(output, sample=x)
        noise = isinstance(scheduler, diffusers.DEISMultistepScheduler)
        return (x - sigma * converted) / alpha if noise else converted
    if isinstance(scheduler, diffusers.DDIMInverseScheduler):  # is told where it goes
        timestep = timestep + scheduler.config.num_train_timesteps // STEPS
    if isinstance(scheduler, diffusers.CogVideoXDPMScheduler):
        made = scheduler.step(output, None, timestep, None, x, return_dict=False)
        return made[1]
    masked = {"original_image": x, "mask": torch.zeros_like(x)}
    further = masked if "mask" in takes(scheduler.step) else {}
    made = scheduler.step(output, timestep, x, **further)
    if getattr(made, "pred_original_sample", None) is not None:
        return made.pred_original_sample
    alpha_next, sigma_next = next_level(scheduler, index)
    # A step of first order of the ODE keeps the noise: it scales it, and adds x_0.
    ratio = sigma_next / sigma
    return (made.prev_sample - ratio * x) / (alpha_next - ratio * alpha)


CASES: dict[str, list[dict[str, Any]]] = {}
for kind, options in cases():
    CASES.setdefault(kind, []).append(options)


@pytest.mark.parametrize("name", CASES)
def test_the_mean_is_the_schedulers_own(name: str) -> None:
    """Levels, what the network is given and told, and x_0, at every spacing and prediction."""
    draw = torch.Generator().manual_seed(0)
    for options in CASES[name]:
        for index in INDICES[name == "IPNDMScheduler" :]:  # whose first step divides by 1e-8
            scheduler = build(name, options, index)
            timestep, (alpha, sigma) = scheduler.timesteps[index], level(scheduler, index)
            said = describe(scheduler)
            ratio = torch.tensor(alpha / sigma, dtype=torch.float64)
            t = said.schedule.time_at(ratio.log())
            own = said.schedule.alpha(t), said.schedule.sigma(t)
            torch.testing.assert_close(own[0] / own[1], ratio, rtol=2e-6, atol=2e-7)
            # Times of steps that are placed by their levels are cut to whole ones; between whole
            # ones sigma is interpolated, here its logarithm is.
            cut = options.get("use_karras_sigmas") or options.get("use_flow_sigmas")
            between = 3e-3 if name in TABLE and timestep % 1 else 0.0
            told = said.schedule.timestep(t)
            close(told, timestep.double(), 1e-6, 1.0 if cut else between)

            x, output = torch.randn(2, 2, 4, 3, 3, generator=draw, dtype=torch.float64)
            theirs = x * sigma / own[1]
            around = preconditioning(*own, said.prediction, said.data_std)
            scale = getattr(scheduler, "scale_model_input", lambda state, _: state)
            close(around.scale(x), scale(theirs, timestep), 1e-6)
            mean, clip = around.mean(output, x), said.clip or torch.inf
            close(mean.clamp(-clip, clip), own_mean(scheduler, index, output, theirs), 1e-5)


def close(found: Tensor, expected: Tensor, relative: float, absolute: float = 0.0) -> None:
    error, size = (found - expected).abs().max(), expected.abs().max().clamp(min=1)
    assert float(error) <= absolute + relative * float(size)


# --- schedulers of no ODE step --------------------------------------------------------------------


def stepped(schedule: Schedule, levels: list[float], x: Tensor, mean: Tensor) -> Tensor:
    """The exponential step between two ratios of signal to noise, without its noise."""
    t, s = schedule.time_at(torch.tensor(levels, dtype=torch.float64).log())
    a, b = exponential_coefficients(schedule, t, s)
    return a * x + b * mean


@pytest.mark.parametrize("index", [0, 3, 5])
def test_wuerstchen_takes_our_exponential_step(index: int) -> None:
    """From its clamped levels, and to them; between its ends the network is told its own time."""
    scheduler = diffusers.DDPMWuerstchenScheduler()
    scheduler.set_timesteps(STEPS)
    said = describe(scheduler)
    x, output = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    t = scheduler.timesteps[index].expand(len(x))
    bars = [float(scheduler._alpha_cumprod(t[:1] - k / STEPS, t.device)) for k in (0, 1)]
    ratios = [(bar / (1 - bar)) ** 0.5 for bar in bars]
    found = said.schedule.time_at(torch.tensor(ratios[0], dtype=torch.float64).log())
    if index > 0:
        assert float(said.schedule.timestep(found)) == pytest.approx(float(t[0]), rel=1e-5)
    own = said.schedule.alpha(found), said.schedule.sigma(found)
    mean = preconditioning(*own, said.prediction).mean(output.double(), x.double())
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    made = scheduler.step(output, t, x, generator=torch.Generator().manual_seed(1)).prev_sample
    times = said.schedule.time_at(torch.tensor(ratios, dtype=torch.float64).log())
    w = response(said.schedule, *times, order=1) if index + 1 < STEPS else torch.zeros(1)
    close(stepped(said.schedule, ratios, x, mean) + w * noise, made.double(), 2e-5)
    assert said.schedule.t_max == pytest.approx(float(times[0]) if index == 0 else 1, abs=7e-3)


def test_the_variance_exploding_score_sde_takes_our_exponential_step() -> None:
    scheduler = diffusers.ScoreSdeVeScheduler()
    scheduler.set_timesteps(STEPS)
    scheduler.set_sigmas(STEPS)
    said = describe(scheduler)
    x, output = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    sigmas = scheduler.discrete_sigmas.double()
    for index in range(2, STEPS):  # from 1 it goes to sigma_min, at our t = 0: there is no noise
        t = said.schedule.time_at(-sigmas[index].log())
        own = said.schedule.alpha(t), said.schedule.sigma(t)
        close(said.schedule.timestep(t), sigmas[index], 1e-6)
        mean = preconditioning(*own, said.prediction).mean(output.double(), x.double())
        told = torch.tensor(index / (STEPS - 1))
        made = scheduler.step_pred(output, told, x).prev_sample_mean
        ratios = [1 / float(sigmas[i]) for i in (index, index - 1)]
        close(stepped(said.schedule, ratios, x.double(), mean), made.double(), 1e-5)
    assert float(said.schedule.sigma(torch.tensor(1.0))) == pytest.approx(scheduler.sigmas[0])


def test_the_variance_preserving_score_sde_has_our_reverse_drift() -> None:
    scheduler = schedulers.ScoreSdeVpScheduler(beta_max=15.0)
    scheduler.set_timesteps(STEPS)
    said = describe(scheduler)
    assert said.schedule == VPLinear(beta_max=15.0)
    draw = torch.Generator().manual_seed(0)
    x, output = torch.randn(2, 3, 4, generator=draw, dtype=torch.float64)
    denoiser = NetworkDenoiser(lambda *_: output, said.schedule, said.prediction)
    for t in scheduler.timesteps.double():
        _, mean = scheduler.step_pred(output, x, t.expand(len(x)))
        close(x + denoiser.reverse_drift(x, t) / STEPS, mean, 1e-5)


# --- closed forms ---------------------------------------------------------------------------------

# a, b and the two weights of the exponential step from .7 to .4
STEPPED = {
    "DDPMScheduler": ({}, (0.15313262, 0.428972832, 0.811808466, 0.350049099)),
    "DDIMScheduler": (STABLE, (0.276480051, 0.573038077, 0.685670966, 0.183527671)),
    "FlowMatchEulerDiscreteScheduler": (
        {"shift": 3.0},  # which places the steps, and is no part of their law
        (0.163265306, 0.551020408, 0.363654595, 0.121219268),
    ),
    "EDMEulerScheduler": ({}, (0.000395792, 0.999604208, 0.092528132, 0.092798784)),
    "CosineDPMSolverMultistepScheduler": (
        {},
        (0.244210719, 0.698147648, 0.528599307, 0.136848134),
    ),
}


def coefficients(scheduler: Any, t: float, s: float) -> Tensor:
    schedule = describe(scheduler).schedule
    times = torch.tensor([t, s], dtype=torch.float64)
    still = torch.zeros((), dtype=torch.float64)
    a, b = exponential_coefficients(schedule, *times)
    return torch.cat([torch.stack([a, b]), response(schedule, *times, 2, still)])


@pytest.mark.parametrize("name", STEPPED)
def test_coefficients_of_a_step(name: str) -> None:
    options, expected = STEPPED[name]
    found = coefficients(kinds()[name](**options), 0.7, 0.4)
    assert found.tolist() == pytest.approx(expected, abs=1e-8)


def test_a_flow_and_zero_snr_start_from_pure_noise() -> None:
    """Where drift and diffusion are infinite, or nearly so: the exponential step is finite."""
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    found = coefficients(flow, 1.0, 0.7).tolist()
    assert found == pytest.approx((0, 0.3, 0.632862513, 0.299140501), abs=1e-8)
    zero = diffusers.DDIMScheduler(**STABLE, **TO_ZERO, prediction_type="v_prediction")
    found = coefficients(zero, 1.0, 0.7).tolist()
    assert found == pytest.approx((4e-7, 0.236184818, 0.860562, 0.451275), abs=1e-6)
    schedule = describe(zero).schedule
    end = torch.tensor(1.0, dtype=torch.float64)
    assert float(schedule.alpha(end)) == pytest.approx(1e-7)
    # For steps of the SDE it stays finite, and both are the same further on.
    loose, t = from_scheduler(zero), torch.linspace(0.01, 0.999, 50, dtype=torch.float64)
    assert float(loose.diffusion(end)) < float(schedule.diffusion(end))
    torch.testing.assert_close(loose.alpha(t), schedule.alpha(t))
    assert from_scheduler(flow).t_max < describe(flow).schedule.t_max == 1


@pytest.mark.parametrize("spacing", get_args(Spacing))
@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "IPNDMScheduler"])
def test_a_student_starts_from_pure_noise_and_keeps_the_law(name: str, spacing: Spacing) -> None:
    r"""The first step of Gaussian data: the state tells nothing, the path all of $n_s^2$."""
    schedule, std = describe(kinds()[name]()).schedule, 0.7
    for grid in (coarse_grid(schedule, 4, spacing), fine_grid(schedule, 20, spacing)):
        assert grid[0] == 1
        assert bool((grid.diff() < 0).all())
        t, s = grid[:2]
        total = (schedule.alpha(s) * std) ** 2 + schedule.sigma(s) ** 2
        for order in (1, 3):
            w = LinearResponse(schedule, order, std).weights(t, s)
            assert float(w.square().sum()) == pytest.approx(float(total))
        ahead = LinearResponse(schedule, 3, std, lookahead=0.5)
        at = ahead.looks_at(t, s)
        assert s < at < t
        carried, *w = ahead.weights(t, s, at).tolist()
        assert carried == pytest.approx(0, abs=1e-6)
        there = (schedule.alpha(at) * std) ** 2 + schedule.sigma(at) ** 2
        assert 0.5 * there < sum(v**2 for v in w) < there  # more coefficients would tell the rest


def test_alphas_of_known_tables() -> None:
    end = torch.tensor(1.0, dtype=torch.float64)
    linear = describe(diffusers.DDPMScheduler()).schedule
    assert float(linear.alpha(end) ** 2) == pytest.approx(4.0358e-5, rel=1e-4)
    stable = describe(diffusers.DDIMScheduler(**STABLE)).schedule
    assert float(stable.alpha(end) ** 2) == pytest.approx(4.66010e-3, rel=1e-5)
    assert float(stable.sigma(end) / stable.alpha(end)) == pytest.approx(14.614647, rel=1e-6)


def test_the_ends_are_the_schedulers_own() -> None:
    audio = describe(diffusers.CosineDPMSolverMultistepScheduler())
    assert (audio.schedule.t_min, audio.schedule.t_max) == pytest.approx((0.185547, 0.998727), 1e-5)
    assert (audio.prediction, audio.data_std) == ("v_prediction", 1.0)
    video = describe(diffusers.EulerDiscreteScheduler(**SVD))
    assert video.schedule == EDM(0.002, 700.0)
    assert (video.prediction, video.data_std) == ("edm_v", 1.0)
    bare = {key: SVD[key] for key in ("timestep_type", "prediction_type")}  # ends of the table
    scheduler = diffusers.EulerDiscreteScheduler(**STABLE, **bare)
    found = describe(scheduler).schedule
    ends = torch.tensor([found.t_max, found.t_min], dtype=torch.float64)
    torch.testing.assert_close(found.sigma(ends).float(), scheduler.sigmas[[0, -2]])


@pytest.mark.parametrize("name", CASES)
def test_a_described_schedule_is_saved_and_loaded(name: str) -> None:
    schedule = describe(build(name, CASES[name][-1], 0)).schedule
    assert schedule_from_config(json.loads(json.dumps(schedule.config()))) == schedule


# --- what is refused, and that nothing is left out ------------------------------------------------

JUMP = "which jump to the data: they are no teachers"
REFUSED = {
    "AmusedScheduler": "is for tokens",
    "BlockRefinementScheduler": "is for tokens",
    "CMStochasticIterativeScheduler": f"is for consistency models, {JUMP}",
    "ConsistencyDecoderScheduler": f"is for consistency models, {JUMP}",
    "DiscreteDDIMScheduler": "is for tokens",
    "EntropyBoundScheduler": "is for tokens",
    "FlowMapEulerDiscreteScheduler": f"is for flow maps, {JUMP}",
    "FlowMatchLCMScheduler": f"is for consistency models, {JUMP}",
    "HeliosDMDScheduler": f"is for students of distribution matching, {JUMP}",
    "KarrasVeScheduler": "no schedule is known for KarrasVeScheduler",
    "LCMScheduler": f"is for consistency models, {JUMP}",
    "PiflowScheduler": f"is for policies of a flow, {JUMP}",
    "RFD4ProteinaScheduler": "no schedule is known for RFD4ProteinaScheduler",
    "SCMScheduler": f"is for consistency models, {JUMP}",
    "TCDScheduler": f"is for consistency models, {JUMP}",
    "VQDiffusionScheduler": "is for tokens",
}
NEEDED = {
    "AmusedScheduler": {"mask_token_id": 7},
    "RFD4ProteinaScheduler": {
        "schedule_mode": "log",
        "noise_mode": "tan",
        "tsr_k": 2.0,
        "tsr_sigma": 1.0,
    },
    "VQDiffusionScheduler": {"num_vec_classes": 8},
}


@pytest.mark.parametrize("name", REFUSED)
def test_schedulers_without_a_posterior_mean_are_refused_in_one_line(name: str) -> None:
    scheduler = kinds()[name](**NEEDED.get(name, {}))
    for ask in (describe, from_scheduler):
        with pytest.raises(SigdegError) as refusal:
            ask(scheduler)
        line = str(refusal.value)
        assert REFUSED[name] in line
        assert name in line
        assert "\n" not in line


SETTINGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "noise at zero SNR": ("EulerDiscreteScheduler", TO_ZERO, "zero terminal SNR .* got epsilon"),
    "noise of a flow": (
        "UniPCMultistepScheduler",
        {"use_flow_sigmas": True},
        "must predict flow_prediction or sample",
    ),
    "a flow of a table": (
        "UniPCMultistepScheduler",
        {"prediction_type": "flow_prediction"},
        "must predict epsilon or v_prediction or sample",
    ),
    "stages": ("HeliosScheduler", {}, "stages of several resolutions are not supported"),
    "a scaler": ("DDPMWuerstchenScheduler", {"scaler": 2.0}, "scaler must be 1, got 2.0"),
    "betas of IPNDM": ("IPNDMScheduler", {"trained_betas": [0.1, 0.2]}, "trained_betas are not"),
    "no deviation": ("EDMEulerScheduler", {"sigma_data": 0.0}, "sigma_data must be a number"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_are_not_supported_are_refused_in_one_line(case: str) -> None:
    name, options, line = SETTINGS[case]
    with pytest.raises(SigdegError, match=f"{name}.*{line}"):
        describe(kinds()[name](**options))


def test_a_subclass_is_what_its_parents_are() -> None:
    class Own(diffusers.LCMScheduler):
        pass

    class Cut(diffusers.DDPMWuerstchenScheduler):
        pass

    with pytest.raises(SigdegError, match="Own is for consistency models"):
        describe(Own())
    assert isinstance(describe(Cut()).schedule, Cosine)


def test_no_scheduler_of_diffusers_is_left_out() -> None:
    """Each has its parity above, or its line of refusal."""
    alone = {"DDPMWuerstchenScheduler", "ScoreSdeVeScheduler", "ScoreSdeVpScheduler"}
    assert not CASES.keys() & REFUSED.keys()
    assert kinds().keys() == CASES.keys() | REFUSED.keys() | alone
