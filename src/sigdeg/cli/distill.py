"""`sigdeg distill`: a teacher into a few-step student."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sigdeg.cli.shared import Refinement, TeacherName, refuse, tell
from sigdeg.options import AnyText, Folder, Samples, Seed, Text, number, whole
from sigdeg.workflows.recipe import Guided, Recipe

if TYPE_CHECKING:
    from sigdeg.discrete import TokenModel

__all__ = ["Distill"]

PATHS = (
    "order",
    "residual_noise",
    "times",
    "lookahead",
    "start",
    "plan",
    "grid",
    "refinement",
    "q",
    "matching",
)
ADDED = ("rank", "dropout")  # to a pipeline's student
ASKED = ("guidance_scale", "arguments", "guidance_input", "runs_only", *ADDED)
TRAINED = (
    "iterations",
    "batch_size",
    "learning_rate",
    "paths",
    "refinement",
    "q",
    "times",
    "lookahead",
)
HOW = ("mixed_precision", "gradient_checkpointing", "sharding", "tracker", "seed")
OTHERS = (
    "data",
    "latents",
    "alpha",
    "start",
    "plan",
    "grid",
    "matching",
    "weak",
    "guidance",
    "guidance_until",
    "null_class",
    "samples",
)


@dataclass(frozen=True, kw_only=True)
class Distill(Guided, Recipe):
    """Distil a teacher into a few-step student; the same command resumes it.

    Arguments:
        teacher: Folder or hub id of a DDPMPipeline, DDIMPipeline or LDMPipeline, or mnist-teacher,
            which comes with the package. FOLDER:unet_ema takes that network of it. Or the folder of
            a model of this package: a teacher that train_teacher made, a student of more steps, a
            model of tokens. With prompts or calls a diffusers pipeline of any kind.
        out: Run folder.
        prompts: What a pipeline is asked for, by sample: a text of a prompt a line, a CSV whose
            head names arguments of the pipeline, JSON, a list of objects, or a folder of pictures
            or of a dataset of the hub.
        calls: Calls of a pipeline as they are, in JSON: a list of objects of its arguments.
        guidance_scale: Guidance of a pipeline in all its calls; the student has it baked in.
        guidance_input: The student of a pipeline is told its guidance, by calls of several scales.
        dropout: Share of a pipeline's runs that are learnt without the condition, such as 0.1: the
            student can then be guided again.
        rank: Rank of the adapters (LoRA) of a pipeline's student, such as 16, for large networks: 0
            trains all weights.
        arguments: Further arguments of a pipeline for all its calls, a JSON object such as
            '{"height": 512, "negative_prompt": "blurred"}'.
        runs_only: Only simulate a pipeline's runs, beside all who do so for this folder; the same
            command without it trains on them.
        iterations: Optimiser steps (default: by the kind of data, 3000 for images).
        batch_size: Segments a step (default: by the kind of data, 64 for images).
        learning_rate: Peak learning rate (default: by the kind of data, 2e-4 for images).
        data: Data of a teacher of tokens, for it to be distilled by as well: a text for one of
            characters, images for one of grey levels, or a .npy of tokens.
        latents: Latents an item that a student of tokens is trained with (default: 16, or 32 for
            short sequences).
        alpha: Weight of the correlation loss on data of a student of tokens (default: 1, or 0.1
            for short sequences).
        paths: Teacher paths to cache and reuse; 0 simulates fresh ones for every batch (default: by
            the kind of data, 5000 for images).
        refinement: Fine teacher steps a coarse step (default: 120 in all).
        q: Consecutive coarse steps in a loss term; 0 for all of them (default: 1, or 0 with
            matching).
        matching: Weight of distribution matching beside the loss on paths, such as 4: samples that
            look right. Start from a student that is trained already.
        samples: Samples behind the metrics of the report.
        mixed_precision: Precision of the training.
        gradient_checkpointing: Compute activations anew for the gradient: less memory, more time.
        sharding: fsdp leaves each of several processes a part of every weight, for networks too
            large for one device.
        tracker: tensorboard, wandb ... or none.
        seed: Seed of everything that is drawn.
        device: cpu or cuda (default: what is found).
        progress: Show progress bars.
    """

    teacher: TeacherName
    out: Folder = Path("runs/distilled")
    prompts: AnyText = None
    calls: AnyText = None
    guidance_scale: Annotated[float | None, number(-1000, 1000)] = None
    guidance_input: bool = False
    dropout: Annotated[float, number(0, 0.99)] = 0.0
    rank: Annotated[int, whole(0, 10**4)] = 0
    arguments: AnyText = None
    runs_only: bool = False
    iterations: Annotated[int | None, whole(1, 10**9)] = None
    batch_size: Annotated[int | None, whole(1, 10**7)] = None
    learning_rate: Annotated[float | None, number(1e-12, 1e12)] = None
    data: AnyText = None
    latents: Annotated[int | None, whole(1, 10**6)] = None
    alpha: Annotated[float | None, number(0, 1e6)] = None
    paths: Annotated[int | None, whole(0, 10**9)] = None
    refinement: Refinement = None
    q: Annotated[int | None, whole(0, 1000)] = None
    matching: Annotated[float, number(0, 1e6)] = 0.0
    samples: Samples = 256
    mixed_precision: Literal["no", "bf16"] = "no"
    gradient_checkpointing: bool = False
    sharding: Literal["none", "fsdp"] = "none"
    tracker: Text = "tensorboard"
    seed: Seed = 0
    device: AnyText = None
    progress: bool = True

    def __call__(self) -> None:
        """Distil it."""
        if self.prompts is not None or self.calls is not None:
            self.distill_pipeline()
            if self.runs_only:
                print(self.out / "runs")
            else:
                tell(self.out / "report.html")
            return
        from sigdeg.discrete import TokenModel
        from sigdeg.workflows.distill import configure, distill_teacher

        refuse(self, ASKED, "for pipelines that are given --prompts or --calls")
        teacher = self.load(self.teacher)
        command = shlex.join(["sigdeg", *sys.argv[1:]])
        if isinstance(teacher, TokenModel):
            self.distill_tokens(teacher, command)
            tell(self.out / "report.html")
            return
        refuse(self, ("data", "latents", "alpha"), "for teachers of tokens")
        training = ("iterations", "batch_size", "learning_rate", "paths", "refinement", "q")
        more = ("matching", *HOW)
        config = configure(teacher, self, **{key: getattr(self, key) for key in training + more})
        distill_teacher(
            teacher, self.out, self, config, self.samples, self.device, self.progress, command
        )
        tell(self.out / "report.html")

    def distill_pipeline(self) -> None:
        """Distil a pipeline of any kind by its calls."""
        from sigdeg.workflows.pipelines import distill_calls, parse_arguments, read_calls

        refuse(self, OTHERS, "for other teachers than pipelines with prompts or calls")
        given: dict[str, Any] = {
            name: value for name in TRAINED if (value := getattr(self, name)) is not None
        }
        if self.residual_noise == "none":
            given["residual_noise"] = None
        if self.guidance_scale is not None:
            given["guidance_scale"] = self.guidance_scale
        if self.guidance_input:
            given["guidance"] = "input"
        distill_calls(
            self.teacher,
            **read_calls(self.prompts, self.calls),
            arguments=parse_arguments(self.arguments),
            runs_only=self.runs_only,
            steps=self.steps,
            out=self.out,
            order=self.order,
            device=self.device,
            progress=self.progress,
            **{name: getattr(self, name) for name in (*HOW, *ADDED)},
            **given,
        )

    def distill_tokens(self, teacher: TokenModel, command: str) -> None:
        """Distil a teacher of tokens."""
        from sigdeg.discrete.recipe import configure
        from sigdeg.workflows.tokens import distill_tokens, load_tokens

        refuse(self, PATHS, "for teachers that paths drive, not for one of tokens")
        training = ("iterations", "batch_size", "learning_rate", "paths", "latents", "alpha")
        given = {key: getattr(self, key) for key in training + HOW}
        config = configure(teacher, **{key: v for key, v in given.items() if v is not None})
        data = None if self.data is None else load_tokens(self.data, teacher)
        distill_tokens(
            teacher,
            self.out,
            config,
            steps=self.steps,
            data=data,
            samples=self.samples,
            device=self.device,
            progress=self.progress,
            command=command,
        )
