"""What benchmarks of tokens share: teachers and students beside each other at the same counts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from sigdeg.discrete import TokenModel
from sigdeg.experiments.bench import Benchmark, Draw, S
from sigdeg.results import Summary, merge, summarise
from sigdeg.rng import Stream, derive_generator

__all__ = ["TokenBenchmark"]


class TokenBenchmark(Benchmark[S]):
    """A benchmark whose teachers and students are models of tokens.

    Attributes:
        stream: Of the generators that samples are drawn with.
        n: Samples of a set.
        draws: Sets behind a number, of each training seed.
    """

    stream: ClassVar[Stream]
    n: int
    draws: int

    @abstractmethod
    def measure(self, samples: Tensor) -> dict[str, float]:
        """The metrics of a set of samples, tokens (n, D)."""

    def judge(self, name: str, draw: Draw) -> dict[str, Summary]:
        def work(i: int) -> dict[str, Any]:
            return self.measure(draw(self.n, derive_generator(self.seed, self.stream, i)))

        return summarise(self.recall(name, work, self.draws))

    def add_models(
        self,
        method: str,
        models: Sequence[TokenModel],
        counts: Sequence[int],
        name: str = "",
        **columns: Any,
    ) -> None:
        """Add a row for each step count of a model, or of one trained with several seeds.

        Arguments:
            method: What it is: `teacher` or `di4c`.
            models: One a training seed.
            counts: The step counts.
            name: Of what they are models, where there are several such things.
            columns: Further keys of the rows; a `variant` tells rows of one method apart.
        """
        known = f"{name} {method} {columns.get('variant', '')}"
        for steps in counts:
            grid = models[0].grid.at(steps)
            found = [
                self.judge(f"{known} {i} at {steps}", self.march(model.step, grid))
                for i, model in enumerate(models)
            ]
            told = {"steps": steps, "seeds": len(models), **columns}
            self.add_step(method, models[0].step, grid, merge(found), **told)

    def save_student(self) -> None:
        self.student.save_pretrained(self.out / "student")
