"""Sampling: seeds, batches, replayed paths, callbacks and what is refused."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from sigdeg.denoiser import (
    Denoiser,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    NetworkDenoiser,
)
from sigdeg.errors import SigdegError
from sigdeg.grids import coarse_grid, fine_grid
from sigdeg.rng import rand, randn, seed_generators
from sigdeg.sampling import march, sample
from sigdeg.schedule import EDM, Cosine, RectifiedFlow, Schedule, VPLinear
from sigdeg.signature import PartialSignature
from sigdeg.steps import DenoiserStep, EulerMaruyama, Exponential, ShARK, StochasticTaylor

SCHEDULE = VPLinear()
MEANS = [[-1.0, 0.5, 0.0], [1.0, 0.0, 2.0]]
DENOISER = GaussianMixtureDenoiser(MEANS, [0.5, 0.3], [0.4, 0.6], SCHEDULE)
GRID = coarse_grid(SCHEDULE, 5)
STEPS: dict[str, Callable[[Denoiser], DenoiserStep]] = {
    "euler": EulerMaruyama,
    "taylor": StochasticTaylor,
    "complete": lambda denoiser: StochasticTaylor(denoiser, complete=True),
    "shark": ShARK,
    "exponential": Exponential,
    "exponential-6": lambda denoiser: Exponential(denoiser, order=6, data_std=1.3),
}
every_step = pytest.mark.parametrize("build", STEPS.values(), ids=STEPS)
Build = Callable[[Denoiser], DenoiserStep]


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


class Witness(Denoiser):
    """A denoiser that answers zero, or what it is told to, and remembers its conditions."""

    def __init__(self, answer: float = 0.0) -> None:
        super().__init__(SCHEDULE)
        self.answer = answer
        self.conditions: list[dict[str, Any]] = []

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        self.conditions.append(condition)
        return torch.full_like(x, self.answer)


# --- one seed, one sample -------------------------------------------------------------------------


@every_step
def test_a_seed_gives_its_sample_to_the_bit_in_any_batch(build: Build) -> None:
    step, n, grid = build(DENOISER), 9, coarse_grid(SCHEDULE, 3)
    whole = sample(step, grid, (n, 3), seeds=range(n))
    for batch_size in (1, 4, 100):
        assert torch.equal(sample(step, grid, (n, 3), range(n), batch_size=batch_size), whole)
    some = [7, 2, 8]
    assert torch.equal(sample(step, grid, (3, 3), seeds=some), whole[some])
    assert not torch.equal(whole[0], whole[1])


def test_a_network_sees_the_same_noise_in_any_batch() -> None:
    # Matrix products may round differently by batch size; the noise and the step do not.
    torch.manual_seed(0)

    class Network(nn.Sequential):
        def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
            return super().forward(torch.cat([x, timestep[:, None]], dim=1))

    network = Network(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 3))
    step = Exponential(NetworkDenoiser(network, SCHEDULE), order=4)
    whole = sample(step, GRID, (9, 3), seeds=range(9))
    for batch_size in (1, 4):
        again = sample(step, GRID, (9, 3), seeds=range(9), batch_size=batch_size)
        torch.testing.assert_close(again, whole, rtol=1e-5, atol=1e-5)
        assert torch.equal(start(step, 9, batch_size), start(step, 9, 9))


def start(step: DenoiserStep, n: int, batch_size: int) -> Tensor:
    """The noise that the samples start from, put together over the batches."""
    seen: list[Tensor] = []

    def keep(k: int, _: Tensor, x: Tensor) -> None:
        if k == 0:
            seen.append(x)

    sample(step, GRID, (n, 3), seeds=range(n), callback=keep, batch_size=batch_size)
    return torch.cat(seen)


def test_a_sample_is_the_march_its_generator_drives() -> None:
    step, seed = ShARK(DENOISER), 5
    generator = [Generator().manual_seed(seed)]
    x = SCHEDULE.prior_std * randn((1, 3), generator)
    path = [PartialSignature.sample(h, (1, 3), 2, generator, torch.float32) for h in -GRID.diff()]
    assert torch.equal(sample(step, GRID, (1, 3), seeds=[seed]), march(step, x, GRID, path))


def test_seeds_are_generators() -> None:
    step = Exponential(DENOISER)
    by_seed = sample(step, GRID, (3, 3), seeds=[4, 5, 6])
    assert torch.equal(sample(step, GRID, (3, 3), generator=seed_generators([4, 5, 6])), by_seed)
    shared = [sample(step, GRID, (3, 3), generator=Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(*shared)
    generators = seed_generators([1, 1, 2])
    a, b, c = (torch.randn(4, generator=g) for g in generators)
    assert torch.equal(a, b)
    assert not torch.equal(b, c)


def test_without_a_seed_every_call_differs() -> None:
    a, b = (sample(Exponential(DENOISER), GRID, (2, 3)) for _ in range(2))
    assert not torch.equal(a, b)


def test_type_and_shape_are_those_asked_for() -> None:
    step = Exponential(GaussianDenoiser(0.0, 1.0, SCHEDULE))
    for dtype in (torch.float32, torch.float64):
        drawn = sample(step, GRID, (2, 3, 4, 4), seeds=[0, 1], dtype=dtype)
        assert drawn.shape == (2, 3, 4, 4)
        assert drawn.dtype == dtype
    assert sample(step, GRID, (0, 3), seeds=[]).shape == (0, 3)


# --- one path at another step count ---------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule", [VPLinear(), Cosine(), EDM(), RectifiedFlow()], ids=["vp", "cosine", "edm", "flow"]
)
def test_a_path_replayed_with_half_the_steps_ends_in_the_same_place(schedule: Schedule) -> None:
    # For Gaussian data the reverse SDE is linear and the exponential step solves it: as soon as the
    # order resolves the response, N steps and 2 N steps on one path are one and the same solution.
    mean, std, order, n = 0.7, 1.3, 20, 4
    step = Exponential(GaussianDenoiser(mean, std, schedule), order, data_std=std)
    fine = torch.linspace(0.9, 0.4, 2 * n + 1, dtype=torch.float64)
    path = [PartialSignature(h, normals(6, order, 2, seed=k)) for k, h in enumerate(-fine.diff())]
    x = normals(6, 2, seed=99)
    halved = [PartialSignature.concatenate(*path[k : k + 2]) for k in range(0, 2 * n, 2)]
    long, short = march(step, x, fine, path), march(step, x, fine[::2], halved)
    torch.testing.assert_close(short, long, rtol=0, atol=1e-8 * float(long.abs().max()))
    other = march(step, x, fine, [PartialSignature(p.dt, -p.coefficients) for p in path])
    assert float((other - long).abs().max()) > 1e-2  # the path matters


def test_samples_have_the_law_of_the_data() -> None:
    # Two steps from pure noise and the final denoise from t_min: exact for Gaussian data.
    mean, std, n = 0.7, 1.3, 40_000
    step = Exponential(GaussianDenoiser(mean, std, SCHEDULE), 2, data_std=std)
    drawn = sample(
        step, fine_grid(SCHEDULE, 2), (n, 1), generator=Generator().manual_seed(0)
    ).double()
    noise = 4 / n**0.5
    # the prior has no mean left in it but the data's alpha = 0.0067: a bias of that size at most
    assert float(drawn.mean()) == pytest.approx(mean, abs=noise * std + 0.01)
    assert float(drawn.std()) == pytest.approx(std, abs=noise * std)


# --- watching -------------------------------------------------------------------------------------


def test_march_reports_each_step() -> None:
    step = EulerMaruyama(DENOISER)
    path = [PartialSignature(h, normals(2, 1, 3, seed=k)) for k, h in enumerate(-GRID.diff())]
    seen: list[tuple[int, float, Tensor]] = []
    end = march(step, normals(2, 3), GRID, path, lambda k, t, x: seen.append((k, float(t), x)))
    assert [k for k, _, _ in seen] == [1, 2, 3, 4, 5]
    assert [t for _, t, _ in seen] == GRID[1:].tolist()
    assert seen[-1][2] is end
    x = normals(2, 3)
    for (t, s), part, (_, _, state) in zip(itertools.pairwise(GRID), path, seen, strict=True):
        x = step(x, t, s, part)
        assert torch.equal(x, state)


def test_sample_reports_the_noise_and_each_step_of_every_batch() -> None:
    seen: list[tuple[int, float, int]] = []
    step = Exponential(DENOISER)

    def callback(k: int, t: Tensor, x: Tensor) -> None:
        seen.append((k, float(t), len(x)))

    sample(step, GRID, (5, 3), seeds=range(5), callback=callback, batch_size=3)
    times = GRID.tolist()
    assert seen == [(k, times[k], rows) for rows in (3, 2) for k in range(6)]


def test_progress_counts_steps_over_all_batches(capsys: pytest.CaptureFixture[str]) -> None:
    step = Exponential(DENOISER)
    sample(step, GRID, (5, 3), seeds=range(5), batch_size=2, progress=True)
    assert "15/15" in capsys.readouterr().err
    sample(step, GRID, (5, 3), seeds=range(5))
    assert capsys.readouterr().err == ""


def test_march_wants_one_signature_a_step() -> None:
    path = [PartialSignature(h, normals(2, 1, 3)) for h in -GRID.diff()]
    for given in (path[:-1], [*path, path[0]]):
        with pytest.raises(ValueError, match="argument 2 is"):
            march(Exponential(DENOISER), normals(2, 3), GRID, given)


# --- conditions -----------------------------------------------------------------------------------


def test_conditions_are_split_with_their_samples() -> None:
    witness = Witness()
    labels, extra = torch.arange(5), normals(5, 2)
    sample(
        Exponential(witness), [1.0, 0.5, 0.0], (5, 3), seeds=range(5), batch_size=2,
        label=labels, extra=extra,
    )  # fmt: skip
    expected = [rows for rows in ((0, 2), (2, 4), (4, 5)) for _ in range(2)]
    assert len(witness.conditions) == len(expected)
    for given, (start, stop) in zip(witness.conditions, expected, strict=True):
        assert torch.equal(given["label"], labels[start:stop])
        assert torch.equal(given["extra"], extra[start:stop])


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [float("nan"), float("inf")])
def test_samples_that_are_not_finite_are_refused(answer: float) -> None:
    with pytest.raises(SigdegError, match="NaN or infinite values"):
        sample(Exponential(Witness(answer)), GRID, (2, 3), seeds=[0, 1])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"seeds": [1]}, "1 seeds were given for 2 samples: give one a sample"),
        ({"generator": seed_generators([1, 2, 3])}, "3 seeds were given for 2 samples"),
        ({"seeds": [1, 2], "generator": Generator()}, "either seeds or a generator, not both"),
        ({"seeds": [1, 2], "batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_bad_requests_are_refused(arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(SigdegError, match=line):
        sample(Exponential(DENOISER), GRID, (2, 3), **arguments)


def test_a_grid_that_rises_is_refused() -> None:
    with pytest.raises(SigdegError, match="must strictly decrease"):
        sample(Exponential(DENOISER), [0.0, 1.0], (2, 3), seeds=[0, 1])


def test_no_two_seeds_have_one_stream() -> None:
    """A seed beyond the 32 bits that a generator takes in is refused, not cut."""
    step = Exponential(DENOISER)
    x = sample(step, GRID, (4, 3), seeds=[0, 1, 2**31, 2**32 - 1])
    assert len(x.unique(dim=0)) == 4
    for seed in (2**32, 5 + 2**32, -1):
        with pytest.raises(SigdegError, match=r"between 0 and 2\^32 - 1"):
            sample(step, GRID, (2, 3), seeds=[5, seed])


def test_seeds_may_come_as_a_tensor() -> None:
    step = Exponential(DENOISER)
    x = sample(step, GRID, (3, 3), seeds=torch.tensor([4, 5, 6]), batch_size=2)
    assert torch.equal(x, sample(step, GRID, (3, 3), seeds=[4, 5, 6]))


# --- any kind of noise ----------------------------------------------------------------------------

MASK = 2


class Absorbing:
    """Tokens are masked one by one: at time t each is with probability t."""

    t_min, t_max = 0.0, 1.0

    def prior(self, shape: Sequence[int], generator: Any = None, **options: Any) -> Tensor:
        return torch.full(tuple(shape), MASK, device=options["device"])


class Unmask:
    """Ancestral step of two equal bits: a mask falls with probability (t - s) / t."""

    process = Absorbing()

    def noise(self, t: Tensor, s: Tensor, shape: Sequence[int], *more: Any, **_: Any) -> Tensor:
        return rand((shape[0], 2, shape[1]), *more, dtype=torch.float64)

    def calls(self, t: float, s: float) -> int:
        return 1

    def __call__(self, x: Tensor, t: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        told = (2 * x - 1).where(x != MASK, 0).sum(1, keepdim=True).sign()
        token = (noise[:, 1] < (1 + told) / 2).long()  # each by its own law given what is seen
        return token.where((x == MASK) & (noise[:, 0] < (t - s) / t), x)


def off(chances: Mapping[tuple[int, ...], float]) -> float:
    """Total variation distance to two equal bits."""
    states = {(0, 0): 0.5, (1, 1): 0.5}
    differences = [chances.get(x, 0) - states.get(x, 0) for x in {*chances, *states}]
    return sum(map(abs, differences)) / 2


@pytest.mark.parametrize(("steps", "exact"), [(1, 0.5), (2, 0.25), (4, 0.125)])
def test_tokens_are_sampled_by_the_very_same_function(steps: int, exact: float) -> None:
    """Bits unmasked together are drawn as if independent: 1 / (2 K), exactly."""
    step, grid = Unmask(), torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    twelfths, halves = (torch.arange(12) + 0.5) / 12, (torch.arange(2) + 0.5) / 2
    every = torch.cartesian_prod(twelfths, twelfths, halves, halves).reshape(-1, 2, 2)
    chances: dict[tuple[int, ...], float] = {(MASK, MASK): 1.0}
    for t, s in itertools.pairwise(grid):
        after: dict[tuple[int, ...], float] = defaultdict(float)
        for state, chance in chances.items():
            for end in step(torch.tensor(state).expand(len(every), 2), t, s, every).tolist():
                after[tuple(end)] += chance / len(every)
        chances = after
    assert off(chances) == pytest.approx(exact, abs=1e-12)
    n = 4000
    drawn = sample(step, grid, (n, 2), seeds=range(n))
    counts = Counter(map(tuple, drawn.tolist()))
    assert off({state: count / n for state, count in counts.items()}) == pytest.approx(
        exact, abs=0.03
    )
    assert torch.equal(sample(step, grid, (n, 2), seeds=range(n), batch_size=333), drawn)


def test_a_step_that_says_no_noise_is_told_what_it_lacks() -> None:
    class Mute(nn.Module):
        process = SCHEDULE

    with pytest.raises(SigdegError, match="Mute is no step that can be sampled, it has no noise"):
        sample(Mute(), GRID, (2, 3), seeds=[1, 2])  # type: ignore[arg-type]
