"""Plans on equal terms: what a merge costs and what a budget buys."""

from __future__ import annotations

import numpy as np
import pytest

from sigdeg.errors import SigdegError
from sigdeg.planning import canonical_plans, hybrid, progressive, seq_boot, vanilla
from sigdeg.planning.theory.budget import best_hybrid, plan_cost, predict, training_time
from sigdeg.planning.theory.operators import discretise, gamma, teacher_ops

STEPS = 32
A, N2 = teacher_ops(discretise("cosine", STEPS), np.arange(1, 33.0) ** -2)
TARGET = A.prod(0)


def test_a_merge_costs_its_children_and_the_student() -> None:
    assert plan_cost(vanilla(32)) == 3 + 32
    assert plan_cost(seq_boot(32)) == plan_cost(progressive(32)) == 31 * 5
    assert plan_cost(hybrid(32, 29)) == 3 * 5 + 32
    assert plan_cost(1) == 0


def test_a_budget_is_spent_whole() -> None:
    for plan in canonical_plans(STEPS).values():
        assert training_time(plan, 7.0) == 7.0
        assert training_time(plan, 7.0, "equal-compute") * plan_cost(plan) == pytest.approx(7)
    assert training_time(vanilla(32), 4.0, "equal-steps") == 4.0
    assert training_time(seq_boot(32), 31.0, "equal-steps") == 1.0
    assert training_time(1, 5.0, "equal-compute") == 5.0


@pytest.mark.parametrize(
    ("budget", "one", "boot", "best", "m"),
    [
        (10, 2.90, 3.62, 2.41, 29),
        (35, 0.695, 1.72, 0.561, 30),
        (155, 0.0007, 0.178, 0.0007, 32),
    ],
)
def test_recorded_distances_at_equal_compute(
    budget: float, one: float, boot: float, best: float, m: int
) -> None:
    def distance(plan: object) -> float:
        return predict(plan, A, N2, TARGET, budget, "equal-compute").distance  # type: ignore[arg-type]

    found, hybrid_best = best_hybrid(A, N2, TARGET, budget, "equal-compute")
    assert found == m
    assert hybrid_best.plan == hybrid(STEPS, m)
    for value, recorded in (
        (distance(vanilla(STEPS)), one),
        (distance(seq_boot(STEPS)), boot),
        (hybrid_best.distance, best),
    ):
        digits = 2 if recorded > 1 else 3 if recorded > 0.1 else 4
        assert value == pytest.approx(recorded, abs=0.51 * 10**-digits)
    scanned = [distance(hybrid(STEPS, k)) for k in range(1, STEPS + 1)]
    assert hybrid_best.distance == pytest.approx(min(scanned), rel=1e-9)


def test_recorded_distances_at_equal_steps() -> None:
    one, boot = (
        predict(plan, A, N2, TARGET, 4, "equal-steps").distance
        for plan in (vanilla(STEPS), seq_boot(STEPS))
    )
    assert one == pytest.approx(0.0017, abs=5e-5)
    assert boot == pytest.approx(2.64, abs=5e-3)


def test_a_prediction_says_how_far_each_merge_is_trained() -> None:
    found = predict(progressive(4), A[:4], N2[:4], TARGET, 2.0, "equal-steps")
    used = gamma(N2[[1, 3]], 2 / 3)  # input times 2 and 4
    assert found.s == pytest.approx(2 / 3)
    assert found.retention == (used.min(), used.max())


def test_bad_input_is_refused() -> None:
    with pytest.raises(SigdegError, match="a budget must not be negative, got -1"):
        training_time(vanilla(2), -1.0)
    with pytest.raises(SigdegError, match="unknown accounting 'fair': choose from equal-s, equal"):
        training_time(vanilla(2), 1.0, "fair")  # type: ignore[arg-type]  # the point
