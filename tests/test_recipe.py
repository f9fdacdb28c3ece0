"""The default recipe: what a stranger gets who says nothing, and what it is worth on new laws."""

import dataclasses
from pathlib import Path

import pytest
import torch

from sigdeg import (
    DistillConfig,
    Exponential,
    GaussianMixtureDenoiser,
    ModulatedMLP,
    NetworkDenoiser,
    SigdegError,
    SignatureStudent,
    VPLinear,
    distill,
)
from sigdeg.cli.distill import Distill
from sigdeg.networks import ResidualMLP

SCHEDULE = VPLinear()


def test_kinds_of_data_have_defaults_of_their_own() -> None:
    for shape, paths, batch, iterations, rate, late in (
        ((2,), 100_000, 512, 4000, 4e-3, 1),
        ((50,), 20_000, 1024, 2000, 2e-3, 0),
        ((3, 25), 20_000, 1024, 2000, 2e-3, 0),
        ((3, 32, 32), 5000, 64, 3000, 2e-4, 0),
    ):
        config = DistillConfig.for_samples(shape)
        assert (config.paths, config.batch_size, config.iterations) == (paths, batch, iterations)
        assert (config.learning_rate, config.late) == (rate, late)
        changed = DistillConfig.for_samples(shape, paths=40, batch_size=8)
        assert (changed.paths, changed.batch_size, changed.iterations) == (40, 8, iterations)
        assert changed.held_out >= 8
        # The teacher's own steps are as many whatever the student's.
        fine = [k * DistillConfig.for_samples(shape, k).refinement for k in (1, 2, 5, 8, 10)]
        assert fine == 5 * [120]


def test_the_command_line_has_the_defaults_of_python() -> None:
    """What depends on the kind of data is left to it; the rest is the class's own default."""
    options = {field.name: field.default for field in dataclasses.fields(Distill)}
    by_kind = ("iterations", "batch_size", "learning_rate", "paths", "refinement", "lookahead")
    assert all(options[name] is None for name in by_kind)
    network = ResidualMLP(1, 1)
    student = SignatureStudent.from_denoiser(
        NetworkDenoiser(network, SCHEDULE, "epsilon"), 1, sample_shape=(1, 8, 8)
    )
    assert options["order"] == student.seen
    assert options["residual_noise"] == student.residual_noise == "energy"
    assert options["steps"] == student.steps
    assert student.lookahead == 0.5


def test_any_denoiser_has_a_student_that_learns_its_scale(tmp_path: Path) -> None:
    """An exact law of two numbers: no network, and nobody says how wide its data are."""
    law = GaussianMixtureDenoiser(
        torch.tensor([[3.0, 0.0], [-3.0, 0.0]]), [0.5] * 2, [1.0] * 2, SCHEDULE
    )
    student = SignatureStudent.from_denoiser(law, 2, steps=(2,))
    assert isinstance(student.network, ModulatedMLP)
    assert student.lookahead == 0.75
    work = {"iterations": 1, "batch_size": 8, "paths": 400, "refinement": 20, "tracker": "none"}
    found = distill(
        student, Exponential(law), tmp_path / "run", device="cpu", progress=False, **work
    ).student
    # standard deviations 3.04 and 0.5 along the axes, 2.18 of both together
    assert found.data_std == pytest.approx(2.18, rel=0.1)
    assert found.response.stds is not None
    assert found.response.stds.tolist() == pytest.approx([0.5, 3.04], rel=0.15)
    loaded = SignatureStudent.from_pretrained(tmp_path / "run" / "student")
    assert loaded.data_std == found.data_std
    with pytest.raises(SigdegError, match=r"samples that are vectors, got \(1, 8, 8\)"):
        SignatureStudent.from_denoiser(law, 1, sample_shape=(1, 8, 8))
