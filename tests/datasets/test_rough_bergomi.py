"""Rough Bergomi against exact laws, an exact simulation of its own, and damaged files."""

import gc
import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.polynomial.legendre import leggauss
from numpy.typing import NDArray
from scipy import integrate, special
from torch import Generator, Tensor

from sigdeg.datasets import RoughBergomi, rough_bergomi, rough_bergomi_split
from sigdeg.errors import SigdegError
from sigdeg.metrics import implied_volatility

Floats = NDArray[np.float64]
EXPONENTS = pytest.mark.parametrize("a", [-0.45, -0.35, -0.1, 0.0, 0.2, 0.45])


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def covariance(a: float, s: Floats, t: Floats) -> Floats:
    """Cov(Y_s, Y_t) = (2a + 1) int_0^s (t - u)^a (s - u)^a du for s <= t, in closed form."""
    hypergeometric = special.hyp2f1(-a, 1, a + 2, s / t)
    return (2 * a + 1) / (a + 1) * s ** (a + 1) * t**a * hypergeometric


def with_noise(a: float, s: Floats, t: Floats) -> Floats:
    """Cov(W_s, Y_t) = sqrt(2a + 1) int_0^min(s, t) (t - u)^a du."""
    before = t ** (a + 1) - (t - np.minimum(s, t)) ** (a + 1)
    return math.sqrt(2 * a + 1) / (a + 1) * before


def exact_law(a: float, t: Floats) -> Floats:
    """The covariance of (W, Y) at times t, with shape (2 len(t), 2 len(t))."""
    s, u = np.meshgrid(t, t, indexing="ij")
    cross = with_noise(a, s, u)
    own = covariance(a, np.minimum(s, u), np.maximum(s, u))
    return np.block([[np.minimum(s, u), cross], [cross.T, own]])


def volterra(model: RoughBergomi, series: Tensor) -> Floats:
    """Y at the dates, from the log-variance."""
    t = times(model, series.shape[2])
    log_variance = series[:, 1].numpy()
    compensator = model.eta**2 / 2 * t ** (2 * model.a + 1)
    return (log_variance - math.log(model.xi) + compensator) / model.eta


def times(model: RoughBergomi, dates: int) -> Floats:
    return model.horizon * np.arange(1, dates + 1) / dates


def weights(model: RoughBergomi, dates: int, steps_per_date: int) -> tuple[Floats, Floats]:
    """What Y at the dates takes of each normal number: of those of W, and of the others.

    The scheme is linear in its noise, so unit impulses instead of the noise tell all of its law.
    """
    steps = dates * steps_per_date

    def impulses(channels: int, n: int, size: int, **_: object) -> Tensor:
        assert (channels, n, size) == (3, 2 * steps, steps)
        return torch.cat(
            [
                torch.eye(2 * steps).reshape(2 * steps, 2, steps).movedim(0, 1),
                torch.zeros(1, 2 * steps, steps),
            ]
        ).double()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", impulses)
        series = model.sample(2 * steps, seeded(), dates, steps_per_date)
    of_W, of_others = np.split(volterra(model, series), 2)
    return of_W, of_others


@EXPONENTS
def test_closed_form_is_the_integral(a: float) -> None:
    for s, t in [(0.04, 1.0), (0.5, 0.6), (0.99, 1.0), (1.3, 2.0)]:
        integral = integrate.quad(lambda u, t=t: (t - u) ** a, 0, s, weight="alg", wvar=(0, a))[0]
        assert covariance(a, s, t) == pytest.approx((2 * a + 1) * integral, rel=1e-7)
    assert covariance(a, 0.7, 0.7) == pytest.approx(0.7 ** (2 * a + 1), rel=1e-12)


@EXPONENTS
def test_volterra_process_and_brownian_motion_covary_exactly(a: float) -> None:
    """Averages of the kernel lose nothing of its integral; Y_t ignores the noise after t."""
    model = RoughBergomi(a=a, horizon=2.0)
    of_W, _ = weights(model, 5, 8)
    t = times(model, 5)
    W = np.repeat(np.tri(5), 8, axis=1) * math.sqrt(2.0 / 40)  # the weights of W at the dates
    np.testing.assert_allclose(W @ of_W, with_noise(a, t[:, None], t), rtol=1e-11)


@EXPONENTS
def test_volterra_process_has_the_exact_covariance(a: float) -> None:
    """Of the scheme itself, without sampling error: at the 25 dates of the benchmark."""
    model = RoughBergomi(a=a)
    W, others = weights(model, 25, 20)
    t = times(model, 25)
    own = W.T @ W + others.T @ others
    relative = own / covariance(a, np.minimum(t[:, None], t), np.maximum(t[:, None], t)) - 1
    assert abs(relative).max() < 1e-3
    # An average has less variance than what it is the average of.
    assert np.diag(relative).max() < 1e-12
    if a == 0:  # Brownian motion: nothing is approximated
        assert abs(relative).max() < 1e-12


@pytest.mark.parametrize("a", [-0.45, -0.35, -0.1, 0.1])  # beyond, the sum converges slowly
def test_error_of_the_variance_is_of_order_2a_plus_1(a: float) -> None:
    """Each step but the last adds h^(2a + 1) times a term of a convergent sum."""

    def error(steps: int) -> float:
        W, others = weights(RoughBergomi(a=a), 2, steps // 2)
        return 1 - float(W[:, -1] @ W[:, -1] + others[:, -1] @ others[:, -1])

    assert error(200) > 0
    assert math.log2(error(100) / error(200)) == pytest.approx(2 * a + 1, abs=0.03)


@pytest.mark.parametrize(
    ("a", "rho", "eta"), [(-0.35, -0.9, 1.9), (-0.45, 0.3, 1.0), (0.0, 0.0, 0.5), (0.3, 1.0, -0.7)]
)
def test_price_and_volatility_have_the_exact_joint_law(a: float, rho: float, eta: float) -> None:
    """The noise that drives the price is a Brownian motion of correlation rho with that of Y."""
    model = RoughBergomi(xi=9.0, eta=eta, rho=rho, a=a, horizon=0.5, spot=3.0)
    n, dates = 40_000, 20
    series = model.sample(n, seeded(1), dates, steps_per_date=1)
    start = torch.tensor([math.log(3.0), math.log(9.0)]).double()
    x, log_variance = torch.cat([start.expand(n, 1, 2).mT, series], dim=2).unbind(1)
    h, variance = 0.5 / dates, log_variance[:, :-1].exp()
    B = ((x.diff() + variance * h / 2) / variance.sqrt()).cumsum(1).numpy()
    both = np.hstack([B, volterra(model, series)])

    exact = exact_law(a, times(model, dates))
    exact[:dates, dates:] *= rho
    exact[dates:, :dates] *= rho
    scale = np.diag(exact)
    assert abs(both.mean(0) / np.sqrt(scale / n)).max() < 4.5
    # Products of Gaussian variables have the variance C_ii C_jj + C_ij^2.
    errors = np.sqrt((np.outer(scale, scale) + exact**2) / n)
    assert abs((both.T @ both / n - exact) / errors).max() < 4.5


@pytest.mark.parametrize("a", [-0.45, -0.35, 0.0, 0.3])
def test_variance_of_the_volterra_process(a: float) -> None:
    n, model = 20_000, RoughBergomi(a=a, horizon=2.0)
    Y = volterra(model, model.sample(n, seeded(2), 8, steps_per_date=10))
    ratio = Y.var(0) / times(model, 8) ** (2 * a + 1)
    assert abs(ratio - 1).max() < 4.5 * math.sqrt(2 / n)


@pytest.mark.parametrize(
    "model",
    [
        RoughBergomi(),
        RoughBergomi(xi=0.3, eta=0.6, rho=0.4, a=-0.2, horizon=0.7, spot=5.0),
        RoughBergomi(xi=0.1, eta=-0.8, rho=1.0, a=0.4),
    ],
    ids=["benchmark", "rough", "smooth"],
)
def test_price_is_a_martingale_and_the_forward_variance_is_flat(model: RoughBergomi) -> None:
    n = 40_000
    price, variance = model.sample(n, seeded(3), 10, steps_per_date=10).exp().unbind(1)
    errors = price.std(0) / math.sqrt(n)
    assert errors.max() < 0.005 * model.spot
    assert ((price.mean(0) - model.spot) / errors).abs().max() < 4.5
    # The variance is lognormal; its own spread would miss the tail that its mean rests on.
    t = times(model, 10)
    errors = np.sqrt(np.expm1(model.eta**2 * t ** (2 * model.a + 1)) / n)
    assert abs((variance.mean(0).numpy() / model.xi - 1) / errors).max() < 4.5


def variance_of_log_price(model: RoughBergomi) -> float:
    r"""Var log S_T for the log-price M - A / 2, where M = int sqrt(V) dB and A = int V dt.

    E M^2 = xi T; integration by parts on Wiener space, with the derivative
    D_s V_t = eta sqrt(2a + 1) (t - s)^a V_t, gives E[MA] = rho int int_{s<t} E[sqrt(V_s) D_s V_t].
    """
    xi, eta, a, T = model.xi, model.eta, model.a, model.horizon
    nodes, mass = leggauss(120)
    nodes, mass = (nodes + 1) / 2, mass / 2
    t = T * nodes[:, None]
    s = t * (1 - nodes ** (1 / (a + 1)))  # uniform in (t - s)^(a + 1), so that (t - s)^a is gone
    C = covariance(a, s, t)
    derivative = eta * math.sqrt(2 * a + 1) / (a + 1) * t ** (a + 1)
    product = xi**1.5 * np.exp(eta**2 * (C / 2 - s ** (2 * a + 1) / 8))
    leverage = model.rho * T * mass @ (derivative * product) @ mass
    s = t * nodes
    variance_of_A = 2 * T * mass @ (t * xi**2 * np.expm1(eta**2 * covariance(a, s, t))) @ mass
    return float(xi * T + variance_of_A / 4 - leverage)


@pytest.mark.parametrize("steps_per_date", [20, 40])
@pytest.mark.parametrize(("a", "rho"), [(-0.35, -0.9), (0.2, 0.7)])
def test_variance_of_the_log_price_at_any_refinement(
    a: float, rho: float, steps_per_date: int
) -> None:
    n = 30_000
    model = RoughBergomi(xi=0.25, eta=0.8, rho=rho, a=a, horizon=1.5)
    x = model.sample(n, seeded(4), 5, steps_per_date)[:, 0, -1]
    squares = (x - x.mean()) ** 2
    error = float(squares.std()) / math.sqrt(n)
    exact = variance_of_log_price(model)
    assert float(squares.mean()) == pytest.approx(exact, abs=4.5 * error)
    assert abs(exact - model.xi * model.horizon) > 15 * error
    # E log S_T = log S_0 - xi T / 2
    assert float(x.mean()) == pytest.approx(
        -0.25 * 1.5 / 2, abs=4.5 * float(x.std()) / math.sqrt(n)
    )


def exact_smile(model: RoughBergomi, k: Floats, steps: int, n: int) -> Floats:
    """Implied volatilities, by batch, of a simulation that is exact but for the frozen variance.

    (W, Y) by Cholesky; given them the price is lognormal, so calls have Black-Scholes values.
    """
    rho, t = model.rho, times(model, steps)
    h = model.horizon / steps
    root = np.linalg.cholesky(exact_law(model.a, t))
    noise = np.random.default_rng(5)
    smiles = []
    for _ in range(20):
        W, Y = np.hsplit(noise.standard_normal((n // 20, 2 * steps)) @ root.T, 2)
        later = model.xi * np.exp(model.eta * Y - model.eta**2 / 2 * t ** (2 * model.a + 1))
        V = np.hstack([np.full((len(Y), 1), model.xi), later[:, :-1]])
        A = h * V.sum(1)
        forward = np.exp(rho * (np.sqrt(V) * np.diff(W, prepend=0)).sum(1) - rho**2 / 2 * A)
        s = np.sqrt((1 - rho**2) * A)
        d = (np.log(forward) - k[:, None]) / s + s / 2
        calls = forward * special.ndtr(d) - np.exp(k)[:, None] * special.ndtr(d - s)
        # Puts below the money, turned to calls by parity: less noise.
        parity = np.where(k[:, None] < 0, forward - 1, 0)
        smiles.append(implied_volatility((calls - parity).mean(1), k, model.horizon))
    return np.array(smiles)


@pytest.mark.parametrize(
    "model", [RoughBergomi(), RoughBergomi(xi=0.06, eta=1.2, rho=-0.3, a=0.1, horizon=0.8)]
)
def test_smile_is_that_of_an_exact_simulation(model: RoughBergomi) -> None:
    k = np.array([-0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.15])
    n, steps = 60_000, 100
    price = model.sample(n, seeded(6), 5, steps // 5)[:, 0, -1].exp().numpy()
    payoffs = np.maximum(np.where(k < 0, -1, 1) * (price[:, None] - np.exp(k)), 0)
    calls = payoffs + np.maximum(1 - np.exp(k), 0)  # by parity
    smiles = np.array(
        [implied_volatility(c.mean(0), k, model.horizon) for c in np.split(calls, 20)]
    )
    exact = exact_smile(model, k, steps, n // 2)
    error = np.hypot(smiles.std(0, ddof=1), exact.std(0, ddof=1)) / math.sqrt(20)
    assert error.max() < 0.003
    assert abs((smiles.mean(0) - exact.mean(0)) / error).max() < 4
    assert np.ptp(exact.mean(0)) > 15 * error.max()  # a smile that is not flat


def test_few_paths_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chunk draws its own noise, keeps to the limit and leaves nothing but its dates."""
    n, rows, dates = 20_050, 1000, 2
    randn, drawn, alive = torch.randn, [], []

    def record(channels: int, count: int, steps: int, **options: object) -> Tensor:
        drawn.append(count)
        storages = (x.untyped_storage() for x in gc.get_objects() if type(x) is Tensor)
        alive.append(sum({x.data_ptr(): x.nbytes() for x in storages}.values()))
        return randn(channels, count, steps, **options)

    model = RoughBergomi(eta=0.5)
    monkeypatch.setattr(rough_bergomi, "CHUNK", 64 * 20 * rows)
    monkeypatch.setattr(torch, "randn", record)
    series = model.sample(n, seeded(7), dates, steps_per_date=10)
    assert drawn == [rows] * 20 + [50]
    every_step = 2 * 20 * 8 * rows  # bytes of a chunk
    assert max(alive) - min(alive) < 2 * every_step
    assert series.is_contiguous()

    Y = volterra(model, series)
    assert len(np.unique(Y[:, -1])) == n
    assert abs(Y[:, -1].mean()) < 4.5 / math.sqrt(n)
    assert abs(Y[:, -1].var() - 1) < 4.5 * math.sqrt(2 / n)
    assert series[:, 0, -1].exp().mean() == pytest.approx(1, abs=4.5 * 0.24 / math.sqrt(n))


def test_the_generator_decides_the_paths() -> None:
    model, generator = RoughBergomi(), seeded(0)
    first, second = (model.sample(50, generator, 3, 4) for _ in range(2))
    assert first.shape == (50, 2, 3)
    assert first.dtype == torch.float64
    assert model.sample(50, seeded(0), 3, 4).equal(first)
    assert not (first == second).any()
    assert not (model.sample(50, seeded(1), 3, 4) == first).any()
    # The paths behind published results: a change of the stream would go unseen otherwise.
    log_price, log_variance = model.sample(2, seeded(0))[1, :, -1].tolist()
    assert log_price == pytest.approx(-0.15118394581160338, rel=1e-9)
    assert log_variance == pytest.approx(-3.4081304111114994, rel=1e-9)


def test_split_is_standardised_by_its_training_paths() -> None:
    model = RoughBergomi(horizon=2.0)
    split = rough_bergomi_split(3, 1003, 4, model)
    assert [len(part) for part in split[:3]] == [603, 200, 200]
    assert torch.cat(split[:3]).equal(model.sample(1003, seeded(3), 4))
    assert not rough_bergomi_split(4, 1003, 4, model).test.equal(split.test)

    x = split.standardise(split.train)
    assert x.shape == (603, 8)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.mean(0), torch.zeros(8), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.std(0), torch.ones(8), atol=1e-6, rtol=0)
    z = (split.test[7, 1, 2] - split.train[:, 1, 2].mean()) / split.train[:, 1, 2].std()
    assert float(split.standardise(split.test)[7, 4 + 2]) == pytest.approx(float(z), rel=1e-6)
    back = split.restore(split.standardise(split.validation))
    torch.testing.assert_close(back, split.validation, atol=1e-6, rtol=1e-6)
    assert back.dtype == torch.float64


def test_paths_that_hardly_vary_cannot_be_standardised() -> None:
    with pytest.raises(SigdegError, match="hardly vary"):
        rough_bergomi_split(0, 10, 2, RoughBergomi(eta=0.0))
    with pytest.raises(SigdegError, match="hardly vary"):
        rough_bergomi_split(0, 10, 2, RoughBergomi(xi=1e-30, spot=2.0))


def test_cache_is_read_and_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "new" / "data.safetensors"
    drawn = rough_bergomi_split(5, 100, 3, cache=file)
    assert drawn.test.equal(rough_bergomi_split(5, 100, 3).test)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    monkeypatch.delattr(RoughBergomi, "sample")
    for one, other in zip(drawn, rough_bergomi_split(5, 100, 3, cache=file), strict=True):
        assert one.equal(other)


def test_cache_of_other_paths_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "data.safetensors"
    rough_bergomi_split(5, 100, 3, cache=file)
    written = file.read_bytes()
    others: list[Callable[[], object]] = [
        lambda: rough_bergomi_split(6, 100, 3, cache=file),
        lambda: rough_bergomi_split(5, 50, 6, cache=file),
        lambda: rough_bergomi_split(5, 100, 3, RoughBergomi(rho=-0.8), cache=file),
    ]
    for other in others:
        with pytest.raises(SigdegError, match="belongs to another simulation"):
            other()
    assert file.read_bytes() == written


def test_damage_is_seen_wherever_it_is(tmp_path: Path) -> None:
    """Every byte counts, those of the header too, and the length."""
    file = tmp_path / "data.safetensors"
    rough_bergomi_split(0, 10, 2, cache=file)
    whole = file.read_bytes()
    flipped = (whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(0, len(whole), 2))
    truncated = (whole[:length] for length in range(0, len(whole), 7))
    for damaged in itertools.chain(flipped, truncated, [whole + b"\0"]):
        file.write_bytes(damaged)
        with pytest.raises(
            SigdegError, match=r"data\.safetensors (belongs|is damaged|is not a whole)"
        ) as caught:
            rough_bergomi_split(0, 10, 2, cache=file)
        assert "\n" not in str(caught.value)
    file.write_bytes(whole)
    rough_bergomi_split(0, 10, 2, cache=file)


def test_a_failing_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sigdeg.files.save", fail)
    with pytest.raises(SigdegError, match=r"cannot write .*data\.safetensors: No space left"):
        rough_bergomi_split(0, 10, 2, cache=tmp_path / "data.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": 1.01}, "rho must lie between -1 and 1, got 1.01"),
        ({"rho": -1.01}, "rho must lie between -1 and 1"),
        ({"rho": math.nan}, "rho must lie between -1 and 1"),
        ({"a": -0.5}, "a must lie strictly between -1/2 and 1/2, got -0.5"),
        ({"a": 0.5}, "a must lie strictly between -1/2 and 1/2"),
        ({"a": math.nan}, "a must lie strictly between -1/2 and 1/2"),
        ({"eta": math.nan}, "eta must lie between -1e50 and 1e50, got nan"),
        ({"eta": -math.inf}, "eta must lie between"),
        ({"eta": 1e200}, "eta must lie between"),
        *(
            ({name: value}, f"{name} must lie between 1e-50 and 1e50, got {value}")
            for name in ("xi", "horizon", "spot")
            for value in (0.0, -1.0, 1e-320, 1e300, math.inf, math.nan)
        ),
    ],
)
def test_what_is_no_model_is_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(SigdegError, match=re.escape(message)):
        RoughBergomi(**arguments)


def test_nothing_overflows_within_the_bounds() -> None:
    # At 2e-9 a difference of nearly equal numbers may come out negative under a root.
    for a, eta, rho in itertools.product((-0.499999, 2e-9, 0.499999), (-1e50, 1e50), (-1.0, 1.0)):
        for xi, horizon, spot in itertools.product((1e-50, 1e50), repeat=3):
            model = RoughBergomi(xi, eta, rho, a, horizon, spot)
            assert model.sample(20, seeded(), 3, 2).isfinite().all(), model


def test_bad_sizes_are_refused() -> None:
    model = RoughBergomi()
    with pytest.raises(SigdegError, match="n must be at least 1 path, got 0"):
        model.sample(0, seeded())
    with pytest.raises(SigdegError, match="dates must be at least 2, got 1"):
        model.sample(5, seeded(), dates=1)
    with pytest.raises(SigdegError, match="steps_per_date must be at least 1, got 0"):
        model.sample(5, seeded(), steps_per_date=0)
    with pytest.raises(SigdegError, match="at least 10 paths, got 9"):
        rough_bergomi_split(0, 9)
