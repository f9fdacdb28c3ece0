"""Pipelines as folders: students saved, read, and put onto other pipelines of their family.

A student's folder is that of any pipeline, of the teacher's own class: with `import sigdeg` it is
read by `DiffusionPipeline.from_pretrained`. Beside `model_index.json` lie `sigdeg.json`, what made
it and what belongs to its calls, and `README.md`, which says so to people.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from sigdeg.errors import SigdegError, extra, reason
from sigdeg.files import (
    PIPELINE_CARD,
    find_folder,
    open_tensors,
    read_json,
    save_json,
    seal,
    unseal,
    weight_files,
)
from sigdeg.model import Card
from sigdeg.pipelines.guidance import Guidance
from sigdeg.pipelines.guiders import disabled, guiders
from sigdeg.pipelines.lora import SIDE, adapted, check_weight, load_adapter, save_adapter
from sigdeg.pipelines.network import PREFIX, served
from sigdeg.pipelines.scheduler import SigDEGScheduler
from sigdeg.schema import mapped, record, text

with extra("pipelines"):
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_says
    from transformers.utils import logging as transformers_says

__all__ = ["attach", "load_pipeline", "read_card", "read_guidance", "save_student"]

FORMAT = "sigdeg-pipeline"
INDEX, WEIGHTS = "model_index.json", "diffusion_pytorch_model.safetensors"
BESIDE = {f"signature.{layer}.weight" for layer in ("extra", "features")}
SAVED = record({"format": text, "call": mapped()}, {"origin": mapped(), "guidance": mapped()})
README = """---
library_name: diffusers
tags: [sigdeg]
---

# {name}

A few-step student of {teacher}: {steps} calls of its network a sample, by Sig-DEG.

```python
{code}
```

- Its times, its noise and what its network sees of the path are in its scheduler: keep it.
- {guidance}
- The same seed gives the same sample, in any batch{elastic}.
{verdict}"""
WHOLE = """import sigdeg  # its classes
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{folder}")
pipe(..., num_inference_steps={steps}{call})"""
ADAPTER = """import sigdeg

pipe = ...  # {kind}, or any other pipeline of its network
sigdeg.attach(pipe, "{folder}")
pipe(..., num_inference_steps={steps}{call})"""


def save_student(
    pipe: Any,
    folder: str | Path,
    call: Mapping[str, Any] | None = None,
    card: Card | None = None,
    guidance: Guidance | None = None,
) -> None:
    """Write a student's pipeline, whole or not at all; of one with adapters those alone.

    Arguments:
        pipe: The pipeline, with student and scheduler in it.
        folder: The folder: a new or an empty one, or one of a student, which is replaced.
        call: Arguments that belong to its calls, such as those that turn guidance off.
        card: What made it.
        guidance: What became of the guidance of its teacher.

    Raises:
        SigdegError: If the pipeline has no student, the folder holds anything else, or it cannot be
            written.
    """
    folder = Path(folder)
    if not getattr(pipe.scheduler, "student", ""):
        raise SigdegError(f"this {type(pipe).__name__} has no student in it: nothing is saved")
    held = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if held and PIPELINE_CARD not in held:
        raise SigdegError(f"{folder} holds other files than a student's: choose another folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as part:
            made = Path(part) / "made"
            small = adapted(pipe)
            if small:
                save_adapter(small, made)
                pipe.scheduler.save_pretrained(made / "scheduler")
            else:
                with quiet():
                    pipe.save_pretrained(made)
            told = call or {}, card or Card(), guidance or Guidance()
            write_card(made, folder.name, pipe, *told, whole=not small)
            if held:
                folder.replace(Path(part) / "before")
            made.replace(folder)
    except SigdegError:
        raise
    except Exception as error:  # safetensors reports a full disk as its own error, not as OSError
        raise SigdegError(f"cannot write {folder}: {reason(error)}") from None


def write_card(
    folder: Path,
    name: str,
    pipe: Any,
    call: Mapping[str, Any],
    card: Card,
    guidance: Guidance,
    whole: bool = True,
) -> None:
    """Write `sigdeg.json` and `README.md` of a student, or of an adapter that makes one."""
    try:
        json.dumps(dict(call), allow_nan=False)
    except (TypeError, ValueError):
        raise SigdegError(f"the arguments of a call must be JSON, got {dict(call)!r:.60}") from None
    told = {"format": FORMAT, "call": dict(call), "origin": card.written}
    told["guidance"] = guidance.written
    save_json(folder / PIPELINE_CARD, seal(told))
    step = pipe.scheduler.core
    counts = [str(count) for count in sorted(step.steps)]
    arguments = "".join(f", {key}={value!r}" for key, value in call.items())
    filled = {"folder": name, "steps": max(step.steps), "call": arguments}
    kind = type(pipe).__name__
    readme = README.format(
        name=card.name or name,
        teacher=f"{card.teacher} ({kind})" if card.teacher else f"a {kind}",
        steps=" or ".join([", ".join(counts[:-1]), counts[-1]] if counts[1:] else counts),
        code=(WHOLE if whole else ADAPTER).format(kind=kind, **filled),
        guidance=guidance.says(),
        elastic=" and at any number of steps over the same path" if step.elastic else "",
        verdict=f"- {card.verdict}\n" if card.verdict else "",
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")


def read_card(folder: Path) -> tuple[dict[str, Any], Card]:
    """What belongs to the calls of a student, and what made it; nothing where it does not say.

    Raises:
        SigdegError: If `sigdeg.json` was changed or damaged.
    """
    told = read_saved(folder)
    return told.get("call", {}), Card.read(told.get("origin") or {})


def read_guidance(folder: Path) -> Guidance | None:
    """What became of the guidance of a student's teacher; None where it does not say.

    Raises:
        SigdegError: As `read_card`.
    """
    told = read_saved(folder)
    return Guidance.read(told["guidance"]) if "guidance" in told else None


def read_saved(folder: Path) -> dict[str, Any]:
    """What `sigdeg.json` holds, verified; nothing where there is none."""
    file = folder / PIPELINE_CARD
    if not file.is_file():  # saved again by the pipeline itself
        return {}
    told = unseal(read_json(file), file)
    SAVED(told, PIPELINE_CARD)
    if told["format"] != FORMAT:
        raise SigdegError(f"{file} is of the format {told['format']!r}, not {FORMAT!r}")
    return told


def load_pipeline(path: Any, **options: Any) -> Any:
    """A diffusers pipeline, teacher or student: itself, or that of a folder or hub id.

    Arguments:
        path: The pipeline, its folder, that of the run which made it, or a hub id.
        options: Further arguments of `DiffusionPipeline.from_pretrained`, such as `dtype`.

    Raises:
        SigdegError: If there is none, or it is incomplete or damaged. A pickle is never opened.
    """
    if isinstance(path, DiffusionPipeline):
        return path
    if not isinstance(path, str | Path):
        raise SigdegError(f"a {type(path).__name__} is no diffusers pipeline, and no folder of one")
    folder = find_pipeline(path)
    index = read_json(folder / INDEX)
    students = check_student(folder, index)
    for name, home in index.items():
        if isinstance(home, list) and home[:1] != [None] and not (folder / name).is_dir():
            raise SigdegError(f"{folder} is incomplete: its {name} is missing")
    absent = {k: None for k, v in index.items() if isinstance(v, list) and v[:1] == [None]}
    options = {"use_safetensors": True, **absent, **options}
    pipe = read_part(DiffusionPipeline, folder, **options)
    for name in students:
        check_weights(pipe.components[name], folder / name)
    return pipe


def attach(pipe: Any, path: str | Path) -> Any:
    """Put a student onto a pipeline: its network, with its scheduler.

    Any pipeline that calls a network of the same class will do: with ControlNet, from an image,
    with a mask. Adapters of styles come after: the network is another, or, of a student of
    adapters, has others; `pipe.set_adapters(["sigdeg", "style"])` then names both.

    Arguments:
        pipe: The pipeline; it is changed.
        path: Folder of a student, whole or of adapters, or a hub id.

    Returns:
        The pipeline.

    Raises:
        SigdegError: If the folder holds no student or a damaged one, or the pipeline has no such
            network. It is then as it was.
    """
    folder = find_student(path)
    off = disabled(pipe, guiders(pipe))  # what guides is in the student's weights
    if (folder / SIDE).is_file():
        read_card(folder)
        scheduler = read_scheduler(folder)
        load_adapter(pipe.components, folder, scheduler.student)
        pipe.register_modules(scheduler=scheduler, **off)
        return pipe
    names = check_student(folder, read_json(folder / INDEX))
    if not names:
        raise SigdegError(
            f"{folder} holds a pipeline without a student: there is nothing to attach"
        )
    networks = {}
    for name in names:
        own, kind = pipe.components.get(name), read_json(folder / name / "config.json")
        try:
            made = served(str(kind.get("_class_name")))
        except AttributeError as error:
            raise SigdegError(f"{folder / name}: {error}") from None
        if not isinstance(own, nn.Module) or not issubclass(made, base_of(own)):
            found = "none" if own is None else f"a {type(own).__name__}"
            raise SigdegError(
                f"the student's {name} is a {made.__name__}, and this {type(pipe).__name__} has "
                f"{found}"
            )
        network = read_part(made, folder / name, use_safetensors=True)
        check_weights(network, folder / name)
        networks[name] = network.to(own.device, own.dtype)
    pipe.register_modules(scheduler=read_scheduler(folder), **networks, **off)
    return pipe


def base_of(network: nn.Module) -> Any:
    """The class of a network, of a student's that of its teacher."""
    return type(network).__base__ if hasattr(network, "signature") else type(network)


def find_pipeline(path: str | Path, files: Sequence[str] = (INDEX,)) -> Path:
    """The folder of a pipeline: itself, or that of the run which made it, local or on the hub.

    One of some files tells it.
    """
    folder = find_folder(path)
    for found in (folder, folder / "student"):
        if any((found / file).is_file() for file in files):
            return found
    if (folder / SIDE).is_file() or (folder / "student" / SIDE).is_file():
        raise SigdegError(f"{path} holds adapters: sigdeg.attach puts them onto their pipeline")
    raise SigdegError(f"{path} holds no pipeline: there is no {files[0]} in it")


def find_student(path: str | Path) -> Path:
    """The folder of a student, whole or of adapters: itself, or that of the run which made it."""
    return find_pipeline(path, (INDEX, SIDE))


def check_student(folder: Path, index: Mapping[str, Any]) -> list[str]:
    """The names of the students' networks in a pipeline's folder, if any.

    Raises:
        SigdegError: If scheduler and networks are not of one student, or the weights beside an
            input layer are missing: diffusers would draw them anew.
    """
    homes = {
        name: home
        for name, home in index.items()
        if isinstance(home, list) and home[:1] == ["sigdeg"] and str(home[-1]).startswith(PREFIX)
    }
    names = [name for name in homes if name != "scheduler"]
    if not homes:
        return []
    if "scheduler" not in homes:
        raise SigdegError(f"{folder} holds a Sig-DEG student without its SigDEGScheduler")
    own = read_scheduler(folder)
    for name in names:
        told = read_json(folder / name / "config.json").get("sigdeg")
        if not isinstance(told, dict) or told.get("student") != own.student:
            raise SigdegError(f"{folder}: scheduler and {name} are not of one student")
        if told.get("order") != own.core.order:
            raise SigdegError(
                f"{folder}: its scheduler draws {own.core.order} coefficients of the path, and its "
                f"{name} sees {told.get('order')!r:.20}"
            )
        files = weight_files(folder / name / WEIGHTS)
        for weight in BESIDE - {key for file in files for key in open_tensors(file)[0]}:
            raise SigdegError(f"{folder / name}: {weight}, beside its input layer, is missing")
    return names


def check_weights(network: nn.Module, folder: Path) -> None:
    """Refuse a network that would draw nothing but NaN."""
    for name, weight in network.named_parameters():
        check_weight(weight, name, folder)


def read_scheduler(folder: Path) -> SigDEGScheduler:
    """The scheduler of a student."""
    read_json(folder / "scheduler" / SigDEGScheduler.config_name)  # diffusers would ask the hub
    scheduler: SigDEGScheduler = read_part(SigDEGScheduler, folder / "scheduler")
    return scheduler


def read_part(kind: Any, folder: Path, **options: Any) -> Any:
    """A part of a pipeline from its folder: what diffusers says of a damaged one, in one line."""
    try:
        with quiet():
            return kind.from_pretrained(folder, **options)
    except SigdegError as error:
        raise SigdegError(f"{folder}: {error}") from None
    except Exception as error:  # whatever a damaged folder makes of its reader
        raise SigdegError(f"{folder} cannot be loaded: {reason(error)}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars of those who load and save."""
    shown = [each for each in (diffusers_says, transformers_says) if each.is_progress_bar_enabled()]
    for each in shown:
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each in shown:
            each.enable_progress_bar()
