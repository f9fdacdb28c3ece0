"""Two processes by `torchrun`: one run, one set of files, the same weights in both.

Run as a program, this file is what is launched.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Generator, nn

from sigdeg.denoiser import GaussianMixtureDenoiser
from sigdeg.distillation import distill
from sigdeg.networks import ResidualMLP
from sigdeg.schedule import VPLinear
from sigdeg.steps import Exponential
from sigdeg.student import SignatureStudent

TEACHER = Exponential(GaussianMixtureDenoiser([-2.0, 2.0], [0.5, 0.5], [0.5, 0.5], VPLinear()))


def main(folder: Path) -> None:
    """Distil twice in a row, as an experiment does; each process writes what it ended with."""
    network = ResidualMLP(SignatureStudent.in_channels(1, 2), 1, 8, 1)
    for i, p in enumerate(network.parameters()):
        nn.init.uniform_(p, -0.1, 0.1, generator=Generator().manual_seed(i))
    rank = os.environ["RANK"]
    for name, paths in (("cached", 40), ("fresh", 0)):
        student = SignatureStudent(network, VPLinear(), 1, data_std=2.06, steps=(3,))
        result = distill(
            student,
            TEACHER,
            folder / name,
            iterations=20,
            batch_size=16,
            checkpoint_every=7,
            paths=paths,
            held_out=10,
            shard_size=10,
            refinement=3,
            device="cpu",
            progress=False,
            resume=False,
        )
        tensors = dict(result.student.network.state_dict())
        tensors["teacher_nfe"] = torch.tensor(result.teacher_nfe)
        save_file(tensors, folder / f"{name}-{rank}.safetensors")


def test_two_processes(tmp_path: Path) -> None:
    # What `accelerate launch` runs on several GPUs; on CPUs it asks for MPI instead.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, __file__, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    for name in ("cached", "fresh"):
        first, second = (load_file(tmp_path / f"{name}-{rank}.safetensors") for rank in (0, 1))
        for key, value in first.items():
            assert torch.equal(value, second[key])
        saved = load_file(tmp_path / name / "student" / "model.safetensors")
        assert all(torch.equal(value, first[key]) for key, value in saved.items())
        assert not [p for p in (tmp_path / name).rglob(".*")]
        assert len(list((tmp_path / name).rglob("events.out.*"))) > 0
    assert float(first["teacher_nfe"]) == 2 * (10 + 20 * 16) * 9
    assert len(list((tmp_path / "cached" / "paths").iterdir())) == 4


if __name__ == "__main__":
    main(Path(sys.argv[1]))
