"""How to distil a teacher of tokens: the settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sigdeg.errors import SigdegError, check_choice
from sigdeg.training import TrainConfig

__all__ = ["AlphaSchedule", "DiscreteConfig"]

AlphaSchedule = Literal["constant", "linear", "sigmoid"]


@dataclass(frozen=True)
class DiscreteConfig(TrainConfig):
    r"""How to distil: how to train, and on what.

    A step of training draws times $t$, uniform in (0, 1], and $u = t - \Delta$. The teacher goes
    from t to u, the student from there to the end, and the student at t is to do the same at once;
    where t is no more than $\Delta$ it learns the teacher's own law.

    Arguments:
        latents: Latents M an item, see `sigdeg.discrete.losses`, and sequences that the teacher's
            step ends in; of a `weighted` latent all components are taken, however many.
        stratified: Spread them evenly over their law; else they are drawn independently.
        alpha: Weight of the correlation loss on data; 0 trains on the teacher's steps alone.
        alpha_schedule: Its course in time: `constant`, `linear` ($\alpha t$), or `sigmoid`
            ($\alpha \sigma(20 (t - 1/2))$).
        marginal: Weight of the marginal loss on data.
        shortest: Least $\Delta$; it is drawn log-uniformly.
        longest: Largest $\Delta$.
        single: The teacher reveals one masked position in place of a step to u. A product is exact
            there, so that no number of its steps bounds what is learned; for short sequences, as it
            is learned from one masked position to all.
        start: Share of the items at time 1, where sampling starts.
        unlabelled: Share of the items whose class is withheld, where there are classes.
        paths: Samples of the teacher to learn from where there are no data.
        path_steps: Steps of the teacher that each of them takes.
    """

    batch_size: int = 32
    latents: int = 16
    stratified: bool = True
    alpha: float = 1.0
    alpha_schedule: AlphaSchedule = "constant"
    marginal: float = 1.0
    shortest: float = 1 / 32
    longest: float = 1 / 8
    single: bool = False
    start: float = 0.1
    unlabelled: float = 0.1
    paths: int = 20_000
    path_steps: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(0, "alpha", "marginal")
        self.at_least(20, "paths")
        self.at_least(1, "latents", "path_steps")
        check_choice(self.alpha_schedule, get_args(AlphaSchedule), "alpha_schedule")
        if self.latents == 1:
            raise SigdegError(
                "one latent an item makes a product of the student, which learns no correlations: "
                "latents must be at least 2"
            )
        if self.latents == 2 and not self.stratified:
            raise SigdegError(
                "two latents drawn independently learn nothing, their loss is least where both say "
                "the same: take 3 or more, or stratified ones"
            )
        if self.alpha > self.marginal:
            raise SigdegError(
                f"alpha must not be above the weight of the marginal loss, got {self.alpha:g} and "
                f"{self.marginal:g}: the correlation loss alone has no lower bound and diverges"
            )
        if not 0 < self.shortest <= self.longest <= 1:
            raise SigdegError(
                "times apart must be ordered, 0 < shortest <= longest <= 1, got "
                f"{self.shortest:g} and {self.longest:g}"
            )
        for name in ("start", "unlabelled"):
            if not 0 <= getattr(self, name) <= 1:
                raise SigdegError(f"{name} must lie in [0, 1], got {getattr(self, name)}")

    def weight(self, t: Tensor) -> Tensor:
        """Weight of the correlation loss at times, the same shape."""
        if self.alpha_schedule == "linear":
            return self.alpha * t
        if self.alpha_schedule == "sigmoid":
            return self.alpha * torch.sigmoid(20 * (t - 0.5))
        return torch.full_like(t, self.alpha)
