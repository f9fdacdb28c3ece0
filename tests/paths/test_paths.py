"""Teacher paths: exact noise, exact states on linear problems, caches that survive anything."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import Generator, Tensor

from sigdeg.denoiser import Denoiser, GaussianDenoiser
from sigdeg.errors import SigdegError
from sigdeg.files import read_tensors
from sigdeg.grids import coarse_grid, refine
from sigdeg.guidance import AutoGuidance
from sigdeg.networks import ResidualMLP
from sigdeg.paths import Batch, CachedPaths, FreshPaths, TeacherPaths, simulate
from sigdeg.sampling import network_calls
from sigdeg.schedule import Cosine, Schedule, VPLinear
from sigdeg.signature import PartialSignature
from sigdeg.steps import EulerMaruyama, Exponential, GaussianStep, ShARK
from sigdeg.student import SignatureStudent

SCHEDULE = VPLinear()
STD = 0.6
GRID = coarse_grid(SCHEDULE, 3)
ROWS = list(refine(SCHEDULE, GRID, 4))


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def gaussian(schedule: Schedule = SCHEDULE) -> GaussianDenoiser:
    return GaussianDenoiser(0.0, STD, schedule)


def close(actual: Tensor, expected: Tensor, tol: float = 1e-11) -> None:
    torch.testing.assert_close(actual, expected, rtol=tol, atol=tol)


class Recorder(GaussianStep):
    """A step that remembers the fine signatures that drove it."""

    def __init__(self, step: GaussianStep) -> None:
        super().__init__()
        self.step, self.schedule = step, step.schedule
        self.fine: list[PartialSignature] = []
        self.asked = 0

    @property
    def order(self) -> int:
        return self.step.order

    def forward(self, x: Tensor, t: Any, s: Any, signature: PartialSignature) -> Tensor:
        self.fine.append(signature)
        self.asked += x.shape[0] * self.step.nfe
        return self.step(x, t, s, signature)


class Counter(Denoiser):
    """A denoiser that counts the samples it is asked for."""

    def __init__(self) -> None:
        super().__init__(SCHEDULE)
        self.asked = 0

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        self.asked += x.shape[0]
        return 0.3 * x


@pytest.mark.parametrize("order", [1, 2, 5])
@pytest.mark.parametrize("make", [EulerMaruyama, Exponential, ShARK])
def test_folding_on_the_way_is_chen(make: Callable[[Denoiser], GaussianStep], order: int) -> None:
    """The coarse signature is the concatenation of the fine ones the teacher was driven by."""
    recorder = Recorder(make(gaussian()))
    x = torch.randn(6, 2, generator=seeded(), dtype=torch.float64)
    states, coefficients = simulate(recorder, ROWS, x, order, seeded(1))
    assert states.shape == (6, 4, 2)
    for k, row in enumerate(ROWS):
        fine = recorder.fine[4 * k : 4 * k + 4]
        whole = PartialSignature.fold(fine)
        close(whole.dt, row[0] - row[-1])
        close(coefficients[:, k], whole.coefficients[:, :order])
        for j, part in enumerate(fine):  # and the teacher saw the states that are kept
            x = recorder.step(x, row[j], row[j + 1], part)
        close(states[:, k + 1], x)


@pytest.mark.parametrize("schedule", [VPLinear(), Cosine()], ids=["vp", "cosine"])
def test_linear_teacher_in_closed_form(schedule: Schedule) -> None:
    r"""Gaussian data: every state is a product of gains on x plus gains on the fine draws.

    The exact conditional law of $x_s$ given $x_t$ has gain $\alpha_t n_s^2 / (\alpha_s n_t^2)$ and
    variance $n_s^2 (1 - \alpha_t^2 n_s^2 / (\alpha_s^2 n_t^2))$; the last step is the mean.
    """
    grid = coarse_grid(schedule, 2)
    rows = list(refine(schedule, grid, 3))
    recorder = Recorder(Exponential(gaussian(schedule), 1, STD))
    x = torch.randn(5, 1, generator=seeded(), dtype=torch.float64)
    states, coefficients = simulate(recorder, rows, x, 1, seeded(1))

    def n2(time: Tensor) -> Tensor:
        return schedule.alpha(time) ** 2 * STD**2 + schedule.sigma(time) ** 2

    fine = iter(recorder.fine)
    for k, row in enumerate(rows):
        for t, s in itertools.pairwise(row):
            ratio = schedule.alpha(t) / schedule.alpha(s)
            gain, variance = ratio * n2(s) / n2(t), n2(s) - (ratio * n2(s)) ** 2 / n2(t)
            noise = variance.sqrt() * next(fine).coefficients[:, 0]
            x = gain * x + (noise if s > 0 else 0.0)
        close(states[:, k + 1], x, 1e-9)
        h = row.diff().neg()
        weights = (h / h.sum()).sqrt()
        increments = torch.stack([f.coefficients for f in recorder.fine[3 * k : 3 * k + 3]])
        close(coefficients[:, k], torch.einsum("j,jbof->bof", weights, increments))


def test_ends_with_the_final_denoise() -> None:
    recorder = Recorder(EulerMaruyama(gaussian()))
    x = torch.randn(5, 1, generator=seeded(), dtype=torch.float64)
    states, _ = simulate(recorder, ROWS, x, 2, seeded(1))
    x = states[:, -2]
    for j, part in enumerate(recorder.fine[-4:-1]):
        x = recorder.step(x, ROWS[-1][j], ROWS[-1][j + 1], part)
    close(states[:, -1], gaussian()(x, torch.tensor(SCHEDULE.t_min, dtype=torch.float64)))


def test_coarse_noise_is_white() -> None:
    """Coefficients of all coarse steps, and the starting noise, are independent N(0, 1)."""
    batch = TeacherPaths(EulerMaruyama(gaussian()), ROWS, (1,), 3).draw(40_000, seeded())
    start = batch.states[:, :1, None] / SCHEDULE.prior_std
    noise = torch.cat([start.flatten(1), batch.coefficients.flatten(1)], dim=1)
    for column in noise.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-4
    error = torch.cov(noise.T) - torch.eye(10)
    assert error.abs().max() < 5 / 40_000**0.5


def test_broken_teacher_is_named_with_its_times() -> None:
    class Broken(Counter):
        def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
            return x * (torch.nan if t < GRID[1] else 1.0)

    x = torch.randn(5, 1, generator=seeded())
    message = f"NaN or infinite values between times {GRID[1]:.4g} and {GRID[2]:.4g}"
    with pytest.raises(SigdegError, match=message) as caught:
        simulate(Exponential(Broken()), ROWS, x, 2, seeded(1))
    assert "\n" not in str(caught.value)


def example(n: int = 6, steps: int = 4, order: int = 3) -> Batch:
    return Batch(
        torch.zeros(n, dtype=torch.long),
        torch.randn(n, steps + 1, 2, generator=seeded(1), dtype=torch.float64),
        torch.randn(n, steps, order, 2, generator=seeded(2), dtype=torch.float64),
    )


class TestBatch:
    """Windows, coarser views and choices of segments."""

    def test_take(self) -> None:
        batch = example()
        for rows in (slice(1, None, 2), torch.tensor([3, 0])):
            part = batch.take(rows)
            assert torch.equal(part.states, batch.states[rows])
            assert torch.equal(part.coefficients, batch.coefficients[rows])
            assert torch.equal(part.start, batch.start[rows])

    @pytest.mark.parametrize("q", [1, 2, 4])
    def test_window(self, q: int) -> None:
        batch = example(200)
        window = batch.window(q, seeded())
        assert window.states.shape == (200, q + 1, 2)
        assert window.coefficients.shape == (200, q, 3, 2)
        for i, k in enumerate(window.start.tolist()):
            assert torch.equal(window.states[i], batch.states[i, k : k + q + 1])
            assert torch.equal(window.coefficients[i], batch.coefficients[i, k : k + q])
        assert sorted(set(window.start.tolist())) == list(range(4 - q + 1))

    @pytest.mark.parametrize(
        ("late", "starts", "shares"),
        [
            (0, None, [1, 1, 1, 1]),
            (1, None, [1, 2, 3, 4]),
            (2, None, [1, 4, 9, 16]),
            (2, (1, 3), [0, 4, 0, 16]),
        ],
    )
    def test_late_steps_have_their_share(
        self, late: int, starts: tuple[int, ...] | None, shares: list[int]
    ) -> None:
        window = example(4000).window(1, seeded(), starts, late)
        counts = torch.bincount(window.start, minlength=4).double()
        expected = 4000 * torch.tensor(shares).double() / sum(shares)
        kept = expected > 0
        assert int(counts[~kept].sum()) == 0
        assert stats.chisquare(counts[kept].numpy(), expected[kept].numpy()).pvalue > 1e-3

    def test_window_keeps_count_of_where_it_is(self) -> None:
        batch = example(50)
        late = Batch(batch.start + 3, batch.states, batch.coefficients)
        assert torch.equal(late.window(2, seeded()).start, batch.window(2, seeded()).start + 3)

    @pytest.mark.parametrize("stride", [1, 2, 3, 6])
    def test_coarsen_is_chen(self, stride: int) -> None:
        grid = coarse_grid(SCHEDULE, 6, power=2.3)
        batch = example(steps=6)
        coarse = batch.coarsen(grid, stride)
        assert torch.equal(coarse.states, batch.states[:, ::stride])
        steps = -grid.diff()
        for g in range(6 // stride):
            group = range(g * stride, (g + 1) * stride)
            parts = [PartialSignature(steps[k], batch.coefficients[:, k]) for k in group]
            close(coarse.coefficients[:, g], PartialSignature.fold(parts).coefficients)

    def test_a_window_of_the_coarse_view_is_one_of_the_coarse_grid(self) -> None:
        grid = coarse_grid(SCHEDULE, 6)
        coarse = example(100, steps=6).coarsen(grid, 2)
        window = coarse.window(1, seeded())
        assert sorted(set(window.start.tolist())) == [0, 1, 2]
        for i, k in enumerate(window.start.tolist()):
            assert torch.equal(window.states[i, 0], example(100, steps=6).states[i, 2 * k])
            assert torch.equal(window.coefficients[i, 0], coarse.coefficients[i, k])


@pytest.mark.parametrize("shift", [1, 2])
def test_borrowed_noise_is_the_last_coefficient_of_another(shift: int) -> None:
    batch = example()
    other = batch.with_noise_of(shift)
    assert torch.equal(other.states, batch.states)
    assert torch.equal(other.coefficients[:, :, :2], batch.coefficients[:, :, :2])
    for i in range(6):
        assert torch.equal(other.coefficients[i, :, 2], batch.coefficients[i - shift, :, 2])


def test_a_teacher_of_higher_order_gives_no_more_than_was_asked_for() -> None:
    """The last coefficient may serve as noise: one from above it would tell of the path."""
    x = torch.randn(6, 2, generator=seeded(), dtype=torch.float64)
    teacher = Exponential(gaussian(), 4, STD)
    states, low = simulate(teacher, ROWS, x, 2, seeded(1))
    same, high = simulate(teacher, ROWS, x, 4, seeded(1))
    assert torch.equal(states, same)
    assert low.shape[2] == 2
    close(low, high[:, :, :2])


class TestDataStates:
    """Segments that start from noised data, as the paper has them."""

    DATA = STD * torch.randn(5000, 1, generator=seeded(7))

    def draw(self, n: int, steps: int = 1) -> Batch:
        teacher = Exponential(gaussian(), 2, STD)
        return TeacherPaths(teacher, ROWS, (1,), 2, self.DATA, steps).draw(n, seeded())

    @pytest.mark.parametrize("steps", [1, 2, 3])
    def test_starts_are_spread_evenly_and_in_no_order(self, steps: int) -> None:
        batch = self.draw(6000, steps)
        assert batch.states.shape == (6000, steps + 1, 1)
        choices = 4 - steps
        for part in (batch.start[:3000], batch.start[3000:]):  # the last ones are held out
            counts = torch.bincount(part, minlength=choices)
            assert len(counts) == choices
            assert choices == 1 or stats.chisquare(counts.numpy()).pvalue > 1e-4

    def test_late_starts_cost_what_their_steps_cost(self) -> None:
        """Steps of 2, 3 and 4 fine ones: the second is drawn twice as often, the third thrice."""
        rows = [torch.linspace(1 - k / 3, 1 - (k + 1) / 3, k + 3).double() for k in range(3)]
        paths = TeacherPaths(Exponential(gaussian(), 2, STD), rows, (1,), 2, self.DATA, late=1)
        calls = [network_calls(paths.teacher, row) for row in rows]
        assert paths.teacher_nfe == pytest.approx((calls[0] + 2 * calls[1] + 3 * calls[2]) / 6)
        counts = torch.bincount(paths.draw(3000, seeded()).start)
        assert stats.chisquare(counts.numpy(), [500, 1000, 1500]).pvalue > 1e-3

    def test_law(self) -> None:
        """Data N(0, s^2) and an exact teacher: start and end both follow the forward process."""
        batch = self.draw(30_000)
        for k in range(3):
            rows = batch.start == k
            for j in range(2):
                t = GRID[k + j]
                variance = SCHEDULE.alpha(t) ** 2 * STD**2 + SCHEDULE.sigma(t) ** 2
                if t > 0:
                    x = batch.states[rows, j, 0] / variance.sqrt()
                    assert stats.kstest(x.numpy(), "norm").pvalue > 1e-4
            c = batch.coefficients[rows].flatten(1)
            assert (torch.cov(c.T) - torch.eye(2)).abs().max() < 5 / len(c) ** 0.5

    def test_start_is_data_with_noise(self) -> None:
        """Data far apart and little noise: each start is next to alpha times one of the data."""
        data = torch.tensor([[-1000.0], [0.0], [1000.0]])
        batch = TeacherPaths(EulerMaruyama(gaussian()), ROWS, (1,), 2, data).draw(3000, seeded())
        t = GRID[batch.start][:, None]
        noise = (batch.states[:, 0] - SCHEDULE.alpha(t) * data.T) / SCHEDULE.sigma(t)
        nearest = noise.abs().argmin(1)
        later = batch.start > 0  # at time 1 nothing is left of the data
        assert set(nearest[later].tolist()) == {0, 1, 2}
        x = noise[torch.arange(3000), nearest][later]
        assert stats.kstest(x.numpy(), "norm").pvalue > 1e-4


class TestTeacherCalls:
    """What is reported is what was spent."""

    @pytest.mark.parametrize("make", [EulerMaruyama, Exponential, ShARK])
    def test_whole_paths(self, make: Callable[[Denoiser], GaussianStep]) -> None:
        counter = Counter()
        step = make(counter)
        paths = TeacherPaths(step, ROWS, (1,), 2)
        paths.draw(7, seeded())
        assert counter.asked == 7 * paths.teacher_nfe
        assert paths.teacher_nfe == step.nfe * 11 + 1  # the final denoise is one call

    @pytest.mark.parametrize("make", [EulerMaruyama, Exponential, ShARK])
    @pytest.mark.parametrize("until", [1.0, 0.6])
    def test_guidance_counts(self, make: Callable[[Denoiser], GaussianStep], until: float) -> None:
        """Two where it guides, at every time that the step asks at."""
        one, weak = Counter(), Counter()
        step = make(AutoGuidance(one, weak, 2.0, until))
        paths = TeacherPaths(step, ROWS, (1,), 2)
        paths.draw(7, seeded())
        assert one.asked + weak.asked == 7 * paths.teacher_nfe
        assert weak.asked == one.asked if until == 1 else 0 < weak.asked < one.asked

    def test_segments_from_data(self) -> None:
        """Rows of different lengths: the mean over the starts."""
        counter = Counter()
        rows = [ROWS[0], *refine(SCHEDULE, GRID[1:], 7)]
        paths = TeacherPaths(EulerMaruyama(counter), rows, (1,), 2, torch.zeros(9, 1), 2)
        assert paths.teacher_nfe == (4 + 7 + 7 + 7) / 2
        batch = paths.draw(400, seeded())
        first = int((batch.start == 0).sum())
        assert counter.asked == 11 * first + 14 * (400 - first)


def test_streams_of_samples_are_white_and_independent() -> None:
    """Generators seeded side by side: all noise of a path, and of it and the next one."""
    streams = [Generator().manual_seed(1000 + i) for i in range(20_000)]
    batch = TeacherPaths(EulerMaruyama(gaussian()), ROWS, (1,), 2).draw(20_000, streams)
    start = batch.states[:, 0] / SCHEDULE.prior_std
    noise = torch.cat([start, batch.coefficients.flatten(1)], dim=1)
    for column in noise.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-4
    for shift in (1, 2, 624):
        both = torch.cat([noise, noise.roll(shift, 0)], dim=1)
        assert (torch.cov(both.T) - torch.eye(14)).abs().max() < 5 / 20_000**0.5


def test_fresh_paths_differ_by_stream_and_from_the_held_out() -> None:
    paths = TeacherPaths(EulerMaruyama(gaussian()), ROWS, (1,), 2)
    source = FreshPaths(paths)
    held_out = {seed: FreshPaths(paths, seed).held_out(5).states for seed in (0, 1)}
    assert torch.equal(held_out[0], source.held_out(5).states)
    assert not torch.isin(held_out[1][:, 0], held_out[0][:, 0]).any()
    first, again, other = (source.batch(5, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first.states, again.states)
    kept = source.held_out(5)
    assert torch.equal(kept.states, source.held_out(5).states)
    starts = torch.cat([first.states[:, 0], other.states[:, 0], kept.states[:, 0]])
    assert len(starts.unique()) == 15


class TestCache:
    """Shards: the same bytes whatever happened on the way, and nothing but this simulation."""

    def paths(self, order: int = 2, std: float = STD, **options: Any) -> TeacherPaths:
        teacher = Recorder(Exponential(GaussianDenoiser(0.0, std, SCHEDULE), 2, std))
        return TeacherPaths(teacher, ROWS, (1,), order, **options)

    def cache(self, folder: Path, count: int = 50, **options: Any) -> CachedPaths:
        arguments = {"seed": 3, "held_out": 10, "shard_size": 16, **options}
        return CachedPaths(arguments.pop("paths", self.paths()), folder, count, **arguments)

    def bytes(self, folder: Path) -> list[bytes]:
        return [p.read_bytes() for p in sorted(folder.iterdir())]

    def test_shards_hold_what_was_drawn(self, tmp_path: Path) -> None:
        cache = self.cache(tmp_path)
        assert [len(load_file(p)["start"]) for p in sorted(tmp_path.iterdir())] == [16, 16, 16, 2]
        whole = cache.gather(torch.arange(50))
        for i, p in enumerate(sorted(tmp_path.iterdir())):
            for name, value in load_file(p).items():
                assert torch.equal(getattr(whole, name)[16 * i : 16 * i + 16], value)
        rows = torch.randperm(50, generator=seeded())  # and any order across shards
        mixed = cache.gather(rows)
        for name in ("start", "states", "coefficients"):
            assert torch.equal(getattr(mixed, name), getattr(whole, name)[rows])
        assert len(whole.states[:, 0].unique()) == 50  # no shard repeats another

    @pytest.mark.parametrize("kind", ["noise", "data", "labels"])
    def test_a_path_is_a_function_of_the_seed_and_its_number(
        self, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither the files, nor what is simulated at a time, nor how many: to rounding."""

        class Deaf(Exponential):
            def forward(self, *given: Any, class_labels: Tensor | None = None) -> Tensor:
                return super().forward(*given)

        options = {
            "noise": {},
            "data": {"data": STD * torch.randn(30, 1, generator=seeded()), "q": 2},
            "labels": {"condition": {"class_labels": torch.arange(4)}},
        }[kind]
        paths = TeacherPaths(Deaf(gaussian(), 2, STD), ROWS, (1,), 2, **options)
        whole = self.cache(tmp_path / "a", paths=paths).gather(torch.arange(50))
        for name, count, size in (("b", 50, 7), ("c", 50, 1000), ("d", 61, 13)):
            again = self.cache(tmp_path / name, count, paths=paths, shard_size=size)
            same = again.gather(torch.arange(50))
            assert torch.equal(same.start, whole.start)
            close(same.states, whole.states, 1e-6)
            close(same.coefficients, whole.coefficients, 1e-6)
            for told, value in whole.condition.items():
                assert torch.equal(same.condition[told], value)
        monkeypatch.setattr("sigdeg.paths.sources.CHUNK", 12)
        small = self.cache(tmp_path / "e", paths=paths)
        assert [len(shard["start"]) for shard in small.shards] == [12, 12, 12, 12, 2]
        close(small.gather(torch.arange(50)).states, whole.states, 1e-6)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
    def test_any_precision(self, tmp_path: Path, dtype: torch.dtype) -> None:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            drawn = self.cache(tmp_path).ends
            read = self.cache(tmp_path).ends
        finally:
            torch.set_default_dtype(before)
        assert read.dtype == dtype
        assert torch.equal(read, drawn)
        assert bool(read.isfinite().all())

    def test_one_shard_reads_the_same_way(self, tmp_path: Path) -> None:
        cache = self.cache(tmp_path, shard_size=64)
        drawn = load_file(tmp_path / "paths-00000.safetensors")
        rows = torch.tensor([49, 0, 7, 7])
        for name, value in drawn.items():
            assert torch.equal(getattr(cache.gather(rows), name), value[rows])

    def test_interrupted_goes_on(self, tmp_path: Path) -> None:
        whole = self.cache(tmp_path / "a")
        before = self.bytes(tmp_path / "a")
        for lost in ([1], [2, 3], [0, 1, 2, 3]):
            for index in lost:
                (tmp_path / "a" / f"paths-{index:05d}.safetensors").unlink()
            paths = self.paths()
            again = self.cache(tmp_path / "a", paths=paths)
            sizes = [16, 16, 16, 2]
            assert isinstance(paths.teacher, Recorder)
            assert paths.teacher.asked == 12 * sum(sizes[i] for i in lost)  # and no more than those
            assert self.bytes(tmp_path / "a") == before
            assert torch.equal(again.batch(9, seeded()).states, whole.batch(9, seeded()).states)

    def test_held_out_is_never_drawn(self, tmp_path: Path) -> None:
        cache = self.cache(tmp_path)
        kept = cache.held_out(1000)
        assert len(kept.start) == 10
        drawn = cache.batch(5000, seeded())
        assert len(drawn.states[:, 0].unique()) == 40  # all of the others
        assert not torch.isin(kept.states[:, 0], drawn.states[:, 0]).any()
        assert len(cache.held_out(3).start) == 3
        assert len(self.cache(tmp_path, held_out=0).held_out(1000).start) == 50

    def test_held_out_data_segments_cover_every_step(self, tmp_path: Path) -> None:
        paths = self.paths(data=torch.zeros(5, 1))
        cache = self.cache(tmp_path, 400, paths=paths, held_out=100, shard_size=400)
        assert torch.bincount(cache.held_out(100).start, minlength=3).min() > 10

    def test_memory_mapped_and_safe_to_write(self, tmp_path: Path) -> None:
        """Rows are read on demand; a careless write changes this process' copy alone."""
        cache = self.cache(tmp_path)
        before = self.bytes(tmp_path)
        cache.shards[0]["states"].zero_()
        assert self.bytes(tmp_path) == before
        cache.batch(100, seeded()).states.zero_()
        assert self.bytes(tmp_path) == before

    @pytest.mark.parametrize("length", [0, 5, 100, -1])
    def test_damaged(self, tmp_path: Path, length: int) -> None:
        self.cache(tmp_path)
        file = tmp_path / "paths-00001.safetensors"
        file.write_bytes(file.read_bytes()[:length])
        with pytest.raises(SigdegError, match=r"paths-00001.* not a whole safetensors") as caught:
            self.cache(tmp_path)
        assert "\n" not in str(caught.value)

    def test_changed_or_moved(self, tmp_path: Path) -> None:
        """Whole files whose numbers or place are not what was simulated."""
        self.cache(tmp_path)
        first, second = (tmp_path / f"paths-0000{i}.safetensors" for i in range(2))
        tensors, metadata = read_tensors(second)
        tensors = {**tensors, "states": tensors["states"] * 5}
        for told in (metadata, {"identity": metadata["identity"]}):
            save_file(tensors, second, told)
            with pytest.raises(SigdegError, match=r"paths-00001.*(digest|another simulation)"):
                self.cache(tmp_path)
        second.write_bytes(first.read_bytes())
        with pytest.raises(SigdegError, match=r"paths-00001.* belongs to another simulation"):
            self.cache(tmp_path)

    @pytest.mark.parametrize(
        "other",
        [
            {"seed": 4},
            {"order": 3},
            {"std": 0.5},
            {"count": 40},
            {"shard_size": 32},
            {"data": torch.zeros(5, 1)},
        ],
        ids=str,
    )
    def test_other_simulation(self, tmp_path: Path, other: dict[str, Any]) -> None:
        self.cache(tmp_path)
        options = dict(other)
        paths = self.paths(**{k: options.pop(k) for k in ("order", "std", "data") if k in options})
        with pytest.raises(SigdegError, match="another simulation") as caught:
            self.cache(tmp_path, paths=paths, **options)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("held_out", [-1, 50])
    def test_held_out_is_a_part(self, tmp_path: Path, held_out: int) -> None:
        with pytest.raises(SigdegError, match="held_out must lie between 0 and"):
            self.cache(tmp_path, held_out=held_out)

    def test_double_precision_and_images(self, tmp_path: Path) -> None:
        """States keep the type the teacher gives them, and any shape."""
        teacher = Exponential(gaussian())
        paths = TeacherPaths(teacher, ROWS, (3, 4, 4), 2)
        cache = self.cache(tmp_path, paths=paths, count=20)
        assert cache.batch(4, seeded()).states.shape == (4, 4, 3, 4, 4)
        assert cache.batch(4, seeded()).coefficients.shape == (4, 3, 2, 3, 4, 4)


def test_a_student_can_be_the_teacher() -> None:
    """Progressive merging: two calls a pair, signatures of the student's own order."""
    network = ResidualMLP(SignatureStudent.in_channels(1, 2), 1, 8, 1)
    fine = SignatureStudent(network, SCHEDULE, 1, 2, data_std=STD, steps=(6,))
    grid = fine.grid()
    rows = [grid[k : k + 3] for k in (0, 2, 4)]
    paths = TeacherPaths(fine, rows, (1,), 2)
    assert paths.teacher_nfe == 6
    batch = paths.draw(4, seeded())
    assert json.dumps(batch.start.tolist()) == "[0, 0, 0, 0]"
    assert batch.states.shape == (4, 4, 1)
