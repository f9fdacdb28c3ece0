"""Teachers from saved diffusers pipelines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sigdeg.denoiser import NetworkDenoiser
from sigdeg.errors import SigdegError, extra, reason
from sigdeg.files import find_folder, load_weights, read_json, save_json
from sigdeg.guidance import AutoGuidance, ClassifierFreeGuidance
from sigdeg.integrations.decoders import Decoder, check_decoder, load_decoder, modern, save_decoder
from sigdeg.networks import (
    build_network,
    check_call,
    check_kinds,
    count_classes,
    network_config,
    set_null_class,
)
from sigdeg.prediction import Prediction
from sigdeg.schedule import EDM, RectifiedFlow, Schedule, from_scheduler, scheduler_config
from sigdeg.schema import listed, maybe, number, record, whole
from sigdeg.steps import Exponential
from sigdeg.student import SignatureStudent

__all__ = ["Teacher", "load_teacher", "save_latent_pipeline"]

UNET = "unet"
PIPELINES = ("DDPMPipeline", "DDIMPipeline", "LDMPipeline")
SCHEDULER = record(  # where diffusers itself takes anything
    {},
    {
        "num_train_timesteps": whole(1, 10**6),
        "trained_betas": maybe(listed(number(0, 1))),
        "clip_sample_range": number(0),
    },
)
PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "epsilon",
    "v_prediction": "v_prediction",
    "sample": "sample",
}
EDM_PREDICTIONS: dict[str, Prediction] = {"epsilon": "edm"}  # its preconditioning, as diffusers
FLOW_PREDICTIONS: dict[str, Prediction] = {"flow_prediction": "flow", "sample": "sample"}


@dataclass(frozen=True)
class Teacher:
    """A pretrained diffusion model, ready to be distilled.

    Arguments:
        denoiser: Its posterior mean, with its schedule, in evaluation mode.
        sample_shape: Shape of one sample, (channels, height, width).
        name: Name of the folder, or the hub id.
        decoder: What turns latents into images; None for a model of pixels.
        classes: The number of classes of a conditional model; None for another.
        weak: A weaker version of it to be guided by, see `AutoGuidance`.
        null_class: The label that means no class, where there is one and it is known.
        weak_name: Name of the weaker version.
    """

    denoiser: NetworkDenoiser
    sample_shape: tuple[int, ...]
    name: str
    decoder: Decoder | None = None
    classes: int | None = None
    weak: NetworkDenoiser | None = None
    null_class: int | None = None
    weak_name: str | None = None

    @property
    def labels(self) -> list[int] | None:
        """The labels of its classes; what means no class is not among them."""
        if self.classes is None:
            return None
        every = range(self.classes + (self.null_class is not None))
        return [label for label in every if label != self.null_class]

    @property
    def condition(self) -> dict[str, Tensor]:
        """What it is told of a sample: rows to draw from, one a class; nothing without classes."""
        return {} if self.labels is None else {"class_labels": torch.tensor(self.labels)}

    def to(self, device: torch.device | str) -> Teacher:
        """The same teacher, its networks moved to a device."""
        for part in (self.denoiser, self.decoder, self.weak):
            if part is not None:
                part.to(device)
        return self

    def step(self, guidance: float | None = None, until: float = 1.0) -> Exponential:
        """Its fine step; with guidance, of this scale by the weaker version or else by classes.

        Above the time `until` there is none.

        The exponential step: on images 60 of them are as good as 120 of Euler and Maruyama. See
        `AutoGuidance` and `ClassifierFreeGuidance`.

        Raises:
            SigdegError: If guidance is asked of a model without classes or a weaker version, or of
                one of which it is not known which class means none; or if a weaker version or an
                end comes without guidance.
        """
        if guidance is None:
            if self.weak is not None:
                raise SigdegError("a weaker version guides by a scale: give guidance, such as 2")
            if until != 1:
                raise SigdegError(
                    f"there is no guidance to end at {until:g}: give guidance, such as 2"
                )
            return Exponential(self.denoiser)
        if self.weak is not None:
            return Exponential(AutoGuidance(self.denoiser, self.weak, guidance, until))
        if self.classes is None:
            raise SigdegError(
                f"{self.name} knows no classes: guidance needs a conditional teacher, or a weaker "
                "version of this one"
            )
        if self.classes == 1 and self.null_class is None:
            raise SigdegError(
                f"{self.name} has one class, and none beside it to guide away from: leave guidance "
                "out, or give a weaker version of the teacher"
            )
        if self.null_class is None:
            raise SigdegError(
                f"{self.name} is not known to have a class that means none: guidance needs to be "
                f"told, such as null_class={self.classes - 1} (--null-class {self.classes - 1}) if "
                "it was trained with the last for that, or a weaker version of the teacher"
            )
        none = {"class_labels": torch.tensor([self.null_class])}
        return Exponential(ClassifierFreeGuidance(self.denoiser, guidance, none, until))

    def check(self, student: SignatureStudent) -> None:
        """Refuse a student of another teacher.

        Raises:
            SigdegError: If samples, classes, noise levels or predictions are not the same.
        """
        own, its = self.denoiser, student
        for what, mine, other in (
            ("samples of shape", self.sample_shape, its.sample_shape),
            ("classes", self.labels, its.class_labels),
            ("the prediction type", own.prediction_type, its.prediction_type),
        ):
            if mine != other and (its.kind == "warm" or what != "the prediction type"):
                raise SigdegError(
                    f"the student has {what} {other}, {self.name} {mine}: it is not its teacher"
                )
        if not own.schedule.equals(its.schedule):
            raise SigdegError(
                f"the student has other noise levels than {self.name}: it is not its teacher"
            )

    def decode(self, samples: Tensor) -> Tensor:
        """Images of samples: of latents what their decoder makes, of pixels the pixels."""
        return samples if self.decoder is None else self.decoder(samples)


def load_teacher(
    path: str | Path, weak: str | Path | None = None, *, null_class: int | None = None
) -> Teacher:
    """Load a teacher from a saved `DDPMPipeline`, `DDIMPipeline` or `LDMPipeline`.

    Any prediction type will do, and any scheduler that `from_scheduler` knows, flow matching and
    EDM too; its `clip_sample` becomes the denoiser's `clip`. A learned variance is dropped. Weights
    are read from safetensors, whole, in shards or of the only variant, into single precision. An
    `LDMPipeline` diffuses latents; its autoencoder decodes them. A U-Net with `num_class_embeds` is
    conditional. Whether one of them means no class is not guessed: it is what
    `null_class` says here or in the U-Net's `config.json`.

    Arguments:
        path: Folder written by the pipeline's `save_pretrained`, or a hub id. `FOLDER:NAME` takes
            its network NAME, such as `unet_ema`, in the place of `unet`.
        weak: The same of a weaker version, to guide this one. Of latents its U-Net and scheduler
            are enough: a `DDPMPipeline`.
        null_class: The label that means no class, if the model was trained with one: it is not
            drawn, and guidance needs it.

    Raises:
        SigdegError: If the folder is missing, incomplete or damaged, or holds no such pipeline. A
            pickle is refused, never opened. If the weaker version is of other samples, noise levels
            or classes.
    """
    place, unet = split_name(path)
    folder = find_folder(place)
    pipeline = read_json(folder / "model_index.json").get("_class_name")
    if pipeline not in PIPELINES:
        raise SigdegError(
            f"{folder} holds a {pipeline}: only image pipelines without text "
            f"({', '.join(PIPELINES)}) can be teachers so far"
        )
    schedule, prediction_type, clip, data_std = load_schedule(folder)
    network, shape = load_unet(folder, unet)
    if null_class is not None:
        set_null_class(network, null_class)
    parameters = network_config(network)["config"]
    decoder = load_decoder(folder / "vqvae") if pipeline == "LDMPipeline" else None
    if decoder is not None:
        check_decoder(decoder, shape, folder / "vqvae")
    denoiser = NetworkDenoiser(network, schedule, prediction_type, clip, data_std)
    name = folder.resolve().name if folder == Path(place) else str(place)
    name = name if unet == UNET else f"{name}:{unet}"
    none, classes = parameters.get("null_class"), count_classes(network)
    teacher = Teacher(denoiser.eval(), shape, name, decoder, classes, null_class=none)
    if weak is None:
        return teacher
    other = load_teacher(weak, null_class=null_class)
    if (other.sample_shape, other.labels) != (shape, teacher.labels):
        raise SigdegError(
            f"{weak} draws samples of shape {other.sample_shape} with classes {other.classes}, "
            f"{path} of {shape} with {teacher.classes}: it is no version of it"
        )
    if not other.denoiser.schedule.equals(schedule):
        raise SigdegError(f"{weak} has other noise levels than {path}: it cannot guide it")
    AutoGuidance(denoiser, other.denoiser, 1.0)  # refuses what cannot guide
    return replace(teacher, weak=other.denoiser, weak_name=other.name)


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


def load_schedule(folder: Path) -> tuple[Schedule, Prediction, float | None, float]:
    """Schedule, prediction type, clip and the data's deviation of a saved pipeline's scheduler."""
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
        scheduler = cls.from_config(saved)
    except Exception as error:  # parameters of a wrong kind may break anything inside
        told = f"{folder}: the scheduler {name} cannot be built: {reason(error)}"
        raise SigdegError(told) from None
    config = scheduler_config(scheduler)
    if config.get("thresholding"):
        raise SigdegError(f"{folder}: dynamic thresholding is not supported, clip_sample is")
    try:
        schedule = from_scheduler(scheduler)
        number(1e-6)(config.get("sigma_data", 0.5), "sigma_data")
    except (SigdegError, TypeError, ValueError) as error:
        raise SigdegError(f"{folder}: {error}") from None
    kinds, default = PREDICTIONS, "epsilon"
    if isinstance(schedule, EDM):
        kinds = EDM_PREDICTIONS
    elif isinstance(schedule, RectifiedFlow):
        kinds, default = FLOW_PREDICTIONS, "flow_prediction"
    prediction = config.get("prediction_type", default)
    if prediction not in kinds:
        raise SigdegError(
            f"{folder}: a {name} of prediction_type {prediction!r} is not supported: it must "
            f"predict {' or '.join(kinds)}"
        )
    last = getattr(scheduler, "alphas_cumprod", torch.ones(1))[-1]
    if prediction == "epsilon" and (config.get("rescale_betas_zero_snr") or float(last) == 0):
        raise SigdegError(
            f"{folder}: noise tells nothing of the data where there is nothing else: a schedule of "
            "zero terminal SNR (rescale_betas_zero_snr) needs v_prediction or sample, got epsilon"
        )
    clip = float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample") else None
    return schedule, kinds[prediction], clip, config.get("sigma_data", 0.5)


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
    config = network_config(network)["config"]
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
        labels = None if network.class_embedding is None else torch.zeros(1, dtype=torch.long)
        condition = {} if labels is None else {"class_labels": labels}
        check_call(network, torch.zeros(1, *shape), torch.zeros(1), **condition)
    except (SigdegError, TypeError, ValueError) as error:
        raise SigdegError(f"{place}: the U-Net does not fit its configuration: {error}") from None
    return network, shape


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
