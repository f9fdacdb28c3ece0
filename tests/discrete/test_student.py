"""Mixture students: what a latent means, and mixtures whose weights are learned."""

from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sigdeg.discrete import (
    Absorbing,
    Ancestral,
    GuidedTokens,
    Latent,
    MixtureStudent,
    NetworkTokenDenoiser,
    TokenModel,
    as_token_model,
    uniform_grid,
)
from sigdeg.discrete.exact import all_states, joint_law, law_on, sampler_law
from sigdeg.errors import SigdegError
from sigdeg.networks import TokenMLP
from sigdeg.rng import seeded

WEIGHTED = {"kind": "weighted", "size": 3}


def weighted(elastic: bool = False, classes: int = 0, length: int = 2) -> MixtureStudent:
    """A mixture of three with unequal weights, which depend on the state."""

    def make() -> TokenMLP:
        return TokenMLP(length, 3, 16, 2, True, elastic, classes, latent=WEIGHTED)

    network = seeded(0, make)
    assert network.mixing is not None
    with torch.no_grad():
        network.mixing.layers[-1].weight.mul_(8)
        network.head.weight.mul_(8)
    return MixtureStudent(network, Absorbing(2), length, Latent(**WEIGHTED), elastic).eval()


@pytest.mark.parametrize("elastic", [False, True])
@torch.no_grad()
def test_the_law_of_a_weighted_mixture_by_brute_force(elastic: bool) -> None:
    student, x = weighted(elastic), all_states(3, 2)
    grid = torch.tensor([1.0, 0.4, 0.0], dtype=torch.float64)

    def move(a: Tensor, b: Tensor, t: float, s: float) -> float:
        told = {"step": torch.tensor(s)} if elastic else {}
        chance = 0.0
        weights = student.log_weights(a[None], torch.tensor(t), **told).double().exp()[0]
        for component, weight in enumerate(weights):
            latent = torch.tensor([[component]])
            p = student(a[None], torch.tensor(t), latent, **told).double().exp()
            rows = student.process.posterior(p, a[None], t, s)[0]
            chance += float(weight * rows[0, b[0]] * rows[1, b[1]])
        return chance

    law = torch.zeros(3, 3, dtype=torch.float64)
    for b, c in product(range(9), range(9)):
        law[tuple(x[c])] += move(x[8], x[b], 1.0, 0.4) * move(x[b], x[c], 0.4, 0.0)
    found = sampler_law(Ancestral(student), grid)
    assert torch.allclose(found, law, atol=1e-6)
    support = x[:4]
    some = law_on(Ancestral(student), [1.0, 0.0], support)
    assert torch.allclose(
        some, sampler_law(Ancestral(student), [1.0, 0.0])[tuple(support.T)], atol=1e-6
    )


def test_a_weighted_mixture_draws_its_law() -> None:
    model, n = as_token_model(weighted()), 8000
    exact = sampler_law(Ancestral(weighted()), uniform_grid(2))
    counts = joint_law(model.sample(n, 2, seed=0), torch.ones(n), 3)
    assert bool(((counts - exact).abs() < 5 * (exact / n).sqrt() + 1e-9).all())


@torch.no_grad()
def test_a_number_falls_on_components_by_their_weights() -> None:
    student = weighted()
    x, t = torch.tensor([[2, 2], [0, 2]]), torch.tensor(0.5)
    ends = student.log_weights(x, t).double().exp().cumsum(1)
    assert float((ends[0] - ends[1]).abs().max()) > 0.01
    for k in range(3):
        below = ends[:, [k]] - 1e-6
        assert student.hear(x, t, below).tolist() == [[k], [k]]  # type: ignore[union-attr]
        component = torch.full((2, 1), k)
        assert torch.equal(student(x, t, below), student(x, t, component))
    assert student.hear(x, t, None) is None
    plain = MixtureStudent(
        TokenMLP(2, 3, 16, latent={"kind": "uniform", "size": 1}), Absorbing(2), 2, Latent()
    )
    assert plain.hear(x, t, ends[:, :1]) is not None
    assert torch.equal(plain.hear(x, t, ends[:, :1]), ends[:, :1])  # type: ignore[arg-type]


@torch.no_grad()
def test_guidance_asks_both_for_one_component() -> None:
    """The condition moves the weights: the same number need not be the same component."""
    student = weighted(classes=2)
    null = {"class_labels": torch.tensor([2])}
    guided = GuidedTokens(student, 2.0, null)
    x, t = torch.full((200, 2), 2), torch.tensor(0.5)
    told = {"class_labels": torch.zeros(200, dtype=torch.int64)}
    numbers = (torch.arange(200)[:, None] + 0.5) / 200
    heard = guided.hear(x, t, numbers, **told)
    assert heard is not None
    none = {"class_labels": null["class_labels"].expand(200)}
    assert not torch.equal(heard, student.hear(x, t, numbers, **none))  # type: ignore[arg-type]
    own, base = student(x, t, heard, **told), student(x, t, heard, **none)
    expected = (base + 2 * (own - base))[..., :2].log_softmax(-1)
    torch.testing.assert_close(guided(x, t, numbers, **told)[..., :2], expected)


def test_weights_are_saved_with_the_network(tmp_path: Path) -> None:
    model = as_token_model(weighted())
    model.save_pretrained(tmp_path)
    again = TokenModel.from_pretrained(tmp_path)
    assert again.denoiser.latent == Latent("weighted", 3)
    assert torch.equal(again.sample(50, 2, seed=1), model.sample(50, 2, seed=1))


def test_what_has_no_weights_is_refused() -> None:
    process, network = Absorbing(2), TokenMLP(2, 3, 16)
    with pytest.raises(SigdegError, match="TokenMLP has no weights of components"):
        MixtureStudent(network, process, 2, Latent("weighted", 4))
    x, t = torch.full((1, 2), 2), torch.tensor(1.0)
    for product_ in (
        NetworkTokenDenoiser(network, process, 2),
        MixtureStudent(network, process, 2, Latent("categorical", 4)),
    ):
        with pytest.raises(SigdegError, match="weighs no components"):
            product_.log_weights(x, t)
    with pytest.raises(SigdegError, match="size of the latent must be at least 2"):
        Latent("weighted", 1)
