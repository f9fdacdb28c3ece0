"""SIGKILL at any moment of any write: what was there stays whole, and the same bytes come out.

Run as a program, this file goes through the life of a student in processes that are killed:
teacher paths, checkpoints, the student and its decoder, what judging found, results, a report,
samples. Some die at a stage of a write (begun, half done, flushed, moved), others at any moment.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, nn

from sigdeg import files
from sigdeg.codec import Decoder, save_decoder
from sigdeg.denoiser import GaussianDenoiser
from sigdeg.discrete import Absorbing, ExactDenoiser, as_token_model
from sigdeg.discrete import distill as distill_tokens
from sigdeg.distillation import distill
from sigdeg.files import save_tensors
from sigdeg.networks import Autoencoder, ResidualMLP, TokenMLP
from sigdeg.pictures import save_sheet
from sigdeg.report import write_report
from sigdeg.results import save_results
from sigdeg.rng import seeded
from sigdeg.runs import remember
from sigdeg.sampling import sample
from sigdeg.schedule import VPLinear
from sigdeg.steps import Exponential
from sigdeg.student import SignatureStudent

SCHEDULE = VPLinear()


def life(folder: Path) -> None:
    """All that writes files, on a tiny problem."""
    network = ResidualMLP(SignatureStudent.in_channels(2, 2), 2, 4, 1)
    for i, p in enumerate(network.parameters()):
        nn.init.uniform_(p, -0.1, 0.1, generator=Generator().manual_seed(i))
    found = distill(
        SignatureStudent(network, SCHEDULE, 2, data_std=0.5, steps=(2,)),
        Exponential(GaussianDenoiser(0.0, 0.5, SCHEDULE)),
        folder,
        iterations=12,
        batch_size=4,
        checkpoint_every=2,
        paths=20,
        held_out=4,
        shard_size=4,
        refinement=2,
        judge=4,
        tracker="none",
        device="cpu",
        progress=False,
    )
    law = torch.tensor([[0, 1], [1, 0]])
    tokens = as_token_model(ExactDenoiser(law, torch.ones(2), Absorbing(2)))
    latent = {"kind": "uniform", "size": 1}
    distill_tokens(
        tokens,
        network=seeded(0, lambda: TokenMLP(2, 3, 8, 1, latent=latent)),
        out=folder / "tokens",
        iterations=4,
        batch_size=4,
        latents=2,
        checkpoint_every=2,
        paths=20,
        path_steps=2,
        tracker="none",
        device="cpu",
        progress=False,
    )
    torch.manual_seed(0)
    decoder = Decoder(Autoencoder(latent_channels=1, width=8, size=8))
    save_decoder(decoder, folder / "student" / "decoder")
    student = SignatureStudent.from_pretrained(folder / "student")
    x = sample(student, student.grid(), (16, 2), seeds=range(16))
    judged = remember(folder / "judged" / "a.json", lambda: {"w1": float(x.abs().mean())})
    save_tensors(folder / "samples" / "samples.safetensors", {"samples": x})
    save_sheet(x[:, :1, None, None].double().sigmoid().numpy(), folder / "figures" / "samples.png")
    row = {"method": "sig-deg", "metrics": judged, "teacher_nfe": found.teacher_nfe}
    figures = [{"file": "figures/samples.png", "caption": "Samples."}]
    save_results(folder, {"title": "A life", "rows": [row], "figures": figures}, "cpu")
    write_report(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the time it took."""
    paths = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "seconds.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def die_at(fatal: int) -> None:
    """Kill this process at the so-manieth stage of its writes."""
    stages = iter(range(1, 1_000_000))

    def stage() -> None:
        if next(stages) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    begin, sync, move = files.begin, os.fsync, Path.replace

    def begun(part: Path) -> int:
        stage()
        handle = begin(part)
        stage()
        os.write(handle, b"half of")
        stage()
        return handle

    def synced(handle: int) -> None:
        stage()
        sync(handle)

    def moved(self: Path, target: Path) -> Path:
        stage()
        found = move(self, target)
        stage()
        return found

    patches: list[tuple[Any, str, Any]] = [
        (files, "begin", begun),
        (os, "fsync", synced),
        (Path, "replace", moved),
    ]
    for place, name, value in patches:  # this process has moments to live
        setattr(place, name, value)


def forked(folder: Path, fatal: int, delay: float) -> bool:
    """A life in a process that dies at a stage, or else after a delay; whether it came through."""
    child = os.fork()
    if child == 0:
        if fatal:
            die_at(fatal)
        life(folder)
        os._exit(0)
    if not fatal:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        sys.exit("a child failed")
    return os.WIFEXITED(status)


def main(folder: Path, least: int, seed: int) -> None:
    """Lives until so many have ended by force; each that comes through is compared with a whole."""
    began = time.perf_counter()
    if not forked(folder / "whole", 1_000_000, 0):
        sys.exit("the whole life was killed")
    whole, span = contents(folder / "whole"), time.perf_counter() - began
    deaths, rounds, luck = 0, 0, random.Random(seed)
    while deaths < least or not rounds:
        rounds += 1
        place, own = folder / f"{rounds}", 0
        while True:
            # Later deaths become more likely to come after the end: every round has one.
            fatal = luck.randint(1, 40 + 15 * own) if luck.random() < 0.75 else 0
            if forked(place, fatal, luck.uniform(0, span * (0.5 + 0.2 * own))):
                break
            own += 1
        deaths += own
        found = contents(place)
        if found != whole:
            differ = [k for k in whole.keys() | found.keys() if whole.get(k) != found.get(k)]
            sys.exit(f"round {rounds} after {own} deaths: {', '.join(sorted(differ))}")
    print(deaths, rounds)


def killed(folder: Path, least: int, seed: int) -> tuple[int, int]:
    command = [sys.executable, __file__, str(folder), str(least), str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    deaths, rounds = map(int, done.stdout.split())
    return deaths, rounds


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment_of_any_write(tmp_path: Path, seed: int) -> None:
    """Two hundred deaths in all: the same files to the byte, and no litter."""
    deaths, rounds = killed(tmp_path, 50, seed)
    print(f"{deaths} deaths in {rounds} rounds")
    assert deaths >= 50


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
