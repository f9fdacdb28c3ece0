"""Processes on tokens: against sums over all pairs, closed forms and SciPy."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import scipy.linalg
import torch
from torch import Tensor

from sigdeg.discrete import Absorbing, DiscretisedGaussian, RateMatrix, Uniform
from sigdeg.discrete.process import DiscreteProcess, choose, process_from_config
from sigdeg.errors import SigdegError

UNEVEN = [[0.0, 2.0, 1.0], [1.0, 0.0, 1.0], [0.25, 0.5, 0.0]]  # reversible: its law is 1 : 2 : 4
CIRCLE = [[0.0, 1.0, 0.2], [0.2, 0.0, 1.0], [1.0, 0.2, 0.0]]  # not reversible
PROCESSES: dict[str, DiscreteProcess] = {
    "masked": Absorbing(3),
    "masked-cosine": Absorbing(4, mask=1, schedule="cosine"),
    "masked-arccos": Absorbing(2, schedule="arccos"),
    "uniform": Uniform(3),
    "uniform-exponential": Uniform(4, "exponential", 2.0),
    "rates": RateMatrix([[0, 2, 1], [1, 0, 1], [0.25, 0.5, 0]], scale=0.02),
    "circle": RateMatrix(CIRCLE, scale=0.03, growth=30.0),
    "grey": DiscretisedGaussian(5),
}
everywhere = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
without_mask = pytest.mark.parametrize(
    "process", [p for p in PROCESSES.values() if p.mask is None], ids=lambda p: type(p).__name__
)


def transition(process: DiscreteProcess, s: float, t: float) -> Tensor:
    """Q_{t|s}, rows by the symbol at s."""
    return process.push(torch.eye(process.states, dtype=torch.float64), s, t)


def laws(shape: tuple[int, ...], process: DiscreteProcess, seed: int = 0) -> Tensor:
    """Random laws of tokens, the mask not among them."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(*shape, process.states, generator=generator, dtype=torch.float64)
    p = p * process.tokens
    return p / p.sum(-1, keepdim=True)


@everywhere
def test_transitions_are_laws_that_compose(process: DiscreteProcess) -> None:
    whole = transition(process, 0.1, 0.9)
    assert bool((whole >= 0).all())
    assert torch.allclose(whole.sum(1), torch.ones(process.states).double(), atol=1e-12)
    composed = transition(process, 0.1, 0.4) @ transition(process, 0.4, 0.9)
    assert torch.allclose(composed, whole, atol=1e-11)
    assert torch.allclose(
        transition(process, 0.3, 0.3), torch.eye(process.states).double(), atol=1e-12
    )


@everywhere
def test_a_likelihood_is_a_column_of_the_transition(process: DiscreteProcess) -> None:
    x = torch.arange(process.states)[None]
    found = process.likelihood(x, 0.2, 0.7)[0]
    assert torch.allclose(found, transition(process, 0.2, 0.7).T, atol=1e-12)
    evidence = process.evidence(x, 0.7)[0]
    column = transition(process, 0.0, 0.7).T * process.tokens
    assert torch.allclose(
        evidence / evidence.sum(1, keepdim=True), column / column.sum(1, keepdim=True), atol=1e-12
    )


@everywhere
@pytest.mark.parametrize("s", [0.0, 0.25])
def test_a_posterior_is_bayes_over_all_pairs(process: DiscreteProcess, s: float) -> None:
    t, tokens = 0.75, process.tokens.nonzero()[:, 0].tolist()
    p = laws((1, process.states), process)
    x = torch.arange(process.states)[None]
    before, after = transition(process, 0.0, s), transition(process, s, t)
    whole = transition(process, 0.0, t)
    found = process.posterior(p, x, t, s)
    for d in range(process.states):
        expected = torch.zeros(process.states, dtype=torch.float64)
        for x0 in tokens:
            if whole[x0, d] > 0:
                bridge = before[x0] * after[:, d] / whole[x0, d]
                expected += p[0, d, x0] * bridge
        assert torch.allclose(found[0, d], expected / expected.sum(), atol=1e-10)


@everywhere
def test_posteriors_take_a_law_back_to_where_it_was(process: DiscreteProcess) -> None:
    """Marginals over x_t of the exact posterior are those at s."""
    t, s = 0.8, 0.3
    prior = laws((), process)
    at_t, at_s = prior @ transition(process, 0.0, t), prior @ transition(process, 0.0, s)
    x = torch.arange(process.states)[None]
    exact = process.evidence(x, t) * prior
    exact = exact / exact.sum(-1, keepdim=True)
    found = (at_t[:, None] * process.posterior(exact, x, t, s)[0]).sum(0)
    assert torch.allclose(found, at_s, atol=1e-10)


@everywhere
def test_a_law_that_stays(process: DiscreteProcess) -> None:
    law = process.stationary()
    assert float(law.sum()) == pytest.approx(1, abs=1e-12)
    assert torch.allclose(process.push(law[None], 0.2, 0.9)[0], law, atol=1e-10)
    drawn = process.prior((4000, 2), torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.int64
    share = torch.bincount(drawn.flatten(), minlength=process.states) / 8000
    assert bool(((share - law).abs() <= 4 * (law / 8000).sqrt()).all())


@pytest.mark.parametrize("name", ["masked", "masked-cosine", "masked-arccos", "uniform"])
def test_nothing_is_left_at_the_end(name: str) -> None:
    process = PROCESSES[name]
    left = process.push(laws((1,), process), 0.0, 1.0)[0]
    assert torch.allclose(left, process.stationary(), atol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "middle"),
    [("linear", 0.5), ("cosine", 1 - math.sqrt(0.5)), ("arccos", 1 / 3)],
)
def test_schedules_of_masks(schedule: str, middle: float) -> None:
    alpha = Absorbing(2, schedule=schedule).alpha
    values = alpha(torch.linspace(0, 1, 11))
    assert values[[0, -1]].tolist() == pytest.approx([1, 0], abs=1e-12)
    assert bool((values.diff() < 0).all())
    assert float(alpha(torch.tensor(0.5))) == pytest.approx(middle, abs=1e-12)


def test_a_mask_falls_with_the_share_that_is_due() -> None:
    process = Absorbing(2)
    p = torch.tensor([[[0.3, 0.7, 0.0]] * 2]).double()
    found = process.posterior(p, torch.tensor([[2, 0]]), 0.8, 0.2)
    assert found[0, 0].tolist() == pytest.approx([0.75 * 0.3, 0.75 * 0.7, 0.25])
    assert found[0, 1].tolist() == [1, 0, 0]  # a token stays, whatever is said of it


def test_rates_are_the_uniform_process_where_all_are_equal() -> None:
    states, scale, growth = 4, 0.02, 50.0
    rates = RateMatrix(torch.ones(states, states), scale, growth)
    for s, t in ((0.0, 0.5), (0.4, 0.9)):
        spent = scale * (growth**t - growth**s)
        kept = math.exp(-states * spent)
        expected = kept * torch.eye(states) + (1 - kept) / states
        assert torch.allclose(transition(rates, s, t), expected.double(), atol=1e-7)
        same = Uniform(states, "exponential", states * spent)
        p = laws((2, 3), same)
        assert torch.allclose(rates.push(p, s, t), same.push(p, 0.0, 1.0), atol=1e-12)
        x = torch.tensor([[0, 3, 1]])
        assert torch.allclose(rates.likelihood(x, s, t), same.likelihood(x, 0.0, 1.0), atol=1e-12)


@pytest.mark.parametrize(("rates", "reversible"), [(UNEVEN, True), (CIRCLE, False)])
def test_transitions_of_rates_are_exponentials(rates: Any, reversible: bool) -> None:
    process = RateMatrix(rates, scale=0.05, growth=20.0)
    assert (process.spectrum is not None) == reversible
    spent = 0.05 * (20**0.9 - 20**0.2)
    expected = torch.from_numpy(scipy.linalg.expm(process.rates.numpy() * spent))
    assert torch.allclose(transition(process, 0.2, 0.9), expected, atol=1e-12)


def test_the_law_of_uneven_rates() -> None:
    law = RateMatrix(UNEVEN).stationary()
    assert law.tolist() == pytest.approx([1 / 7, 2 / 7, 4 / 7], abs=1e-12)
    tiny = torch.tensor(UNEVEN) * 1e-9
    assert torch.allclose(RateMatrix(tiny).stationary(), law, atol=1e-6)


def test_grey_levels_wander_as_published() -> None:
    states = 8
    process = DiscretisedGaussian(states, rate_std=1.5, law_std=10.0)
    rates, law = process.rates, process.stationary()
    for i in range(states // 2):
        for j in range(i + 1, states - i):
            rate = math.exp(-((j - i - 1) ** 2) / 1.5**2)
            assert float(rates[i, j]) == pytest.approx(rate, abs=1e-12)
            mirrored = rates[states - 1 - i, states - 1 - j]
            assert float(mirrored) == pytest.approx(rate, abs=1e-12)
    middle = (states - 1) / 2
    gaussian = torch.tensor([math.exp(-(((i - middle) / 10) ** 2) / 2) for i in range(states)])
    assert torch.allclose(law, gaussian.double() / gaussian.double().sum(), atol=1e-7)
    flow = law[:, None] * rates
    assert torch.allclose(flow, flow.T, atol=1e-12)  # detailed balance
    for t in (0.3, 1.0):
        flow = law[:, None] * transition(process, 0.0, t)
        assert torch.allclose(flow, flow.T, atol=1e-12)


def test_the_slowest_mode_of_grey_levels_decays_as_far_for_any_number() -> None:
    assert DiscretisedGaussian(256).scale == pytest.approx(3.0, abs=0.01)  # the published value
    for states in (2, 16):
        process = DiscretisedGaussian(states)
        decay = torch.linalg.eigvals(transition(process, 0.0, 1.0)).abs().sort().values[-2]
        assert float(decay.log()) == pytest.approx(-6.2, abs=1e-6)


def test_far_grey_levels_are_not_what_rounding_makes_of_them() -> None:
    process, p = DiscretisedGaussian(256), torch.zeros(1, 1, 256)
    x = torch.tensor([[100]])
    likely = process.likelihood(x, 0.0, 0.01)[0, 0]
    assert float(likely[likely > 0].min()) > 1e-14
    assert likely[[10, 200]].tolist() == [0, 0]
    p[..., 10] = 1  # a law that the state excludes counts for itself
    assert torch.allclose(process.posterior(p, x, 0.01, 0.0), p.double())


@everywhere
def test_the_way_back_has_the_rates_of_short_steps(process: DiscreteProcess) -> None:
    t, h = 0.6, 1e-6
    p = laws((1, process.states), process)
    x = torch.arange(process.states)[None]
    found = process.reverse_rates(p, x, t)
    short = (process.posterior(p, x, t, t - h) / h).scatter(-1, x[..., None], 0.0)
    assert torch.allclose(found, short, rtol=1e-3, atol=1e-4)


@everywhere
def test_a_batch_of_times_is_one_after_the_other(process: DiscreteProcess) -> None:
    t, s = torch.tensor([0.3, 0.9, 0.5]), torch.tensor([0.1, 0.2, 0.0])
    p = laws((3, 2), process)
    x = torch.tensor([[0, 1], [1, 0], [0, 0]])
    uniform = torch.rand(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clean = torch.tensor([[0, 2], [2, 0], [0, 0]])
    calls: dict[str, Callable[[slice, Any, Any], Tensor]] = {
        "push": lambda i, t, s: process.push(p[i], s, t),
        "likelihood": lambda i, t, s: process.likelihood(x[i], s, t),
        "evidence": lambda i, t, s: process.evidence(x[i], t),
        "posterior": lambda i, t, s: process.posterior(p[i], x[i], t, s),
        "rates": lambda i, t, s: process.reverse_rates(p[i], x[i], t),
        "corrupt": lambda i, t, s: process.corrupt(clean[i], t, uniform[i]),
    }
    for name, call in calls.items():
        whole = call(slice(None), t, s)
        each = [call(slice(i, i + 1), float(t[i]), float(s[i])) for i in range(3)]
        assert torch.allclose(whole.double(), torch.cat(each).double(), atol=1e-6), name


@everywhere
def test_a_process_comes_back_from_its_config(process: DiscreteProcess) -> None:
    config = json.loads(json.dumps(process.config()))
    again = process_from_config(config)
    assert repr(again) == repr(process)  # runs are told by it, in any session
    assert again == process
    assert hash(again) == hash(process)
    assert torch.equal(transition(again, 0.1, 0.6), transition(process, 0.1, 0.6))


def test_different_processes_are_not_equal() -> None:
    assert RateMatrix(UNEVEN) != RateMatrix(CIRCLE)
    assert RateMatrix(UNEVEN) != RateMatrix(UNEVEN, scale=1.0)
    assert DiscretisedGaussian(4) != DiscretisedGaussian(5)
    assert Absorbing(3) != Absorbing(4, mask=3)
    assert Absorbing(3).states == Absorbing(4, mask=3).states == 4


@everywhere
def test_noise_comes_as_often_as_it_should(process: DiscreteProcess) -> None:
    n, t = 20_000, 0.4
    uniform = torch.rand(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for token in process.tokens.nonzero()[:, 0].tolist():
        drawn = process.corrupt(torch.full((n, 1), token), t, uniform)
        share = torch.bincount(drawn.flatten(), minlength=process.states) / n
        law = transition(process, 0.0, t)[token]
        assert bool(((share - law).abs() <= 4 * (law / n).sqrt()).all())


def test_a_draw_inverts_the_distribution_function() -> None:
    p = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0])
    u = torch.tensor([0.0, 0.2499, 0.25, 0.9999, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    drawn = choose(p.expand(5, 5), u)
    assert drawn.tolist() == [1, 1, 3, 3, 3]
    assert torch.equal(choose(8 * p.expand(5, 5), u), drawn)  # laws up to a factor


def test_small_probabilities_are_drawn() -> None:
    """One in ten million: single precision would not know it from 0 beside 1."""
    p = torch.tensor([1.0, 1e-9], dtype=torch.float64)
    level = torch.tensor([1 - 0.5e-9, 1 - 1.5e-9], dtype=torch.float64)
    assert choose(p.expand(2, 2), level).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("build", "line"),
    [
        (lambda: Absorbing(0), "vocabulary must be at least 1, got 0"),
        (lambda: Absorbing(1, mask=0), "vocabulary must be at least 2, got 1"),
        (lambda: Absorbing(3, mask=4), "mask must be one of 0 to 3, got 4"),
        (lambda: Absorbing(3, schedule="sine"), "unknown schedule 'sine': choose from linear"),
        (lambda: Uniform(1), "states must be at least 2, got 1"),
        (lambda: Uniform(3, rate=0.0), "rate must lie between 0 and 1000, got 0.0"),
        (lambda: RateMatrix([[0.0, 1.0]]), r"rates are a square matrix, got shape \(1, 2\)"),
        (lambda: RateMatrix([[0, -1.0], [1, 0]]), "rates must be finite and not negative"),
        (lambda: RateMatrix(UNEVEN, scale=0.0), "scale must be above 0 and growth above 1"),
        (lambda: RateMatrix([[0, 1, 1], [0, 0, 1], [0, 0, 0]]), "rates must lead from every"),
        (
            lambda: RateMatrix([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]),
            "rates must lead from every symbol to every other",
        ),
        (lambda: DiscretisedGaussian(1), "states must be at least 2, got 1"),
        (lambda: DiscretisedGaussian(4, law_std=0.0), "standard deviations must be above 0"),
        (lambda: process_from_config({"kind": "wave"}), "unknown process 'wave': choose from"),
        (
            lambda: process_from_config({"kind": "uniform", "letters": 3}),
            "process uniform does not take what is given",
        ),
    ],
)
def test_what_is_no_process_is_refused(build: Callable[[], Any], line: str) -> None:
    with pytest.raises(SigdegError, match=line) as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("process", "tokens", "line"),
    [
        (Absorbing(2), [[0, 2]], "tokens hold the mask symbol 2: it stands for no token"),
        (Absorbing(2), [[0, 3]], "tokens must lie between 0 and 1, got 0 to 3"),
        (Absorbing(3, mask=0), [[0, 1]], "tokens hold the mask symbol 0"),
        (Absorbing(3, mask=0), [[3, 1]], "tokens must lie between 0 and 2, got 1 to 3"),
        (Uniform(3), [[-1, 1]], "tokens must lie between 0 and 2, got -1 to 1"),
    ],
)
def test_what_is_no_sequence_is_refused(
    process: DiscreteProcess, tokens: list[list[int]], line: str
) -> None:
    with pytest.raises(SigdegError, match=line):
        process.check_tokens(torch.tensor(tokens))
    with pytest.raises(SigdegError, match="whole numbers in int64, got float32"):
        process.check_tokens(torch.zeros(1, 2))
    process.check_tokens(torch.full((1, 2), 1))
