"""Samplers side by side: any steps and models, by any metrics, in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import isfunction
from pathlib import Path
from typing import Any

from torch import Tensor

from sigdeg.errors import SigdegError, check_least
from sigdeg.files import read_json
from sigdeg.grids import check_grid, coarse_grid
from sigdeg.model import Model, as_model
from sigdeg.results import Row, make_row, save_results, summarise
from sigdeg.rng import seed_generators
from sigdeg.sampling import network_calls
from sigdeg.student import SignatureStudent

__all__ = ["Table", "compare"]

Metric = Callable[[Tensor], float]


@dataclass(frozen=True)
class Table:
    """Rows of a comparison.

    Arguments:
        rows: The rows, see `sigdeg.results.Row`.
        summary: What was compared, in words.
    """

    rows: list[Row]
    summary: str

    def report(self, folder: str | Path) -> Path:
        """Write `results.json` and a report; returns the latter.

        Raises:
            SigdegError: If the folder holds the results of another run.
        """
        from sigdeg.report import write_report  # an extra, which a table can do without

        kept = Path(folder) / "results.json"
        if kept.exists() and read_json(kept).get("experiment") != "compare":
            raise SigdegError(f"{folder} holds another run: choose another folder")
        quality = next(iter(self.rows[0]["metrics"]))
        results = {
            "title": "Samplers side by side",
            "experiment": "compare",
            "preset": None,
            "summary": self.summary,
            "quality": {"metric": quality, "label": quality, "lower_is_better": True},
            "rows": self.rows,
            "paper": [],
            "floor": {},
            "figures": [],
        }
        save_results(Path(folder), results)
        return write_report(Path(folder))


def compare(
    samplers: Mapping[str, Any],
    grids: Sequence[int | Sequence[float] | Tensor],
    metrics: Mapping[str, Metric],
    seeds: int = 3,
    *,
    n: int = 10_000,
    shape: Sequence[int] | None = None,
    batch_size: int | None = None,
    **request: Any,
) -> Table:
    r"""Draw from samplers on the same grids and seeds, and measure what comes out.

    Arguments:
        samplers: By name models, students, steps of any kind, one's own too, or functions of a
            step count that make a step with a `grid` of its own, such as `Solver`.
        grids: Step counts or times. A model counts as its own grid does, a step in power spacing.
        metrics: By name functions of samples (n, \*), the smaller the better.
        seeds: How many sets each draws.
        n: Samples in a set.
        shape: Shape of a state, where no model among the samplers tells it.
        batch_size: Samples at a time (default: all).
        request: What models are asked for, such as a label.

    Returns:
        A row for each sampler and grid; metrics have mean and deviation over the seeds.

    Raises:
        SigdegError: If there is nothing to compare, or no shape.
    """
    check_least(min(len(samplers), len(grids), len(metrics)), 1, "samplers, grids and metrics")
    check_least(n, 1, "n")
    known = {name: value for name, value in samplers.items() if isinstance(value, Model)}
    known |= {k: as_model(v) for k, v in samplers.items() if isinstance(v, SignatureStudent)}
    if shape is None:
        shape = next((model.shape for model in known.values()), None)
    if shape is None:
        raise SigdegError("no model tells the shape of a state: give it, such as shape=(1,)")
    rows = []
    for name, given in samplers.items():
        for times in grids:
            made = given(times) if isfunction(given) else given
            model = known.get(name) or as_model(made, shape, name)
            if isfunction(given):
                grid = check_grid(made.grid)
            elif not isinstance(times, int):
                grid = check_grid(times)
            else:
                own = name in known
                grid = model.grid.at(times) if own else coarse_grid(model.schedule, times)

            def draw(seed: int, model: Model = model, grid: Tensor = grid) -> Tensor:
                generator = seed_generators([seed])[0]
                return model.sample(
                    n, grid=grid, generator=generator, batch_size=batch_size, **request
                )

            sets = [draw(seed) for seed in range(seeds)]
            found = summarise([{key: float(of(x)) for key, of in metrics.items()} for x in sets])
            more: dict[str, Any] = {"steps": len(grid) - 1, "seeds": seeds}
            if isinstance(model.step, SignatureStudent):
                more["role"] = "student"
            calls = network_calls(model.step, grid)
            rows.append(make_row(name, model.step, calls, found, **more))
    return Table(rows, f"{n:,} samples of each, {seeds} times.")
