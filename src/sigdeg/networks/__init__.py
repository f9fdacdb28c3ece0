"""Networks: MLPs, the paper's among them, and the widening that turns a teacher into a student."""

from sigdeg.networks.autoencoder import Autoencoder
from sigdeg.networks.beside import Widened, widen
from sigdeg.networks.build import (
    build_network,
    check_call,
    check_kinds,
    class_labels,
    network_config,
    set_null_class,
    uncompiled,
)
from sigdeg.networks.call import Call, Function, call_network
from sigdeg.networks.classifier import Classifier, Mixer
from sigdeg.networks.mlp import ModulatedMLP, ResidualMLP, sinusoidal

__all__ = [
    "Autoencoder",
    "Call",
    "Classifier",
    "Function",
    "Mixer",
    "ModulatedMLP",
    "ResidualMLP",
    "Widened",
    "build_network",
    "call_network",
    "check_call",
    "check_kinds",
    "class_labels",
    "network_config",
    "set_null_class",
    "sinusoidal",
    "uncompiled",
    "widen",
]
