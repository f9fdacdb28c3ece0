"""Mixtures that learn by a recognition network: its loss is a bound, sharp where it can be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from sigdeg.discrete import Absorbing, Latent, MixtureStudent, as_token_model
from sigdeg.discrete.recognition import RecognitionObjective, Seen, train_mixture
from sigdeg.errors import SigdegError
from sigdeg.networks import TokenMLP

PROCESS = Absorbing(2)
LATENT = Latent("gaussian", 1)
BITS = torch.tensor([[0], [1]]).repeat(500, 10)


class Sign(nn.Module):
    """Two bits that are likely 1 where the latent is positive, and likely 0 elsewhere."""

    def forward(self, x: Tensor, t: Tensor, latent: Tensor) -> Tensor:
        one = torch.where(latent > 0, 2.0, -2.0)
        return torch.cat([torch.zeros_like(one), one, torch.zeros_like(one)], 1)[:, None].expand(
            -1, 2, -1
        )


class Guess(nn.Module):
    """The same Gaussian for all."""

    def __init__(self, mean: float, log_variance: float) -> None:
        super().__init__()
        self.given = torch.tensor([[mean], [log_variance]])

    def forward(self, clean: Tensor, x: Tensor) -> Tensor:
        return self.given[:, None].expand(2, len(clean), 1)


class Recognition(nn.Module):
    """A Gaussian that depends on the first bit."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2, 2)

    def forward(self, clean: Tensor, x: Tensor) -> Any:
        return self.table(clean[:, 0]).chunk(2, dim=1)


@torch.no_grad()
@pytest.mark.parametrize(("mean", "log_variance"), [(0.0, 0.0), (0.9, -0.7), (-2.0, 0.5)])
def test_the_loss_is_a_bound_on_the_likelihood(mean: float, log_variance: float) -> None:
    """Against the mixture's exact law, by quadrature over the latent."""
    n = 20_000
    normal = Normal(0.0, 1.0).icdf((torch.arange(n, dtype=torch.float64) + 0.5) / n).float()
    objective = RecognitionObjective(
        MixtureStudent(Sign(), PROCESS, 2, LATENT), Guess(mean, log_variance)
    )
    clean = torch.tensor([[1, 1]]).expand(n, 2)
    found = objective(Seen(clean, torch.ones(n), torch.rand(n, 2), normal[:, None]))
    deviation = math.exp(log_variance / 2)
    kl = kl_divergence(Normal(mean, deviation), Normal(0.0, 1.0))
    assert float(found["kl"]) == pytest.approx(float(kl) / 2, rel=1e-5)
    likely = 1 / (1 + math.exp(-2))
    positive = float(Normal(0.0, 1.0).cdf(torch.tensor(mean / deviation)))
    expected = -positive * math.log(likely) - (1 - positive) * math.log(1 - likely)
    assert float(found["nll"]) == pytest.approx(expected, rel=1e-3)
    exact = -math.log((likely**2 + (1 - likely) ** 2) / 2) / 2
    assert float(found["loss"]) > exact
    # Where the latent says nothing, the prior itself is the posterior and the bound is sharp.
    objective.student.network = TokenMLP(2, 3, 4, 1, latent={"kind": "gaussian", "size": 1})
    nn.init.zeros_(objective.student.network.latent.layers.weight)
    if mean == log_variance == 0:
        found = objective(Seen(clean, torch.ones(n), torch.rand(n, 2), normal[:, None]))
        log_p = objective.student(torch.full((1, 2), 2), torch.ones(1), torch.zeros(1, 1))
        assert float(found["loss"]) == pytest.approx(-float(log_p[0, :, 1].mean()), rel=1e-4)


def student(kind: str = "gaussian") -> MixtureStudent:
    torch.manual_seed(0)
    network = TokenMLP(10, 3, 32, 1, latent={"kind": kind, "size": 1})
    return MixtureStudent(network, PROCESS, 10, Latent(kind, 1))


def run(folder: Path, **options: Any) -> Any:
    torch.manual_seed(1)
    given = {"iterations": 150, "batch_size": 64, "learning_rate": 0.02, "ema": 0.98, **options}
    told = {"tracker": "none", "device": "cpu", "progress": False}
    return train_mixture(student(), Recognition(), BITS, folder, **given, **told)


def test_ten_equal_bits_are_learnt_in_one_call(tmp_path: Path) -> None:
    """Of a product's samples one in 512 has them all equal."""
    learned, history = run(tmp_path)
    x = as_token_model(learned).sample(2000, 1, seed=0).double().mean(1)
    assert float(((x == 0) | (x == 1)).double().mean()) > 0.1
    assert abs(float(x.mean()) - 0.5) < 0.1
    assert float(history[-1, 2]) < 0.3 * math.log(2)  # of a product it is log 2 at time 1


def test_a_run_found_finished_is_the_same_and_another_is_refused(tmp_path: Path) -> None:
    first, again = (run(tmp_path, iterations=3)[0] for _ in range(2))
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(SigdegError, match="it differs in start"):
        run(tmp_path, iterations=3, start=0.5)


def test_what_cannot_be_learnt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SigdegError, match="recognised where gaussian, got uniform ones"):
        train_mixture(student("uniform"), Recognition(), BITS, tmp_path)
    with pytest.raises(SigdegError, match="data hold the mask symbol 2"):
        train_mixture(student(), Recognition(), BITS + 1, tmp_path)
    assert not list(tmp_path.iterdir())
