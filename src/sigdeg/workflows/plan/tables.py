"""Advice in words, tables and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sigdeg.planning.advice import GridAdvice
from sigdeg.planning.plans import format_plan, merges, plan_steps
from sigdeg.planning.spectrum import Spectrum
from sigdeg.planning.theory.budget import Accounting
from sigdeg.planning.theory.recommend import PlanAdvice

__all__ = ["describe", "grid_json", "grid_lines", "plan_json", "plan_lines", "verdict"]

SHORT = 16  # steps of a plan that is printed as a tree


def describe(found: Spectrum) -> str:
    """What a spectrum is of."""
    drawn = "" if found.samples is None else f" of {found.samples:,} samples"
    plural = "" if found.directions == 1 else "s"
    return f"{found.source}: {found.directions:,.0f} direction{plural}{drawn}"


def verdict(found: Spectrum, regime: str, windows: tuple[float, float], about: str) -> str:
    """Which plans a spectrum calls for."""
    low, high = windows
    if regime == "boot":
        return f"every variance is at most {low:.3f} ({about}): BOOT is the best of all plans"
    if regime == "vanilla":
        return f"every variance is at least {high:.3f} ({about}): vanilla is the best of all plans"
    return (
        f"mixed: {found.share(high=low):.0%} of the directions are below {low:.3f}, where BOOT is "
        f"best, {found.share(low=high):.0%} above {high:.3f}, where vanilla is ({about})"
    )


def plan_lines(spectrum: Spectrum, advice: PlanAdvice, about: str, s: float) -> list[str]:
    """A recommendation as text, for a one-shot student of training time s."""
    names = dict.fromkeys(name for plans in advice.plans.values() for name in plans)
    rows = [[f"W2 to the teacher, s = {s:g}", "merges", *advice.plans]]
    for name in names:
        held = [plans.get(name) for plans in advice.plans.values()]
        count = next(len(merges(p.plan)) for p in held if p is not None)
        cells = ["" if p is None else f"{p.distance:.4g}" for p in held]
        rows.append([name, str(count), *cells])
    others = [kind for kind in advice.plans if kind != advice.accounting]
    best = advice.best
    written = plan_steps(best.plan) <= SHORT or advice.name == "searched"
    shares = " to ".join(dict.fromkeys(f"{share:.2g}" for share in best.retention))
    lines = [
        describe(spectrum),
        verdict(spectrum, advice.regime, advice.windows, about),
        "",
        *align(rows),
        "",
        f"Recommended under {advice.accounting}: {told(advice, advice.accounting)}",
        f"  {order_of(advice.name, plan_steps(best.plan))}",
        f"  merges: {len(merges(best.plan))}, of s = {best.s:.3g} each, "
        f"after each of which {shares} of a student's start is left",
        *([f"  {format_plan(best.plan)}"] if written else []),
    ]
    lines += [f"Best under {kind}: {told(advice, kind)}" for kind in others]
    return [*lines, f"The teacher itself is {advice.teacher:.3g} from the data."]


def told(advice: PlanAdvice, kind: Accounting) -> str:
    """The winner under an accounting, and what it gains."""
    name = advice.winner(kind)
    gain = f", {advice.gain(None, kind):.3g} times as near as one-shot"
    return name if name == "vanilla" else name + gain


def order_of(name: str, steps: int) -> str:
    """What a plan does, in words."""
    first = steps - int(name[7:]) + 1 if name.startswith("hybrid-") else 0
    return {
        "vanilla": f"merge the {steps} steps at once",
        "progressive": "merge neighbours in pairs, round after round",
        "consistency": "from the data: merge steps 1 and 2, then add one step at a time",
        "boot": f"from the noise: merge steps {steps - 1} and {steps}, then add one at a time",
        "searched": "merge as written here, the best tree near the hybrids",
    }.get(name, f"merge steps {first} to {steps} at once, then add one step at a time to the data")


def plan_json(advice: PlanAdvice) -> dict[str, Any]:
    """A recommendation as JSON values."""
    return {
        "recommended": advice.name,
        "accounting": advice.accounting,
        "regime": advice.regime,
        "windows": list(advice.windows),
        "gain": advice.gain(),
        "plan": format_plan(advice.best.plan),
        "merges": [merge._asdict() for merge in merges(advice.best.plan)],
        "teacher_to_data": advice.teacher,
        "plans": {
            kind: {
                name: {
                    "plan": format_plan(p.plan),
                    "merges": len(merges(p.plan)),
                    "s": p.s,
                    "gamma": list(p.retention),
                    "w2": p.distance,
                    "gain": advice.gain(name, kind),
                }
                for name, p in plans.items()
            }
            for kind, plans in advice.plans.items()
        },
    }


def grid_lines(advice: GridAdvice) -> list[str]:
    """A recommendation as text; its last line is an option of `sigdeg distill`."""
    measured = advice.comparison is not None
    rows = [["grid", "W2", *(["measured loss"] if measured else []), "times"]]
    for name, own in advice.grids.items():
        w2 = "" if name == "measured" else f"{own.cost:.3g}"
        loss = [f"{advice.measured_cost(own):.3g}"] if measured else []
        rows.append([name, w2, *loss, times_text(own.times, 3)])
    lines = [describe(advice.spectrum), "", *align(rows, last_left=True), ""]
    if advice.lossless:
        lines.append("Of Gaussian data such a student is exact on any grid: planned without noise.")
    if advice.comparison is not None:
        ratio = advice.comparison.ratio
        lines.append(f"The planned grid loses {ratio:.3g} times what the measured one loses.")
    return [
        *lines,
        f"Recommended: {advice.name}",
        f"--times {times_text(advice.best.times)}",
    ]


def grid_json(advice: GridAdvice) -> dict[str, Any]:
    """A recommendation as JSON values."""
    measured = advice.comparison is not None
    return {
        "recommended": advice.name,
        "times": advice.best.times.tolist(),
        "lossless": advice.lossless,
        "ratio": None if advice.comparison is None else advice.comparison.ratio,
        "grids": {
            name: {
                "times": own.times.tolist(),
                "w2": None if name == "measured" else own.cost,
                "measured_loss": advice.measured_cost(own) if measured else None,
            }
            for name, own in advice.grids.items()
        },
    }


def times_text(times: Iterable[Any], digits: int = 6) -> str:
    """Times as `--times` of `sigdeg distill` takes them."""
    return " ".join(f"{float(t):.{digits}g}" for t in times)


def align(rows: Sequence[Sequence[str]], last_left: bool = False) -> list[str]:
    """A table as lines: the first column, and the last if wanted, to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = {0, len(widths) - 1} if last_left else {0}
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
