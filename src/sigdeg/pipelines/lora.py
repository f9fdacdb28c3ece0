r"""Students of large networks: low-rank adapters beside a base that is left as it is.

A layer $W$ of the network becomes $W + B A$, with $A$ of `rank` rows and $B$ at zero; the layer
beside the input layer is trained in full. What was trained is a small folder that any pipeline of
the family takes:

- `pytorch_lora_weights.safetensors`: the adapters, by their names in peft after that of the
  component. Under diffusers' older names some would be lost on the way back.
- `signature.safetensors`: what is trained in full; its metadata say what it belongs to.

Reference:
    Hu et al., *LoRA: low-rank adaptation of large language models* (arXiv 2106.09685).
"""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sigdeg.errors import SigdegError, check_whole, extra, reason
from sigdeg.files import read_tensors, save_tensors
from sigdeg.pipelines.facts import Trace
from sigdeg.pipelines.guidance import CONDITION
from sigdeg.pipelines.layer import LAYERS
from sigdeg.pipelines.network import ADAPTER, BESIDE, add_signature, remove_signature
from sigdeg.schema import mapped

with extra("pipelines"):
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

__all__ = [
    "SIDE",
    "adapted",
    "add_adapter",
    "check_weight",
    "fuse_adapter",
    "load_adapter",
    "remove_adapter",
    "save_adapter",
    "sharing",
]

LORA, SIDE = "pytorch_lora_weights.safetensors", "signature.safetensors"
FIRST = ".lora_A.weight"


def add_adapter(network: Any, rank: int, seed: int = 0) -> None:
    """Freeze a student's network, but for the layer beside its input layer and new adapters.

    Every linear and convolutional layer gets one, but the input layer and convolutions in groups.
    What is trained is in single precision, whatever the base is in.

    Arguments:
        network: A network of a class of `signature_class`.
        rank: Rows of the adapters' first matrices.
        seed: Of the first matrices; the second start at zero.

    Raises:
        SigdegError: If the rank is below 1, or the network has adapters of a student already.
    """
    check_whole(rank, 1, "the rank of a LoRA")
    network.requires_grad_(False)
    full = {network.config.sigdeg["trace"]["layer"]} | {
        n.removesuffix(".weight") for n in beside(network)
    }
    names = [
        name
        for name, layer in network.named_modules()
        if isinstance(layer, LAYERS) and getattr(layer, "groups", 1) == 1
        if name not in full
    ]
    inject(network, names, rank, seed)
    own = [p for name, p in network.named_parameters() if f".{ADAPTER}." in name]
    for p in (*own, *beside(network).values()):
        p.requires_grad_(True)
        p.data = p.data.float()


def sharing(network: Any) -> Any:
    """A copy of a network that shares its weights."""
    memo: dict[int, Any] = {id(value): value for value in network.buffers()}
    memo |= {id(p): nn.Parameter(p.data, requires_grad=False) for p in network.parameters()}
    return copy.deepcopy(network, memo)


def inject(network: Any, names: list[str], rank: int, seed: int = 0) -> None:
    """Put new adapters beside layers."""
    if ADAPTER in getattr(network, "peft_config", {}):
        raise SigdegError(f"this {type(network).__name__} has adapters of a student already")
    exactly = "|".join(map(re.escape, names))
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=exactly)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # a style's is welcome
        torch.manual_seed(seed)  # peft draws from the global generator
        inject_adapter_in_model(config, network, ADAPTER)
    if hasattr(network, "_hf_peft_config_loaded"):  # diffusers' own adapters take note
        network._hf_peft_config_loaded = True
    network.signature.adapted = list(layers(network))[:1]


def layers(network: Any) -> Iterator[Any]:
    """The layers of a network that have a student's adapters."""
    return (m for m in network.modules() if isinstance(m, LoraLayer) and ADAPTER in m.r)


def beside(network: Any) -> dict[str, nn.Parameter]:
    """What of a student's network is trained in full beside adapters, by name."""
    told = (f"{CONDITION}.",) if "condition" in network.config.sigdeg else ()
    mine = ("signature.", *told)
    return {n: p for n, p in network.named_parameters() if n.startswith(mine)}


def save_adapter(networks: Mapping[str, Any], folder: Path) -> None:
    """Write what was trained of a student's networks, by the names of their components."""
    adapters: dict[str, Tensor] = {}
    full: dict[str, Tensor] = {}
    told = {}
    for name, network in networks.items():
        own = get_peft_model_state_dict(network, adapter_name=ADAPTER)
        adapters |= {f"{name}.{key}": value for key, value in own.items()}
        full |= {f"{name}.{key}": value for key, value in beside(network).items()}
        told[name] = dict(network.config.sigdeg)
    save_tensors(folder / LORA, adapters)
    save_tensors(folder / SIDE, full, {"sigdeg": json.dumps(told)})


def adapted(pipe: Any) -> dict[str, Any]:
    """The networks of a pipeline that have a student's adapters, by name."""
    parts = pipe.components.items()
    return {name: part for name, part in parts if ADAPTER in getattr(part, "peft_config", {})}


def load_adapter(components: Mapping[str, Any], folder: Path, student: str) -> list[str]:
    """Make students' networks of those of a pipeline, by what `save_adapter` wrote.

    What is loaded takes the precision and the device of the networks.

    Arguments:
        components: Those of the pipeline, by name.
        folder: The folder.
        student: The id of the student that the scheduler is of.

    Returns:
        The names of the networks.

    Raises:
        SigdegError: If a file is missing, damaged or of another network. The pipeline is then as it
            was.
    """
    full, metadata = read_tensors(folder / SIDE)
    adapters, _ = read_tensors(folder / LORA)
    for file, tensors in ((SIDE, full), (LORA, adapters)):
        for name, value in tensors.items():
            check_weight(value, name, folder / file)
    try:
        told = json.loads(metadata["sigdeg"])
        mapped(BESIDE)(told, "sigdeg")
        traces = {name: Trace.read(own["trace"]) for name, own in told.items()}
    except (KeyError, ValueError, TypeError):
        raise SigdegError(f"{folder / SIDE} does not say what it belongs to") from None
    if {own["student"] for own in told.values()} != {student}:
        raise SigdegError(f"{folder}: scheduler and adapters are not of one student")
    unknown = {key.partition(".")[0] for key in (*full, *adapters)} - told.keys()
    absent = [name for name in told if not isinstance(components.get(name), nn.Module)]
    if unknown or absent:
        missing = ", ".join(sorted(unknown) or absent)
        raise SigdegError(f"{folder} has weights of {missing}, which this pipeline has not")
    done: list[str] = []
    network: Any = None
    try:
        for name, own in told.items():
            network = components[name]
            of_guidance = own.get("guided", False), own.get("condition")
            add_signature(network, traces[name], own["order"], own["student"], *of_guidance)
            done.append(name)
            fill(network, part(adapters, name), part(full, name))
    except (ValueError, AttributeError, RuntimeError) as error:
        for name in done:
            remove_adapter(components[name])
        kind = type(network).__name__
        raise SigdegError(f"{folder} does not fit this {kind}: {reason(error)}") from None
    return done


def check_weight(weight: Tensor, name: str, place: Path) -> None:
    """Refuse a weight that would draw nothing but NaN."""
    if not bool(weight.isfinite().all()):
        raise SigdegError(f"{place} is damaged: its {name} holds NaN or infinite values")


def part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of a component, by their names in it."""
    mine = f"{name}."
    return {key.removeprefix(mine): v for key, v in tensors.items() if key.startswith(mine)}


def fill(network: Any, adapters: dict[str, Tensor], full: dict[str, Tensor]) -> None:
    """Load what was trained of a network into it, and all of it."""
    ranks = {key.removesuffix(FIRST): len(value) for key, value in adapters.items() if FIRST in key}
    if len(set(ranks.values())) != 1:
        raise SigdegError("its adapters are not of one rank")
    inject(network, list(ranks), ranks.popitem()[1])
    check(adapters, get_peft_model_state_dict(network, adapter_name=ADAPTER))
    check(full, beside(network))
    set_peft_model_state_dict(network, adapters, ADAPTER)
    with torch.no_grad():
        for name, p in beside(network).items():
            p.copy_(full[name])


def check(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not those of a network: all of them are to be loaded."""
    homeless = given.keys() ^ own.keys()
    if homeless:
        raise SigdegError(f"{len(homeless)} tensors, such as {min(homeless)}, have no counterpart")
    for name, value in given.items():
        if value.shape != own[name].shape:
            shapes = f"{tuple(value.shape)}, not {tuple(own[name].shape)}"
            raise SigdegError(f"{name} is of shape {shapes}")


def fuse_adapter(network: Any) -> None:
    """Add a student's adapters to the layers beside which they are: it is then a whole student."""
    with torch.no_grad():
        for layer in layers(network):
            weight = layer.get_base_layer().weight
            weight += layer.get_delta_weight(ADAPTER).to(weight.dtype)
    strip(network)


def remove_adapter(network: Any) -> None:
    """Give the base back, to the bit; adapters of styles stay."""
    strip(network)
    remove_signature(network)
    network.requires_grad_(True)  # as it was loaded: kernels may depend on it


def strip(network: Any) -> None:
    """Take a student's adapters off its network's layers, and off those that have no others."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, LoraLayer) and ADAPTER in layer.r:
            layer.delete_adapter(ADAPTER)
            if not layer.r:
                network.set_submodule(name, layer.get_base_layer())
    if hasattr(network, "signature"):
        network.signature.adapted = []
    known = getattr(network, "peft_config", {})
    known.pop(ADAPTER, None)
    if hasattr(network, "peft_config") and not known:
        del network.peft_config
        network._hf_peft_config_loaded = False
