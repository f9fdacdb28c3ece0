"""What `import sigdeg` gives, in one place."""

from sigdeg.denoiser import (
    Denoiser,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    NetworkDenoiser,
)
from sigdeg.distillation import DistillConfig
from sigdeg.errors import SigdegError, TrainingError
from sigdeg.grids import coarse_grid, fine_grid, refine
from sigdeg.guidance import AutoGuidance, ClassifierFreeGuidance
from sigdeg.integrations import as_teacher, from_scheduler, load_model, load_teacher
from sigdeg.model import Card, Model
from sigdeg.networks import ModulatedMLP, ResidualMLP
from sigdeg.pipelines.files import attach, load_pipeline
from sigdeg.sampling import march, sample
from sigdeg.schedule import (
    EDM,
    Cosine,
    DiscreteVP,
    RectifiedFlow,
    Schedule,
    VPLinear,
)
from sigdeg.signature import PartialSignature
from sigdeg.steps import EulerMaruyama, Exponential, GaussianStep, ShARK, Step, StochasticTaylor
from sigdeg.student import SignatureStudent
from sigdeg.workflows.compare import compare
from sigdeg.workflows.distill import distill
from sigdeg.workflows.export import export
from sigdeg.workflows.teacher import train_teacher

__all__ = [
    "EDM",
    "AutoGuidance",
    "Card",
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
    "Model",
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
    "as_teacher",
    "attach",
    "coarse_grid",
    "compare",
    "distill",
    "export",
    "fine_grid",
    "from_scheduler",
    "load_model",
    "load_pipeline",
    "load_teacher",
    "march",
    "refine",
    "sample",
    "train_teacher",
]
