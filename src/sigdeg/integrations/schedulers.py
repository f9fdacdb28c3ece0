r"""Schedulers of diffusers: the schedule behind each, and what the networks it steps predict.

| schedulers | schedule | predictions |
|---|---|---|
| those with `alphas_cumprod` | `DiscreteVP` | `epsilon`, `v_prediction`, `sample` |
| flow matching, `use_flow_sigmas` | `RectifiedFlow` | `flow`, `sample` |
| flow matching towards the data (Mochi, MiniMax-H3) | `RectifiedFlow` | `flow_to_data` |
| EDM | `EDM` | `edm`, `edm_v` |
| Euler of continuous times and v (SVD) | `EDM` of unit variance | `edm_v` |
| cosine DPM-Solver (Stable Audio) | `Cosine` | `edm`, `v_prediction` |
| IPNDM (Dance Diffusion) | `Cosine` | `v_prediction` |
| Würstchen | `Cosine` with its offset | `epsilon` |
| score SDEs | `VEGeometric`, `VPLinear` | `score`, `epsilon` |

Whatever a scheduler's own coordinates are, a schedule's state is $\alpha x_0 + \sigma \varepsilon$:
those of Euler, Heun, LMS and KDPM2 are $x / \alpha$, and give their networks our $x$. Spacings of
steps (karras, exponential, shifts) are no part of the law at a noise level.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from sigdeg.errors import SigdegError
from sigdeg.prediction import Prediction
from sigdeg.schedule import (
    EDM,
    Cosine,
    DiscreteVP,
    RectifiedFlow,
    Schedule,
    VEGeometric,
    VPLinear,
)
from sigdeg.schema import number

__all__ = ["Described", "describe", "from_scheduler", "scheduler_config"]

# Their networks do not give E[x_0 | x_t], though they may have alphas_cumprod.
STUDENTS = {
    "CMStochasticIterativeScheduler": "consistency models",
    "ConsistencyDecoderScheduler": "consistency models",
    "FlowMapEulerDiscreteScheduler": "flow maps",
    "FlowMatchLCMScheduler": "consistency models",
    "HeliosDMDScheduler": "students of distribution matching",
    "LCMScheduler": "consistency models",
    "PiflowScheduler": "policies of a flow",
    "SCMScheduler": "consistency models",
    "SigDEGScheduler": "students of whole paths",
    "TCDScheduler": "consistency models",
}
TOKENS = {
    "AmusedScheduler",
    "BlockRefinementScheduler",
    "DiscreteDDIMScheduler",
    "EntropyBoundScheduler",
    "VQDiffusionScheduler",
}
NEVER_CLIP = {"CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"}  # whatever their clip_sample
ALPHA_BAR_MIN = 1e-4  # where Würstchen's noise ends
ZERO_SNR = 1e-14  # for alphas_cumprod of zero: alpha is 1e-7, the rounding of single precision

# What the prediction types of each family are here; the first is meant where none is named.
OF_TABLE: dict[str, Prediction] = {
    "epsilon": "epsilon",
    "v_prediction": "v_prediction",
    "sample": "sample",
}
OF_EDM: dict[str, Prediction] = {"epsilon": "edm", "v_prediction": "edm_v"}
OF_FLOW: dict[str, Prediction] = {"flow_prediction": "flow", "sample": "sample"}
OF_FLOW_TO_DATA: dict[str, Prediction] = {"flow_prediction": "flow_to_data"}


@dataclass(frozen=True)
class Described:
    r"""What a scheduler says of the networks it steps.

    Arguments:
        schedule: The schedule they were trained with, and the times they are told.
        prediction: What they predict, see `sigdeg.prediction`.
        clip: The mean is clamped to [-clip, clip].
        data_std: The data's standard deviation that `edm` and `edm_v` assume.
        threshold: Dynamic thresholding of the mean, if any, in the place of `clip`: the quantile of
            its absolute values, and the largest that is heeded.
    """

    schedule: Schedule
    prediction: Prediction
    clip: float | None
    data_std: float
    threshold: tuple[float, float] | None = None


class Family(NamedTuple):
    """A schedule, the prediction types that go with it, and the data's standard deviation."""

    schedule: Schedule
    predictions: Mapping[str, Prediction]
    data_std: float = 0.5


def describe(scheduler: Any, exact: bool = True) -> Described:
    r"""Schedule, prediction, clip and data's deviation of a diffusers scheduler.

    Arguments:
        scheduler: Any scheduler of the table above, whatever its settings.
        exact: Whether a schedule reaches pure noise as the scheduler does: a flow in the time of
            its $\sigma$ ends at 1, and a zero terminal SNR at 1e-14. Drift and diffusion may be
            infinite there, and only the exponential step, which needs neither, starts from it.
            Otherwise a flow has its static shift as the clock and ends just below 1, and a zero SNR
            just above.

    Raises:
        SigdegError: If its networks give no posterior mean of a continuous state, or its settings
            are not supported.
    """
    name, config = type(scheduler).__name__, scheduler_config(scheduler)
    schedule, predictions, data_std = family(scheduler, exact)
    said = config.get("prediction_type", next(iter(predictions)))
    if said not in list(predictions):
        raise SigdegError(
            f"a {name} of prediction_type {said!r} is not supported: it must predict "
            f"{' or '.join(predictions)}"
        )
    last = getattr(scheduler, "alphas_cumprod", torch.ones(1))[-1]
    if said == "epsilon" and (config.get("rescale_betas_zero_snr") or float(last) == 0):
        raise SigdegError(
            f"{name}: noise tells nothing of the data where there is nothing else: a schedule of "
            "zero terminal SNR (rescale_betas_zero_snr) needs v_prediction or sample, got epsilon"
        )
    clips = config.get("clip_sample") and not kinds_of(scheduler) & NEVER_CLIP
    clip = float(config.get("clip_sample_range", 1.0)) if clips else None
    threshold = None
    if config.get("thresholding"):
        clip, threshold = None, (config["dynamic_thresholding_ratio"], config["sample_max_value"])
    return Described(schedule, predictions[said], clip, data_std, threshold)


def from_scheduler(scheduler: Any) -> Schedule:
    """The schedule behind a diffusers scheduler, fit for every step of the SDE.

    Any scheduler with `alphas_cumprod` (DDPM, DDIM, Euler, DPM-Solver, UniPC ...) becomes a
    `DiscreteVP`, in variance-preserving coordinates; EDM schedulers become `EDM`; flow-matching
    ones become `RectifiedFlow` with their shift; `describe` says the others.

    Raises:
        SigdegError: If the scheduler belongs to none of these families.
    """
    return family(scheduler, exact=False).schedule


def scheduler_config(scheduler: Any) -> dict[str, Any]:
    """The settings that a diffusers scheduler heeds: a file may hold those of another one too."""
    heeded = inspect.signature(type(scheduler).__init__).parameters
    config = getattr(scheduler, "config", None)
    known = config if isinstance(config, Mapping) else {}
    return {key: value for key, value in known.items() if key in heeded}


def kinds_of(scheduler: Any) -> set[str]:
    """The names of its class and of those that it inherits from."""
    return {kind.__name__ for kind in type(scheduler).__mro__}


def family(scheduler: Any, exact: bool) -> Family:
    """The family of a scheduler, by what it has; by its name only where that says nothing."""
    name, config = type(scheduler).__name__, scheduler_config(scheduler)
    kinds = kinds_of(scheduler)
    for kind in kinds & STUDENTS.keys():
        raise SigdegError(
            f"{name} is for {STUDENTS[kind]}, which jump to the data: they are no teachers"
        )
    if kinds & TOKENS:
        raise SigdegError(
            f"{name} is for tokens, and a schedule for continuous states: teachers of tokens are "
            "masked language models, see load_token_teacher"
        )
    try:
        found = (
            of_name(kinds, config, exact)
            or of_edm(kinds, scheduler, config)
            or of_flow(kinds, config, exact)
            or of_table(scheduler, exact)
        )
    except (TypeError, ValueError) as error:
        raise SigdegError(f"{name}: {error}") from None
    if found is None:
        raise SigdegError(
            f"no schedule is known for {name}: it has neither alphas_cumprod, nor sigma_data, nor "
            "a flow shift"
        )
    return found


def of_name(kinds: set[str], config: Mapping[str, Any], exact: bool) -> Family | None:
    """Schedulers whose formulas are nowhere but in their code."""
    if "IPNDMScheduler" in kinds:
        if config["trained_betas"] is not None:
            raise ValueError("trained_betas are not supported")
        schedule = Cosine(t_max=1.0) if exact else Cosine()
        return Family(schedule, {"v_prediction": "v_prediction"})
    if "DDPMWuerstchenScheduler" in kinds:
        if config["scaler"] != 1:
            raise ValueError(f"scaler must be 1, got {config['scaler']}")
        schedule = Cosine(offset=config["s"])
        ends = torch.tensor([ALPHA_BAR_MIN, 1 - ALPHA_BAR_MIN], dtype=torch.float64).logit() / 2
        t_max, t_min = schedule.time_at(ends).tolist()
        return Family(Cosine(t_min, t_max, config["s"]), {"epsilon": "epsilon"})
    if "ScoreSdeVeScheduler" in kinds:
        levels = config["sigma_min"], config["sigma_max"]
        return Family(VEGeometric(*levels, t_min=config["sampling_eps"]), {"score": "score"})
    if "ScoreSdeVpScheduler" in kinds:
        rates = config["beta_min"], config["beta_max"]
        return Family(VPLinear(*rates, t_min=config["sampling_eps"]), {"epsilon": "epsilon"})
    return None


def of_edm(kinds: set[str], scheduler: Any, config: Mapping[str, Any]) -> Family | None:
    """Schedulers in the formulation of Karras et al., whose states are of unit variance inside."""
    if config.get("timestep_type") == "continuous" and config["prediction_type"] == "v_prediction":
        table = scheduler.alphas_cumprod[[0, -1]].double()
        least, most = ((1 - table) / table).sqrt().tolist()
        levels = config["sigma_min"] or least, config["sigma_max"] or most
        return Family(EDM(*levels), {"v_prediction": "edm_v"}, 1.0)
    if "sigma_data" not in config:
        return None
    levels, std = (config["sigma_min"], config["sigma_max"]), config["sigma_data"]
    number(1e-6)(std, "sigma_data")
    if "CosineDPMSolverMultistepScheduler" in kinds:  # told 2 / pi atan(sigma), that is t itself
        first, last = (2 / math.pi * math.atan(sigma) for sigma in levels)
        v: Prediction = "v_prediction" if std == 1 else "edm_v"
        return Family(Cosine(first, last), {"v_prediction": v, "epsilon": "edm"}, std)
    return Family(EDM(*levels, config["rho"]), OF_EDM, std)


def of_flow(kinds: set[str], config: Mapping[str, Any], exact: bool) -> Family | None:
    """Schedulers of rectified flows: in the time of sigma a shift only places the steps."""
    flows = config.get("use_flow_sigmas") or "shift" in config
    if not flows and "LTXEulerAncestralRFScheduler" not in kinds:
        return None
    if config.get("stages", 1) != 1:
        raise ValueError("stages of several resolutions are not supported, stages=1 is")
    shift = 1.0 if exact else config.get("flow_shift", config.get("shift")) or 1.0
    t_max = 1.0 if exact else RectifiedFlow.t_max
    if "num_train_timesteps" not in config:  # MiniMax-H3: times are those of the data
        return Family(RectifiedFlow(shift, 0.0, t_max=t_max, clean=1.0), OF_FLOW_TO_DATA)
    steps = float(config["num_train_timesteps"])
    if config.get("invert_sigmas"):
        return Family(RectifiedFlow(shift, 0.0, t_max=t_max, clean=steps), OF_FLOW_TO_DATA)
    return Family(RectifiedFlow(shift, steps, t_max=t_max), OF_FLOW)


def of_table(scheduler: Any, exact: bool) -> Family | None:
    """Schedulers of whole timesteps."""
    if not hasattr(scheduler, "alphas_cumprod"):
        return None
    least = ZERO_SNR if exact else 1.0
    return Family(DiscreteVP.from_alphas_cumprod(scheduler.alphas_cumprod, least), OF_TABLE)
