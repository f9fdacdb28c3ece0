"""Plans on Gaussian data: what the theory predicts beside what trained linear students reach."""

from __future__ import annotations

import numpy as np

from sigdeg.planning import canonical_plans, format_plan
from sigdeg.planning.spectrum import Floats
from sigdeg.planning.theory.budget import best_hybrid, predict
from sigdeg.planning.theory.operators import discretise, teacher_ops, w2
from sigdeg.planning.theory.trained import train_plan
from sigdeg.results import Row, make_row, single, summarise

__all__ = ["gaussian_rows"]

SIZE = 16  # directions of a spectrum
BATCH = 64
DECAYING = np.arange(1, SIZE + 1) ** -2.0
SPECTRA = {
    "mixed spectrum": DECAYING / DECAYING.mean(),  # from 0.04 to 10.1
    "spectrum of at most 1": DECAYING,
}


def gaussian_rows(steps: int, times: tuple[float, ...], seeds: int, seed: int) -> list[Row]:
    """A side table a spectrum: distances to the teacher, predicted and achieved, plan by plan.

    The linear teacher takes DDIM steps on the cosine schedule; `times` are training times of every
    merge, `seed` the first of the training seeds.
    """
    schedule, rows = discretise("cosine", steps), []
    for spectrum, eigenvalues in SPECTRA.items():
        operators, n2 = teacher_ops(schedule, eigenvalues)
        target = operators.prod(0)
        for s in times:
            m, best = best_hybrid(operators, n2, target, s)
            for name, plan in {**canonical_plans(steps), f"hybrid-{m}": best.plan}.items():
                predicted = predict(plan, operators, n2, target, s)
                achieved = []
                for own in range(seed, seed + seeds):
                    generator = np.random.default_rng(own)

                    def draw(t: int, n2: Floats = n2, g: np.random.Generator = generator) -> Floats:
                        return np.asarray(np.sqrt(n2[t - 1]) * g.standard_normal((BATCH, SIZE)))

                    student = train_plan(plan, operators, draw, s)
                    achieved.append({"w2": float(w2(student, target, n2[-1])[()])})
                metrics = {**summarise(achieved), "w2_predicted": single(predicted.distance, 1)}
                rows.append(
                    make_row(
                        "sig-deg",
                        None,
                        1,
                        metrics,
                        kind="linear",
                        seeds=seeds,
                        plan=name,
                        tree=format_plan(plan),
                        s=s,
                        study=f"Gaussian data, {spectrum}: W2 to a teacher of {steps} steps",
                        variant=f"{name}, s = {s:g}",
                    )
                )
    return rows
