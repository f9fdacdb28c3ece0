"""A pipeline of one's own: no class of diffusers, but its protocol, and units of its own.

It diffuses series with a `UNet1DModel` and gives them back in their own units, which it keeps as
the mean and the deviation of each coordinate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from sigdeg.errors import extra

with extra("diffusers"):
    import diffusers
    from diffusers.utils import BaseOutput
    from diffusers.utils.torch_utils import randn_tensor

__all__ = ["SeriesOutput", "SeriesPipeline", "make_network"]


Units = Sequence[Sequence[float]]


@dataclass
class SeriesOutput(BaseOutput):  # type: ignore[misc]
    """What the pipeline gives.

    Arguments:
        series: Shape (batch, channels, dates).
    """

    series: Tensor


def make_network(shape: tuple[int, int], widths: tuple[int, ...]) -> Any:
    """A `UNet1DModel` of series (channels, dates); dates must halve once less than widths.

    Arguments:
        shape: Shape of one series.
        widths: Channels at its resolutions.
    """
    channels, dates = shape
    return diffusers.UNet1DModel(
        sample_size=dates,
        in_channels=channels,
        out_channels=channels,
        time_embedding_type="positional",
        use_timestep_embedding=True,
        act_fn="mish",
        down_block_types=("DownResnetBlock1D",) * len(widths),
        mid_block_type="MidResTemporalBlock1D",
        up_block_types=("UpResnetBlock1D",) * (len(widths) - 1),
        out_block_type="OutConv1DBlock",
        block_out_channels=widths,
        layers_per_block=1,
    )


class SeriesPipeline(diffusers.DiffusionPipeline):  # type: ignore[misc]
    """Series of several channels, drawn by the scheduler it is given.

    Arguments:
        unet: The network.
        scheduler: The scheduler.
        mean: What is added to each coordinate in the end, channels of dates. What has no default
            is a component to diffusers.
        std: What each is multiplied with before.
    """

    def __init__(
        self, unet: Any, scheduler: Any, mean: Units = ((0.0,),), std: Units = ((1.0,),)
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(mean=mean, std=std)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 50,
        generator: Generator | list[Generator] | None = None,
        return_dict: bool = True,
    ) -> SeriesOutput | tuple[Tensor]:
        """Draw series.

        Arguments:
            batch_size: How many.
            num_inference_steps: Steps of the scheduler.
            generator: What the noise is drawn from, one or one a series.
            return_dict: Whether to give a `SeriesOutput` rather than a tuple.
        """
        shape = (batch_size, self.unet.config.in_channels, self.unet.config.sample_size)
        device = self._execution_device
        noise = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        x = noise * self.scheduler.init_noise_sigma
        for t in self.progress_bar(self.scheduler.timesteps):
            output = self.unet(self.scheduler.scale_model_input(x, t), t).sample
            x = self.scheduler.step(output, t, x).prev_sample
        mean, std = (x.new_tensor(self.config[name]) for name in ("mean", "std"))
        series = mean + std * x
        self.maybe_free_model_hooks()
        return SeriesOutput(series=series) if return_dict else (series,)
