"""Teachers: diffusers pipelines, saved or in memory, and networks of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sigdeg.codec import Decoder, Identity, check_decoder, load_decoder, modern, save_decoder
from sigdeg.denoiser import Denoiser, NetworkDenoiser, Timesteps
from sigdeg.errors import SigdegError, extra, reason
from sigdeg.files import find_folder, find_student, load_weights, read_json, save_json
from sigdeg.integrations.masked_lm import is_language_model, load_token_teacher
from sigdeg.integrations.models import load_model
from sigdeg.integrations.schedulers import Described, describe
from sigdeg.model import Model, as_model, conditions_of
from sigdeg.networks import (
    Call,
    build_network,
    check_call,
    check_kinds,
    network_config,
    set_null_class,
)
from sigdeg.prediction import Prediction
from sigdeg.schedule import Schedule
from sigdeg.schema import listed, maybe, number, record, whole

__all__ = ["as_teacher", "load_guided", "load_teacher", "save_latent_pipeline"]

UNET = "unet"
PIPELINES = ("DDPMPipeline", "DDIMPipeline", "LDMPipeline")  # the last one's is of latents
SCHEDULER = record(  # where diffusers itself takes anything
    {},
    {
        "num_train_timesteps": whole(1, 10**6),
        "trained_betas": maybe(listed(number(0, 1))),
        "clip_sample_range": number(0),
    },
)


def load_teacher(path: Any, *, null_class: int | None = None) -> Model:
    """A teacher: a diffusers pipeline or a model of this package, saved or in memory.

    Of a `DDPMPipeline`, `DDIMPipeline` or `LDMPipeline` any prediction type will do, and any
    scheduler that `from_scheduler` knows, flow matching and EDM too; its `clip_sample` becomes the
    denoiser's `clip`. A learned variance is dropped. Weights are read from safetensors, whole, in
    shards or of the only variant, into single precision. An `LDMPipeline` diffuses latents; its
    autoencoder decodes them. A U-Net with `num_class_embeds` is conditional. Whether one of them
    means no class is not guessed: it is what `null_class` says here or in the U-Net's
    `config.json`. A masked language model of transformers is a teacher of tokens, see
    `load_token_teacher`.

    Arguments:
        path: Folder written by the pipeline's or the model's `save_pretrained`, or a hub id.
            `FOLDER:NAME` takes its network NAME, such as `unet_ema`, in the place of `unet`. Or a
            pipeline or a `Model` itself, whose networks are shared with it.
        null_class: The label that means no class, if the model was trained with one: it is not
            drawn, and guidance needs it.

    Raises:
        SigdegError: If the folder is missing, incomplete or damaged, or holds no such pipeline. A
            pickle is refused, never opened.
    """
    if isinstance(path, Model):
        return with_null_class(path, null_class)
    if not isinstance(path, str | Path):
        if not hasattr(path, "scheduler"):
            raise SigdegError(
                f"a {type(path).__name__} is neither a Model, nor a pipeline, nor a folder or hub "
                "id: as_teacher makes a Model of a network, a denoiser or a step"
            )
        return from_pipeline(path, null_class)
    place, unet = split_name(path)
    folder = find_folder(place)
    if is_model(folder):
        return with_null_class(load_model(place), null_class)
    if is_language_model(folder):
        return with_null_class(load_token_teacher(place), null_class)
    kind = read_json(folder / "model_index.json").get("_class_name")
    check_pipeline(str(kind), f"{folder} holds")
    scheduler = load_scheduler(folder)
    network, shape = load_unet(folder, unet)
    decoder = load_decoder(folder / "vqvae") if kind == PIPELINES[-1] else None
    name = folder.resolve().name if folder == Path(place) else str(place)
    name = name if unet == UNET else f"{name}:{unet}"
    return assemble(network, shape, scheduler, decoder, name, null_class, str(folder))


def is_model(folder: Path) -> bool:
    """Whether a folder is that of a `Model`, or of a run that made one."""
    if (folder / "model_index.json").is_file():
        return False
    file = find_student(folder) / "config.json"
    return file.is_file() and str(read_json(file).get("format")).startswith("sigdeg-")


def check_pipeline(kind: str, where: str) -> None:
    """Refuse pipelines of other kinds."""
    if kind not in PIPELINES:
        raise SigdegError(
            f"{where} a {kind}: a pipeline that is no {', '.join(PIPELINES[:-1])} or "
            f"{PIPELINES[-1]} is distilled by calls or prompts of it (--prompts, --calls)"
        )


def from_pipeline(pipeline: Any, null_class: int | None) -> Model:
    """A pipeline in memory as a teacher."""
    kind = type(pipeline).__name__
    check_pipeline(kind, "this is")
    shape = check_unet(pipeline.unet, kind)
    decoder = Decoder(pipeline.vqvae).eval() if kind == PIPELINES[-1] else None
    name = Path(str(pipeline.config.get("_name_or_path") or kind)).name
    return assemble(pipeline.unet, shape, pipeline.scheduler, decoder, name, null_class, kind)


def assemble(
    network: nn.Module,
    shape: tuple[int, ...],
    scheduler: Any,
    decoder: Decoder | None,
    name: str,
    null_class: int | None,
    where: str,
) -> Model:
    """The parts of a pipeline as a teacher."""
    try:
        said = described(scheduler)
    except SigdegError as error:
        raise SigdegError(f"{where}: {error}") from None
    if decoder is not None:
        check_decoder(decoder, shape, Path(where) / "vqvae")
    denoiser = NetworkDenoiser(network, said.schedule, said.prediction, said.clip, said.data_std)
    teacher = with_null_class(as_model(denoiser.eval(), shape, name), null_class)
    return replace(teacher, codec=decoder or Identity())


def with_null_class(teacher: Model, null_class: int | None) -> Model:
    """A teacher that is told which class means none; its network's configuration notes it."""
    if null_class is None:
        return teacher
    network: Any = getattr(teacher.denoiser, "network", nn.Identity())
    set_null_class(network, null_class)
    card = replace(teacher.card, null_class=null_class)
    return replace(teacher, conditions=conditions_of(network), card=card)


def load_guided(
    path: Any,
    guidance: float | None = None,
    until: float = 1.0,
    weak: Any = None,
    null_class: int | None = None,
) -> Model:
    """A teacher as the commands know it: with guidance, by a weaker version or by its classes.

    Arguments:
        path: See `load_teacher`.
        guidance: The scale; None for no guidance.
        until: The time above which there is none.
        weak: The weaker version, as `path`.
        null_class: The label that means no class.

    Raises:
        SigdegError: If what belongs to guidance comes without a scale, see `Model.guided` too.
    """
    teacher = load_teacher(path, null_class=null_class)
    other = None if weak is None else load_teacher(weak, null_class=null_class)
    if guidance is not None:
        return teacher.guided(guidance, until, other)
    if other is not None:
        teacher.check_version(other)
        raise SigdegError("a weaker version guides by a scale: give guidance, such as 2")
    if until != 1:
        raise SigdegError(f"there is no guidance to end at {until:g}: give guidance, such as 2")
    return teacher


def as_teacher(
    network: Any,
    schedule: Any = None,
    shape: Sequence[int] | None = None,
    prediction_type: Prediction | None = None,
    *,
    clip: float | None = None,
    data_std: float = 0.5,
    timesteps: Timesteps = "continuous",
    call: Call | None = None,
    name: str | None = None,
) -> Model:
    """A network of one's own as a teacher; a denoiser or a step, such as an exact law's, too.

    Arguments:
        network: Called as `network(x, timestep, **condition)`, see `NetworkDenoiser`. A `Denoiser`
            or a step takes a shape and nothing else.
        schedule: The schedule it was trained with, or a diffusers scheduler, which also says what
            the network predicts and how it is clipped.
        shape: Shape of one sample, such as (3, 32, 32).
        prediction_type: What it predicts (default: what the scheduler says, else `epsilon`).
        clip: Clamp the mean to [-clip, clip].
        data_std: The data's standard deviation, for `edm` and `edm_v` only.
        timesteps: `integer` for a network that looks whole timesteps up in a table.
        call: How the network is called, where that is different, see `NetworkDenoiser`.
        name: Its name.

    Raises:
        SigdegError: If they do not fit together.
    """
    if isinstance(network, Denoiser) or hasattr(network, "process"):
        return as_model(network, shape, name or type(network).__name__)
    if isinstance(network, type) or not callable(network):
        raise SigdegError(f"{network!r:.60} is no network: give a module, or a function")
    if schedule is None:
        raise SigdegError("a network is told the schedule it was trained with, such as VPLinear()")
    if not isinstance(schedule, Schedule):
        said = described(schedule)
        schedule, data_std = said.schedule, said.data_std
        prediction_type = prediction_type or said.prediction
        clip = said.clip if clip is None else clip
    kind: Prediction = prediction_type or "epsilon"
    denoiser = NetworkDenoiser(network, schedule, kind, clip, data_std, timesteps, call)
    return as_model(denoiser.eval(), shape, name or type(network).__name__)


def described(scheduler: Any) -> Described:
    """What a scheduler says of a network on its own.

    Raises:
        SigdegError: If its steps do to the mean what a denoiser cannot say.
    """
    said = describe(scheduler, exact=False)
    if said.threshold is not None:
        name = type(scheduler).__name__
        raise SigdegError(f"{name}: dynamic thresholding is not supported, clip_sample is")
    return said


def split_name(path: str | Path) -> tuple[str | Path, str]:
    """Folder or hub id, and the name of the network in it."""
    folder, _, unet = str(path).rpartition(":")
    if Path(path).is_dir() or not folder or "/" in unet:
        return path, UNET
    return folder if isinstance(path, str) else Path(folder), unet


def part(folder: Path, name: str, file: str) -> Path:
    """Where a component of a pipeline lies: in its folder, or, in the oldest ones, in the root."""
    for place in (folder / name, folder)[: 1 + (name in (UNET, "scheduler"))]:
        if (place / file).is_file():
            return place
    others = sorted(p.parent.name for p in folder.glob("unet*/config.json"))
    hint = f" (there are {', '.join(others)})" if name not in others and others else ""
    raise SigdegError(f"{folder} holds no {name}: {name}/{file} is missing{hint}")


def load_scheduler(folder: Path) -> Any:
    """The scheduler of a saved pipeline."""
    with extra("diffusers"):
        import diffusers

    saved = read_json(part(folder, "scheduler", "scheduler_config.json") / "scheduler_config.json")
    name = saved.get("_class_name")
    cls: Any = getattr(diffusers, str(name), None)
    known = isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin)
    if not known:
        raise SigdegError(f"{folder}: {name} is no scheduler of diffusers")
    try:
        SCHEDULER(saved, "")
        check_kinds(cls, saved)
        return cls.from_config(saved)
    except Exception as error:  # parameters of a wrong kind may break anything inside
        said = f"{folder}: the scheduler {name} cannot be built: {reason(error)}"
        raise SigdegError(said) from None


def load_unet(folder: Path, name: str = UNET) -> tuple[nn.Module, tuple[int, int, int]]:
    """A U-Net of a saved pipeline and the shape of its samples."""
    place = part(folder, name, "config.json")
    saved = read_json(place / "config.json")
    if saved.get("_class_name") != "UNet2DModel":
        raise SigdegError(
            f"{place} holds a {saved.get('_class_name')}, a teacher has a UNet2DModel"
        )
    weights = place / "diffusion_pytorch_model.safetensors"
    network = build_network({"class": "UNet2DModel", "config": saved}, weights)
    load_weights(network, weights, modern)
    return network, check_unet(network, str(place))


def check_unet(network: nn.Module, place: str) -> tuple[int, int, int]:
    """Refuse a U-Net that is no teacher; returns the shape of its samples."""
    config: Any = network_config(network)["config"]
    if config["class_embed_type"] is not None:
        kind = config["class_embed_type"]
        raise SigdegError(
            f"{place}: class_embed_type {kind!r} is not supported, num_class_embeds is"
        )
    if config["time_embedding_type"] != "positional":
        kind = config["time_embedding_type"]
        raise SigdegError(f"{place}: time_embedding_type must be positional, got {kind!r}")
    size, channels = config["sample_size"], config["in_channels"]
    if size is None or config["out_channels"] not in (channels, 2 * channels):
        raise SigdegError(
            f"{place}: the U-Net needs a sample_size, and as many output as input channels "
            "or, with a learned variance, twice as many"
        )
    try:
        height, width = sides = [size, size] if isinstance(size, int) else size
        listed(whole(1, 2**14))(list(sides), "sample_size")
        shape = channels, height, width
        told = config["num_class_embeds"] is not None
        condition = {"class_labels": torch.zeros(1, dtype=torch.long)} if told else {}
        check_call(network, torch.zeros(1, *shape), torch.zeros(1), **condition)
    except (SigdegError, TypeError, ValueError) as error:
        raise SigdegError(f"{place}: the U-Net does not fit its configuration: {error}") from None
    return shape


def save_latent_pipeline(network: Any, scheduler: Any, decoder: Decoder, folder: Path) -> None:
    """Write a U-Net of latents, its scheduler and its decoder as `load_teacher` reads them.

    The folder is that of diffusers' `LDMPipeline`; where the autoencoder is one of diffusers its
    `from_pretrained` reads it too.
    """
    network.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    save_decoder(decoder, folder / "vqvae")
    kinds = {"vqvae": decoder.autoencoder, "unet": network, "scheduler": scheduler}
    index = {
        key: [type(v).__module__.partition(".")[0], type(v).__name__] for key, v in kinds.items()
    }
    save_json(folder / "model_index.json", {"_class_name": "LDMPipeline", **index})
