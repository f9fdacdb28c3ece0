"""Networks: the residual MLP of the paper and the widening that turns a teacher into a student."""

from sigdeg.networks.autoencoder import Autoencoder
from sigdeg.networks.build import (
    build_network,
    check_call,
    count_classes,
    count_parameters,
    network_config,
)
from sigdeg.networks.classifier import Classifier, Mixer
from sigdeg.networks.mlp import ResidualMLP, sinusoidal
from sigdeg.networks.widen import widen

__all__ = [
    "Autoencoder",
    "Classifier",
    "Mixer",
    "ResidualMLP",
    "build_network",
    "check_call",
    "count_classes",
    "count_parameters",
    "network_config",
    "sinusoidal",
    "widen",
]
