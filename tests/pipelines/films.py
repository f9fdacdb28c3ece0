"""A pipeline of films that shows its network and its scheduler a state in other shapes."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Generator, Tensor, nn

from tests.pipelines.parts import randomised

PICTURES, CHANNELS, SIDE, PATCH = 3, 2, 4, 2
TOKENS = PICTURES * (SIDE // PATCH) ** 2


class Patches(ModelMixin, ConfigMixin):
    """A network of patches."""

    @register_to_config
    def __init__(self, patch: int = CHANNELS * PATCH**2, width: int = 16) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(patch, width), nn.Linear(width, patch)

    def forward(self, patches: Tensor, timestep: Tensor) -> tuple[Tensor]:
        told = torch.sin(timestep / 100).reshape(-1, 1, 1).to(patches.dtype)
        return (self.last(nn.functional.silu(self.first(patches) + told)),)


@dataclass
class Film(BaseOutput):
    """What the pipeline draws."""

    frames: Tensor


class FilmPipeline(DiffusionPipeline):
    """Its network sees patches and says the negated flow; the first picture is held.

    Its scheduler steps the other pictures, one by one or as films, of `rows`. There may be a
    `sound` that a copy of the scheduler steps, and patches that are shown but `once`.
    """

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        rows: bool = True,
        batch_size: int = 2,
        side: int = SIDE,
        sound: bool = False,
        once: bool = False,
        num_inference_steps: int = 2,
        generator: Any = None,
    ) -> Film:
        shape = (batch_size, PICTURES, CHANNELS, side, side)
        own = generator if isinstance(generator, list) else [generator] * batch_size
        films = torch.stack([torch.randn(shape[1:], generator=g) for g in own])
        films = films.to(self.transformer.dtype)
        self.scheduler.set_timesteps(num_inference_steps)
        wave, second = films.flatten(1), copy.deepcopy(self.scheduler)
        for k, t in enumerate(self.scheduler.timesteps):
            shown = pack(films)
            if once and k == 0:
                shown = torch.cat([shown, shown], 1)
            said = self.transformer(shown, t.expand(batch_size))[0][:, : len(pack(films)[0])]
            if sound:
                wave = second.step(wave, t, wave, return_dict=False)[0]
            stepped, flow = films[:, 1:], -unpack(said, shape)[:, 1:]
            if rows:
                stepped, flow = stepped.flatten(0, 1), flow.flatten(0, 1)
            new = self.scheduler.step(flow, t, stepped, return_dict=False)[0]
            films = torch.cat([films[:, :1], new.reshape(films[:, 1:].shape)], 1)
        return Film(films)


def pack(films: Tensor) -> Tensor:
    """Films as patches, shape (films, patches, numbers of a patch)."""
    count, pictures, channels, side, _ = films.shape
    cut = films.reshape(count, pictures, channels, side // PATCH, PATCH, side // PATCH, PATCH)
    return cut.permute(0, 1, 3, 5, 2, 4, 6).reshape(count, -1, channels * PATCH**2)


def unpack(patches: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Films again."""
    count, pictures, channels, side, _ = shape
    cut = patches.reshape(count, pictures, side // PATCH, side // PATCH, channels, PATCH, PATCH)
    return cut.permute(0, 1, 4, 2, 5, 3, 6).reshape(shape)


def films() -> FilmPipeline:
    """A tiny one."""
    pipe = FilmPipeline(randomised(Patches()), FlowMatchEulerDiscreteScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeds(count: int) -> list[Generator]:
    """Generators of so many samples."""
    return [Generator().manual_seed(i) for i in range(count)]
