"""Networks as configurations: what a saved model needs to be built again."""

from __future__ import annotations

from typing import Any

from torch import nn

from sigdeg.errors import SigdegError
from sigdeg.networks.autoencoder import Autoencoder
from sigdeg.networks.classifier import Classifier
from sigdeg.networks.mlp import ResidualMLP

__all__ = ["build_network", "count_classes", "count_parameters", "network_config"]

OWN: dict[str, Any] = {cls.__name__: cls for cls in (Autoencoder, Classifier, ResidualMLP)}


def network_config(network: nn.Module) -> dict[str, Any]:
    """Class name and parameters of a network, as JSON values.

    A network that is neither one of this package nor a diffusers model has its class name only: it
    can be saved, but whoever loads it has to build it.
    """
    name = type(network).__name__
    if isinstance(network, tuple(OWN.values())):
        own: Any = network
        return {"class": name, "config": dict(own.config)}
    if hasattr(network, "register_to_config"):
        model: Any = network
        config = {k: v for k, v in dict(model.config).items() if not k.startswith("_")}
        return {"class": name, "config": config}
    return {"class": name}


def build_network(description: dict[str, Any]) -> nn.Module:
    """Build a network from `network_config`, with fresh weights.

    Raises:
        SigdegError: If the class is unknown or its parameters do not fit.
    """
    name, config = description.get("class"), description.get("config")
    cls: Any = OWN.get(str(name))
    if cls is None:
        import diffusers  # only here: the core runs on torch alone

        cls = getattr(diffusers, str(name), None)
        if not (isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin)):
            raise SigdegError(
                f"unknown network class {name!r}: {', '.join(OWN)} and diffusers models are built "
                "by themselves, a network of your own has to be passed"
            )
    if not isinstance(config, dict):
        raise SigdegError(f"network {name} comes without its configuration")
    try:
        network: nn.Module = cls(**config) if name in OWN else cls.from_config(config)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SigdegError(f"network {name} cannot be built: {reason}") from None
    return network


def count_classes(network: nn.Module) -> int | None:
    """Classes of a conditional diffusers U-Net: the last of its `num_class_embeds` means none."""
    embedded = network_config(network).get("config", {}).get("num_class_embeds")
    return None if embedded is None else embedded - 1


def count_parameters(network: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in network.parameters())
