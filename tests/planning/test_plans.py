"""Merge plans: the trees, the operators they end with, the two theorems, and trained students."""

from __future__ import annotations

import numpy as np
import pytest

from sigdeg.errors import SigdegError
from sigdeg.planning import (
    Plan,
    canonical_plans,
    format_plan,
    hybrid,
    merges,
    parse_plan,
    plan_from_intervals,
    plan_steps,
    progressive,
    seq_boot,
    seq_consistency,
    vanilla,
)
from sigdeg.planning.plans import fold
from sigdeg.planning.theory.operators import discretise, final_operator, gamma, teacher_ops, w2
from sigdeg.planning.theory.programmes import all_plans
from sigdeg.planning.theory.trained import train_plan

Array = np.ndarray


# --- trees ----------------------------------------------------------------------------------------


def test_there_are_little_schroeder_many_plans() -> None:
    for steps, count in enumerate([1, 1, 3, 11, 45, 197, 903, 4279], start=1):
        plans = list(all_plans(steps))
        assert len(plans) == len(set(plans)) == count
        assert all(plan_steps(plan) == steps for plan in plans[:: max(1, count // 50)])


def test_canonical_plans() -> None:
    assert canonical_plans(4) == {
        "vanilla": (1, 2, 3, 4),
        "progressive": ((1, 2), (3, 4)),
        "consistency": (((1, 2), 3), 4),
        "boot": (1, (2, (3, 4))),
    }
    # An odd one out waits at the data end.
    assert progressive(5) == (1, ((2, 3), (4, 5)))
    assert progressive(7) == ((1, (2, 3)), ((4, 5), (6, 7)))
    assert hybrid(5, 3) == (1, (2, (3, 4, 5)))
    for steps in (1, 2, 9):
        assert hybrid(steps, 1) == seq_boot(steps)
        assert hybrid(steps, steps) == vanilla(steps)
    assert set(canonical_plans(1).values()) == {1}


def test_merges_come_in_an_order_they_can_be_carried_out_in() -> None:
    assert merges(progressive(4)) == [(0, 2, 2), (2, 4, 2), (0, 4, 2)]
    assert merges(seq_boot(4)) == [(2, 4, 2), (1, 4, 2), (0, 4, 2)]
    assert merges(seq_consistency(4)) == [(0, 2, 2), (0, 3, 2), (0, 4, 2)]
    assert merges(vanilla(4)) == [(0, 4, 4)]
    assert merges(1) == []


def test_a_plan_is_the_spans_of_its_merges() -> None:
    for plan in all_plans(6):
        assert plan_from_intervals(6, [(m.start, m.stop) for m in reversed(merges(plan))]) == plan


def test_plans_on_one_line() -> None:
    assert format_plan(((1, 2), 3, 4, 5, 6, (7, 8))) == "((1 2) 3..6 (7 8))"
    assert format_plan(hybrid(12, 9)) == "(1 (2 (3 (4..12))))"
    assert format_plan(1) == "1"


def test_a_plan_may_be_as_deep_as_a_long_teacher() -> None:
    steps = 3000
    a, g = np.full(steps, 0.999), np.full(steps, 0.25)
    deep = final_operator(seq_boot(steps), a, g)
    assert deep == pytest.approx(0.999 * (0.75 * 0.999 + 0.25) ** (steps - 1), rel=1e-10)
    assert format_plan(seq_boot(steps)).count("(") == steps - 1


# --- operators ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lam", "expected"),
    [
        (0.25, [0.657480, 0.698491, 0.791060, 0.610471]),
        (4.0, [1.108814, 1.095086, 1.064190, 1.098074]),
    ],
)
def test_recorded_operators_of_the_canonical_plans(lam: float, expected: list[float]) -> None:
    a, n2 = teacher_ops(discretise("cosine", 4), lam)
    found = [final_operator(plan, a, gamma(n2, 0.3)) for plan in canonical_plans(4).values()]
    np.testing.assert_allclose(found, expected, atol=6e-7)


@pytest.mark.parametrize(
    ("lam", "s", "expected"),
    [
        (0.01, 0.1, [0.7506, 0.8911, 0.9158, 0.5705]),
        (0.01, 0.5, [0.3372, 0.7079, 0.9045, 0.1333]),
        (0.01, 2.0, [0.0168, 0.2732, 0.6157, 0.0042]),
        (0.5, 0.5, [0.1177, 0.2225, 0.3128, 0.1042]),
        (1.0, 0.5, [0.01348, 0.02399, 0.03457, 0.01332]),
        (2.0, 0.5, [0.1320, 0.2184, 0.3496, 0.1444]),
        (5.0, 0.5, [0.4137, 0.6228, 1.070, 0.5100]),
        (20.0, 0.5, [1.135, 1.659, 2.596, 1.625]),
        (100.0, 0.5, [2.651, 4.070, 4.495, 4.310]),
    ],
)
def test_recorded_errors_of_32_steps(lam: float, s: float, expected: list[float]) -> None:
    a, n2 = teacher_ops(discretise("cosine", 32), lam)
    g, target = gamma(n2, s), a.prod()
    for plan, error in zip(canonical_plans(32).values(), expected, strict=True):
        digits = 5 if error < 0.1 and lam == 1 else 4 if error < 1 else 3
        assert round(float(abs(final_operator(plan, a, g) - target)), digits) == error


def test_the_four_closed_forms() -> None:
    rng = np.random.default_rng(1)
    a, g = rng.uniform(0.4, 1.6, (8, 3)), rng.uniform(0, 1, (8, 3))

    def f(keep: Array, p: Array) -> Array:
        return (1 - keep) * p + keep

    def same(plan: Plan, expected: Array) -> None:
        np.testing.assert_allclose(final_operator(plan, a, g), expected, rtol=1e-13)

    same(vanilla(8), a[7] * f(g[7], a[:7].prod(0)))
    same(seq_boot(8), a[7] * f(g[7], a[:7]).prod(0))
    total = a[0]
    for t in range(1, 8):
        total = a[t] * f(g[t], total)
    same(seq_consistency(8), total)
    pairs = [a[t] * f(g[t], a[t - 1]) for t in (1, 3, 5, 7)]
    halves = [pairs[1] * f(g[3], pairs[0]), pairs[3] * f(g[7], pairs[2])]
    same(progressive(8), halves[1] * f(g[7], halves[0]))


def test_training_for_ever_gives_the_teacher_and_not_at_all_its_first_step() -> None:
    a, n2 = teacher_ops(discretise("vp", 6), np.array([0.1, 3.0]))
    for plan in all_plans(6):
        np.testing.assert_allclose(final_operator(plan, a, gamma(n2, 1e6)), a.prod(0), rtol=1e-13)
        np.testing.assert_allclose(final_operator(plan, a, gamma(n2, 0.0)), a[-1], rtol=1e-13)
        np.testing.assert_allclose(
            final_operator(plan, a, gamma(n2, 0.0), init="teacher"), a[-1], rtol=1e-13
        )


# --- theorems -------------------------------------------------------------------------------------


def test_the_identity_behind_both_theorems() -> None:
    # f(ab) - f(a) f(b) = g (1 - g) (1 - a) (1 - b): a vanilla merge against two merges of BOOT.
    rng = np.random.default_rng(2)
    first, second, g = rng.uniform(0, 2, (2, 1000)), rng.uniform(0, 2, (2, 1000)), rng.random(1000)
    ones = np.ones(1000)
    for a, b in zip(first, second, strict=True):
        operators, gammas = np.stack([a, b, ones]), np.stack([g, g, g])
        gap = final_operator((1, 2, 3), operators, gammas) - final_operator(
            (1, (2, 3)), operators, gammas
        )
        np.testing.assert_allclose(gap, g * (1 - g) * (1 - a) * (1 - b), atol=1e-14)


def every_outcome(low: float, high: float, seed: int) -> tuple[Array, Array, Array, Array]:
    """Random operators with those below T in a range: target, BOOT, vanilla, every plan."""
    rng = np.random.default_rng(seed)
    a, g = rng.uniform(low, high, (6, 200)), rng.uniform(0, 1, (6, 200))
    a[-1] = rng.uniform(0.2, 3, 200)
    outcomes = np.stack([final_operator(plan, a, g) for plan in all_plans(6)])
    return a.prod(0), final_operator(seq_boot(6), a, g), final_operator(vanilla(6), a, g), outcomes


def test_boot_is_the_best_plan_where_the_teacher_shrinks() -> None:
    target, boot, _, outcomes = every_outcome(0.0, 1.0, seed=3)
    assert (outcomes >= boot * (1 - 1e-13)).all()
    assert (boot > target).all()


def test_vanilla_is_the_best_plan_where_the_teacher_grows() -> None:
    target, _, one, outcomes = every_outcome(1.0, 2.0, seed=4)
    assert (outcomes <= one * (1 + 1e-13)).all()
    assert (one < target).all()


def test_neither_is_best_between() -> None:
    target, boot, one, outcomes = every_outcome(0.5, 1.5, seed=5)
    nearest = np.abs(outcomes - target).min(0)
    both = np.minimum(np.abs(boot - target), np.abs(one - target))
    assert (nearest < both * (1 - 1e-9)).mean() > 0.5


def test_starting_every_student_at_the_teacher_would_spoil_boot() -> None:
    # Only the current operator as the start agrees with the paper's theorem.
    lam = np.geomspace(0.01, 100, 41)
    for steps in (8, 16, 64):
        a, n2 = teacher_ops(discretise("cosine", steps), lam)
        for s in (0.05, 0.5, 2.0):
            boot, one = (
                np.abs(final_operator(plan, a, gamma(n2, s), init="teacher") - a.prod(0))
                for plan in (seq_boot(steps), vanilla(steps))
            )
            assert (boot >= one - 1e-14).all()


# --- trained students -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vanilla", "progressive", "consistency", "boot"])
def test_trained_students_obey_the_law(name: str) -> None:
    lam = np.array([0.25, 1.0, 4.0])
    a, n2 = teacher_ops(discretise("cosine", 4), lam)
    rng = np.random.default_rng(6)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    batch = rng.normal(size=(3, 12))
    batch = np.linalg.solve(np.linalg.cholesky(batch @ batch.T / 12), batch)  # covariance 1
    operators = np.stack([rotation @ np.diag(row) @ rotation.T for row in a])
    inputs = [(rotation @ (np.sqrt(row)[:, None] * batch)).T for row in n2]
    plan = canonical_plans(4)[name]
    student = train_plan(plan, operators, lambda t: inputs[t - 1], s=0.3, rate=2e-4)
    expected = final_operator(plan, a, gamma(n2, 0.3))
    np.testing.assert_allclose(rotation.T @ student @ rotation, np.diag(expected), atol=1e-3)


def test_the_law_is_that_of_gradient_descent_not_of_adam() -> None:
    """Adam moves every weight alike, up to rate x steps a merge: many short merges all arrive.

    One s, fitted to what a one-shot student has left, tells nothing of other plans: those of
    `docs/planning.md`, 16 steps, 500 of Adam at 1e-3 a merge.
    """
    lam = np.arange(1, 17) ** -2.0
    lam /= lam.mean()
    a, n2 = teacher_ops(discretise("cosine", 16), lam)
    target = a.prod(0)

    def adam(plan: Plan) -> Array:
        def merged(children: list[Array], time: int) -> Array:
            x, goal = children[-1].copy(), np.prod(children, axis=0)
            first, second = np.zeros(16), np.zeros(16)
            for k in range(1, 501):
                gradient = 2 * n2[time - 1] * (x - goal)
                first = 0.9 * first + 0.1 * gradient
                second = 0.999 * second + 0.001 * gradient**2
                ratio = first / (1 - 0.9**k) / (np.sqrt(second / (1 - 0.999**k)) + 1e-8)
                x -= 1e-3 * ratio
            return x

        return fold(plan, lambda t: a[t - 1], merged)

    one_shot = adam(vanilla(16))
    left = (one_shot - target) / (a[-1] - target)
    own_s = -np.log(np.abs(left)) / (2 * n2[-1])
    assert own_s.max() / own_s.min() > 50  # no single s
    plans = {**canonical_plans(16), "hybrid-10": hybrid(16, 10)}
    for name, law, found in (
        ("vanilla", 1.690, 1.690),
        ("progressive", 2.366, 0.750),
        ("consistency", 2.937, 2.064),
        ("boot", 1.559, 0.002),
        ("hybrid-10", 1.488, 1.075),
    ):
        predicted = float(w2(final_operator(plans[name], a, gamma(n2, 0.298)), target, n2[-1]))
        assert predicted == pytest.approx(law, abs=1e-3)
        assert float(w2(adam(plans[name]), target, n2[-1])) == pytest.approx(found, abs=1e-3)


def test_a_diagonal_student_is_the_full_one_in_principal_axes() -> None:
    a, n2 = teacher_ops(discretise("cosine", 3), np.array([0.25, 4.0]))
    # Uncorrelated in the sample itself, so that a full student stays diagonal.
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    for plan in all_plans(3):
        diagonal, full = (
            train_plan(plan, operators, lambda t: np.sqrt(n2[t - 1]) * signs, s=0.3)
            for operators in (a, np.stack([np.diag(row) for row in a]))
        )
        np.testing.assert_allclose(full, np.diag(diagonal), rtol=1e-12, atol=1e-15)


def test_a_plan_that_cannot_be_trained_is_refused() -> None:
    a, _ = teacher_ops(discretise("cosine", 3), np.array([0.25, 4.0]))
    for operators in (a[:2], a[:, 0]):
        with pytest.raises(
            SigdegError, match=r"merges 3 steps: operators must have shape \(T, d\)"
        ):
            train_plan(vanilla(3), operators, lambda t: np.ones((4, 2)), s=0.3)
    with pytest.raises(SigdegError, match="training diverged at time 3: lower the rate of 10"):
        train_plan(vanilla(3), a, lambda t: np.ones((4, 2)), s=5000, rate=10)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [(2, 1), (1, 3), (1, (2,)), (0, 1), (), (1, (2, -1)), 2])
def test_a_broken_plan_is_refused(plan: Plan) -> None:
    with pytest.raises(SigdegError, match=r"a plan must have the leaves 1, \.\.\., T in this"):
        plan_steps(plan)


def test_bad_input_is_refused() -> None:
    for build in (vanilla, progressive, seq_consistency, seq_boot):
        with pytest.raises(SigdegError, match="steps must be at least 1, got 0"):
            build(0)
    with pytest.raises(SigdegError, match=r"m must lie in 1..4, got 5"):
        hybrid(4, 5)
    for spans in ([(0, 2), (1, 3)], [(2, 5)], [(3, 2)]):
        with pytest.raises(SigdegError, match=r"overlaps another merge or leaves 0..4"):
            plan_from_intervals(4, spans)
    half = np.full(3, 0.5)
    with pytest.raises(SigdegError, match="the plan merges 4 steps, the operators are 3"):
        final_operator(vanilla(4), half, half)
    for a, g, line in (
        (half, half[:2], r"must share a shape \(T,\) or \(T, d\), got \(3,\) and \(2,\)"),
        (-half, half, "operators must be finite and not negative"),
        (half, half + 1, r"gammas must lie in \[0, 1\]"),
    ):
        with pytest.raises(SigdegError, match=line):
            final_operator(vanilla(3), a, g)


@pytest.mark.parametrize(
    "plan",
    [*canonical_plans(9).values(), hybrid(9, 5), *all_plans(5), (1, (2, 3)), 1],
    ids=format_plan,
)
def test_a_line_is_read_back(plan: Plan) -> None:
    assert parse_plan(format_plan(plan), 99) == plan


def test_plans_by_name() -> None:
    for name, plan in canonical_plans(6).items():
        assert parse_plan(name, 6) == plan
    assert parse_plan("hybrid-4", 6) == hybrid(6, 4)


@pytest.mark.parametrize(
    "text", ["", "best", "(1 2", "1 2)", "(1 2) (3 4)", "(1 x)", "hybrid-", "(1, 2)", "()"]
)
def test_a_broken_line_is_refused(text: str) -> None:
    with pytest.raises(SigdegError, match=r"unknown plan|must have the leaves"):
        parse_plan(text, 6)


def test_a_line_of_wrong_leaves_is_refused() -> None:
    with pytest.raises(SigdegError, match="must have the leaves"):
        parse_plan("(1 3)", 6)
    with pytest.raises(SigdegError, match=r"m must lie in 1\.\.6, got 7"):
        parse_plan("hybrid-7", 6)
