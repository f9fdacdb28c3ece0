"""Export: a student's whole sampler as an ONNX file beside itself in torch, on one thread.

The U-Net is the student that comes with the package, decoder included; the transformer a small DiT
with random weights, as none is shipped. Errors are against what the student draws of the same
seeds.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory

import diffusers
import torch
from torch import nn

from benchmarks import Row, compare
from sigdeg.conditions import Classes
from sigdeg.denoiser import NetworkDenoiser
from sigdeg.integrations import from_scheduler, load_model
from sigdeg.integrations.onnx import onnx_runner
from sigdeg.model import Model, as_model
from sigdeg.rng import seeded
from sigdeg.student import SignatureStudent
from sigdeg.workflows.export import Sampler, draw, export, named

__all__ = ["measure", "transformer"]


def transformer(steps: int, layers: int = 4, heads: int = 4) -> Model:
    """A student around a DiT of latents of 16 x 16 in a thousand classes, random in all weights."""

    def build() -> nn.Module:
        network = diffusers.DiTTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=32,
            in_channels=4,
            out_channels=8,  # a learned variance
            num_layers=layers,
            sample_size=16,
            num_embeds_ada_norm=1000,
        )
        for weight in network.parameters():  # what starts at zero would hide the rest
            nn.init.normal_(weight, std=0.05)
        return network.eval()

    denoiser = NetworkDenoiser(
        seeded(0, build), from_scheduler(diffusers.DDPMScheduler()), clip=1.0
    )
    student = SignatureStudent.from_denoiser(
        denoiser,
        4,
        2,
        condition={"class_labels": torch.zeros(1, dtype=torch.long)},
        steps=(steps,),
        sample_shape=(4, 16, 16),
        lookahead=0.0,
        residual_noise=None,
    )
    beside = student.network.get_submodule("beside")
    nn.init.normal_(beside.weight, std=0.05, generator=torch.Generator().manual_seed(1))
    return dataclasses.replace(as_model(student.eval()), conditions=Classes(tuple(range(1000))))


def rows(name: str, model: Model, steps: int, pairs: int, at_least: float) -> list[Row]:
    """A student's sampler in torch over the same as a file, and the file over one of eight bits."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "sampler.onnx")
        report = export(model, file, steps, int8=True)
        sampler = Sampler(model, model.grid.at(steps))
        given = draw(model, sampler.times, report["seeds"])
        whole, small = (onnx_runner(file.with_name(n), named(given)) for n in report["files"])

    @torch.no_grad()
    def eager() -> None:
        sampler(*given)

    told = {"samples": len(report["seeds"]), "steps": steps}
    files = [
        {key: found[key] for key in ("bytes", "largest_error", "relative_error")}
        for found in report["files"].values()
    ]
    torch_side, file_side = ("sampler in torch", eager), ("the same as ONNX", whole)
    return [
        compare(
            f"sampler, torch / ONNX, {name}",
            torch_side,
            file_side,
            pairs,
            at_least=at_least,
            own_time=True,
            **told,
            **files[0],
        ),
        compare(
            f"sampler, ONNX / in eight bits, {name}",
            file_side,
            ("its products in eight bits", small),
            pairs,
            own_time=True,
            **told,
            **files[1],
        ),
    ]


def measure(steps: tuple[int, int] = (5, 4), layers: int = 4, pairs: int = 51) -> list[Row]:
    """All rows.

    Arguments:
        steps: Of the U-Net and of the transformer.
        layers: Of the transformer.
        pairs: How often each two are compared.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [
            *rows("U-Net", load_model("mnist"), steps[0], pairs, 2.0),
            *rows("DiT", transformer(steps[1], layers), steps[1], pairs, 1.5),
        ]
    finally:
        torch.set_num_threads(threads)
