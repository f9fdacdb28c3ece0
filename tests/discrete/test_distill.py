"""Distillation of tokens as one call: what it learns, keeps, goes on with and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sigdeg.discrete import (
    Absorbing,
    Ancestral,
    ExactDenoiser,
    Latent,
    MixtureStudent,
    NetworkTokenDenoiser,
    TokenModel,
    Uniform,
    as_token_model,
)
from sigdeg.discrete import distill as distill_tokens
from sigdeg.discrete.distill import Distilled, train_student
from sigdeg.discrete.exact import joint_law, sampler_law, total_variation
from sigdeg.discrete.model import uniform_grid
from sigdeg.errors import SigdegError
from sigdeg.networks import TokenMLP
from sigdeg.rng import seeded
from sigdeg.training import job

BITS = torch.tensor([[0, 0], [1, 1]])
DATA = BITS.repeat(200, 1)
TEACHER = as_token_model(ExactDenoiser(BITS, torch.ones(2), Absorbing(2)), name="bits")
LATENT = {"kind": "uniform", "size": 1}
QUICK = {"tracker": "none", "device": "cpu", "progress": False}


def network(**options: Any) -> TokenMLP:
    told = {"width": 32, "blocks": 1, "timed": False, "latent": LATENT, **options}
    return seeded(0, lambda: TokenMLP(2, 3, **told))


def student(law: Latent | None = None, **options: Any) -> MixtureStudent:
    return MixtureStudent(network(**options), Absorbing(2), 2, law or Latent())


def run(folder: Path, own: MixtureStudent | None = None, **options: Any) -> Distilled:
    work = {"iterations": 6, "batch_size": 8, "latents": 4, "data": DATA, **QUICK, **options}
    teacher = work.pop("teacher", TEACHER.step)
    return train_student(own or student(), teacher, folder, **work)


def distance(model: TokenModel | Ancestral, steps: int) -> float:
    step = model.step if isinstance(model, TokenModel) else model
    law = sampler_law(step, uniform_grid(steps))
    return total_variation(law, joint_law(BITS, torch.ones(2), 3))


def test_two_equal_bits_come_out_equal_in_one_call(tmp_path: Path) -> None:
    """Its teacher, a product, gets half of them wrong in one call and a quarter in two."""
    made = distill_tokens(
        TEACHER,
        network=network(),
        data=DATA,
        out=tmp_path / "bits",
        single=False,
        iterations=120,
        batch_size=32,
        latents=16,
        learning_rate=1.5e-2,
        warmup=10,
        ema=0.95,
        **QUICK,
    )
    assert distance(TEACHER, 1) == pytest.approx(0.5)
    assert distance(made, 1) < 0.1
    assert distance(made, 2) < 0.1
    again = TokenModel.from_pretrained(tmp_path / "bits")
    assert torch.equal(again.sample(50, 1, seed=0), made.sample(50, 1, seed=0))
    assert again.card.teacher == "bits"
    assert again.card.name == "bits"
    assert again.card.teacher_calls == 120 * 32


def test_weights_meet_the_shares_of_modes(tmp_path: Path) -> None:
    """Of teacher's laws alone, without a term on data: shares of 0.7 and 0.3, in one call."""
    shares = torch.tensor([0.7, 0.3])
    teacher = as_token_model(ExactDenoiser(BITS, shares, Absorbing(2)), name="bits")
    law = {"kind": "weighted", "size": 4}
    made = distill_tokens(
        teacher,
        network=network(latent=law),
        latent=Latent(**law),
        data=BITS[(torch.arange(400) >= 280).long()],
        out=tmp_path / "bits",
        alpha=0.0,
        single=True,
        iterations=150,
        batch_size=16,
        learning_rate=2e-2,
        warmup=10,
        ema=0.97,
        **QUICK,
    )
    found = sampler_law(made.step, uniform_grid(1))
    assert total_variation(found, joint_law(BITS, shares, 3)) < 0.02


def test_without_data_it_learns_from_the_teachers_samples(tmp_path: Path) -> None:
    """They only say where to look: by itself the teacher draws many that are unequal."""
    found = run(
        tmp_path,
        student(latent={"kind": "weighted", "size": 4}, law=Latent("weighted", 4)),
        data=None,
        paths=100,
        path_steps=2,
        alpha=0.0,
        single=True,
        iterations=100,
        batch_size=16,
        latents=16,
        learning_rate=2e-2,
        warmup=10,
        ema=0.95,
    )
    assert distance(Ancestral(found.student), 1) < 0.05
    assert found.teacher_nfe == 100 * 16 + 100 * 2


def test_interrupted_it_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"iterations": 20, "checkpoint_every": 5, "data": None, "paths": 40, "path_steps": 2}
    whole = run(tmp_path / "whole", **options)
    update, steps = job.ema_update, []

    def stop(*arguments: Any) -> None:
        steps.append(1)
        if len(steps) == 13:
            raise KeyboardInterrupt
        update(*arguments)

    monkeypatch.setattr(job, "ema_update", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", **options)
    again = run(tmp_path / "parts", **options)
    assert torch.equal(again.history, whole.history)
    assert again.losses == whole.losses
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, again.student.state_dict()[name])


def test_the_student_that_is_given_stays_as_it_is(tmp_path: Path) -> None:
    own = student()
    before = {name: value.clone() for name, value in own.state_dict().items()}
    run(tmp_path, own)
    assert all(torch.equal(before[name], value) for name, value in own.state_dict().items())


def test_a_student_keeps_what_its_teacher_knows_and_teaches_on(tmp_path: Path) -> None:
    """Its weights are the teacher's where they fit; a mixture is a teacher of a second round."""
    taught = as_token_model(NetworkTokenDenoiser(network(latent=None), Absorbing(2), 2))
    options = {"data": DATA, "iterations": 1, "learning_rate": 1e-9, "warmup": 0, "latents": 4}
    first = distill_tokens(taught, out=tmp_path / "one", steps=(2, 1), **options, **QUICK)
    own, known = (m.denoiser.network.state_dict() for m in (first, taught))
    assert set(known) < set(own)
    assert all(torch.allclose(own[name], known[name], atol=1e-6) for name in known)
    second = distill_tokens(first, out=tmp_path / "two", **options, **QUICK)
    other = second.denoiser.network.state_dict()
    assert all(torch.allclose(other[name], own[name], atol=1e-6) for name in own)
    assert first.grid.steps == (2, 1)


def test_an_elastic_student_and_one_of_a_uniform_process_train(tmp_path: Path) -> None:
    process = Uniform(2)
    told = {"elastic": True, "timed": True}
    own = MixtureStudent(TokenMLP(2, 2, 16, 1, latent=LATENT, **told), process, 2, Latent(), True)
    step = Ancestral(ExactDenoiser(BITS, torch.ones(2), process))
    found = run(tmp_path, own, teacher=step)
    assert bool(found.history.isfinite().all())
    assert {"distil", "consis_joint", "corr", "marg", "ess"} <= found.losses.keys()


def test_without_a_teacher_data_are_learnt_by_their_likelihood(tmp_path: Path) -> None:
    found = run(tmp_path, teacher=None)
    assert set(found.losses) == {"loss", "ess"}
    assert found.teacher_nfe == 0


OTHER = as_token_model(ExactDenoiser(BITS, torch.ones(2), Absorbing(3)), name="other")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": DATA + 1}, "data hold the mask symbol 2"),
        ({"data": DATA + 7}, "data must lie between 0 and 1, got 7 to 8"),
        ({"data": DATA[:, :1]}, r"data must be sequences \(n, 2\)"),
        ({"data": DATA[:9]}, "at least 20 samples"),
        ({"teacher": OTHER.step}, "their vocabularies must be one"),
        (
            {
                "teacher": Ancestral(
                    ExactDenoiser(BITS, torch.ones(2), Absorbing(2, None, "cosine"))
                )
            },
            "schedule differs",
        ),
        ({"teacher": None, "data": None}, "neither a teacher nor data"),
        ({"labels": torch.zeros(3).long()}, "400 samples need as many labels"),
        ({"latents": 1}, "latents must be at least 2"),
        (
            {
                "single": True,
                "own": MixtureStudent(network(), Absorbing(2), 2, Latent(), parameterisation="all"),
                "latents": 4,
            },
            "single positions are revealed",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(SigdegError, match=said) as caught:
        run(tmp_path / "run", **change)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("steps", [0, (2, -1), 1.5, True])
def test_counts_of_steps_are_refused_before_anything_is_trained(tmp_path: Path, steps: Any) -> None:
    with pytest.raises(SigdegError, match=r"steps must be (a whole number|at least 1), got"):
        distill_tokens(TEACHER, network=network(), steps=steps, out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_a_teacher_without_a_network_needs_the_students(tmp_path: Path) -> None:
    with pytest.raises(SigdegError, match="bits is a ExactDenoiser, without a network: give"):
        distill_tokens(TEACHER, data=DATA, out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change", [{"alpha": 0.5}, {"data": DATA.flip(0)}, {"teacher": OTHER.step}]
)
def test_another_run_is_refused(tmp_path: Path, change: dict[str, Tensor]) -> None:
    run(tmp_path, iterations=1)
    with pytest.raises(SigdegError, match=r"another run|vocabularies"):
        run(tmp_path, iterations=1, **change)
