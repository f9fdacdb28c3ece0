"""Students as files: what stands in their `config.json`, and how it is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from torch import nn

from sigdeg.errors import SigdegError, check_choice
from sigdeg.files import count_weights, find_student, load_weights, read_json, save_model
from sigdeg.grids import Spacing, coarse_grid
from sigdeg.networks import build_network, network_config
from sigdeg.schedule import Schedule, schedule_from_config
from sigdeg.schema import flag, listed, mapped, maybe, number, record, text, whole

__all__ = ["load_student", "save_student"]

COVARIANCE = ("directions", "stds")  # saved beside the network's weights
SAVED = record(  # config.json
    {"channels": whole(1), "covariance": flag, "schedule": mapped(), "network": mapped()},
    {
        "order": whole(0, 1000),
        "kind": text,
        "prediction_type": text,
        "data_std": number(0),
        "lookahead": number(0),
        "residual_noise": maybe(text),
        "clip": maybe(number(0)),
        "steps": listed(whole()),
        "spacing": text,
        "power": number(0),
        "times": listed(number(0, 1)),
        "sample_shape": listed(whole(1), 8),
        "timesteps": text,
        "decoder": text,
        "origin": mapped(),
    },
)


def save_student(student: Any, folder: Path, more: Mapping[str, Any]) -> None:
    """Write a student and what else its `config.json` is to hold, see `save_pretrained`."""
    config = {
        "format": "sigdeg-student",
        "channels": student.channels,
        "order": student.seen,
        "kind": student.kind,
        "prediction_type": student.prediction_type,
        "data_std": student.data_std,
        "covariance": student.response.stds is not None,
        "lookahead": student.lookahead,
        "residual_noise": student.residual_noise,
        "clip": student.clip,
        "timesteps": student.timesteps,
        "steps": list(student.steps),
        "power": student.power,
        **({} if student.times is None else {"times": list(student.times)}),
        "sample_shape": list(student.sample_shape),
        **({"origin": student.origin} if student.origin else {}),
        **more,
        "schedule": student.schedule.config(),
        "network": network_config(student.network),
    }
    # The network's own names, so that its weights can be read without the student.
    own = dict(student.response.named_buffers())
    save_model(folder, config, student.network.state_dict() | own)


def load_student(
    path: str | Path,
    kinds: Mapping[str, Any],
    network: nn.Module | None = None,
    schedule: Schedule | None = None,
) -> Any:
    """Read a student of one of these kinds, see `SignatureStudent.from_pretrained`."""
    folder = find_student(path)
    written = read_json(folder / "config.json")
    config = {key: value for key, value in written.items() if not key.startswith("_")}
    if config.pop("format", None) != "sigdeg-student":
        raise SigdegError(f"{folder} holds no sigdeg student: its config.json is of another kind")
    weights = folder / "model.safetensors"
    try:
        SAVED(config, "")
        description, known = config.pop("network"), config.pop("covariance")
        origin = config.pop("origin", {})
        for key in ("conditions", "decoder"):  # of whoever samples, see `Model`
            config.pop(key, None)
        parameters = description.get("config", {})
        if (parameters.get("num_class_embeds") or 0) > 1:
            # Before it was noted, the last one meant none.
            parameters.setdefault("null_class", parameters["num_class_embeds"] - 1)
        config["network"] = build_network(description, weights, network)
        config["schedule"] = schedule_from_config(config["schedule"], schedule)
        for key in ("steps", "sample_shape"):
            config[key] = tuple(config[key])
        student = student_from_config(config, kinds)
        if known:  # its eigenvectors stand beside the weights
            size = student.response.size
            if size**2 > count_weights(weights):
                raise SigdegError(f"{weights} holds no covariance of samples of {size:,} elements")
            student.response.make_room()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SigdegError(f"{folder / 'config.json'} does not fit a student: {error}") from None
    load_weights(
        student,
        weights,
        lambda name: f"{'response' if name in COVARIANCE else 'network'}.{name}",
        written,
    )
    student.origin = origin
    return student.eval()


def student_from_config(config: dict[str, Any], kinds: Mapping[str, Any]) -> Any:
    """The student of a `config.json`, those of earlier versions, with a `spacing`, too."""
    kind, spacing = config.pop("kind", "warm"), config.pop("spacing", "power")
    if kind not in kinds:
        raise SigdegError(f"unknown kind of student {kind!r}: choose warm or plain")
    check_choice(spacing, get_args(Spacing), "spacing")
    if "times" not in config and spacing == "uniform":
        config["power"] = 1.0
    elif "times" not in config and spacing == "log_snr":
        config["times"] = coarse_grid(config["schedule"], max(config["steps"]), spacing).tolist()
    return kinds[kind](**config)
