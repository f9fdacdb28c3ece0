"""What `import sigdeg` gives, in one place."""

from sigdeg.denoiser import (
    Denoiser,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    NetworkDenoiser,
)
from sigdeg.distillation import DistillConfig, distill
from sigdeg.errors import SigdegError, TrainingError
from sigdeg.grids import coarse_grid, fine_grid, refine
from sigdeg.guidance import AutoGuidance, ClassifierFreeGuidance
from sigdeg.networks import ModulatedMLP, ResidualMLP
from sigdeg.sampling import march, sample
from sigdeg.schedule import (
    EDM,
    Cosine,
    DiscreteVP,
    RectifiedFlow,
    Schedule,
    VPLinear,
    from_scheduler,
)
from sigdeg.signature import PartialSignature
from sigdeg.steps import EulerMaruyama, Exponential, GaussianStep, ShARK, Step, StochasticTaylor
from sigdeg.student import SignatureStudent

__all__ = [
    "EDM",
    "AutoGuidance",
    "ClassifierFreeGuidance",
    "Cosine",
    "Denoiser",
    "DiscreteVP",
    "DistillConfig",
    "EulerMaruyama",
    "Exponential",
    "GaussianDenoiser",
    "GaussianMixtureDenoiser",
    "GaussianStep",
    "ModulatedMLP",
    "NetworkDenoiser",
    "PartialSignature",
    "RectifiedFlow",
    "ResidualMLP",
    "Schedule",
    "ShARK",
    "SigdegError",
    "SignatureStudent",
    "Step",
    "StochasticTaylor",
    "TrainingError",
    "VPLinear",
    "coarse_grid",
    "distill",
    "fine_grid",
    "from_scheduler",
    "march",
    "refine",
    "sample",
]
