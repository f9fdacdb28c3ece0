"""A pipeline of one's own keeps the protocol of diffusers, and its units."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMScheduler
from torch import Generator

from sigdeg.denoiser import NetworkDenoiser
from sigdeg.experiments.series_pipeline import SeriesPipeline, make_network
from sigdeg.integrations import describe
from sigdeg.rng import seeded

MEAN, STD = [[1.0] * 8, [-2.0] * 8], [[0.5] * 8, [3.0] * 8]


def made() -> SeriesPipeline:
    scheduler = DDIMScheduler(
        prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing"
    )
    network = seeded(0, lambda: make_network((2, 8), (16, 16))).eval()
    pipeline = SeriesPipeline(network, scheduler, MEAN, STD)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_one_step_is_the_posterior_mean_in_its_units() -> None:
    pipeline = made()
    drawn = pipeline(3, num_inference_steps=1, generator=Generator().manual_seed(5)).series
    told = describe(pipeline.scheduler)
    denoiser = NetworkDenoiser(pipeline.unet, told.schedule, told.prediction)
    noise = torch.randn(3, 2, 8, generator=Generator().manual_seed(5))
    with torch.no_grad():
        mean = denoiser(noise, torch.tensor(told.schedule.t_max))
    expected = torch.tensor(MEAN) + torch.tensor(STD) * mean
    torch.testing.assert_close(drawn, expected, rtol=0, atol=2e-5)


def test_saved_and_loaded_it_draws_the_same(tmp_path: Path) -> None:
    pipeline = made()
    pipeline.save_pretrained(tmp_path)
    found = SeriesPipeline.from_pretrained(tmp_path)
    found.set_progress_bar_config(disable=True)
    seeds = [4, 9]
    first, second = (
        each(2, num_inference_steps=2, generator=[Generator().manual_seed(s) for s in seeds])
        for each in (pipeline, found)
    )
    torch.testing.assert_close(first.series, second.series)
    (alone,) = found(num_inference_steps=2, generator=Generator().manual_seed(9), return_dict=False)
    torch.testing.assert_close(alone, first.series[1:], rtol=0, atol=1e-5)
