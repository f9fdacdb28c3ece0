"""Losses against sums over all sequences, closed forms, and the plain way to compute them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from sigdeg.discrete import losses
from sigdeg.discrete.denoiser import FLOOR
from sigdeg.errors import SigdegError

BATCH, LATENTS, LENGTH, STATES = 2, 5, 3, 3
ALL = torch.tensor(list(itertools.product(range(STATES), repeat=LENGTH)))
LN2 = math.log(2)


def laws(*shape: int, seed: int = 0, scale: float = 1.5) -> Tensor:
    """Random log-laws in double precision."""
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator).double()).log_softmax(-1)


def mixtures(seed: int = 0) -> Tensor:
    return laws(BATCH, LATENTS, LENGTH, STATES, seed=seed)


def every(log_p: Tensor, log_w: Tensor | None = None) -> Tensor:
    """Probability of every sequence under a mixture, by its definition; (batch, S^D)."""
    p = log_p.exp()
    single = [p[:, :, d, ALL[:, d]] for d in range(LENGTH)]
    w = torch.full(p.shape[:2], 1 / p.shape[1]).double() if log_w is None else log_w.exp()
    return (w[..., None] * single[0] * single[1] * single[2]).sum(1)


def expected(log_p: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Expectations over target sequences: joint, correlation, and the plain marginal sum."""
    tokens = ALL.expand(BATCH, -1, -1)
    found, log_mean = losses.scores(log_p, tokens), losses.log_marginals(log_p)
    weight, alone = every(target), tokens[:, :, None]  # (batch, n), (batch, n, 1, D)
    pairs = range(len(ALL))
    joint = torch.stack([losses.joint(found[:, j : j + 1]) for j in pairs], 1)
    corr = torch.stack(
        [losses.correlation(found[:, j : j + 1], log_mean, alone[:, j]) for j in pairs], 1
    )
    plain = -log_mean.gather(2, tokens.mT).sum(1)
    return tuple((weight * part).sum(1) for part in (joint, corr, plain))  # type: ignore[return-value]


def test_the_joint_loss_is_the_cross_entropy_of_the_mixture() -> None:
    log_p, target = mixtures(), mixtures(1)
    joint, _, _ = expected(log_p, target)
    torch.testing.assert_close(joint, -(every(target) * every(log_p).log()).sum(1))


def test_the_control_variate_changes_no_expectation() -> None:
    """Joint = correlation + marginal loss + the target's entropies, gradients included."""
    log_p, target = mixtures().requires_grad_(), mixtures(1)
    met = target.exp().mean(1)  # the target's marginals, exact
    joint, corr, plain = expected(log_p, target)
    marginal = losses.marginal(losses.log_marginals(log_p), met)
    entropy = torch.special.entr(met).sum((1, 2))
    torch.testing.assert_close(plain, marginal + entropy)
    torch.testing.assert_close(joint, corr + marginal + entropy)
    (one,) = torch.autograd.grad(joint.sum(), log_p, retain_graph=True)
    (other,) = torch.autograd.grad((corr + marginal).sum(), log_p)
    torch.testing.assert_close(one, other)


def test_weights_are_those_of_the_latents() -> None:
    log_p, log_w = mixtures(), laws(BATCH, LATENTS, seed=5)
    tokens = ALL.expand(BATCH, -1, -1)
    found, law = losses.scores(log_p, tokens), every(log_p, log_w)
    torch.testing.assert_close(losses.joint(found, log_w), -law.log().mean(1))
    log_mean = losses.log_marginals(log_p, log_w, limit=1)
    for d in range(LENGTH):
        share = torch.stack([law[:, ALL[:, d] == v].sum(1) for v in range(STATES)], 1)
        torch.testing.assert_close(log_mean[:, d].exp(), share)
    corr = losses.correlation(found, log_mean, tokens, log_w)
    alone = log_mean.gather(2, tokens.mT).sum(1)
    torch.testing.assert_close(corr, (alone - law.log()).mean(1))
    target = laws(BATCH, LENGTH, STATES, seed=4).exp()
    each = torch.stack([losses.marginal(log_p[:, i], target) for i in range(LATENTS)], 1)
    torch.testing.assert_close(losses.distil(log_p, target, log_w), (log_w.exp() * each).sum(1))
    one = torch.full((BATCH, LATENTS), -1e3).double()
    one[:, 2] = 0
    size = losses.effective_size(found, one)
    torch.testing.assert_close(size, torch.ones_like(size))


def test_marginals_sum_over_latents_and_the_joint_law_over_positions_first() -> None:
    log_p = mixtures()
    joint = every(log_p)
    for d in range(LENGTH):
        share = torch.stack([joint[:, ALL[:, d] == v].sum(1) for v in range(STATES)], 1)
        torch.testing.assert_close(losses.log_marginals(log_p)[:, d].exp(), share)


def test_chunks_change_neither_losses_nor_gradients() -> None:
    tokens = torch.randint(STATES, (BATCH, 4, LENGTH), generator=torch.Generator().manual_seed(2))
    found, gradients = [], []
    for limit in (losses.LIMIT, 2 * BATCH * LENGTH * 4 * 8, 1):
        log_p = mixtures().requires_grad_()
        score = losses.scores(log_p, tokens, limit)
        log_mean = losses.log_marginals(log_p, limit=limit)
        loss = losses.correlation(score, log_mean, tokens) + losses.marginal(
            log_mean, laws(BATCH, LENGTH, STATES, seed=3).exp()
        )
        found.append(loss)
        gradients += torch.autograd.grad(loss.sum(), log_p)
    for other, gradient in zip(found[1:], gradients[1:], strict=True):
        torch.testing.assert_close(other, found[0])
        torch.testing.assert_close(gradient, gradients[0])


def test_chunks_stay_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is gathered at a time takes no more bytes than it may."""
    sizes, gather = [], losses.gather

    def watched(log_p: Tensor, tokens: Tensor) -> Tensor:
        sizes.append(log_p.shape[1] * tokens.numel() * log_p.element_size())
        return gather(log_p, tokens)

    monkeypatch.setattr(losses, "gather", watched)
    tokens = torch.zeros(BATCH, 4, LENGTH, dtype=torch.int64)
    limit = 2 * tokens.numel() * 8
    losses.scores(mixtures(), tokens, limit)
    assert sizes == [limit, limit, limit // 2]


def test_one_latent_is_a_product() -> None:
    log_p = mixtures()[:, :1]
    tokens = ALL.expand(BATCH, -1, -1)
    found = losses.scores(log_p, tokens)
    corr = losses.correlation(found, losses.log_marginals(log_p), tokens)
    torch.testing.assert_close(corr, torch.zeros(BATCH).double())
    target = laws(BATCH, LENGTH, STATES, seed=4).exp()
    torch.testing.assert_close(
        losses.distil(log_p, target), losses.marginal(losses.log_marginals(log_p), target)
    )


def test_the_bound_by_convexity_is_above_the_divergence() -> None:
    """KL of a product to the mixture, summed over all sequences."""
    log_p, target = mixtures(), laws(BATCH, LENGTH, STATES, seed=4)
    product = every(target[:, None])
    divergence = (product * (product / every(log_p)).log()).sum(1)
    assert bool((losses.distil(log_p, target.exp()) > divergence).all())
    alike = log_p[:, :1].expand(-1, LATENTS, -1, -1)
    divergence = (product * (product / every(alike)).log()).sum(1)
    torch.testing.assert_close(losses.distil(alike, target.exp()), divergence)


def two_bits(apart: float, latents: int) -> Tensor:
    """Half of the latents say 00, the others 11, each bit wrong with a probability."""
    p = torch.full((1, latents, 2, 2), apart, dtype=torch.float64)
    p[:, : latents // 2, :, 0] = p[:, latents // 2 :, :, 1] = 1 - apart
    return p.log()


@pytest.mark.parametrize("r", [0.5, 0.25, 0.1])
def test_what_a_student_deaf_to_its_latent_has_to_learn(r: float) -> None:
    r"""ln 2 - h(mu), $\mu = \frac12 ((1 - r)^2 + r^2)$: .1308 at r = 1/2, where both are masked.

    The teacher moves each of two equal bits with probability r; the student ends: both stay
    masked, one falls and the other follows it, or both fall, at random.
    """
    unequal = ((1 - r) ** 2 + r**2) / 2
    equal = (1 - unequal) / 2
    chance = torch.tensor([equal, unequal / 2, unequal / 2, equal], dtype=torch.float64)
    tokens = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])[None]
    log_p = torch.full((1, 4, 2, 2), -LN2, dtype=torch.float64)
    found = losses.scores(log_p, tokens)
    joint = torch.cat([losses.joint(found[:, j : j + 1]) for j in range(4)])
    entropy = torch.special.entr(chance).sum()
    divergence = float((chance * joint).sum() - entropy)
    binary = -unequal * math.log(unequal) - (1 - unequal) * math.log(1 - unequal)
    assert divergence == pytest.approx(LN2 - binary, abs=1e-12)
    if r == 0.5:
        assert divergence == pytest.approx(0.1308, abs=5e-5)


def test_the_correlation_loss_ends_at_minus_the_total_correlation() -> None:
    r"""$-t^2 \ln 2$ of two equal bits at time t: both are masked with probability $t^2$."""
    t = 0.6
    tokens = torch.tensor([[[0, 0], [1, 1]]])
    both = two_bits(1e-12, 2)
    one = torch.tensor([[[[0.0, FLOOR], [0.0, FLOOR]]]]).double().expand(1, 2, 2, 2)  # 0 is seen
    value = []
    for log_p, drawn in ((both, tokens), (one, tokens[:, :1])):
        found, log_mean = losses.scores(log_p, drawn), losses.log_marginals(log_p)
        value.append(float(losses.correlation(found, log_mean, drawn)))
    assert t**2 * value[0] + (1 - t**2) * value[1] == pytest.approx(-(t**2) * LN2, abs=1e-9)


def test_two_latents_drawn_at_random_learn_nothing() -> None:
    r"""With $z = a (1 - a)$ their loss is $-\frac12 \ln \frac{z (1 - 2 z)}{2}$, least at 1/4.

    That is a = 1/2, no mixture at all. Two that always stand for different modes learn it.
    """
    tokens = torch.tensor([[[0, 0], [1, 1]]])

    def loss(a: float, counts: list[tuple[int, float]]) -> float:
        total = 0.0
        for zeros, chance in counts:  # so many of two latents fall into the part that says 00
            p = two_bits(a, 2)[:, [0] * zeros + [1] * (2 - zeros)]
            total += chance * float(losses.joint(losses.scores(p, tokens)))
        return total

    chances = [(0, 0.25), (1, 0.5), (2, 0.25)]
    grid = torch.linspace(0.01, 0.5, 50).tolist()
    for a in grid:
        z = a * (1 - a)
        assert loss(a, chances) == pytest.approx(-math.log(z * (1 - 2 * z) / 2) / 2, abs=1e-9)
    assert min(grid, key=lambda a: loss(a, chances)) == pytest.approx(0.5)
    assert min(grid, key=lambda a: loss(a, [(1, 1.0)])) == pytest.approx(0.01)


def test_what_cannot_be_leaves_gradients_finite() -> None:
    log_p = torch.full((1, 4, 2, 3), FLOOR)
    log_p[..., 0] = 0.0
    log_p.requires_grad_()
    tokens = torch.tensor([[[2, 2], [0, 1]]])
    target = torch.tensor([0.0, 0.0, 1.0]).expand(1, 2, 3)
    found, log_mean = losses.scores(log_p, tokens), losses.log_marginals(log_p)
    total = losses.correlation(found, log_mean, tokens) + losses.distil(log_p, target)
    (total + losses.marginal(log_mean, target)).sum().backward()
    assert log_p.grad is not None
    assert bool(log_p.grad.isfinite().all())
    certain = torch.tensor([1.0, 0.0, 0.0]).expand(1, 2, 3)
    assert float(losses.marginal(log_mean, certain).detach()) < 1e-6


def test_the_effective_size_counts_the_latents_that_learn() -> None:
    equal, one = torch.zeros(1, 1, 8), torch.zeros(1, 1, 8)
    one[..., 3] = 100
    half = two_bits(1e-9, 8)
    assert float(losses.effective_size(equal)) == pytest.approx(8)
    assert float(losses.effective_size(one)) == pytest.approx(1)
    found = losses.effective_size(losses.scores(half, torch.tensor([[[0, 0]]])))
    assert float(found) == pytest.approx(4)


def test_tokens_of_another_shape_are_refused() -> None:
    with pytest.raises(SigdegError, match=r"are \(2, K, 3\), got \(2, 4\)"):
        losses.scores(mixtures(), torch.zeros(2, 4, dtype=torch.int64))
