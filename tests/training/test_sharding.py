"""A network of diffusers by two processes that share its weights, and by two that do not.

Run as a program, this file is what is launched.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from sigdeg.rng import seeded
from sigdeg.training import Job, TrainConfig, train

KINDS = {"whole": {}, "adapted": {}, "anew": {"gradient_checkpointing": True}}


def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        norm_num_groups=4,
        attention_head_dim=4,
    )


class Denoise(nn.Module):
    """The network behind a layer; of an adapted one a LoRA and that layer are trained alone."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.network = seeded(0, unet)
        self.side = seeded(1, lambda: nn.Conv2d(4, 4, 3, padding=1))
        if kind == "adapted":
            from peft import LoraConfig

            self.network.requires_grad_(False)
            targets = ["to_q", "to_k", "to_v", "conv1"]
            config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
            seeded(2, lambda: self.network.add_adapter(config))

    def forward(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        x, t, words, target = batch
        found = self.network(self.side(x), t, words).sample
        return {"loss": (found - target).square().mean()}


def draw(generator: Generator) -> tuple[Tensor, ...]:
    shapes = ((8, 4, 8, 8), (8,), (8, 3, 8), (8, 4, 8, 8))
    return tuple(torch.rand(shape, generator=generator) for shape in shapes)


def learn(kind: str, folder: Path, **options: Any) -> dict[str, Tensor]:
    """Train for twenty steps."""
    settings = {"iterations": 20, "batch_size": 8, "learning_rate": 1e-3, "tracker": "none"}
    config = TrainConfig(**settings, **KINDS[kind], **options)
    job = Job(Denoise(kind), draw, draw(Generator().manual_seed(1)), {})
    return train(job, folder, config, device="cpu", progress=False).objective.state_dict()


def main(folder: Path) -> None:
    """Train all kinds both ways; the first process writes them."""
    for kind in KINDS:
        for sharding in ("none", "fsdp"):
            found = learn(kind, folder / f"{kind}-{sharding}", sharding=sharding)
            if os.environ["RANK"] == "0":
                save_file(found, folder / f"{kind}-{sharding}.safetensors")


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """Whether each has the whole network or a part of it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, __file__, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for kind in KINDS:
        alone = learn(kind, tmp_path / kind)
        first = Denoise(kind).state_dict()
        assert max(float((alone[name] - first[name]).abs().max()) for name in alone) > 1e-3
        for sharding in ("none", "fsdp"):
            together = load_file(tmp_path / f"{kind}-{sharding}.safetensors")
            apart = max(
                float((together[name] - value).abs().max()) for name, value in alone.items()
            )
            print(f"{kind}, {sharding}: {apart:.1e}")
            assert apart <= 1e-5


if __name__ == "__main__":
    main(Path(sys.argv[1]))
