"""Two processes by `torchrun`: one run, one set of files, and what one process would have learnt.

Whether each has all of the weights or a part of every one.

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
from safetensors.torch import load_file, save_file
from torch import Generator, nn

from sigdeg.denoiser import GaussianMixtureDenoiser, NetworkDenoiser
from sigdeg.discrete import Absorbing, ExactDenoiser, as_token_model
from sigdeg.discrete.distill import distill_model
from sigdeg.distillation import distill
from sigdeg.errors import SigdegError
from sigdeg.networks import ResidualMLP, TokenMLP
from sigdeg.rng import seeded
from sigdeg.schedule import VPLinear
from sigdeg.steps import Exponential, Step
from sigdeg.student import SignatureStudent
from sigdeg.training import TrainConfig, job, make_accelerator

TEACHER = Exponential(GaussianMixtureDenoiser([-2.0, 2.0], [0.5, 0.5], [0.5, 0.5], VPLinear()))
DATA = torch.randn(50, 1, generator=Generator().manual_seed(5))

# Batches that halves do not fit: 7 and 11 segments of two steps and of one.
ELASTIC = {"steps": (2, 1), "residual_noise": "energy"}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cached": ({}, {"paths": 40}),
    "fresh": ({}, {"paths": 0}),
    "from data": ({}, {"paths": 0, "states": "data", "data": DATA, "batch_size": 4}),
    "elastic": (ELASTIC, {"paths": 40, "q": 0, "batch_size": 18}),
    "matched": (ELASTIC, {"paths": 40, "q": 0, "batch_size": 18, "matching": 1.0}),
    "tokens": ({}, {"paths": 40, "path_steps": 2, "latents": 4}),
}
BITS = as_token_model(ExactDenoiser(torch.eye(2).long(), torch.ones(2), Absorbing(2)))
LATENT = {"kind": "weighted", "size": 3}


def run_tokens(folder: Path, **settings: Any) -> Any:
    """Distil a student of tokens for twenty steps."""
    network = seeded(0, lambda: TokenMLP(2, 3, 8, 1, latent=LATENT))
    return distill_model(BITS, network=network, out=folder, **settings)[1]


def run(kind: str, folder: Path, **more: Any) -> Any:
    """Distil one kind of student for twenty steps."""
    if kind == "tokens":
        work = {"iterations": 20, "batch_size": 16, "checkpoint_every": 7, "progress": False}
        return run_tokens(folder / kind, device="cpu", **work, **KINDS[kind][1])
    options, arguments = KINDS[kind]
    noise = options.get("residual_noise")
    network = ResidualMLP(SignatureStudent.in_channels(1, 2, residual_noise=noise), 1, 8, 1)
    for i, p in enumerate(network.parameters()):
        nn.init.uniform_(p, -0.1, 0.1, generator=Generator().manual_seed(i))
    student = SignatureStudent(network, VPLinear(), 1, data_std=2.06, **{"steps": (3,)} | options)
    teacher: Step = TEACHER
    if "matching" in arguments:
        own = seeded(0, lambda: ResidualMLP(1, 1, 8, 1))
        teacher = Exponential(NetworkDenoiser(own, VPLinear(), "edm", data_std=2.06))
    settings: dict[str, Any] = {
        "iterations": 20,
        "batch_size": 16,
        "checkpoint_every": 7,
        "learning_rate": 1e-2,
        "warmup": 2,
        "held_out": 10,
        "draws": 2,
        "shard_size": 10,
        "refinement": 3,
        "judge": 0,
        **arguments,
        **more,
    }
    return distill(student, teacher, folder / kind, device="cpu", progress=False, **settings)


def interrupted(kind: str, folder: Path, until: int, **more: Any) -> None:
    """Distil until a step, and no further."""
    update, steps = job.ema_update, iter(range(until))

    def stop(*given: Any) -> None:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        update(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "ema_update", stop)
        with pytest.raises(KeyboardInterrupt):
            run(kind, folder, **more)


def main(folder: Path) -> None:
    """Distil one after the other, as an experiment does; each process writes what it ended with."""
    rank = os.environ["RANK"]
    for kind in KINDS:
        found = run(kind, folder)
        tensors = {**found.student.network.state_dict(), "history": found.history}
        tensors["teacher_nfe"] = torch.tensor(found.teacher_nfe)
        save_file(tensors, folder / f"{kind}-{rank}.safetensors")
    run("matched", folder / "sharded", sharding="fsdp")
    interrupted("cached", folder / "sharded", 15, sharding="fsdp")
    with pytest.raises(SigdegError, match="2 processes cannot share a batch of 15 evenly"):
        make_accelerator(TrainConfig(batch_size=15), folder / "odd", "cpu")


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
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
    calls = {}
    for kind in KINDS:
        first, second = (load_file(tmp_path / f"{kind}-{rank}.safetensors") for rank in (0, 1))
        for key, value in first.items():
            assert torch.equal(value, second[key]), (kind, key)
        saved = load_file(tmp_path / kind / "student" / "model.safetensors")
        assert all(torch.equal(value, first[key]) for key, value in saved.items())
        assert not [p for p in (tmp_path / kind).rglob(".*")]
        assert len(list((tmp_path / kind).rglob("events.out.*"))) > 0
        alone = run(kind, tmp_path / "alone")
        weights = alone.student.network.state_dict()
        for key, value in weights.items():
            torch.testing.assert_close(first[key], value, rtol=0, atol=1e-5)
        torch.testing.assert_close(first["history"], alone.history, rtol=0, atol=1e-5)
        if kind in ("matched", "cached"):
            sharded = run(kind, tmp_path / "sharded")  # the one is finished, the other goes on
            for key, value in sharded.student.network.state_dict().items():
                torch.testing.assert_close(value, weights[key], rtol=0, atol=1e-5)
            torch.testing.assert_close(sharded.history, alone.history, rtol=0, atol=1e-5)
        calls[kind] = (float(first["teacher_nfe"]), alone.teacher_nfe)
    assert calls["cached"] == (40 * 9, 40 * 9)
    # Each holds out segments of its own; those to learn from are shared.
    assert calls["fresh"] == ((2 * 10 + 20 * 16) * 9, (10 + 20 * 16) * 9)
    assert len(list((tmp_path / "cached" / "paths").iterdir())) == 4


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"WORLD_SIZE": "4"}, "4 processes were asked for and 1 came: start them by torchrun"),
        (
            {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_MIXED_PRECISION": "no"},
            "asked for several processes and started one.* torchrun --nproc-per-node N",
        ),
    ],
)
def test_fewer_processes_than_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: dict[str, str], line: str
) -> None:
    """`accelerate launch --cpu` starts one, whatever number it is given."""
    make_accelerator(TrainConfig(), tmp_path, "cpu")
    for name in ("WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SigdegError, match=line):
        make_accelerator(TrainConfig(), tmp_path, "cpu")
    assert list(tmp_path.iterdir()) == []


if __name__ == "__main__":
    main(Path(sys.argv[1]))
