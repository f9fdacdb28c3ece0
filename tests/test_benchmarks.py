"""The benchmarks measure what they say: pairs, what is inside a time, what is outside."""

from __future__ import annotations

import json
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator

import benchmarks
from benchmarks import Row, compare, distillation, export, sampling, summary, tokens
from benchmarks.__main__ import BENCHMARKS, main
from sigdeg.errors import SigdegError
from sigdeg.sampling import sample
from sigdeg.student import SignatureStudent


class Clock:
    """A clock that only work moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    fake = types.SimpleNamespace(perf_counter=clock.perf_counter)
    monkeypatch.setattr(benchmarks, "time", fake)
    monkeypatch.setattr(distillation, "time", fake)
    return clock


def test_a_ratio_is_free_of_a_drifting_machine(clock: Clock) -> None:
    order: list[str] = []

    def work(name: str, seconds: float) -> None:
        order.append(name)
        clock.now += seconds * 2 ** ((len(order) - 1) // 2)  # the machine halves its speed a pair

    row = compare("", ("", lambda: work("A", 3)), ("", lambda: work("B", 2)), pairs=5)
    assert order == ["A", "B"] * 6
    assert row.seconds == [(6, 4), (12, 8), (24, 16), (48, 32), (96, 64)]  # the first is untimed
    assert row.ratio == dict.fromkeys(("median", "q1", "q3", "min", "max"), 1.5)


def test_a_summary_holds_the_quartiles() -> None:
    values = np.random.default_rng(0).exponential(size=10)
    expected = np.quantile(values, [0.5, 0.25, 0.75, 0, 1])
    np.testing.assert_allclose(list(summary(values.tolist()).values()), expected, rtol=1e-3)


def test_a_target_is_reached_from_its_own_side() -> None:
    seconds = [(3.0, 2.0)] * 3
    assert Row("", "", "", seconds, {}, at_most=1.5).reached
    assert not Row("", "", "", seconds, {}, at_most=1.4).reached
    assert Row("", "", "", seconds, {}, at_least=1.5).reached
    assert not Row("", "", "", seconds, {}, at_least=1.6).reached
    assert Row("", "", "", seconds, {}).reached is None


def test_bare_calls_are_the_sampler_s_own() -> None:
    student = SignatureStudent.from_denoiser(sampling.vector_denoiser(), 1, steps=(5,)).eval()
    torch.nn.init.normal_(student.network.network.head.weight)

    def draw() -> torch.Tensor:
        return sample(student, student.grid(), (3, 1), generator=Generator().manual_seed(0))

    calls = sampling.record(student, draw)
    with torch.no_grad():
        outputs = iter([student.network(*inputs) for inputs in calls])
    expected = draw()
    student.network.forward = lambda *inputs: next(outputs)  # the outputs of the bare calls instead
    assert torch.equal(draw(), expected)
    assert next(outputs, None) is None


def test_a_training_iteration_excludes_the_bare_work_beside_it(clock: Clock) -> None:
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight])

    def spend(seconds: float) -> None:
        clock.now += seconds

    def train(iterations: int = 4) -> None:
        spend(1000)  # preparation
        for _ in range(iterations):
            spend(5)
            weight.grad = torch.ones(1)
            optimizer.step()

    assert distillation.beside(train, lambda: spend(7)) == [(5, 7)] * 3
    train(1)
    assert clock.now == 2 * 1000 + 5 * 5 + 4 * 7  # the hook is gone


def test_both_joint_losses_are_one() -> None:
    log_p = torch.randn(2, 3, 4, 5, generator=Generator().manual_seed(0)).log_softmax(-1)
    sequences = torch.randint(5, (2, 6, 4), generator=Generator().manual_seed(1))
    both = [loss(log_p, sequences) for loss in tokens.LOSSES.values()]
    torch.testing.assert_close(*both)


def test_some_benchmarks_leave_what_others_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "benchmarks.json"
    out.write_text('{"hardware": {"cpu": "another"}, "sampling": ["old"], "tokens": ["old"]}')
    monkeypatch.setitem(BENCHMARKS, "tokens", lambda: [Row("new", "", "", [(1.0, 1.0)] * 2, {})])
    main(out, names=["tokens"])
    results = json.loads(out.read_text())
    assert results["hardware"] == {"cpu": "another"}
    assert results["sampling"] == ["old"]
    assert results["tokens"][0]["name"] == "new"
    assert results["apart"]["tokens"]["hardware"]["cpu"] != "another"
    with pytest.raises(SigdegError, match="unknown benchmark 'none': choose from signatures"):
        main(out, names=["none"])


def test_a_small_run_writes_every_ratio(
    tmp_path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(BENCHMARKS, "export")  # makes graphs, which takes a minute
    sizes = {
        "signatures": {"scalars": 10_000, "pairs": 2},
        "sampling": {"vectors": 4, "images": 1, "widths": (8, 8), "pairs": 2},
        "distillation": {"vectors": 4, "images": 2, "widths": (8, 8)}
        | dict.fromkeys(("iterations", "fresh_iterations", "image_iterations"), 3),
        "tokens": {"texts": 2, "images": 1, "text": (8, 16), "width": 8, "pairs": 2}
        | {"losses": ((2, 3, 4, 5),)},
        "pipelines": {"batch": 1, "widths": (32, 32), "latents": 4, "pairs": 2},
    }
    main(tmp_path / "benchmarks.json", sizes)
    assert [path.name for path in tmp_path.iterdir()] == ["benchmarks.json"]
    results = json.loads((tmp_path / "benchmarks.json").read_text())
    assert {"cpu", "cores", "threads", "load_before"} == results["hardware"].keys()
    assert {"python", "torch", "torchsde"} <= results["versions"].keys()

    rows = [row for group in sizes for row in results[group]]
    for row in rows:
        ratio = row["ratio"]
        assert 0 < ratio["min"] <= ratio["q1"] <= ratio["median"] <= ratio["q3"] <= ratio["max"]
        assert row["pairs"] == 2
    targets = [(row["name"], row["target"]) for row in rows if row["target"]]
    assert targets == [
        ("drawing signatures", "<= 1.3"),
        ("drawing signatures", "<= 1.3"),
        ("Brownian tree / coefficients", ">= 20"),
        ("sampler, U-Net", "<= 1.05"),
        ("sampler, shipped student / its network", "<= 1.03"),
        ("sampler, shipped student / teacher's network", "<= 1.06"),
        ("step of tokens, mixture / product, transformer", "<= 1.03"),
        ("step of tokens, mixture / product, U-Net", "<= 1.03"),
        ("joint loss, expanded / gathered", ">= 5"),
        ("pipeline, student / its teacher's network", "<= 1.03"),
        ("pipeline, student / DDIM", "<= 1.03"),
    ]
    assert all(row["pairs_per_second"] > 0 for row in results["distillation"])
    held = results["tokens"][-1]["size"]["megabytes"]
    assert 0 < held["gathered"] <= held["expanded"]
    assert len(capsys.readouterr().out.splitlines()) >= len(rows)


@pytest.mark.slow
def test_exports_are_measured_beside_their_students() -> None:
    rows = export.measure(steps=(1, 1), layers=1, pairs=3)
    assert [row.target for row in rows] == [">= 2", "", ">= 1.5", ""]
    for whole, small in (rows[:2], rows[2:]):
        assert whole.size["largest_error"] < 1e-4 < small.size["largest_error"]
        assert whole.ratio["median"] > 1
