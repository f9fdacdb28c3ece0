r"""Merge plans: ordered trees that say which operators are distilled into one, and when.

A plan over T steps is a tree whose leaves are 1 (data end), ..., T (noise end). Every inner node is
one merge of two or more adjacent operators: a student that starts as the operator at the noise end,
$R$, and is trained for a while on the product of all children, $R P$. It ends at

$$ X = R\, f_\gamma(P), \qquad f_\gamma(p) = (1 - \gamma) p + \gamma, $$

with $\gamma$ of its input time, the last leaf under it. Plans are nested tuples, `(1, (2, 3))`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias, TypeVar

from sigdeg.errors import SigdegError, check_least

__all__ = [
    "Merge",
    "Plan",
    "canonical_plans",
    "fold",
    "format_plan",
    "hybrid",
    "merges",
    "parse_plan",
    "plan_from_intervals",
    "plan_steps",
    "progressive",
    "seq_boot",
    "seq_consistency",
    "vanilla",
]

Plan: TypeAlias = "int | tuple[Plan, ...]"
V = TypeVar("V")


class Merge(NamedTuple):
    """One merge: the steps (start, stop], its input time `stop`, and its number of children."""

    start: int
    stop: int
    arity: int


def postfix(plan: Plan) -> list[int]:
    """A plan in execution order: t for a leaf, -k for a merge of the k operators before it.

    No recursion, because a sequential plan is as deep as the teacher has steps.
    """
    tokens: list[int] = []
    todo = [plan]
    while todo:
        node = todo.pop()
        if isinstance(node, int):
            tokens.append(node)
        else:
            tokens.append(-len(node))
            todo.extend(node)
    return tokens[::-1]


def fold(plan: Plan, leaf: Callable[[int], V], merge: Callable[[list[V], int], V]) -> V:
    """The value of a plan from those of its leaves, merge after merge in execution order.

    Arguments:
        plan: The plan.
        leaf: Value of the leaf t.
        merge: Value of a merge, from those of its children and its input time.
    """
    stack: list[V] = []
    time = 0
    for token in postfix(plan):
        if token > 0:
            time = token
            stack.append(leaf(token))
            continue
        children = stack[token:]
        del stack[token:]
        stack.append(merge(children, time))
    return stack[0]


def plan_steps(plan: Plan) -> int:
    """The number of steps T a plan merges.

    Raises:
        SigdegError: If its leaves are not 1, ..., T in this order, or a merge has one child.
    """
    tokens = postfix(plan)
    leaves = [t for t in tokens if t > 0]
    if leaves != list(range(1, len(leaves) + 1)) or any(t in (0, -1) for t in tokens) or not leaves:
        raise SigdegError(
            "a plan must have the leaves 1, ..., T in this order and merge two or more at a time, "
            "like (1, (2, 3))"
        )
    return len(leaves)


def merges(plan: Plan) -> list[Merge]:
    """The merges of a plan in an order they can be carried out in."""
    done: list[Merge] = []

    def span(children: list[tuple[int, int]], time: int) -> tuple[int, int]:
        done.append(Merge(children[0][0], time, len(children)))
        return children[0][0], time

    fold(plan, lambda t: (t - 1, t), span)
    return done


def plan_from_intervals(steps: int, intervals: Iterable[tuple[int, int]]) -> Plan:
    """The plan whose merges span the given steps (start, stop], the inverse of `merges`.

    Arguments:
        steps: The number of steps T.
        intervals: Spans of the merges, in any order, each pair nested or disjoint. A span of a
            single step is no merge and is left out; the whole (0, T] is always one.

    Raises:
        SigdegError: If two spans overlap, or one leaves 0..T.
    """
    blocks: dict[int, tuple[int, Plan]] = {t: (t + 1, t + 1) for t in range(steps)}
    for start, stop in sorted({*intervals, (0, steps)}, key=lambda span: span[1] - span[0]):
        children: list[Plan] = []
        at = start
        while at < stop and at in blocks:
            at, child = blocks.pop(at)
            children.append(child)
        if at != stop or not children:
            raise SigdegError(f"({start}, {stop}] overlaps another merge or leaves 0..{steps}")
        blocks[start] = (stop, tuple(children) if len(children) > 1 else children[0])
    return blocks[0][1]


def vanilla(steps: int) -> Plan:
    """All in one merge, (1 2 ... T)."""
    return hybrid(steps, steps)


def seq_boot(steps: int) -> Plan:
    """From the noise end, (1 (2 (... (T-1 T)))): every merge is trained at input time T."""
    return hybrid(steps, 1)


def seq_consistency(steps: int) -> Plan:
    """From the data end, (((1 2) 3) ... T): input times 2, ..., T."""
    check_least(steps, 1, "steps")
    return plan_from_intervals(steps, ((0, t) for t in range(2, steps + 1)))


def progressive(steps: int) -> Plan:
    """Rounds of adjacent pairs, ((1 2) (3 4)) ...; an odd one out stays, at the data end."""
    check_least(steps, 1, "steps")
    row: list[Plan] = list(range(1, steps + 1))
    while len(row) > 1:
        odd = len(row) % 2
        row = row[:odd] + list(zip(row[odd::2], row[odd + 1 :: 2], strict=True))
    return row[0]


def hybrid(steps: int, m: int) -> Plan:
    """Vanilla on the m noisiest steps, then BOOT to the data: (1 (2 (... (T-m+1 ... T)))).

    m = 1 (and 2) is BOOT, m = T is vanilla.

    Raises:
        SigdegError: If m is not in 1..T.
    """
    check_least(steps, 1, "steps")
    if not 1 <= m <= steps:
        raise SigdegError(f"m must lie in 1..{steps}, got {m}")
    return plan_from_intervals(steps, ((t, steps) for t in range(steps - m + 1)))


CANONICAL: dict[str, Callable[[int], Plan]] = {
    "vanilla": vanilla,
    "progressive": progressive,
    "consistency": seq_consistency,
    "boot": seq_boot,
}


def canonical_plans(steps: int) -> dict[str, Plan]:
    """The four plans of the literature by name."""
    return {name: build(steps) for name, build in CANONICAL.items()}


def format_plan(plan: Plan) -> str:
    """A plan on one line, `(1 (2 3..6))`: runs of three or more leaves are shortened."""
    return fold(plan, str, lambda children, _: f"({' '.join(shorten(children))})")


def parse_plan(text: str, steps: int) -> Plan:
    """A plan from its name or from its line, the inverse of `format_plan`.

    Arguments:
        text: vanilla, progressive, consistency, boot, hybrid-M (M the number of the noisiest steps
            that are merged at once), or a tree such as `(1 (2 3..6))`.
        steps: The number of steps T of a plan given by name.

    Raises:
        SigdegError: If it is neither.
    """
    if text in CANONICAL:
        return CANONICAL[text](steps)
    if found := re.fullmatch(r"hybrid-(\d+)", text):
        return hybrid(steps, int(found[1]))
    rows: list[list[Plan]] = [[]]
    for token in re.findall(r"\d+\.\.\d+|\d+|\S", text):
        if token == "(":
            rows.append([])
        elif token == ")" and len(rows) > 1:
            merged = tuple(rows.pop())
            rows[-1].append(merged)
        elif token[0].isdigit():
            first, _, last = token.partition("..")
            rows[-1].extend(range(int(first), int(last or first) + 1))
        else:
            rows[0].append(())  # nothing that a plan may hold
    if len(rows) != 1 or len(rows[0]) != 1:
        raise SigdegError(
            f"unknown plan {text!r}: choose from {', '.join(CANONICAL)}, hybrid-M, or give a tree "
            "like '(1 (2 3..6))'"
        )
    plan_steps(rows[0][0])
    return rows[0][0]


def shorten(children: list[str]) -> Iterator[str]:
    """Children with each run of three or more leaves as `first..last`."""
    run: list[str] = []
    for child in [*children, "("]:
        if child.isdigit():
            run.append(child)
            continue
        yield from [f"{run[0]}..{run[-1]}"] if len(run) > 2 else run
        run = []
        if child != "(":
            yield child
