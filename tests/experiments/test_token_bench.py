"""The engine of benchmarks of tokens: rows of models at step counts, over training seeds."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sigdeg.discrete import (
    Absorbing,
    ExactDenoiser,
    Latent,
    MixtureStudent,
    TokenModel,
    as_token_model,
)
from sigdeg.experiments import bench
from sigdeg.experiments.token_bench import TokenBenchmark
from sigdeg.rng import Stream

PROCESS = Absorbing(2)


class Copies(nn.Module):
    """Two bits that are both the latent's, but for a share of the time."""

    def forward(self, x: Tensor, timestep: Tensor, latent: Tensor) -> Tensor:
        bit = (latent >= 0.5).long().expand(-1, 2)
        return 3.0 * nn.functional.one_hot(bit, 3)


@dataclass(frozen=True)
class Settings:
    n: int = 2000
    draws: int = 2


class Bits(TokenBenchmark[Settings]):
    """Two equal bits: the share of samples in which they differ."""

    name, title, summary = "bits", "Two bits", "Whether they are equal."
    presets = {"default": Settings()}  # noqa: RUF012
    quality = ("differ", "Share of unequal bits")
    stream = Stream.TEXT_DRAWS
    shape = (2,)
    timing_n = 4

    def prepare(self) -> None:
        self.n, self.draws = self.settings.n, self.settings.draws
        law = ExactDenoiser(torch.tensor([[0, 0], [1, 1]]), torch.ones(2), PROCESS)
        self.teacher = as_token_model(law)
        self.student: TokenModel = as_token_model(MixtureStudent(Copies(), PROCESS, 2, Latent()))

    def measure(self, samples: Tensor) -> dict[str, float]:
        return {"differ": float((samples[:, 0] != samples[:, 1]).double().mean())}

    def fill(self) -> None:
        self.add_models("teacher", [self.teacher], (2, 1))
        self.add_models("di4c", [self.student] * 2, (1,), variant="from the teacher alone")


def test_models_of_tokens_stand_at_their_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher's bits differ half, then a quarter of the time; the student's as told."""
    monkeypatch.setattr(bench, "paired_seconds", lambda jobs: {k: 1.0 + k for k in jobs})
    page = Bits.run(tmp_path / "run", progress=False)
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    told = [(row["method"], row["role"], row["nfe"], row["seeds"]) for row in rows]
    teacher = [("teacher", "teacher", k, 1) for k in (2, 1)]
    assert told == [*teacher, ("di4c", "student", 1, 2)]
    errors = [row["metrics"]["differ"] for row in rows]
    assert [error["n"] for error in errors] == [2, 2, 4]
    right = torch.tensor(3.0).sigmoid().item()
    for error, expected in zip(errors, (0.25, 0.5, 2 * right * (1 - right)), strict=True):
        assert error["mean"] == pytest.approx(expected, abs=4 / (2 * 4000**0.5))
    assert [row["speedup"] for row in rows] == [1.0, 0.5, 1 / 3]
    assert "from the teacher alone" in page.read_text()
    assert (tmp_path / "run" / "student" / "model.safetensors").exists()

    monkeypatch.setattr(Bits, "measure", lambda *_: 1 / 0)  # found finished, not measured again
    Bits.run(tmp_path / "run", progress=False)
