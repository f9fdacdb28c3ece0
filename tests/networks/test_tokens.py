"""Networks of tokens: what they are told, what a student takes over, that a mixture can learn."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from sigdeg.errors import SigdegError
from sigdeg.files import load_weights, save_model
from sigdeg.networks import (
    TokenMLP,
    TokenNetwork,
    TokenTransformer,
    TokenUNet,
    build_network,
    class_labels,
    network_config,
    with_latent,
)
from sigdeg.networks.latent import LatentEmbedding
from sigdeg.networks.tokens import Attention
from sigdeg.rng import seeded

STATES = 5
MAKE: dict[str, Callable[..., TokenNetwork]] = {
    "mlp": lambda **told: TokenMLP(32, STATES, 16, 2, **told),
    "transformer": lambda **told: TokenTransformer(32, STATES, 16, 2, 4, **told),
    "unet": lambda **told: TokenUNet((4, 8), STATES, 16, **told),
}
LATENTS: dict[str, dict[str, Any]] = {
    "uniform": {"kind": "uniform", "size": 2},
    "gaussian": {"kind": "gaussian", "size": 3},
    "categorical": {"kind": "categorical", "size": 4},
    "weighted": {"kind": "weighted", "size": 4},
}
networks = pytest.mark.parametrize("name", MAKE)
WAYS = [(name, inject) for name, make in MAKE.items() for inject in make().ways]
injected = pytest.mark.parametrize(("name", "inject"), WAYS)


def latents(kind: str, n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind in ("categorical", "weighted"):
        return (torch.arange(n)[:, None] + seed) % 4
    return torch.rand(n, LATENTS[kind]["size"], generator=generator)


def tokens(n: int, length: int = 32) -> Tensor:
    return torch.randint(STATES, (n, length), generator=torch.Generator().manual_seed(1))


@injected
@pytest.mark.parametrize("kind", LATENTS)
def test_all_that_a_network_is_told_reaches_its_logits(name: str, inject: str, kind: str) -> None:
    torch.manual_seed(0)
    told = {"timed": True, "elastic": True, "classes": 3, "latent": LATENTS[kind]}
    network = MAKE[name](**told, inject=inject).double()
    x, given = tokens(4), latents(kind, 4)
    t, s = torch.tensor([0.2, 0.5, 0.9, 1.0]), torch.tensor([0.0, 0.1, 0.2, 0.3])
    labels = torch.tensor([0, 1, 2, 3])
    logits = network(x, t, given, s, labels)
    assert logits.shape == (4, 32, STATES)
    assert logits.dtype == torch.float64
    (logits * torch.randn_like(logits)).sum().backward()
    for part, parameter in network.named_parameters():
        if part.startswith("mixing."):
            continue
        assert float(parameter.grad.abs().max()) > 0, part
    for other in (
        network((x + 1) % STATES, t, given, s, labels),
        network(x, t / 2, given, s, labels),
        network(x, t, latents(kind, 4, 1), s, labels),
        network(x, t, given, s + 0.1, labels),
        network(x, t, given, s, (labels + 1) % 4),
    ):
        assert float((other - logits).detach().abs().amax(dim=(1, 2)).min()) > 1e-4
    # A sample depends on its own row alone; a time may be one for all; no label is the last one.
    one = network(x[3:], 1.0, given[3:], 0.3)
    torch.testing.assert_close(one, logits[3:])


@networks
def test_all_that_a_network_is_told_reaches_the_weights_of_its_components(name: str) -> None:
    torch.manual_seed(0)
    told = {"timed": True, "elastic": True, "classes": 3, "latent": LATENTS["weighted"]}
    network = MAKE[name](**told).double()
    x, labels = tokens(4), torch.tensor([0, 1, 2, 3])
    t, s = torch.tensor([0.2, 0.5, 0.9, 1.0]), torch.tensor([0.0, 0.1, 0.2, 0.3])
    weights = network.log_weights(x, t, s, labels)
    assert weights.shape == (4, 4)
    torch.testing.assert_close(weights.exp().sum(1), torch.ones(4, dtype=torch.float64))
    for other in (
        network.log_weights((x + 1) % STATES, t, s, labels),
        network.log_weights(x.flip(1), t, s, labels),
        network.log_weights(x, t / 2, s, labels),
        network.log_weights(x, t, s + 0.1, labels),
        network.log_weights(x, t, s, (labels + 1) % 4),
    ):
        assert float((other - weights).detach().abs().amax(1).min()) > 1e-4
    torch.testing.assert_close(network.log_weights(x[3:], 1.0, 0.3), weights[3:])
    weights[:, 0].sum().backward()
    assert network.mixing is not None
    for part, parameter in network.mixing.named_parameters():
        assert float(parameter.grad.abs().max()) > 0, part
    plain = MAKE[name](latent=LATENTS["weighted"])
    assert plain.log_weights(x, 0.5).shape == (4, 4)


@injected
def test_a_student_takes_over_every_weight_and_listens_to_its_latent(
    name: str, inject: str
) -> None:
    torch.manual_seed(0)
    teacher = MAKE[name](timed=True, classes=2).double().eval()

    def make() -> TokenNetwork:
        return with_latent(teacher, LATENTS["uniform"], inject, elastic=True)

    student, again = seeded(3, make), seeded(3, make)
    own = student.state_dict()
    assert all(torch.equal(own[part], value) for part, value in teacher.state_dict().items())
    assert all(torch.equal(own[part], value) for part, value in again.state_dict().items())
    assert not student.training
    x = tokens(4)
    first, second = (student(x, 0.5, latents("uniform", 4, i), 0.0) for i in (0, 1))
    assert float((first - second).detach().abs().amax(dim=(1, 2)).min()) > 1e-4
    with torch.no_grad():  # what is new is what makes the difference, and all of it
        for part, value in student.named_parameters():
            new = part not in teacher.state_dict()
            value.mul_(0 if new or (inject == "token" and "attention.outside" in part) else 1)
    if inject == "token":  # without attention a further token is seen by none
        with torch.no_grad():
            for part, value in teacher.named_parameters():
                value.mul_(0 if "attention.outside" in part else 1)
    torch.testing.assert_close(student(x, 0.5, latents("uniform", 4), 0.0), teacher(x, 0.5))


@networks
def test_a_student_is_the_next_teacher(name: str) -> None:
    torch.manual_seed(0)
    first = with_latent(MAKE[name](), LATENTS["gaussian"])
    second = with_latent(first, LATENTS["gaussian"])
    x, given = tokens(3), latents("gaussian", 3)
    assert torch.equal(first(x, 0.5, given), second(x, 0.5, given))
    other = with_latent(first, LATENTS["categorical"])
    assert network_config(other)["config"]["latent"] == LATENTS["categorical"]
    weighted = with_latent(other, LATENTS["weighted"])
    again = with_latent(weighted, LATENTS["weighted"])
    assert torch.equal(weighted.log_weights(x, 0.5), again.log_weights(x, 0.5))
    kept = {k: v for k, v in first.state_dict().items() if not k.startswith("latent.")}
    assert all(torch.equal(other.state_dict()[k], v) for k, v in kept.items())
    assert other(x, 0.5, latents("categorical", 3)).shape == (3, 32, STATES)
    plain = with_latent(first, None)
    assert set(plain.state_dict()) <= set(first.state_dict())
    with pytest.raises(SigdegError, match="Linear takes no latent: it is no network of tokens"):
        with_latent(nn.Linear(1, 1), LATENTS["gaussian"])


@networks
def test_networks_are_built_again_from_their_file(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = MAKE[name](classes=2, latent=LATENTS["uniform"], elastic=True)
    save_model(tmp_path, network_config(network), network.state_dict())
    read = json.loads((tmp_path / "config.json").read_text())
    again = build_network(read, tmp_path / "model.safetensors")
    load_weights(again, tmp_path / "model.safetensors", config=read)
    x, given = tokens(3), latents("uniform", 3)
    assert torch.equal(again(x, 0.5, given, 0.1), network(x, 0.5, given, 0.1))
    assert class_labels(again) == [0, 1]
    assert class_labels(MAKE[name]()) is None


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    own, torchs = Attention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    weights = {"in_proj_weight": own.inside.weight, "in_proj_bias": own.inside.bias}
    weights |= {"out_proj.weight": own.outside.weight, "out_proj.bias": own.outside.bias}
    torchs.load_state_dict(weights)
    h = torch.randn(2, 7, 12)
    torch.testing.assert_close(own(h), torchs(h, h, h, need_weights=False)[0])


def test_latents_are_embedded_as_documented() -> None:
    torch.manual_seed(0)
    made = [LatentEmbedding(**v, width=6) for v in LATENTS.values()]
    uniform, gaussian, categorical, weighted = made
    x = torch.rand(5, 2, dtype=torch.float64)
    features = [get_timestep_embedding(1000 * c.float(), 64, downscale_freq_shift=0) for c in x.T]
    torch.testing.assert_close(
        uniform(x), uniform.layers(torch.cat(features, 1)), rtol=0, atol=1e-4
    )
    z = torch.randn(5, 3)
    torch.testing.assert_close(gaussian(z), z @ gaussian.layers.weight.T + gaussian.layers.bias)
    k = torch.tensor([[2], [0]])
    for index in (k, k.double()):
        assert torch.equal(categorical(index), categorical.layers.weight[k[:, 0]])
        assert torch.equal(weighted(index), weighted.layers.weight[k[:, 0]])


def test_pixels_keep_their_places() -> None:
    """Six convolutions see six patches to each side; what looks everywhere is taken out."""
    torch.manual_seed(0)
    network = TokenUNet((4, 40), STATES, 16, timed=False)
    nn.init.zeros_(network.grow.weight)
    for block in (*network.down, *network.up):
        block.norms = nn.ModuleList([nn.Identity(), nn.Identity()])
    network.exit[0] = nn.Identity()
    x = tokens(1, 160)
    for row, column in ((0, 0), (3, 17), (1, 39)):
        other = x.clone()
        other[0, 40 * row + column] = (x[0, 40 * row + column] + 1) % STATES
        moved = (network(other) - network(x)).detach().abs().sum(2).unflatten(1, (4, 40))[0]
        patch = torch.arange(40) // 2 - column // 2
        assert torch.equal((moved > 0).all(0), patch.abs() <= 6)
        assert torch.equal((moved > 0).any(0), patch.abs() <= 6)


def test_what_networks_cannot_take_is_one_line() -> None:
    uniform, x = LATENTS["uniform"], tokens(2)
    plain, student = TokenMLP(32, STATES), TokenMLP(32, STATES, elastic=True, latent=uniform)
    for call, line in (
        (lambda: plain(tokens(2, 7), 0.5), r"takes tokens \(batch, 32\), got \(2, 7\)"),
        (lambda: plain(x, 0.5, latents("uniform", 2)), "takes no latent"),
        (lambda: plain(x, 0.5, step=0.1), "takes no step"),
        (lambda: student.log_weights(x, 0.5, 0.1), "weighs no components"),
        (lambda: plain(x, 0.5, class_labels=torch.zeros(2)), "knows no classes"),
        (lambda: student(x, 0.5, step=0.1), "has to be given its latent"),
        (lambda: student(x, 0.5, latents("uniform", 2)), "has to be given its step"),
        (lambda: student(x, 0.5, torch.rand(2, 3), 0.1), r"uniform latents of shape \(batch, 2\)"),
        (lambda: TokenMLP(32, STATES, latent={"kind": "beta", "size": 1}), "choose from uniform"),
        (lambda: TokenMLP(32, STATES, latent={"kind": "uniform", "size": 0}), "at least 1, got 0"),
        (lambda: TokenMLP(32, STATES, inject="film", latent={}), "latent must have a kind"),
        (lambda: TokenMLP(32, STATES, inject="layer"), "choose from token, add, film"),
        (lambda: TokenTransformer(32, STATES, 16, heads=3), "16 cannot be divided by 3 heads"),
        (lambda: TokenUNet((28, 27), STATES), "28 x 27 do not divide into patches of 2"),
        (
            lambda: build_network({"class": "TokenTransformer", "config": {"depth": 10**9}}),
            "depth must be a whole number from 0 to 1,024",
        ),
    ):
        with pytest.raises(SigdegError, match=line) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inject", TokenMLP.ways)
def test_a_mixture_learns_what_no_product_can(inject: str) -> None:
    """Two bits that are one: from both masked, a product is a distance of a half away."""
    torch.manual_seed(0)
    latent = {"kind": "uniform", "size": 1}
    network = with_latent(TokenMLP(2, 3, 32, 2, timed=False), latent, inject)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)

    def log_joint(latent: Tensor) -> Tensor:
        masked = torch.full((len(latent), 2), 2)
        log_p = network(masked, latent=latent)[..., :2].log_softmax(-1)
        return log_p.sum(1).logsumexp(0) - math.log(len(latent))  # of both zero, both one

    for _ in range(150):
        loss = -log_joint((torch.arange(32)[:, None] + torch.rand(32, 1)) / 32).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = log_joint((torch.arange(4096)[:, None] + 0.5) / 4096).exp().detach()
    distance = ((found - 0.5).abs().sum() + 1 - found.sum()) / 2
    assert float(distance) < 0.25
