"""The table of what networks predict, against each kind's own formulas."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Generator, Tensor

from sigdeg.prediction import OF_DATA_STD, Prediction, network_target, preconditioning
from sigdeg.schedule import EDM, Cosine, RectifiedFlow, Schedule, VPLinear, expand

V = 0.7**2


def by_hand(kind: Prediction, a: Tensor, s: Tensor, x: Tensor, F: Tensor) -> Tensor:
    """The mean, solved for from what each output is."""
    n2 = a**2 * V + s**2
    return {
        "epsilon": (x - s * F) / a,
        "v_prediction": (a * x - s * F) / (a**2 + s**2),
        "sample": F,
        "score": (x + s**2 * F) / a,
        "flow": (x - s * F) / (a + s),
        "flow_to_data": (x + s * F) / (a + s),
        "edm": (a * V * x + s * V**0.5 * n2.sqrt() * F) / n2,
        "edm_v": (a * V * x - s * V**0.5 * n2.sqrt() * F) / n2,
    }[kind]


def target_by_hand(kind: Prediction, a: Tensor, s: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
    n = (a**2 * V + s**2).sqrt()
    return {
        "epsilon": noise,
        "v_prediction": a * noise - s * clean,
        "sample": clean,
        "score": -noise / s,
        "flow": noise - clean,
        "flow_to_data": clean - noise,
        "edm": (s * clean - a * V * noise) / (V**0.5 * n),
        "edm_v": (a * V * noise - s * clean) / (V**0.5 * n),
    }[kind]


@pytest.mark.parametrize("kind", get_args(Prediction))
@pytest.mark.parametrize(
    "schedule", [VPLinear(), Cosine(), EDM(), RectifiedFlow()], ids=lambda s: type(s).__name__
)
def test_means_inputs_and_targets(kind: Prediction, schedule: Schedule) -> None:
    draw = Generator().manual_seed(0)
    clean, noise, F = torch.randn(3, 50, 2, generator=draw, dtype=torch.float64)
    t = torch.linspace(max(schedule.t_min, 0.02), schedule.t_max, 50, dtype=torch.float64)
    a, s = expand(schedule.alpha(t), clean), expand(schedule.sigma(t), clean)
    x = a * clean + s * noise

    def close(found: Tensor, expected: Tensor) -> None:
        assert float((found - expected).abs().max() / expected.abs().max().clamp(min=1)) < 1e-12

    table = preconditioning(a, s, kind, V**0.5)
    close(table.mean(F, x), by_hand(kind, a, s, x, F))
    close(table.scale(x), x / (a**2 * V + s**2).sqrt() if kind in OF_DATA_STD else x)
    target = network_target(clean, noise, a, s, kind, V**0.5)
    expected = target_by_hand(kind, a, s, clean, noise)
    assert float((target - expected).abs().max() / expected.abs().max()) < 1e-9
    near = a / s < 100  # further on, x itself has no more digits of the noise
    close((table.mean(target, x) - clean) * near, 0 * clean)
    single = network_target(clean.float(), noise.float(), a.float(), s.float(), kind, V**0.5)
    assert float((single - expected).abs().max() / expected.abs().max()) < 1e-5


def test_edm_v_of_unit_variance_is_v_of_the_variance_preserving_state() -> None:
    draw = Generator().manual_seed(0)
    x, F = torch.randn(2, 50, 2, generator=draw, dtype=torch.float64)
    s = torch.linspace(0.01, 100, 50, dtype=torch.float64)[:, None]
    q = (1 + s**2).sqrt()
    exploding = preconditioning(torch.ones_like(s), s, "edm_v", 1.0)
    preserving = preconditioning(1 / q, s / q, "v_prediction")
    torch.testing.assert_close(exploding.scale(x), x / q)
    torch.testing.assert_close(exploding.mean(F, x), preserving.mean(F, x / q))
