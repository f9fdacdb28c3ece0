r"""The objective of Di4C: a mixture of products learns what many steps of a product do.

For an item, $x_t \sim q_{t|0}(\cdot | x_0)$. The teacher steps from t to u, M times, the student
ends each of them, $y_j$ at s, and is to give the same law from t at once. Its loss is

| | where | loss |
|---|---|---|
| `distil` | $u \le s$ | the teacher's own law there, position by position |
| `consis_joint`, `consis_marg` | else | correlation and marginal loss on the $y_j$ |
| `corr` | everywhere, times $\alpha_t$ | correlation loss on data |
| `marg` | everywhere | marginal loss to the teacher's law |

Only the second and the fourth row know what positions have to do with one another. s is 0 but for
elastic students, whose steps may end before. No gradient passes through targets.

Of a `weighted` latent all components are summed over, by their weights: nothing is left to chance.

Where the settings say `single`, the teacher reveals one masked position instead of stepping to u.
A product is exact there: the student learns the joint law that the teacher's laws imply, where it
would learn that of $1 / \Delta$ of its steps.

Without a teacher the loss is `nll`, the negative log-likelihood of data under the mixture.

Reference:
    Hayakawa et al., *Distillation of discrete diffusion through dimensional correlations* (2025).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import one_hot
from tqdm.auto import tqdm

from sigdeg.discrete import losses
from sigdeg.discrete.config import DiscreteConfig
from sigdeg.discrete.denoiser import FLOOR
from sigdeg.discrete.latent import Latent
from sigdeg.discrete.process import choose
from sigdeg.discrete.steps import TokenStep
from sigdeg.discrete.student import MixtureStudent

__all__ = ["SATURATED", "Drawn", "MixtureObjective", "draw", "saturation"]

NEAR_ONE = 1.1  # an effective number of latents below it: only the best of them learns
WATCHED = 200  # training steps over which it is averaged
SATURATED = (
    "each sequence is learnt by one of its latents alone (effective number {:.2f} of {}): try more "
    "latents, a larger latent, or a smaller alpha"
)


class Drawn(NamedTuple):
    """What one step of training draws, all of it: the objective itself is a function.

    Arguments:
        clean: Clean tokens, shape (batch, D).
        t: Time, shape (batch,).
        u: Time that the teacher steps to.
        s: Time that the step ends at.
        noise: Uniform numbers in [0, 1), float64, behind $x_t$ and behind $x_s$; (batch, D, 2).
        advance: Those of the teacher's step, shape (batch, M, D, draws).
        finish: Those of the student's, shape (batch, M, D).
        latents: Latents at t, shape (batch, M, width); all components of a weighted one.
        others: Latents at u.
        taught: The teacher's latents, where it is a mixture itself.
        condition: Passed on to the networks.
    """

    clean: Tensor
    t: Tensor
    u: Tensor
    s: Tensor
    noise: Tensor
    advance: Tensor
    finish: Tensor
    latents: Tensor
    others: Tensor
    taught: Tensor | None
    condition: dict[str, Tensor]


def draw(
    clean: Tensor,
    condition: dict[str, Tensor],
    student: MixtureStudent,
    teacher: TokenStep | None,
    config: DiscreteConfig,
    generator: Generator,
) -> Drawn:
    """Draw all that a batch of clean tokens needs, see `Drawn`."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    (n, length), many = clean.shape, config.latents
    t = 1 - (torch.arange(n) + uniform(n)) / n
    t = torch.where(uniform(n) < config.start, 1.0, t)
    apart = config.shortest * (config.longest / config.shortest) ** uniform(n)
    u = (t - apart).clamp(min=0)
    s = (2 * uniform(n) - 1).clamp(min=0) * u if student.elastic else torch.zeros_like(t)

    def latents(law: Latent) -> Tensor:
        if not config.stratified:
            alone: Tensor = law.draw(n * many, generator).unflatten(0, (n, many))
            return alone
        strata = uniform(n, many, law.width)
        return law.stratified(strata, uniform(n, many, law.width).argsort(1))

    components = torch.arange(student.latent.size).expand(n, -1)[..., None]
    law = None if teacher is None else teacher.denoiser.latent
    return Drawn(
        clean,
        t,
        u,
        s,
        uniform(n, length, 2),
        uniform(n, many, length, 1 if teacher is None else teacher.draws),
        uniform(n, many, length),
        components if student.latent.kind == "weighted" else latents(student.latent),
        latents(student.latent),
        None if law is None else latents(law),
        condition,
    )


class MixtureObjective(nn.Module):
    """The loss of a mixture student, see the module's docstring.

    Arguments:
        student: The student.
        teacher: The teacher's step, which is no part of this module: copies of it share it. None
            for the likelihood of data alone.
        config: How to distil.
        say: Whether to say on stderr, once, that the latents have saturated.
    """

    def __init__(
        self,
        student: MixtureStudent,
        teacher: TokenStep | None,
        config: DiscreteConfig,
        say: bool = False,
    ) -> None:
        super().__init__()
        self.student = student
        self.config = config
        self.teacher: Callable[[], TokenStep | None] = lambda: teacher
        self.say, self.sizes = say, [0.0, 0.0]  # their sum, and how many

    def forward(self, batch: Drawn) -> dict[str, Tensor]:
        """The loss and what it is made of, nats an item: means over the batch that add up."""
        process, teacher = self.student.process, self.teacher()
        clean, t, s = batch.clean, batch.t, batch.s
        x = process.corrupt(clean, t, batch.noise[..., 0])
        log_p = self.laws(x, t, s, batch.latents, batch.condition)
        log_w = self.log_weights(x, t, s, batch.condition)
        log_mean = losses.log_marginals(log_p, log_w)
        data = self.end(clean, x, t, s, batch.noise[..., 1])[:, None]
        found = losses.scores(log_p, data)
        size = losses.effective_size(found, log_w).mean()
        self.watch(size)
        if teacher is None:
            nll = losses.joint(found, log_w).mean()
            return {"loss": nll, "ess": size}
        with torch.no_grad():
            taught = self.teach(teacher, x, batch)
        target = self.ended(taught, x, t, s).exp().mean(1).to(log_p)
        near = batch.u <= s
        if self.config.single:
            near = self.masked(x).sum(1) <= 1
        far = (~near).nonzero()[:, 0]
        parts = {"distil": losses.distil(log_p, target, log_w) * near}
        if len(far):
            y, mean = self.compose(batch, far, x, taught)
            own, own_w = losses.scores(log_p[far], y), None if log_w is None else log_w[far]
            parts["consis_joint"] = losses.correlation(own, log_mean[far], y, own_w)
            aim = target[far] if self.config.single else mean.to(log_p)
            parts["consis_marg"] = losses.marginal(log_mean[far], aim)
        if self.config.alpha:
            alpha = self.config.weight(t).to(log_p)
            parts["corr"] = alpha * losses.correlation(found, log_mean, data, log_w)
        if self.config.marginal:
            parts["marg"] = self.config.marginal * losses.marginal(log_mean, target)
        means = {name: part.sum() / len(clean) for name, part in parts.items()}
        return {"loss": torch.stack(list(means.values())).sum(), **means, "ess": size}

    @torch.no_grad()
    def compose(
        self, batch: Drawn, rows: Tensor, x: Tensor, taught: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the student makes of the teacher's steps from some rows.

        Returns:
            Sequences (rows, M, D), and the mean of the laws that they were drawn from.
        """
        teacher, many = self.teacher(), self.config.latents
        assert teacher is not None
        t, u, s = (value[rows] for value in (batch.t, batch.u, batch.s))
        told = {name: value[rows] for name, value in batch.condition.items()}
        start, first, last = (v.repeat_interleave(many, 0) for v in (x[rows], t, u))
        own = taught[rows].expand(-1, many, -1, -1).flatten(0, 1)
        advance = batch.advance[rows].flatten(0, 1)
        if self.config.single:
            middle = self.reveal(start, own, advance[..., 0], batch.finish[rows].flatten(0, 1))
        else:
            middle = teacher.advance(start, first, last, own, advance)
        middle = middle.unflatten(0, (-1, many))
        p = self.laws(middle, u, s, batch.others[rows], told).double().exp()
        if not self.student.elastic:  # at the end there is no mask
            p = p * self.student.process.tokens.to(p.device)
        return choose(p, batch.finish[rows]), (p / p.sum(-1, keepdim=True)).mean(1)

    def reveal(self, x: Tensor, log_p: Tensor, order: Tensor, uniform: Tensor) -> Tensor:
        """States with one masked position more revealed: that of the largest number.

        Its token is drawn by the number that the student would draw it by.
        """
        place = torch.where(self.masked(x), order, -1.0).argmax(1, keepdim=True)
        law = log_p.take_along_dim(place[..., None], 1).exp()
        return x.scatter(1, place, choose(law, uniform.gather(1, place)))

    def masked(self, x: Tensor) -> Tensor:
        """Where the mask stands."""
        mask = self.student.process.mask
        return torch.zeros_like(x, dtype=torch.bool) if mask is None else torch.eq(x, mask)

    def log_weights(
        self, x: Tensor, t: Tensor, s: Tensor, condition: dict[str, Tensor]
    ) -> Tensor | None:
        """Those of the latents, where they are not equal."""
        if self.student.latent.kind != "weighted":
            return None
        told = {**condition, "step": s} if self.student.elastic else condition
        return self.student.log_weights(x, t, **told)

    def laws(
        self, x: Tensor, t: Tensor, s: Tensor, latents: Tensor, condition: dict[str, Tensor]
    ) -> Tensor:
        """The student's log-laws at s of states (batch, D) or (batch, M, D); (batch, M, D, S)."""
        many = latents.shape[1]
        states = x.flatten(0, 1) if x.ndim == 3 else x.repeat_interleave(many, 0)
        told = {k: v.repeat_interleave(many, 0) for k, v in condition.items()}
        if self.student.elastic:
            told["step"] = s.repeat_interleave(many, 0)
        time = t.repeat_interleave(many, 0)
        log_p = self.student(states, time, latents.flatten(0, 1), **told).unflatten(0, (-1, many))
        return self.ended(log_p, x, t, s)

    def teach(self, teacher: TokenStep, x: Tensor, batch: Drawn) -> Tensor:
        """The teacher's log-laws of clean tokens, (batch, 1 or M, D, S)."""
        if batch.taught is None:
            return teacher.laws(x, batch.t, batch.s, None, batch.condition)[:, None]
        many = batch.taught.shape[1]
        told = {k: v.repeat_interleave(many, 0) for k, v in batch.condition.items()}
        x, t, s = (v.repeat_interleave(many, 0) for v in (x, batch.t, batch.s))
        log_p = teacher.laws(x, t, s, batch.taught.flatten(0, 1), told)
        return log_p.reshape(-1, many, *log_p.shape[1:])

    def ended(self, log_p: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Log-laws of clean tokens, (batch, M, D, S), as those of the tokens at s."""
        if not self.student.elastic:
            return log_p
        many = log_p.shape[1]
        states = x.flatten(0, 1) if x.ndim == 3 else x.repeat_interleave(many, 0)
        first, last = (v.repeat_interleave(many, 0) for v in (t, s))
        p = log_p.flatten(0, 1).double().exp()
        found = self.student.process.posterior(p, states, first, last)
        return found.clamp(min=math.exp(FLOOR)).log().to(log_p).reshape(log_p.shape)

    def end(self, clean: Tensor, x: Tensor, t: Tensor, s: Tensor, uniform: Tensor) -> Tensor:
        """Clean tokens as they are at s, given x at t."""
        if not self.student.elastic:
            return clean
        process = self.student.process
        known = one_hot(clean, process.states).double()
        return choose(process.posterior(known, x, t, s), uniform)

    def watch(self, size: Tensor) -> None:
        """Say once that only the best latent learns, if that is so over many steps."""
        if not (self.say and torch.is_grad_enabled()):
            return
        self.sizes = [self.sizes[0] + float(size), self.sizes[1] + 1]
        if self.sizes[1] == WATCHED:
            mean, law = self.sizes[0] / WATCHED, self.student.latent
            if told := saturation(mean, self.config.latents, law):
                tqdm.write(f"warning: {told}", file=sys.stderr)
                self.say = False
            self.sizes = [0.0, 0.0]


def saturation(size: float, latents: int, law: Latent) -> str | None:
    """What to say of an effective number of latents, if anything.

    Nothing where no component is left out: a sequence that one of them alone explains may be right.
    """
    if law.kind == "weighted" or size >= NEAR_ONE:
        return None
    return SATURATED.format(size, latents)
