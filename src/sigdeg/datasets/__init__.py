"""Data sets of the experiments, with their exact laws where these are known."""

from sigdeg.datasets.mixture import GaussianMixture1D, MixtureSplit, mixture_split
from sigdeg.datasets.mnist import load_mnist

__all__ = ["GaussianMixture1D", "MixtureSplit", "load_mnist", "mixture_split"]
