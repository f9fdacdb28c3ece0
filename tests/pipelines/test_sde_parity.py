"""The exponential march in a pipeline is the pipeline's own ancestral or SDE sampler."""

from __future__ import annotations

import sys
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from sigdeg.pipelines import SigDEGScheduler
from sigdeg.schedule import RectifiedFlow, Schedule
from tests.pipelines.parts import BETAS
from tests.pipelines.student import apart, seeded
from tests.pipelines.zoo import FAMILIES

STEPS = 8  # of 10 or 20 DDIM at zero SNR takes the root of -6e-8, and all is NaN
UNCLIPPED = {**BETAS, "clip_sample": False}
ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
V = {"prediction_type": "v_prediction"}
SDE = {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}
FLOW = {**SDE, "use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
ETA = {"eta": 1.0}

# family, its scheduler, and what the call says to make it ancestral
CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "pixels, clipped": ("ddpm", diffusers.DDPMScheduler(), {}),
    "DDPM": ("sd15", diffusers.DDPMScheduler(**UNCLIPPED), {}),
    "DDIM": ("sd15", diffusers.DDIMScheduler(**UNCLIPPED), ETA),
    "DDIM, trailing": (
        "sd15",
        diffusers.DDIMScheduler(**UNCLIPPED, timestep_spacing="trailing"),
        ETA,
    ),
    "Euler": ("sd15", diffusers.EulerAncestralDiscreteScheduler(**BETAS), {}),
    "Euler, trailing": (
        "sdxl",
        diffusers.EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing"),
        {},
    ),
    "DPM-Solver++": ("sd15", diffusers.DPMSolverMultistepScheduler(**BETAS, **SDE), {}),
    "v, zero SNR": ("sd2_v", diffusers.DDIMScheduler(**UNCLIPPED, **ZERO, **V), ETA),
    "a doubled state": ("dit", diffusers.DDPMScheduler(clip_sample=False), {}),
    "a learned variance": ("pixart", diffusers.DPMSolverMultistepScheduler(**SDE), {}),
    "v": ("hunyuandit", diffusers.DDPMScheduler(**UNCLIPPED, **V), {}),
    "flow": ("sd3", diffusers.DPMSolverMultistepScheduler(**FLOW), {}),
    "flow, linear attention": ("sana", diffusers.DPMSolverMultistepScheduler(**FLOW), {}),
    "flow of a video": ("wan", diffusers.DPMSolverMultistepScheduler(**FLOW), {}),
    "edm": ("sdxl", diffusers.EDMDPMSolverMultistepScheduler(**SDE, sigma_max=20.0), {}),
    "edm, v": ("sdxl", diffusers.EDMDPMSolverMultistepScheduler(**SDE, **V, sigma_data=0.7), {}),
    "sound": ("stable_audio", diffusers.CosineDPMSolverMultistepScheduler(solver_order=1), {}),
}


class Given(SigDEGScheduler):
    """A march over given times, whose network is told given timesteps, driven by given noise."""

    given: tuple[Tensor, Tensor, list[Tensor]] | None = None

    def start(self, grid: Tensor, device: Any) -> None:
        super().start(grid if self.given is None else self.given[0], device)
        if self.given is not None:
            self.timesteps, self.noise.step = self.given[1].float(), self.noise_of

    def noise_of(self, k: int, x: Tensor) -> Tensor:
        last = k == len(self.timesteps) - 1  # to the data: there is none
        return (torch.zeros_like(x) if last else self.given[2][k].to(x))[:, None]


def times_of(own: Any, schedule: Schedule) -> Tensor:
    """The times at which a scheduler's levels are those of a schedule, and 0."""
    if hasattr(own, "sigmas"):
        sigma = own.sigmas[:-1].double()
        ratio = (1 - sigma) / sigma if isinstance(schedule, RectifiedFlow) else 1 / sigma
    else:
        a = own.alphas_cumprod[own.timesteps].double()
        ratio = (a / (1 - a)).sqrt()
    return torch.cat([schedule.time_at(ratio.log()), torch.zeros(1, dtype=torch.float64)])


@pytest.mark.parametrize("case", CASES)
def test_the_march_is_the_pipelines_own_sampler(case: str, monkeypatch: Any) -> None:
    """On the same noise, guided, through whatever the pipeline does: equal to rounding."""
    family, own, further = CASES[case]
    pipe, call = FAMILIES[family]().pipe, FAMILIES[family]().call
    drawn: list[Tensor] = []

    def draw(shape: Any, **told: Any) -> Tensor:
        drawn.append(torch.randn(shape, generator=seeded(1000 + len(drawn))))
        return drawn[-1].to(told["dtype"])

    monkeypatch.setattr(sys.modules[type(own).__module__], "randn_tensor", draw, raising=False)
    if isinstance(own, diffusers.CosineDPMSolverMultistepScheduler):
        tree = f"{type(own).__module__}.BrownianTreeNoiseSampler"
        monkeypatch.setattr(tree, lambda x, **_: lambda *levels: draw(x.shape, dtype=x.dtype))
    pipe.scheduler = own
    run = {**call, "num_inference_steps": STEPS}
    expected = torch.as_tensor(pipe(**run, **further, generator=seeded(0))[0])
    assert len(drawn) >= STEPS - 1

    schedule = SigDEGScheduler.like(own).core.schedule
    times = times_of(own, schedule)
    march = Given.like(own)
    march.given = times, own.timesteps, drawn
    # Where the state of its own is x / alpha, it is that whose noise has a size.
    kinds = diffusers.EulerAncestralDiscreteScheduler, diffusers.CosineDPMSolverMultistepScheduler
    scale = schedule.alpha(times[0]) if isinstance(own, kinds) else 1.0
    march.init_noise_sigma = float(own.init_noise_sigma * scale)
    pipe.scheduler = march
    found = torch.as_tensor(pipe(**run, generator=seeded(0))[0])
    assert apart(found, expected) < 2e-5
