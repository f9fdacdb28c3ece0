"""Partial signatures against closed forms, exact algebra and independent libraries."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pysiglib
import pytest
import torch
import torchsde
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from torch import Generator, Tensor

from sigdeg.errors import SigdegError
from sigdeg.rng import randn
from sigdeg.signature import PartialSignature, gauss_legendre, legendre_basis, restriction

ORDERS = st.integers(1, 8)
LENGTHS = st.floats(0.05, 1.0)
SHAPES = st.sampled_from([(3,), (2, 4), (1, 1), (2, 1, 2, 3)])
SEEDS = st.integers(0, 2**32 - 1)  # a CPU generator sees no more bits than these

properties = settings(deadline=None, max_examples=25, derandomize=True)


class Path(NamedTuple):
    """A Brownian path over unequal fine steps, in float64."""

    dW: Tensor
    dt: Tensor

    def signature(self, order: int, start: int = 0, stop: int | None = None) -> PartialSignature:
        return PartialSignature.from_increments(
            self.dW[:, start:stop], self.dt[start:stop], order=order
        )


@st.composite
def paths(draw: st.DrawFn, min_steps: int = 1) -> Path:
    dt = torch.tensor(draw(st.lists(LENGTHS, min_size=min_steps, max_size=12)), dtype=torch.float64)
    batch, *rest = draw(SHAPES)
    dW = randn((batch, len(dt), *rest), generator(draw(SEEDS)), torch.float64)
    return Path(dW * dt.sqrt().reshape(-1, *(1,) * len(rest)), dt)


def generator(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def close(actual: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def same(actual: PartialSignature, expected: PartialSignature) -> None:
    close(actual.dt, expected.dt)
    close(actual.coefficients, expected.coefficients)


def words(order: int) -> list[tuple[int, int]]:
    """(before, after) of every word with one Brownian letter that the order reaches."""
    return [(i, n - i) for n in range(order) for i in range(n + 1)]


def unit(order: int, dt: float) -> PartialSignature:
    """A batch of unit coefficient vectors: it turns a linear functional into its weights."""
    return PartialSignature(
        torch.tensor(dt, dtype=torch.float64), torch.eye(order, dtype=torch.float64)
    )


# --- the basis ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", range(1, 9))
def test_basis_is_scipys_shifted_legendre_and_orthonormal(order: int) -> None:
    v, w = gauss_legendre(order)
    basis = legendre_basis(order, v)
    degree = np.arange(order)
    close(
        basis,
        torch.from_numpy(
            np.sqrt(2 * degree + 1) * special.eval_sh_legendre(degree, v.numpy()[:, None])
        ),
    )
    close(basis.T @ (w[:, None] * basis), torch.eye(order, dtype=torch.float64))


@properties
@given(ORDERS, st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12))
def test_restrictions_of_a_partition_keep_the_standard_normal_law(
    order: int, lengths: list[float]
) -> None:
    """Sum of R R^T = I (of two parts, L L^T + R R^T = I): folding N(0, I) gives N(0, I)."""
    ends = torch.tensor([0.0, *lengths], dtype=torch.float64).cumsum(0)
    ends = ends / ends[-1]
    R = restriction(order, ends[:-1], ends[1:])
    assert torch.equal(R, R.tril())
    close(torch.einsum("nij,nkj->ik", R, R), torch.eye(order, dtype=torch.float64))


# --- law ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("h", [0.02, 1.0, 3.0])
def test_covariance_of_increment_and_time_integral(h: float) -> None:
    """Lemma 4: (W, A) ~ N(0, [[h, h^2/2], [h^2/2, h^3/3]]), within 5 standard errors."""
    n = 400_000
    signature = PartialSignature.sample(h, (n,), generator=generator(0), dtype=torch.float64)
    W, A = signature.W, signature.time_integral
    expected = torch.tensor([[h, h**2 / 2], [h**2 / 2, h**3 / 3]], dtype=torch.float64)
    # A product of two centred Gaussians has variance S_ii S_jj + S_ij^2 (Isserlis).
    variances = expected.diag()
    error = ((torch.outer(variances, variances) + expected**2) / n).sqrt()
    x = torch.stack([W, A])
    assert ((x @ x.T / n - expected).abs() < 5 * error).all()
    assert (x.mean(1).abs() < 5 * (variances / n).sqrt()).all()


@pytest.mark.parametrize("h", [0.3, 2.0])
def test_covariance_of_every_pair_of_words_by_ito_isometry(h: float) -> None:
    """The covariance of t^i W t^j and t^p W t^q is a Beta function of the letter counts."""
    order = 6
    signature = unit(order, h)
    weights = torch.stack([signature.iterated_integral(*word) for word in words(order)])
    expected = [
        [
            h ** (i + j + p + q + 1)
            * special.beta(i + p + 1, j + q + 1)
            / math.prod(map(math.factorial, (i, j, p, q)))
            for p, q in words(order)
        ]
        for i, j in words(order)
    ]
    close(weights @ weights.T, torch.tensor(expected, dtype=torch.float64))
    H = signature.levy_area
    close(torch.stack([H @ H, H @ signature.W]), torch.tensor([h / 12, 0], dtype=torch.float64))


def test_steps_dimensions_and_coefficients_are_independent_standard_normals() -> None:
    """Two consecutive steps of one stream, two dimensions, order 3: twelve independent N(0, 1)."""
    n, source = 100_000, generator(1)
    steps = [PartialSignature.sample(h, (n, 2), 3, source, torch.float64) for h in (0.1, 0.7)]
    x = torch.cat([s.coefficients.flatten(1) for s in steps], dim=1)
    identity = torch.eye(12, dtype=torch.float64)
    assert ((x.T @ x / n - identity).abs() < 5 * ((1 + identity) / n).sqrt()).all()
    assert stats.kstest(x.flatten().numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (0.25, 0.85)])
def test_increment_and_levy_area_have_the_law_of_torchsde(start: float, stop: float) -> None:
    n, h = 50_000, stop - start
    motion = torchsde.BrownianInterval(
        size=(n,), dtype=torch.float64, entropy=2, levy_area_approximation="space-time"
    )
    W, U = motion(start, stop, return_U=True)
    theirs = torch.stack([W / h**0.5, (U / h - W / 2) * (12 / h) ** 0.5])
    signature = PartialSignature.sample(h, (n,), generator=generator(3), dtype=torch.float64)
    ours = torch.stack([signature.W / h**0.5, signature.levy_area * (12 / h) ** 0.5])
    error = ((1 + torch.eye(2, dtype=torch.float64)) * 2 / n).sqrt()  # of two sample covariances
    assert ((ours @ ours.T / n - theirs @ theirs.T / n).abs() < 5 * error).all()
    # The diagonals see the joint law, not only the two marginals.
    for direction in ([1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]):
        d = torch.tensor(direction, dtype=torch.float64)
        assert stats.ks_2samp(d @ ours, d @ theirs).pvalue > 1e-3


# --- algebra --------------------------------------------------------------------------------------


@properties
@given(paths(min_steps=2), ORDERS, st.data())
def test_concatenation_is_the_fold_over_the_whole_path(
    path: Path, order: int, data: st.DataObject
) -> None:
    split = data.draw(st.integers(1, len(path.dt) - 1))
    whole = path.signature(order)
    same(
        PartialSignature.concatenate(path.signature(order, 0, split), path.signature(order, split)),
        whole,
    )
    pieces = [path.signature(order, n, n + 1) for n in range(len(path.dt))]
    same(PartialSignature.fold(pieces), whole)


@properties
@given(ORDERS, SHAPES, st.tuples(LENGTHS, LENGTHS, LENGTHS), SEEDS)
def test_concatenation_is_associative(
    order: int, shape: tuple[int, ...], lengths: tuple[float, ...], seed: int
) -> None:
    source, join = generator(seed), PartialSignature.concatenate
    a, b, c = (PartialSignature.sample(h, shape, order, source, torch.float64) for h in lengths)
    same(join(join(a, b), c), join(a, join(b, c)))
    same(join(join(a, b), c), PartialSignature.fold([a, b, c]))


@properties
@given(ORDERS, SHAPES, LENGTHS, LENGTHS, SEEDS)
def test_chen_at_order_two_and_truncation(
    order: int, shape: tuple[int, ...], h1: float, h2: float, seed: int
) -> None:
    """W = W1 + W2 and A = A1 + A2 + h2 W1; a lower order neither needs nor changes the rest."""
    source = generator(seed)
    first, second = (
        PartialSignature.sample(h, shape, order + 1, source, torch.float64) for h in (h1, h2)
    )
    joined = PartialSignature.concatenate(first, second)
    close(joined.W, first.W + second.W)
    close(joined.time_integral, first.time_integral + second.time_integral + h2 * first.W)
    same(
        joined.truncate(order),
        PartialSignature.concatenate(first.truncate(order), second.truncate(order)),
    )


@properties
@given(ORDERS, SHAPES, LENGTHS, SEEDS)
def test_shuffle_identity(order: int, shape: tuple[int, ...], h: float, seed: int) -> None:
    """Eq. 23, h W = S(tW) + S(Wt), and its extension h^n / n! W = sum of S(t^i W t^(n-i))."""
    signature = PartialSignature.sample(h, shape, order, generator(seed), torch.float64)
    for n in range(order):
        total = sum(signature.iterated_integral(i, n - i) for i in range(n + 1))
        assert isinstance(total, Tensor)
        close(total, h**n / math.factorial(n) * signature.W)


@properties
@given(paths(), ORDERS)
def test_words_agree_with_pysiglib(path: Path, order: int) -> None:
    """Every word with one Brownian letter, on the time-augmented piecewise linear path."""
    dW = path.dW.movedim(1, -1)
    steps = torch.stack([dW, path.dt.expand_as(dW)], dim=-1).flatten(0, -3)
    points = torch.cat([torch.zeros_like(steps[:, :1]), steps.cumsum(1)], dim=1)
    letters = [(1,) * before + (0,) + (1,) * after for before, after in words(order)]
    expected = torch.as_tensor(pysiglib.sig_coef(points.contiguous(), letters))
    signature = path.signature(order)
    actual = torch.stack([signature.iterated_integral(*word) for word in words(order)], dim=-1)
    close(actual.reshape(expected.shape), expected, atol=1e-10)
    close(signature.W, signature.iterated_integral())
    if order > 1:
        close(signature.time_integral, signature.iterated_integral(0, 1))


def test_concatenation_agrees_with_torchsde_on_one_path() -> None:
    motion = torchsde.BrownianInterval(
        size=(8,), dtype=torch.float64, entropy=4, levy_area_approximation="space-time"
    )

    def signature(start: float, stop: float) -> PartialSignature:
        (W, U), h = motion(start, stop, return_U=True), stop - start
        H = U / h - W / 2
        coefficients = torch.stack([W / h**0.5, -H * (12 / h) ** 0.5], dim=1)
        return PartialSignature(torch.tensor(h, dtype=torch.float64), coefficients)

    parts = [signature(a, b) for a, b in [(0.0, 0.3), (0.3, 0.45), (0.45, 1.0)]]
    same(PartialSignature.fold(parts), signature(0.0, 1.0))


def test_interpolated_path_loses_variance_that_vanishes_with_the_square_of_the_step() -> None:
    def lost(steps: int) -> Tensor:
        dW = torch.eye(steps, dtype=torch.float64) * steps**-0.5  # increments of variance 1 / steps
        c = PartialSignature.from_increments(dW, 1 / steps, order=4).coefficients
        return torch.eye(4, dtype=torch.float64) - c.T @ c

    coarse, fine = lost(64), lost(128)
    assert torch.linalg.eigvalsh(coarse).min() > -1e-12
    assert float(coarse.norm() / fine.norm()) == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize("r", [1, 2, 30])
def test_the_sum_of_algorithm_1_has_too_little_variance(r: int) -> None:
    """A as the sum of W over left ends: (1 - 1/r) (1 - 1/2r) of the variance h^3/3 of Lemma 4."""
    h, dW = 0.7, torch.eye(r, dtype=torch.float64) * (0.7 / r) ** 0.5  # an increment a row
    left = (dW.cumsum(1) - dW).sum(1) * h / r
    # The library's interpolation has the triangles too; what a step draws has the rest.
    interpolated = PartialSignature.from_increments(dW, h / r).time_integral
    close(interpolated, left + h / r / 2 * dW.sum(1))
    share = float(left.square().sum() / (h**3 / 3))
    assert share == pytest.approx((1 - 1 / r) * (1 - 1 / (2 * r)), abs=1e-12)


# --- streams, step lengths, types -----------------------------------------------------------------


@properties
@given(ORDERS, SHAPES, st.lists(SEEDS, min_size=2, max_size=5, unique=True), st.data())
def test_a_stream_per_sample_does_not_see_the_batch(
    order: int, shape: tuple[int, ...], seeds: list[int], data: st.DataObject
) -> None:
    def draw(seeds: list[int]) -> Tensor:
        streams = [generator(seed) for seed in seeds]
        steps = [
            PartialSignature.sample(0.1, (len(seeds), *shape[1:]), order, streams) for _ in range(2)
        ]
        return torch.stack([s.coefficients for s in steps], dim=1)  # (batch, step, order, *)

    whole, chosen = draw(seeds), data.draw(st.permutations(range(len(seeds))))[:-1]
    assert torch.equal(whole[chosen], draw([seeds[i] for i in chosen]))
    assert len({tuple(row.flatten().tolist()) for row in whole.flatten(0, 1)}) == 2 * len(seeds)


def test_one_generator_reproduces_moves_on_and_leaves_the_global_stream_alone() -> None:
    first, again = generator(5), generator(5)
    draws = [PartialSignature.sample(0.1, (4, 3), generator=first).coefficients for _ in range(2)]
    repeats = [PartialSignature.sample(0.1, (4, 3), generator=again).coefficients for _ in range(2)]
    assert torch.equal(torch.stack(draws), torch.stack(repeats))
    assert not torch.equal(*draws)
    torch.manual_seed(6)
    PartialSignature.sample(0.1, (4,), generator=again)
    PartialSignature.sample(0.1, (1,), generator=[again])
    drawn = PartialSignature.sample(0.1, (4, 3), order=5).coefficients
    assert torch.equal(drawn, torch.randn(4, 5, 3, generator=generator(6)))


@properties
@given(st.integers(2, 8), SHAPES, LENGTHS, SEEDS)
def test_a_vector_of_step_lengths_acts_sample_by_sample(
    order: int, shape: tuple[int, ...], h: float, seed: int
) -> None:
    c1, c2 = randn((2, shape[0], order, *shape[1:]), generator(seed), torch.float64)
    h1 = h * torch.arange(1, shape[0] + 1, dtype=torch.float64)
    h2 = torch.full_like(h1, 0.5)
    batch = PartialSignature.concatenate(PartialSignature(h1, c1), PartialSignature(h2, c2))
    mixed = PartialSignature.concatenate(PartialSignature(h1, c1), PartialSignature(h2[0], c2))
    same(mixed, batch)
    for i in range(shape[0]):
        row = slice(i, i + 1)
        alone = PartialSignature.concatenate(
            PartialSignature(h1[i], c1[row]), PartialSignature(h2[i], c2[row])
        )
        close(batch.dt[row], alone.dt[None])
        close(batch.coefficients[row], alone.coefficients)
        for name in ("W", "levy_area", "time_integral"):
            close(getattr(batch, name)[row], getattr(alone, name))
        word = (1, order - 2)
        close(batch.iterated_integral(*word)[row], alone.iterated_integral(*word))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_kept_and_only_rounds(dtype: torch.dtype) -> None:
    parts = [PartialSignature.sample(0.1, (3, 2), 4, generator(k), dtype) for k in range(5)]
    exact = [PartialSignature(p.dt.double(), p.coefficients.double()) for p in parts]
    low, high = PartialSignature.fold(parts), PartialSignature.fold(exact)
    assert low.coefficients.dtype == low.dt.dtype == low.time_integral.dtype == dtype
    close(low.coefficients.double(), high.coefficients, atol=20 * torch.finfo(dtype).eps)


# --- bad input ------------------------------------------------------------------------------------

REFUSED: dict[str, Callable[[PartialSignature], object]] = {
    "order must be at least 1, got 0": lambda s: PartialSignature.sample(0.1, (2, 3), order=0),
    "order must be at least 1, got -1": lambda s: PartialSignature.from_increments(s.W, 0.1, -1),
    "3 generators were given for a batch of 2": lambda s: PartialSignature.sample(
        0.1, (2, 3), generator=[generator(0)] * 3
    ),
    "the Levy area needs a signature of order 2": lambda s: s.truncate(1).levy_area,
    "of order 2 or more, got order 1": lambda s: s.truncate(1).time_integral,
    "a word with 3 time letters needs order 4, got 3": lambda s: s.iterated_integral(1, 2),
    "order must lie between 1 and 3, got 4": lambda s: s.truncate(4),
    "order must lie between 1 and 3, got 0": lambda s: s.truncate(0),
    "got orders [3, 2]": lambda s: PartialSignature.concatenate(s, s.truncate(2)),
    "cannot concatenate an empty sequence": lambda s: PartialSignature.fold([]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused_in_one_line(message: str) -> None:
    with pytest.raises(SigdegError, match=re.escape(message)) as caught:
        REFUSED[message](PartialSignature.sample(0.1, (2, 3), order=3))
    assert "\n" not in str(caught.value)
