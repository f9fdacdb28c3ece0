"""Data sets of the experiments, with their exact laws where these are known."""

from sigdeg.datasets.grammar import Brackets, Language, Molecules
from sigdeg.datasets.mixture import GaussianMixture, GaussianMixture1D, MixtureSplit, mixture_split
from sigdeg.datasets.mnist import load_mnist
from sigdeg.datasets.problems import PROBLEMS, TokenLaw, load_problem
from sigdeg.datasets.rough_bergomi import RoughBergomi, SeriesSplit, rough_bergomi_split
from sigdeg.datasets.text import TextSplit, load_text, split_text, windows

__all__ = [
    "PROBLEMS",
    "Brackets",
    "GaussianMixture",
    "GaussianMixture1D",
    "Language",
    "MixtureSplit",
    "Molecules",
    "RoughBergomi",
    "SeriesSplit",
    "TextSplit",
    "TokenLaw",
    "load_mnist",
    "load_problem",
    "load_text",
    "mixture_split",
    "rough_bergomi_split",
    "split_text",
    "windows",
]
