"""Networks as configurations: what a saved model needs to be built again."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from sigdeg.errors import MissingPackageError, SigdegError, extra, reason
from sigdeg.files import count_weights
from sigdeg.networks.autoencoder import Autoencoder
from sigdeg.networks.beside import Widened
from sigdeg.networks.call import Configured
from sigdeg.networks.classifier import Classifier, Mixer
from sigdeg.networks.masked_lm import MaskedLM
from sigdeg.networks.mlp import ModulatedMLP, ResidualMLP
from sigdeg.networks.token_unet import TokenUNet
from sigdeg.networks.tokens import TokenMLP, TokenNetwork, TokenTransformer
from sigdeg.schema import number, record, whole

__all__ = [
    "build_network",
    "check_call",
    "check_kinds",
    "class_labels",
    "network_config",
    "set_null_class",
    "uncompiled",
]

TOKENS = (TokenMLP, TokenTransformer, TokenUNet, MaskedLM)
OWN: dict[str, Any] = {
    cls.__name__: cls
    for cls in (Autoencoder, Classifier, Mixer, ModulatedMLP, ResidualMLP, *TOKENS)
}


def depth(value: Any, name: str) -> None:
    """A number of layers, or several."""
    for part in value if isinstance(value, list) else [value]:
        whole(0, 1024)(part, name)


SAVED = record({}, dict.fromkeys(("blocks", "depth", "layers_per_block", "num_layers"), depth))


def network_config(network: nn.Module) -> dict[str, Any]:
    """Class name and parameters of a network, as JSON values.

    A network that is neither one of this package nor a diffusers model has its class name only: it
    can be saved, but whoever loads it has to build it.
    """
    name = type(network).__name__
    if isinstance(network, Widened):
        return {"class": name, "config": network.config, "of": network_config(network.network)}
    if isinstance(network, Configured):
        return {"class": name, "config": dict(network.config)}
    if hasattr(network, "register_to_config"):
        model: Any = network
        config = {k: v for k, v in dict(model.config).items() if not k.startswith("_")}
        if config.get("num_class_embeds") is not None:
            config.setdefault("null_class", None)
        return {"class": name, "config": config}
    return {"class": name}


def build_network(
    description: dict[str, Any], weights: Path | None = None, own: nn.Module | None = None
) -> nn.Module:
    """Build a network from `network_config`, with fresh weights.

    Arguments:
        description: Class name and parameters.
        weights: The file with its weights: a network larger than what that holds takes no memory.
        own: The network, where it is a class of your own.

    Raises:
        SigdegError: If the class is unknown or its parameters do not fit.
    """
    name, config = description.get("class"), description.get("config")
    if name == Widened.__name__ and not isinstance(own, Widened):
        inner = build_network(description.get("of") or {}, weights, own)
        try:
            return Widened(inner, **(config or {}))
        except Exception as error:  # parameters of a wrong kind may break anything inside
            raise SigdegError(f"network {name} cannot be built: {reason(error)}") from None
    if own is not None:
        return own
    cls: Any = OWN.get(str(name))
    if cls is None:
        with extra("diffusers"):
            import diffusers

        cls = getattr(diffusers, str(name), None)
        if not (isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin)):
            raise SigdegError(
                f"unknown network class {name!r}: {', '.join(OWN)} and diffusers models are built "
                "by themselves, a network of your own has to be passed"
            )
    if not isinstance(config, dict):
        raise SigdegError(f"network {name} comes without its configuration")
    config = dict(config)
    null_class = None if name in OWN else config.pop("null_class", None)
    held = None if weights is None else count_weights(weights)
    try:
        SAVED(config, "")
        check_kinds(cls, config)
        if held is not None:
            check_size(cls, config, held)
        network = build(cls, config)
    except MissingPackageError:
        raise
    except Exception as error:  # parameters of a wrong kind may break anything inside
        raise SigdegError(f"network {name} cannot be built: {reason(error)}") from None
    if null_class is not None:
        set_null_class(network, null_class)
    return network


@contextmanager
def uncompiled() -> Iterator[None]:
    """Diffusers is imported in here without what commands that sample have no use for.

    That is most of what it costs. It marks functions for torch's compiler as it defines them:
    where nothing is going to be compiled these marks can be left out. It imports `scipy.stats`
    for schedulers of one kind, which then find it as an attribute of `scipy`, at first use. And it
    takes transformers and peft, where they are installed, for pipelines of text: without them there
    are none.
    """

    def unmarked(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
        return function or unmarked

    compiler: Any = torch.compiler
    modules: dict[str, Any] = sys.modules
    if "torch._dynamo" in modules:
        yield
        return
    mark, compiler.disable = compiler.disable, unmarked
    modules["torch._dynamo"] = None  # an import of it now fails, which diffusers is prepared for
    later = {"scipy.stats": ModuleType("scipy.stats"), "transformers": None, "peft": None}
    later = {name: value for name, value in later.items() if name not in modules}
    modules.update(later)
    try:
        yield
    finally:
        compiler.disable = mark
        for name in ("torch._dynamo", *later):
            del modules[name]


def check_kinds(cls: Any, config: dict[str, Any]) -> None:
    """Refuse parameters of another kind than their defaults: many would be taken, as others."""
    for name, parameter in inspect.signature(cls).parameters.items():
        value, default = config.get(name), parameter.default
        if value is None or value == default:
            continue
        several = isinstance(value, list | tuple)
        kind = next((k for k in (bool, str) if isinstance(default, k)), None)
        if isinstance(default, list | tuple) != several and isinstance(default, list | tuple | str):
            raise SigdegError(f"{name} must be like {default!r}, got {value!r:.60}")
        for part in value if several else [value]:
            if kind is None and isinstance(default, int | float):
                number()(part, name)
            elif isinstance(part, bool) and kind is not bool:
                raise SigdegError(f"{name} must not be {part}")
            elif kind is not None and not isinstance(part, kind):
                raise SigdegError(f"{name} must be like {default!r}, got {part!r:.60}")


def build(cls: Any, config: dict[str, Any]) -> nn.Module:
    """A network of a class from its parameters."""
    network: nn.Module = cls(**config) if cls in OWN.values() else cls.from_config(config)
    return network


def check_size(cls: Any, config: dict[str, Any], held: int) -> None:
    """Refuse a network far larger than what its file holds, before it takes memory."""
    level = logging.root.manager.disable
    logging.disable()  # what there is to say of the parameters is said when it is built
    try:
        with torch.device("meta"):
            needed = count_parameters(build(cls, config))
    finally:
        logging.disable(level)
    if needed > 2 * held + 10**6:
        raise SigdegError(f"it has {needed:,} parameters, its file holds {held:,} numbers")


def set_null_class(network: nn.Module, null_class: int) -> None:
    """Note in a diffusers model's configuration which of its class embeddings means no class.

    Nothing in a U-Net tells whether one of its `num_class_embeds` was trained as none: whoever
    trained it knows.

    Raises:
        SigdegError: If the network has no such class, or no other.
    """
    embedded = network_config(network).get("config", {}).get("num_class_embeds")
    if embedded is None:
        raise SigdegError("this network knows no classes: there is none that means no class")
    whole = isinstance(null_class, Integral) and not isinstance(null_class, bool)
    if embedded < 2 or not whole or null_class not in range(embedded):
        raise SigdegError(
            f"null_class must be one of 0 to {embedded - 1}, beside which there are other classes, "
            f"got {null_class!r}"
        )
    model: Any = network
    model.register_to_config(null_class=null_class)


def class_labels(network: nn.Module) -> list[int] | None:
    """Labels of a conditional network, but for one known to mean none; None of another.

    It is a diffusers U-Net or a network of tokens.
    """
    if isinstance(network, Widened):
        return class_labels(network.network)
    if isinstance(network, TokenNetwork):
        return list(range(network.config.get("classes", 0))) or None
    config = network_config(network).get("config", {})
    embedded = config.get("num_class_embeds")
    if embedded is None:
        return None
    return [label for label in range(embedded) if label != config["null_class"]]


def check_call(network: nn.Module, *inputs: Tensor, **condition: Tensor) -> None:
    """Call a network on tensors that have shapes alone, which costs next to nothing.

    Raises:
        SigdegError: If it fails: parameters of a wrong kind may show in the call only.
    """
    own = dict(network.named_parameters()) | dict(network.named_buffers())  # unsaved ones too
    own = {name: value.to("meta") for name, value in own.items()}
    given = tuple(value.to("meta") for value in inputs)
    named = {name: value.to("meta") for name, value in condition.items()}
    try:
        torch.func.functional_call(network, own, given, named)
    except Exception as error:
        shape = tuple(inputs[0].shape)
        raise SigdegError(f"it takes no input of shape {shape}: {reason(error)}") from None


def count_parameters(network: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in network.parameters())
