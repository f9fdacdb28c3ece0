"""Every scheduler of diffusers: its levels, its networks' inputs and its own x_0, or one line."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
from diffusers import schedulers
from torch import Tensor

from sigdeg.integrations.schedulers import describe
from sigdeg.prediction import preconditioning

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO = {**STABLE, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
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


def options_of(kind: type) -> set[str]:
    return set(inspect.signature(kind.__init__).parameters)


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
        takes = options_of(every[name])
        spacings: list[dict[str, Any]] = (
            list(SPACINGS.values()) if "timestep_spacing" in takes else [{}]
        )
        if "Inverse" in name or "CogVideoX" in name:  # know no linspace
            spacings = spacings[1:]
        betas = STABLE if "beta_start" in takes else {}
        further = {key: False for key in ("clip_sample",) if key in takes}
        for told in predictions:
            said = {"prediction_type": told} if "prediction_type" in takes else {}
            for spacing in spacings:
                yield name, {**betas, **further, **said, **spacing}
            if "use_karras_sigmas" in takes:
                yield name, {**betas, **further, **said, "use_karras_sigmas": True}
            if "rescale_betas_zero_snr" in takes and told != "epsilon":
                yield name, {**ZERO, **further, **said}
        if "clip_sample" in takes:
            yield name, {"clip_sample": True, **betas}
    for name, variants in FLOWS.items():
        takes = options_of(every[name])
        flow = {key: value for key, value in FLOW.items() if key in takes}
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
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    told = scheduler.timesteps[index : index + 1]
    if getattr(scheduler, "begin_index", None) is not None:
        scheduler.set_begin_index(index)
    if isinstance(scheduler, diffusers.RePaintScheduler):  # that adds no noise
        return level(diffusers.DDPMScheduler.from_config(scheduler.config), 0)
    if hasattr(scheduler, "add_noise"):
        return float(scheduler.add_noise(one, zero, told)), float(
            scheduler.add_noise(zero, one, told)
        )
    if hasattr(scheduler, "scale_noise"):
        return float(scheduler.scale_noise(one, told, zero)), float(
            scheduler.scale_noise(zero, told, one)
        )
    if hasattr(scheduler, "alphas"):
        return float(scheduler.alphas[index]), float(scheduler.betas[index])
    return 1 - float(scheduler.sigmas[index]), float(scheduler.sigmas[index])


def own_mean(scheduler: Any, index: int, output: Tensor, x: Tensor) -> Tensor:
    """The x_0 that a scheduler itself makes of its state and an output."""
    timestep = scheduler.timesteps[index]
    (alpha, sigma), (alpha_next, sigma_next) = (level(scheduler, i) for i in (index, index + 1))
    if getattr(scheduler, "begin_index", None) is not None:
        scheduler.set_begin_index(index)
    if hasattr(scheduler, "convert_model_output"):
        scheduler._init_step_index(timestep)
        converted = scheduler.convert_model_output(output, sample=x)
        noise = isinstance(scheduler, diffusers.DEISMultistepScheduler)
        return (x - sigma * converted) / alpha if noise else converted
    if isinstance(scheduler, diffusers.DDIMInverseScheduler):  # is told where it goes
        timestep = timestep + scheduler.config.num_train_timesteps // STEPS
    takes = inspect.signature(scheduler.step).parameters
    further = {"original_image": x, "mask": torch.zeros_like(x)} if "mask" in takes else {}
    if isinstance(scheduler, diffusers.CogVideoXDPMScheduler):
        further = {"old_pred_original_sample": None, "timestep_back": None}
        made = scheduler.step(output, sample=x, timestep=timestep, return_dict=False, **further)
        return made[1]
    made = scheduler.step(output, timestep, x, **further)
    if getattr(made, "pred_original_sample", None) is not None:
        return made.pred_original_sample
    # Every first step of an ODE is x_s / a_s = r x_t / a_t + (1 - r) x_0, r the ratio of s / a.
    ratio = sigma_next / alpha_next / (sigma / alpha) if alpha else 0.0
    return (made.prev_sample / alpha_next - ratio * x / (alpha or 1)) / (1 - ratio)


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
            said = describe(scheduler)
            x, output = torch.randn(2, 2, 4, 3, 3, generator=draw, dtype=torch.float64)
            alpha, sigma = level(scheduler, index)
            ratio = torch.tensor(alpha / sigma, dtype=torch.float64)
            t = said.schedule.time_at(ratio.log())
            own = said.schedule.alpha(t), said.schedule.sigma(t)
            torch.testing.assert_close(own[0] / own[1], ratio, rtol=2e-6, atol=2e-7)
            coordinates = sigma / float(own[1])
            around = preconditioning(*own, said.prediction, said.data_std)
            theirs = x * coordinates
            given = theirs
            if hasattr(scheduler, "scale_model_input"):
                given = scheduler.scale_model_input(theirs, scheduler.timesteps[index])
            close(given, around.scale(x), 1e-6)
            # where steps are placed by their level, diffusers rounds times to whole ones
            told, rounding = float(scheduler.timesteps[index]), 0.5 if rounds(name, options) else 0
            assert abs(float(said.schedule.timestep(t)) - told) < rounding + 2e-6 * max(
                1, abs(told)
            ), options
            mean = around.mean(output, x)
            mean = mean if said.clip is None else mean.clamp(-said.clip, said.clip)
            close(own_mean(scheduler, index, output, theirs), mean, 1e-5)


def rounds(name: str, options: dict[str, Any]) -> bool:
    return bool(options.get("use_karras_sigmas") or options.get("use_flow_sigmas"))


def close(found: Tensor, expected: Tensor, limit: float) -> None:
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1)
    assert float(error) < limit
