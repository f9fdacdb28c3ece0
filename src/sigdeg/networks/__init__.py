"""Networks: MLPs, the paper's among them, networks of tokens, and what makes students of both."""

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
from sigdeg.networks.masked_lm import MaskedLM
from sigdeg.networks.mlp import ModulatedMLP, ResidualMLP, sinusoidal
from sigdeg.networks.recognition import TokenRecognition
from sigdeg.networks.token_unet import TokenUNet
from sigdeg.networks.tokens import TokenMLP, TokenNetwork, TokenTransformer, with_latent

__all__ = [
    "Autoencoder",
    "Call",
    "Classifier",
    "Function",
    "MaskedLM",
    "Mixer",
    "ModulatedMLP",
    "ResidualMLP",
    "TokenMLP",
    "TokenNetwork",
    "TokenRecognition",
    "TokenTransformer",
    "TokenUNet",
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
    "with_latent",
]
