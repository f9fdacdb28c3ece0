"""Any diffusers pipeline as a teacher, and as a student."""

from sigdeg.pipelines.calls import Calls
from sigdeg.pipelines.distill import (
    DistilledPipeline,
    Judged,
    distill_pipeline,
)
from sigdeg.pipelines.evaluate import evaluate_pipeline
from sigdeg.pipelines.facts import Trace
from sigdeg.pipelines.files import attach, load_pipeline, save_student
from sigdeg.pipelines.network import add_signature, served, signature_class
from sigdeg.pipelines.paths import PipelinePaths
from sigdeg.pipelines.prepare import PipelineRecipe, pipeline_config, prepare
from sigdeg.pipelines.scheduler import SigDEGScheduler, replaced
from sigdeg.pipelines.student import PipelineStudent
from sigdeg.pipelines.teacher import PipelineTeacher
from sigdeg.pipelines.trace import trace, unguided

__all__ = [
    "Calls",
    "DistilledPipeline",
    "Judged",
    "PipelinePaths",
    "PipelineRecipe",
    "PipelineStudent",
    "PipelineTeacher",
    "SigDEGScheduler",
    "Trace",
    "add_signature",
    "attach",
    "distill_pipeline",
    "evaluate_pipeline",
    "load_pipeline",
    "pipeline_config",
    "prepare",
    "replaced",
    "save_student",
    "served",
    "signature_class",
    "trace",
    "unguided",
]
