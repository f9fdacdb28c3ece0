"""Denoisers of tokens: against sums over all sequences, and what their laws never hold."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sigdeg.discrete import (
    Absorbing,
    DiscretisedGaussian,
    ExactDenoiser,
    GuidedTokens,
    Latent,
    MixtureStudent,
    NetworkTokenDenoiser,
    Uniform,
)
from sigdeg.discrete.denoiser import FLOOR
from sigdeg.discrete.exact import all_states
from sigdeg.discrete.process import DiscreteProcess
from sigdeg.errors import SigdegError

SUPPORT = torch.tensor([[0, 1, 1], [1, 0, 2], [2, 2, 0], [0, 0, 1]])
WEIGHTS = torch.tensor([1.0, 2.0, 3.0, 4.0])


class Fixed(nn.Module):
    """Logits that are the same for every state; it keeps what it was told."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor, t: Tensor, **told: Any) -> Tensor:
        self.told = {"t": t, **told}
        return self.logits.expand(*x.shape, -1)


@pytest.mark.parametrize(
    "process", [Absorbing(3), Uniform(3), DiscretisedGaussian(3), Absorbing(4, mask=3)]
)
def test_exact_marginals_are_sums_over_all_sequences(process: DiscreteProcess) -> None:
    denoiser, t = ExactDenoiser(SUPPORT, WEIGHTS, process), 0.6
    transition = process.push(torch.eye(process.states).double(), 0.0, t)
    x = all_states(process.states, 3)
    found = denoiser(x, torch.tensor(t)).exp()
    assert torch.allclose(found.sum(-1), torch.ones(x.shape).double(), atol=1e-12)
    for state, laws in zip(x, found, strict=True):
        expected = torch.zeros(3, process.states, dtype=torch.float64)
        for clean, weight in zip(SUPPORT, WEIGHTS, strict=True):
            chance = weight * transition[clean, state].prod()
            expected[torch.arange(3), clean] += chance
        if expected.sum() > 0:
            assert torch.allclose(laws, expected / expected[0].sum(), atol=1e-12)


def test_a_state_that_cannot_be_has_the_laws_own_marginals() -> None:
    denoiser = ExactDenoiser(SUPPORT, WEIGHTS, Absorbing(3))
    found = denoiser(torch.tensor([[2, 1, 3]]), torch.tensor(0.5)).exp()[0]
    assert found[0].tolist() == pytest.approx([0, 0, 1, 0], abs=1e-12)
    assert found[1].tolist() == pytest.approx([0, 1, 0, 0], abs=1e-12)
    assert found[2].tolist() == pytest.approx([0.3, 0.5, 0.2, 0], abs=1e-12)


def test_times_may_differ_in_a_batch() -> None:
    denoiser, x = ExactDenoiser(SUPPORT, WEIGHTS, Uniform(3)), torch.tensor([[0, 1, 2], [1, 1, 1]])
    t = torch.tensor([0.3, 0.8])
    each = [denoiser(x[i : i + 1], t[i]) for i in range(2)]
    assert torch.allclose(denoiser(x, t), torch.cat(each), atol=1e-12)


def test_a_network_gives_laws_of_tokens_and_keeps_what_is_not_masked() -> None:
    logits = torch.tensor([0.5, 9.0, -1.0, 2.0])
    denoiser = NetworkTokenDenoiser(Fixed(logits), Absorbing(4, mask=1), 2)
    found = denoiser(torch.tensor([[1, 3]]), torch.tensor(0.5)).detach()
    tokens = logits[[0, 2, 3]].log_softmax(0)
    assert torch.allclose(found[0, 0, [0, 2, 3]], tokens)
    assert float(found[0, 0, 1]) == FLOOR
    assert found[0, 1].tolist() == [FLOOR, FLOOR, FLOOR, 0.0]


def test_a_network_may_give_laws_of_all_symbols_everywhere() -> None:
    logits = torch.tensor([0.5, 9.0, -1.0, 2.0])
    expected = logits.log_softmax(0).expand(1, 2, 4)
    for process, kind in ((Absorbing(3), "all"), (Uniform(4), "masked")):
        denoiser = NetworkTokenDenoiser(Fixed(logits), process, 2, kind)  # type: ignore[arg-type]
        assert torch.allclose(denoiser(torch.tensor([[1, 3]]), torch.tensor(0.5)), expected)


def test_a_network_is_told_the_time_of_every_state() -> None:
    network = Fixed(torch.zeros(4))
    denoiser, x = NetworkTokenDenoiser(network, Absorbing(3), 2), torch.zeros(3, 2).long()
    for t in (0.25, torch.tensor(0.25), torch.tensor([0.25] * 3, dtype=torch.float64)):
        denoiser(x, t)
        assert network.told["t"].tolist() == [0.25] * 3
        assert network.told["t"].dtype == torch.float32
        assert network.told.keys() == {"t"}


def test_what_cannot_be_has_a_finite_floor_and_finite_gradients() -> None:
    network = Fixed(torch.tensor([500.0, -500.0, 0.0, 0.0]))
    for kind in ("masked", "all"):
        denoiser = NetworkTokenDenoiser(network, Absorbing(3), 2, kind)  # type: ignore[arg-type]
        found = denoiser(torch.tensor([[3, 0]]), torch.tensor(0.5))
        assert float(found.detach().min()) == FLOOR
        network.zero_grad()
        (found.exp() * found).sum().backward()
        assert network.logits.grad is not None
        assert bool(network.logits.grad.isfinite().all())


def test_a_mixture_student_is_told_a_latent_a_sample() -> None:
    network = Fixed(torch.zeros(4))
    student = MixtureStudent(network, Absorbing(3), 2, Latent("gaussian", 2), elastic=True)
    x, latent = torch.zeros(3, 2).long(), torch.randn(3, 2)
    student(x, torch.tensor(0.5), latent, step=torch.tensor(0.25))
    assert torch.equal(network.told["latent"], latent)
    assert network.told["step"].tolist() == [0.25] * 3
    for bad in (None, latent[:, :1], latent[:2]):
        with pytest.raises(SigdegError, match=r"a latent a sample, shape \(3, 2\), got"):
            student(x, torch.tensor(0.5), bad)


def guided(scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-laws: guided, and of the two that guide."""

    class Classes(nn.Module):
        def forward(self, x: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
            table = torch.tensor([[0.0, 1.0, 2.0, 0.0], [1.0, -1.0, 0.5, 0.0]])
            return table[class_labels][:, None].expand(-1, x.shape[1], -1)

    own = NetworkTokenDenoiser(Classes(), Absorbing(3), 1)
    x, labels, none = torch.tensor([[3]]), torch.tensor([1]), torch.tensor([0])
    both = GuidedTokens(own, scale, {"class_labels": none})
    assert both.calls(0.5) == 2
    t = torch.tensor(0.5)
    return (
        both(x, t, class_labels=labels),
        own(x, t, class_labels=labels),
        own(x, t, class_labels=none),
    )


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_goes_from_one_law_towards_another(scale: float) -> None:
    found, own, other = guided(scale)
    tokens = slice(3)
    expected = (other + scale * (own - other))[..., tokens].log_softmax(-1)
    assert torch.allclose(found[..., tokens], expected, atol=1e-6)
    assert float(found[0, 0, 3]) == FLOOR
    assert float(found.exp().sum()) == pytest.approx(1, abs=1e-6)


def test_guidance_makes_nothing_possible_that_is_not() -> None:
    own = ExactDenoiser(torch.tensor([[0, 0], [1, 1]]), torch.tensor([1.0, 1.0]), Absorbing(3))
    other = ExactDenoiser(torch.tensor([[0, 0], [2, 2]]), torch.tensor([1.0, 1.0]), Absorbing(3))
    found = GuidedTokens(own, -2.0, {}, other)(torch.tensor([[3, 3]]), torch.tensor(0.5)).exp()
    assert float(found[..., 2].max()) < math.exp(FLOOR / 2)


@pytest.mark.parametrize(
    ("build", "line"),
    [
        (
            lambda: ExactDenoiser(SUPPORT, WEIGHTS[:2], Absorbing(3)),
            r"sequences \(n, D\) and as many weights, got \(4, 3\) and \(2,\)",
        ),
        (
            lambda: ExactDenoiser(SUPPORT, WEIGHTS, Absorbing(2)),
            "sequences of a law hold the mask symbol 2",
        ),
        (
            lambda: ExactDenoiser(SUPPORT, WEIGHTS, Uniform(2)),
            "sequences of a law must lie between 0 and 1, got 0 to 2",
        ),
        (lambda: ExactDenoiser(SUPPORT, -WEIGHTS, Uniform(3)), "not negative, and not all zero"),
        (lambda: ExactDenoiser(SUPPORT, 0 * WEIGHTS, Uniform(3)), "not negative, and not all zero"),
        (
            lambda: NetworkTokenDenoiser(nn.Identity(), Uniform(3), 0),
            "length must be at least 1, got 0",
        ),
        (
            lambda: NetworkTokenDenoiser(nn.Identity(), Uniform(3), 2, "soft"),  # type: ignore
            "unknown parameterisation 'soft': choose from masked, all",
        ),
        (
            lambda: NetworkTokenDenoiser(Fixed(torch.zeros(3)), Absorbing(3), 2)(
                torch.zeros(1, 2).long(), torch.tensor(0.5)
            ),
            r"logits of shape \(1, 2, 3\) for states of \(1, 2\), the process has 4 symbols",
        ),
        (
            lambda: GuidedTokens(
                ExactDenoiser(SUPPORT, WEIGHTS, Uniform(3)),
                2.0,
                {},
                ExactDenoiser(SUPPORT, WEIGHTS, Absorbing(3)),
            ),
            "what guides has another process, vocabulary or length than what is guided",
        ),
    ],
)
def test_what_is_no_denoiser_is_refused(build: Callable[[], Any], line: str) -> None:
    with pytest.raises(SigdegError, match=line):
        build()
