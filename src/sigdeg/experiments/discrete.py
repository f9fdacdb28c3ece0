"""Laws of tokens whose every probability is known: what a few steps lose, and what a mixture does.

The teacher is the exact product of a law's marginals, so that its steps err by nothing but their
independence. Students are judged by the total variation between the law that they draw by and the
law itself, both exact: no number here is an estimate from samples, but where it says so.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sigdeg.datasets import TokenLaw, load_problem
from sigdeg.discrete import (
    Absorbing,
    Ancestral,
    DiscreteConfig,
    ExactDenoiser,
    Latent,
    MixtureStudent,
    TokenModel,
    as_token_model,
    uniform_grid,
)
from sigdeg.discrete.distill import Distilled, train_student
from sigdeg.discrete.exact import MOST_STATES, law_on, sampler_law
from sigdeg.experiments.bench import Benchmark, slugify
from sigdeg.networks import TokenMLP
from sigdeg.report.plots import PLAIN, save, small_multiples
from sigdeg.report.style import METHODS, MUTED, use_style
from sigdeg.results import Summary, count_calls, make_row, summarise
from sigdeg.rng import Stream, derive_generator, seeded

__all__ = ["PRESETS", "Discrete", "Settings", "run"]

COLOURS = (METHODS["teacher"].colour, METHODS["di4c"].colour, "#0072b2", MUTED)
LEAST = 1e-4  # total variation that figures show


@dataclass(frozen=True)
class Settings:
    """A preset: which laws, which students, and how much work.

    Arguments:
        problems: Laws by name, with the components of a student's mixture; the main one first.
        kinds: Of each kind of student, by name, the options in which it differs from the recipe;
            `taught` says whether it has a teacher, or learns data alone, `seeds` how many
            training seeds it has where not as many as the others.
        recipe: Options of `DiscreteConfig` that all share.
        network: Width and blocks of a student's network.
        seeds: Training seeds of each student.
        counts: Step counts at which all are judged.
        data: Sequences that are drawn to learn from.
        states: Of sequences too long to be enumerated, states drawn before the last step.
    """

    problems: tuple[tuple[str, int], ...]
    kinds: dict[str, dict[str, Any]]
    recipe: dict[str, Any]
    network: tuple[int, int] = (64, 2)
    seeds: int = 3
    counts: tuple[int, ...] = (8, 4, 2, 1)
    data: int = 500_000
    states: int = 4096


KINDS: dict[str, dict[str, Any]] = {
    "with data": {"alpha": 0.1},
    "consistency alone": {"alpha": 0.0},
    "no teacher": {"taught": False, "single": False, "seeds": 1},
}
RECIPE: dict[str, Any] = {
    "iterations": 2000,
    "batch_size": 8,
    "latents": 32,
    "single": True,
    "start": 0.25,
    "learning_rate": 4e-3,
    "optimizer": "muon",
    "warmup": 100,
    "ema": 0.995,
    "checkpoint_every": 500,
    "tracker": "none",
}
SMALL = ("words4", "bits2", "xor3", "copy6", "checker8", "moons16", "markov4", "checker32")
PRESETS = {
    "quick": Settings(
        tuple((name, 4) for name in ("xor3", "bits2")),
        {name: KINDS[name] for name in ("with data", "no teacher")},
        {**RECIPE, "iterations": 300},
        network=(32, 1),
        seeds=2,
        counts=(2, 1),
        data=10_000,
    ),
    "default": Settings(tuple((name, 32) for name in SMALL), KINDS, RECIPE),
    "sudoku": Settings((("sudoku4", 512),), {"with data": KINDS["with data"]}, RECIPE, seeds=1),
}


class Problem:
    """One law: its teacher, and how far what a model draws is from it.

    Arguments:
        name: Of the law.
        settings: The preset.
        seed: Seed of what is drawn.
    """

    def __init__(self, name: str, settings: Settings, seed: int) -> None:
        self.name, self.settings, self.seed = name, settings, seed
        self.law: TokenLaw = load_problem(name)
        self.process = Absorbing(self.law.tokens)
        self.denoiser = ExactDenoiser(self.law.support, self.law.weights, self.process)
        self.teacher = as_token_model(self.denoiser, name=name)
        self.short = self.process.states**self.law.length <= MOST_STATES
        self.data = self.law.sample(settings.data, derive_generator(seed, Stream.DISCRETE_DATA))

    def measure(self, model: TokenModel, steps: int) -> dict[str, float]:
        """Total variation to the law, and the share that has no place in it.

        Of long sequences both are exact in one step alone; in more the share is an estimate.
        """
        step, grid, support = model.step, uniform_grid(steps), self.law.support
        assert isinstance(step, Ancestral)
        if self.short:
            found: Tensor = sampler_law(step, grid)[tuple(support.T)]
        else:
            generator = derive_generator(self.seed, Stream.DISCRETE_STATES, steps)
            found = law_on(step, grid, support, self.settings.states, generator)
        invalid = {"invalid": max(0.0, 1 - float(found.sum()))}
        if not self.short and steps > 1:
            return invalid
        return {"tv": float((self.law.weights - found).clamp(min=0).sum()), **invalid}

    def student(self, components: int, seed: int) -> MixtureStudent:
        """An untrained student: a mixture with weights of its own, that hears no time."""
        latent, (width, blocks) = Latent("weighted", components), self.settings.network
        told = {"kind": latent.kind, "size": latent.size}
        length, states = self.law.length, self.process.states
        network = seeded(
            seed, lambda: TokenMLP(length, states, width, blocks, timed=False, latent=told)
        )
        return MixtureStudent(network, self.process, length, latent)


class Discrete(Benchmark[Settings]):
    """The benchmark: the first law stands in the main table, others in tables of their own."""

    name = "discrete"
    title = "Laws of tokens that are known exactly"
    summary = (
        "Total variation between a law and what is drawn in so many calls, exact: of the exact "
        "product teacher, and of mixture students that learn from its steps with data, from its "
        "steps alone, or from data alone. Means over training seeds."
    )
    presets = PRESETS
    quality = ("tv", "words4: total variation to the law")

    def __init__(self, settings: Settings, out: Path, **options: Any) -> None:
        super().__init__(settings, out, **options)
        self.trained: dict[str, TokenModel] = {}  # the first of each kind, of the main law
        self.points: dict[str, dict[str, dict[int, dict[str, Summary]]]] = {}

    def prepare(self) -> None:
        self.problems = {
            name: Problem(name, self.settings, self.seed) for name, _ in self.settings.problems
        }

    def train_kind(self, problem: Problem, kind: str, components: int, seed: int) -> Distilled:
        """Train a kind of student of a law with one seed."""
        options = {**self.settings.recipe, **self.settings.kinds[kind]}
        taught, _ = options.pop("taught", True), options.pop("seeds", None)
        return train_student(
            problem.student(components, seed),
            Ancestral(problem.denoiser) if taught else None,
            self.out / "students" / slugify(f"{problem.name} {kind} seed {seed}"),
            DiscreteConfig(**options, seed=seed),
            data=problem.data,
            **self.options,
        )

    def fill(self) -> None:
        for place, (name, components) in enumerate(self.settings.problems):
            problem = self.problems[name]
            study = {"study": name} if place else {}
            self.add_models(problem, "teacher", [problem.teacher], **study)
            for kind in self.settings.kinds:
                count = self.settings.kinds[kind].get("seeds", self.settings.seeds)
                seeds = range(self.seed, self.seed + count)
                found = [self.train_kind(problem, kind, components, seed) for seed in seeds]
                models = [as_token_model(one.student.eval(), name=kind) for one in found]
                taken = statistics.fmean(one.seconds for one in found)
                told = {"train_seconds": taken, "teacher_nfe": found[0].teacher_nfe or None}
                self.add_models(problem, kind, models, **study, **told)
                if not place:
                    self.curves[kind] = found[0].history.tolist()
                    self.trained[kind] = models[0]
        self.student = next(iter(self.trained.values()))

    def add_models(
        self, problem: Problem, kind: str, models: Sequence[TokenModel], **columns: Any
    ) -> None:
        """Add the rows of a teacher, or of a student that is trained with several seeds."""
        method = kind if kind == "teacher" else "di4c"
        for steps in self.settings.counts:

            def work(i: int, steps: int = steps) -> dict[str, Any]:
                return problem.measure(models[i], steps)

            named = f"{problem.name} {kind} at {steps}"
            metrics = summarise(self.recall(named, work, len(models)))
            told = [kind] if method == "di4c" else []
            told += [count_calls(steps)] if "study" in columns else []
            variant = {"variant": ", ".join(told)} if told else {}
            row = {"steps": steps, "seeds": len(models), **variant, **columns}
            self.add(make_row(method, models[0].step, steps, metrics, **row))
            self.points.setdefault(problem.name, {}).setdefault(kind, {})[steps] = metrics

    def draw_figures(self) -> Mapping[str, str]:
        tints = dict(zip(["teacher", *self.settings.kinds], COLOURS, strict=False))
        with use_style():
            figure, panels = small_multiples(len(self.points), 2.1)
            for axes, (name, kinds) in zip(panels, self.points.items(), strict=True):
                key = "tv" if self.problems[name].short else "invalid"
                for kind, found in kinds.items():
                    means = [max(metrics[key]["mean"], LEAST) for metrics in found.values()]
                    axes.plot(list(found), means, "o-", color=tints[kind], label=kind, mec="white")
                axes.set_title(name if key == "tv" else f"{name}: share invalid")
                axes.set_xscale("log", base=2)
                axes.xaxis.set_major_formatter(PLAIN)
                axes.set_yscale("log")
            handles, labels = panels[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower left", ncols=len(labels))
            save(figure, self.out / "figures" / "variation.png")
        return {
            "variation": "Total variation to each law against calls, both logarithmic; what lies "
            f"below {LEAST:g} is drawn there."
        }

    def save_student(self) -> None:
        self.student.save_pretrained(self.out / "student")


run = Discrete.run
