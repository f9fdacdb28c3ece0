"""Networks: the residual MLP of the paper and the widening that turns a teacher into a student."""

from sigdeg.networks.build import build_network, count_parameters, network_config
from sigdeg.networks.mlp import ResidualMLP, sinusoidal
from sigdeg.networks.widen import widen

__all__ = [
    "ResidualMLP",
    "build_network",
    "count_parameters",
    "network_config",
    "sinusoidal",
    "widen",
]
