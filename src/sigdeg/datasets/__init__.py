"""Data sets of the experiments, with their exact laws where these are known."""

from sigdeg.datasets.mixture import GaussianMixture, GaussianMixture1D, MixtureSplit, mixture_split
from sigdeg.datasets.mnist import load_mnist
from sigdeg.datasets.rough_bergomi import RoughBergomi, SeriesSplit, rough_bergomi_split

__all__ = [
    "GaussianMixture",
    "GaussianMixture1D",
    "MixtureSplit",
    "RoughBergomi",
    "SeriesSplit",
    "load_mnist",
    "mixture_split",
    "rough_bergomi_split",
]
