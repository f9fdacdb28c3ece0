"""Teachers from saved diffusers pipelines."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sigdeg.denoiser import NetworkDenoiser
from sigdeg.errors import SigdegError
from sigdeg.files import find_folder, load_weights, read_json
from sigdeg.networks import build_network, network_config
from sigdeg.schedule import DiscreteVP, from_scheduler

__all__ = ["Teacher", "load_teacher"]

PIPELINES = ("DDPMPipeline", "DDIMPipeline")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
# Attention layers as the first versions of diffusers named them: many teachers on the hub still do.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class Teacher:
    """A pretrained diffusion model, ready to be distilled.

    Arguments:
        denoiser: Its posterior mean, with its schedule, in evaluation mode.
        sample_shape: Shape of one sample, (channels, height, width).
        name: Name of the folder, or the hub id.
    """

    denoiser: NetworkDenoiser
    sample_shape: tuple[int, ...]
    name: str


def load_teacher(path: str | Path) -> Teacher:
    """Load a teacher from a saved `DDPMPipeline` or `DDIMPipeline`.

    Any prediction type will do, and any scheduler with `alphas_cumprod`; its `clip_sample` becomes
    the denoiser's `clip`. A learned variance is dropped. Weights are read from safetensors, into
    single precision.

    Arguments:
        path: Folder written by the pipeline's `save_pretrained`, or a hub id.

    Raises:
        SigdegError: If the folder is missing, incomplete or damaged, or holds no such pipeline. A
            pickle is refused, never opened.
    """
    folder = find_folder(path)
    pipeline = read_json(folder / "model_index.json").get("_class_name")
    if pipeline not in PIPELINES:
        raise SigdegError(
            f"{folder} holds a {pipeline}: only unconditional image pipelines "
            f"({', '.join(PIPELINES)}) can be teachers so far, conditional ones come later"
        )
    schedule, prediction_type, clip = load_schedule(folder)
    network, shape = load_unet(folder)
    denoiser = NetworkDenoiser(network, schedule, prediction_type, clip)
    name = folder.resolve().name if folder == Path(path) else str(path)
    return Teacher(denoiser.eval(), shape, name)


def part(folder: Path, name: str, file: str) -> Path:
    """Where a component of a pipeline lies: in its folder, or, in the oldest ones, in the root."""
    for place in (folder / name, folder):
        if (place / file).is_file():
            return place
    raise SigdegError(f"{folder} holds no {name}: {name}/{file} is missing")


def load_schedule(folder: Path) -> tuple[DiscreteVP, Any, float | None]:
    """Schedule, prediction type and clip of a saved pipeline's scheduler."""
    import diffusers

    saved = read_json(part(folder, "scheduler", "scheduler_config.json") / "scheduler_config.json")
    name = saved.get("_class_name")
    cls: Any = getattr(diffusers, str(name), None)
    known = isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin)
    if not known:
        raise SigdegError(f"{folder}: {name} is no scheduler of diffusers")
    try:
        scheduler = cls.from_config(saved)
    except (TypeError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise SigdegError(f"{folder}: the scheduler {name} cannot be built: {reason}") from None
    config = dict(scheduler.config)
    if config.get("thresholding"):
        raise SigdegError(f"{folder}: dynamic thresholding is not supported, clip_sample is")
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise SigdegError(
            f"{folder}: unknown prediction_type {prediction!r}: use {', '.join(PREDICTIONS)}"
        )
    schedule = from_scheduler(scheduler)
    if not isinstance(schedule, DiscreteVP):
        raise SigdegError(f"{folder}: {name} has no alphas_cumprod: use a DDPM or DDIM scheduler")
    clip = float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample") else None
    return schedule, prediction, clip


def load_unet(folder: Path) -> tuple[nn.Module, tuple[int, int, int]]:
    """The U-Net of a saved pipeline and the shape of its samples."""
    place = part(folder, "unet", "config.json")
    saved = read_json(place / "config.json")
    if saved.get("_class_name") != "UNet2DModel":
        raise SigdegError(
            f"{place} holds a {saved.get('_class_name')}, a teacher has a UNet2DModel"
        )
    network = build_network({"class": "UNet2DModel", "config": saved})
    load_weights(network, place / "diffusion_pytorch_model.safetensors", modern)
    config = network_config(network)["config"]
    if config["class_embed_type"] is not None or config["num_class_embeds"] is not None:
        raise SigdegError(f"{place}: the U-Net takes class labels, conditional teachers come later")
    if config["time_embedding_type"] != "positional":
        kind = config["time_embedding_type"]
        raise SigdegError(f"{place}: time_embedding_type must be positional, got {kind!r}")
    size, channels = config["sample_size"], config["in_channels"]
    if size is None or config["out_channels"] not in (channels, 2 * channels):
        raise SigdegError(
            f"{place}: the U-Net needs a sample_size, and as many output as input channels "
            "or, with a learned variance, twice as many"
        )
    height, width = (size, size) if isinstance(size, int) else size
    return network, (channels, height, width)


def modern(name: str) -> str:
    """The present name of a weight."""
    return re.sub(rf"(?<=\.)({'|'.join(OLD_NAMES)})(?=\.)", lambda m: OLD_NAMES[m[0]], name)
