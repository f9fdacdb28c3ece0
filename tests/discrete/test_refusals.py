"""What a user's Python gets wrong is one line, before anything is written."""

import pytest
import torch

from sigdeg import SigdegError
from sigdeg.discrete import (
    Absorbing,
    ExactDenoiser,
    Latent,
    NetworkTokenDenoiser,
    as_token_model,
    distill,
    uniform_grid,
)
from sigdeg.networks import TokenMLP


@pytest.fixture(scope="module")
def teacher():
    network = TokenMLP(3, 5, width=8)
    return as_token_model(NetworkTokenDenoiser(network, Absorbing(4), 3).eval())


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"prefix": [0.5, 1.7]}, "a prefix must be whole numbers"),
        ({"prefix": "abc"}, "a prefix must be whole numbers"),
        ({"prefix": torch.tensor([True])}, "a prefix must be whole numbers"),
        ({"prefix": [-3, 1]}, "a prefix must lie between 0 and 3"),
        ({"prefix": [0, 1, 2, 3]}, "a prefix is at most 3 tokens"),
        ({"given": torch.full((3,), -7)}, "given tokens must lie between 0 and 3"),
        ({"given": torch.full((3,), 4)}, "mask symbol 4"),
        ({"given": torch.full((2, 3), -1)}, "given tokens are"),
        ({"given": torch.zeros(3)}, "given tokens must be whole numbers"),
    ],
)
def test_what_is_known_is_tokens(teacher, request_, said):
    with pytest.raises(SigdegError, match=said):
        teacher.sample(4, steps=2, seed=0, **request_)


def test_a_list_is_as_good_as_a_tensor(teacher):
    drawn = teacher.sample(4, steps=2, seed=0, given=[1, -1, 2])
    assert drawn[:, [0, 2]].tolist() == [[1, 2]] * 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpha": float("inf"), "marginal": float("inf")}, "alpha must be a finite number"),
        ({"alpha": "1"}, "alpha must be a finite number"),
        ({"foo": 1}, "unknown option 'foo'"),
        ({"steps": 1.5}, "steps must be a whole number"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"data": [[0, 1, 2]]}, "data must be a tensor"),
        ({"latents": 1}, "one latent"),
        (
            {"network": TokenMLP(3, 4, width=8, latent={"kind": "weighted", "size": 4})},
            "the network has 4 symbols, the model 5",
        ),
    ],
)
def test_distilling_checks_before_it_writes(teacher, options, said, tmp_path):
    with pytest.raises(SigdegError, match=said):
        distill(teacher, out=tmp_path / "run", progress=False, **options)
    assert not (tmp_path / "run").exists()


def test_a_name_is_no_model(tmp_path):
    with pytest.raises(SigdegError, match=r"what sigdeg\.load_model gives, got 'teacher'"):
        distill("teacher", out=tmp_path / "run")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Absorbing(2.5),
        lambda: Absorbing(3, "cosine"),
        lambda: Latent("categorical", 2.5),
        lambda: uniform_grid(1.5),
        lambda: uniform_grid("3"),
    ],
)
def test_sizes_are_whole(make):
    with pytest.raises(SigdegError, match="must be a whole number"):
        make()


def test_a_law_is_tensors():
    with pytest.raises(SigdegError, match="a law is tensors"):
        ExactDenoiser([[0, 1]], [1.0], Absorbing(3))
