"""The laws of what an untrained student draws, behind the exact denoiser of a Gaussian."""

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, DDPMPipeline, DDPMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from sigdeg.integrations import describe
from sigdeg.pipelines import SigDEGScheduler, add_signature, trace
from tests.pipelines.student import seeded

STD, SAMPLES, SIZE = 0.5, 200, 8
NEAR = 4 * (2 / (SAMPLES * SIZE**2)) ** 0.5  # standard deviations of a variance


class Exact(ModelMixin, ConfigMixin):
    """The noise that is to be expected in a state, of pixels of one standard deviation."""

    @register_to_config
    def __init__(self, sample_size=SIZE, in_channels=1):
        super().__init__()
        self.conv_in = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.conv_in.weight)

    def forward(self, sample, timestep):
        kept = DDPMScheduler().alphas_cumprod.double()
        half = (kept / (1 - kept)).log().numpy() / 2
        snr = np.interp(float(torch.as_tensor(timestep).flatten()[0]), np.arange(len(kept)), half)
        noise = 1 / (1 + np.exp(2 * snr))
        scale = noise**0.5 / ((1 - noise) * STD**2 + noise)
        return UNet2DOutput(sample=self.conv_in(sample) * scale)


def variances(steps, **step):
    """Variances of a run's states after each step, and those of signal and noise of its times."""
    pipe = DDPMPipeline(Exact(), DDPMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    known = trace(pipe, {"batch_size": 1, "output_type": "np"})
    told = {"order": 1, "steps": [steps], "lookahead": 0.0, **step}
    scheduler = SigDEGScheduler.like(pipe.scheduler, **told, student="exact")
    network = add_signature(pipe.unet, known, scheduler.core.order, "exact")
    pipe.register_modules(unet=network, scheduler=scheduler)
    scheduler.log = []
    pipe(SAMPLES, num_inference_steps=steps, generator=seeded(1), output_type="np")
    schedule, grid = describe(DDPMScheduler(clip_sample=False)).schedule, scheduler.grid
    found = [float(logged.after.double().var()) for logged in scheduler.log]
    return found, schedule.alpha(grid) ** 2, schedule.sigma(grid) ** 2


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("order", [1, 3])
def test_it_draws_the_gaussian_itself_where_it_is_told_its_deviation(steps, order):
    found, signal, noise = variances(steps, order=order, response_std=STD)
    wanted = (signal * STD**2 + noise)[1:]
    wanted[-1] = STD**2
    assert (torch.tensor(found) / wanted - 1).abs().max() <= NEAR


def test_it_is_the_ancestral_sampler_where_it_is_not():
    """Its variances, by the posterior of diffusers' DDPM with a mean that is held fixed."""
    found, signal, noise = variances(4)
    last = 1.0
    for k, variance in enumerate(found):
        mean = signal[k] ** 0.5 * STD**2 / (signal[k] * STD**2 + noise[k])  # of the data
        wanted = mean**2 * last
        if k < 3:
            kept = signal[k] / signal[k + 1]
            added = noise[k] - kept * noise[k + 1]
            a = kept**0.5 * noise[k + 1] / noise[k]
            b = signal[k + 1] ** 0.5 * added / noise[k]
            wanted = (a + b * mean) ** 2 * last + added * noise[k + 1] / noise[k]
        assert abs(variance / wanted - 1) <= NEAR
        last = float(wanted)
