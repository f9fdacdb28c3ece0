"""MNIST, first cut: a small pixel-space U-Net trained on real digits, then distilled.

The teacher is saved as a diffusers pipeline and takes the path of any user's own.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sigdeg.datasets import load_mnist
from sigdeg.denoiser import NetworkDenoiser
from sigdeg.distillation import DistillConfig
from sigdeg.experiments.images import distil_images
from sigdeg.integrations import load_teacher
from sigdeg.schedule import from_scheduler
from sigdeg.training import TrainConfig, claim_folder, seeded, train_teacher

__all__ = ["DEFAULT", "PRESETS", "Settings", "run"]


@dataclass(frozen=True)
class Settings:
    """A preset: widths of the U-Net, training of the teacher and of the student."""

    widths: tuple[int, ...]
    teacher: TrainConfig
    student: DistillConfig
    steps: tuple[int, ...] = (10,)
    order: int = 4
    evaluation_n: int = 256


PRESETS = {
    "quick": Settings(
        widths=(16, 32, 64),
        teacher=TrainConfig(iterations=2000, batch_size=64, learning_rate=1e-3),
        student=DistillConfig(
            iterations=800,
            batch_size=64,
            learning_rate=5e-4,
            paths=1200,
            held_out=100,
            refinement=6,
            shard_size=200,
        ),
    ),
}


def images(split: Any, data_dir: Path | None) -> Tensor:
    """MNIST as (n, 1, 28, 28) in [-1, 1]."""
    pixels, _ = load_mnist(split, data_dir)
    return torch.from_numpy(pixels)[:, None].float() / 127.5 - 1


DEFAULT = "quick"


def run(
    out: Path,
    preset: str = DEFAULT,
    seed: int = 0,
    device: str | None = None,
    data_dir: Path | None = None,
    progress: bool = True,
) -> Path:
    """Train a teacher, save it as a diffusers pipeline, distil that; the same call resumes.

    Raises:
        SigdegError: If the data is not found or the folder holds another run.
    """
    import diffusers

    settings = PRESETS[preset]
    train, test = images("train", data_dir), images("test", data_dir)
    identity: dict[str, Any] = {"experiment": "mnist", "preset": preset, "seed": seed}
    claim_folder(out, "config.json", {**identity, **dataclasses.asdict(settings)})
    depth = len(settings.widths) - 1
    network = seeded(
        seed,
        lambda: diffusers.UNet2DModel(
            sample_size=28,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=settings.widths,
            down_block_types=("DownBlock2D",) * depth + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * depth,
            norm_num_groups=8,
        ),
    )
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction", clip_sample=False)
    denoiser = NetworkDenoiser(network, from_scheduler(scheduler), "v_prediction")
    trained, history = train_teacher(
        denoiser,
        train,
        out / "teacher-training",
        settings.teacher,
        seed=seed,
        device=device,
        progress=progress,
    )
    pipeline = diffusers.DDPMPipeline(trained.network, scheduler)
    pipeline.save_pretrained(out / "teacher")
    return distil_images(
        load_teacher(out / "teacher"),
        out,
        settings.steps,
        settings.order,
        dataclasses.replace(settings.student, seed=seed),
        data=test,
        evaluation_n=settings.evaluation_n,
        device=device,
        progress=progress,
        training={"teacher": history.tolist()},
        folder=out / "students" / "10-steps",
        title="MNIST, distilled to ten network calls",
        **identity,
    )
