r"""Processes on tokens: how a sequence is noised, one position at a time, and what can be undone.

Every position runs its own Markov chain on S symbols,

    q(x_t | x_0) = prod_d Q_{t|0}(x_t^d | x_0^d)        0 <= t <= 1

so all that is needed is $Q_{t|s}$ for one of them. What a step back is made of follows: given laws
$p^d$ of the clean tokens, those of the tokens at $s < t$ are, position by position,

$$ p_{s|t}(x_s | x_t) = \sum_{x_0} \frac{Q_{t|s}(x_t | x_s)\, Q_{s|0}(x_s | x_0)}
   {Q_{t|0}(x_t | x_0)}\; p(x_0). $$

Reference:
    Austin et al., *Structured denoising diffusion models in discrete state-spaces* (2021); Campbell
    et al., *A continuous time framework for discrete denoising models* (2022).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from sigdeg.errors import SigdegError, check_choice, check_least, check_whole
from sigdeg.protocols import Time
from sigdeg.rng import Generators, rand

__all__ = [
    "SCHEDULES",
    "Absorbing",
    "DiscreteProcess",
    "DiscretisedGaussian",
    "RateMatrix",
    "Uniform",
    "choose",
    "process_from_config",
]

# Shares of the tokens that are kept at time t. The last two are MaskGIT's: its progress is 1 - t.
SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda t: 1 - t,
    "cosine": lambda t: 1 - torch.sin(math.pi / 2 * t),
    "arccos": lambda t: 1 - torch.arccos((1 - t).clamp(0, 1)) * 2 / math.pi,
}


ROUNDING = 1e-13  # probabilities below it are what rounding leaves of a sum of exponentials
DECAY = 6.2  # of the slowest mode of grey levels over the whole time


def choose(probabilities: Tensor, uniform: Tensor) -> Tensor:
    r"""Draw by inverting distribution functions: one symbol for each uniform number.

    In double precision: what a float rounds away from small probabilities is a lower temperature.

    Arguments:
        probabilities: Laws up to a factor, shape (\*, S).
        uniform: Numbers in [0, 1), shape (\*).

    Returns:
        Symbols, int64, shape (\*); none that has probability 0.
    """
    cumulated = probabilities.double().cumsum(-1)
    whole = cumulated[..., -1]
    # Rounded up to the whole, a level would be that of a last symbol which may have no probability.
    level = torch.minimum(uniform.double() * whole, whole.nextafter(torch.zeros_like(whole)))
    return torch.searchsorted(cumulated, level[..., None].contiguous(), right=True)[..., 0]


def against(time: Time, like: Tensor) -> Tensor:
    """A time, a scalar or (batch,), in double precision, broadcast against (batch, *)."""
    t = torch.as_tensor(time, dtype=torch.float64, device=like.device)
    return t.reshape(-1, *[1] * (like.ndim - 1)) if t.ndim else t


def decay(alpha: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    r"""$-\dot\alpha_t$, by forward-mode differentiation."""
    slope: Tensor = torch.func.jvp(alpha, (t,), (torch.ones_like(t),))[1]
    return -slope


class DiscreteProcess(ABC):
    r"""Abstract: a Markov chain on S symbols over the times from 0 to 1.

    Attributes:
        states: The number S of symbols, that of the mask included.
        mask: The symbol that stands for no token, if there is one.
        ordered: Whether near symbols mean near values.
    """

    kind: ClassVar[str]
    ordered: ClassVar[bool] = False
    states: int
    mask: int | None = None
    t_min: ClassVar[float] = 0.0
    t_max: ClassVar[float] = 1.0

    @abstractmethod
    def push(self, p: Tensor, s: Time, t: Time) -> Tensor:
        r"""Laws at s as they are at t: $\sum_{x_s} p(x_s) Q_{t|s}(\cdot | x_s)$.

        Arguments:
            p: The laws, shape (batch, \*, S).
            s: Time they hold at, a scalar or with shape (batch,).
            t: Later time, the same.
        """

    @abstractmethod
    def likelihood(self, x: Tensor, s: Time, t: Time) -> Tensor:
        r"""$Q_{t|s}(x | \cdot)$, of each symbol at s: shape (batch, \*, S) for x (batch, \*)."""

    def evidence(self, x: Tensor, t: Time) -> Tensor:
        """What a state says of the clean tokens: `likelihood` from 0, up to a factor a position."""
        return self.likelihood(x, 0.0, t)

    @abstractmethod
    def stationary(self) -> Tensor:
        """The law of a position where nothing but noise is left, float64, shape (S,)."""

    @cached_property
    def tokens(self) -> Tensor:
        """Which symbols are tokens, not the mask; shape (S,)."""
        return torch.arange(self.states) != (-1 if self.mask is None else self.mask)

    def corrupt(self, x: Tensor, t: Time, uniform: Tensor) -> Tensor:
        r"""Noise clean tokens: $x_t \sim q_{t|0}(\cdot | x)$.

        Arguments:
            x: Tokens, shape (batch, \*).
            t: Time, a scalar or with shape (batch,).
            uniform: Numbers in [0, 1), one a token.
        """
        clean = torch.nn.functional.one_hot(x, self.states).double()
        return choose(self.push(clean, 0.0, t), uniform)

    def posterior(self, p: Tensor, x: Tensor, t: Time, s: Time) -> Tensor:
        r"""Laws of the tokens at s of positions that are x at t and have laws p at 0.

        Arguments:
            p: Probabilities of the clean tokens, shape (batch, D, S).
            x: State at t, shape (batch, D).
            t: Start, a scalar or with shape (batch,).
            s: End, below t.

        Returns:
            Probabilities, shape (batch, D, S). Clean tokens that x excludes have no part in them,
            unless p has no others: then x has none.
        """
        found = self.likelihood(x, s, t) * self.push(self.shares(p, x, t), 0.0, s)
        whole = found.sum(-1, keepdim=True)
        if bool((whole > 0).all()):
            return found / whole
        return torch.where(whole > 0, found / whole, self.push(p, 0.0, s))

    def shares(self, p: Tensor, x: Tensor, t: Time) -> Tensor:
        r"""$p(x_0) / Q_{t|0}(x | x_0)$, 0 where x excludes the clean token; shape (batch, D, S)."""
        whole = self.likelihood(x, 0.0, t)
        return torch.where(whole > 0, p / whole.clamp(min=1e-300), 0.0)

    @abstractmethod
    def reverse_rates(self, p: Tensor, x: Tensor, t: Time) -> Tensor:
        r"""Rates of the way back, of positions that are x at t and have laws p at 0.

        $$ \hat R_t(x \to y) = R_t(y \to x) \sum_{x_0} p(x_0)
           \frac{Q_{t|0}(y | x_0)}{Q_{t|0}(x | x_0)}, \qquad y \ne x. $$

        Arguments:
            p: Probabilities of the clean tokens, shape (batch, D, S).
            x: State at t, shape (batch, D).
            t: Time, a scalar or with shape (batch,).

        Returns:
            Shape (batch, D, S), 0 at x itself.

        Raises:
            SigdegError: If they are infinite at that time.
        """

    def prior(
        self,
        shape: Sequence[int],
        generator: Generators | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        r"""The state at time 1, shape (batch, D)."""
        uniform = rand(shape, generator, torch.float64, device)
        law = self.stationary().to(uniform.device).expand(*shape, self.states)
        return choose(law, uniform).to(dtype or torch.int64)

    def check_tokens(self, x: Tensor, what: str = "tokens") -> None:
        """Refuse what is no clean sequence.

        Raises:
            SigdegError: If there are symbols that it does not know, or masks.
        """
        if x.dtype != torch.int64:
            raise SigdegError(f"{what} are whole numbers in int64, got {str(x.dtype)[6:]}")
        if self.mask is not None and bool((x == self.mask).any()):
            raise SigdegError(f"{what} hold the mask symbol {self.mask}: it stands for no token")
        last = int(self.tokens.nonzero()[-1])
        if x.numel() and bool(((x < 0) | (x > last)).any()):
            raise SigdegError(
                f"{what} must lie between 0 and {last}, got {int(x.min())} to {int(x.max())}"
            )

    def config(self) -> dict[str, Any]:
        """It as JSON, for `process_from_config`."""
        fields: Any = self
        return {"kind": self.kind, **asdict(fields)}


@dataclass(frozen=True)
class Absorbing(DiscreteProcess):
    r"""Tokens are masked one by one and stay so: $Q_{t|s}(x | x) = \alpha_t / \alpha_s$.

    Arguments:
        vocabulary: The number of tokens, with the mask where it is one of their symbols.
        mask: Its symbol (default: one more, the last).
        schedule: $\alpha$, see `SCHEDULES`; `linear` is the log-linear one of MDLM.
    """

    vocabulary: int
    mask: int | None = None
    schedule: str = "linear"
    kind: ClassVar[str] = "absorbing"

    def __post_init__(self) -> None:
        check_choice(self.schedule, SCHEDULES, "schedule")
        check_whole(self.vocabulary, 1 if self.mask is None else 2, "vocabulary")
        if self.mask is None:
            object.__setattr__(self, "mask", self.vocabulary)
        assert self.mask is not None
        check_whole(self.mask, 0, "mask")
        if not 0 <= self.mask <= self.vocabulary:
            raise SigdegError(f"mask must be one of 0 to {self.vocabulary}, got {self.mask}")

    @property
    def states(self) -> int:  # type: ignore[override]
        return self.vocabulary + (self.mask == self.vocabulary)

    def masked(self, x: Tensor) -> Tensor:
        """Where the mask stands."""
        mask: Any = self.mask
        return torch.eq(x, mask)

    def alpha(self, t: Tensor) -> Tensor:
        """Share of the tokens that are kept at a time, in double precision."""
        return SCHEDULES[self.schedule](t.double())

    def kept(self, s: Time, t: Time, like: Tensor) -> Tensor:
        """Share of the tokens at s that are kept until t."""
        first = self.alpha(against(s, like))
        return torch.where(first > 0, self.alpha(against(t, like)) / first.clamp(min=1e-300), 1.0)

    def push(self, p: Tensor, s: Time, t: Time) -> Tensor:
        kept = self.kept(s, t, p)
        moved = kept * p.double()
        moved[..., self.mask] += ((1 - kept) * p.sum(-1, keepdim=True))[..., 0]
        return moved

    def likelihood(self, x: Tensor, s: Time, t: Time) -> Tensor:
        kept = self.kept(s, t, x)[..., None]
        same = torch.nn.functional.one_hot(x, self.states).double()
        masked = self.masked(x)[..., None]
        return torch.where(masked, same.where(same > 0, (1 - kept).expand_as(same)), kept * same)

    def evidence(self, x: Tensor, t: Time) -> Tensor:
        """A token says that it was so, at any time; a mask says nothing."""
        same = torch.nn.functional.one_hot(x, self.states).double()
        return torch.where(self.masked(x)[..., None], self.tokens.to(x.device).double(), same)

    def stationary(self) -> Tensor:
        return (~self.tokens).double()

    def posterior(self, p: Tensor, x: Tensor, t: Time, s: Time) -> Tensor:
        r"""A token stays; a mask stays with probability $(1 - \alpha_s) / (1 - \alpha_t)$."""
        masked = self.masked(x)
        stay = (1 - self.alpha(against(s, x))) / (1 - self.alpha(against(t, x))).clamp(min=1e-300)
        tokens = p.double() * self.tokens.to(p.device)
        found = (1 - stay)[..., None] * tokens / tokens.sum(-1, keepdim=True)
        found[..., self.mask] = stay.expand_as(x)
        return found.where(masked[..., None], torch.nn.functional.one_hot(x, self.states).double())

    def reverse_rates(self, p: Tensor, x: Tensor, t: Time) -> Tensor:
        r"""A mask falls with rate $-\dot\alpha_t / (1 - \alpha_t)$; a token stays."""
        time = against(t, x)
        rate = decay(self.alpha, time) / (1 - self.alpha(time))
        falls = p.double() * self.tokens.to(p.device) * rate[..., None]
        return torch.where(self.masked(x)[..., None], falls, 0.0)


@dataclass(frozen=True)
class Uniform(DiscreteProcess):
    r"""Tokens are drawn anew, one by one: $Q_{t|s} = a I + (1 - a)\, 11^T / S$.

    $a = \alpha_t / \alpha_s$ is the share that is not.

    Arguments:
        states: The number S of tokens.
        schedule: $\alpha$, see `SCHEDULES`, or `exponential`, $\alpha_t = e^{-\lambda t}$.
        rate: $\lambda$.
    """

    states: int
    schedule: str = "linear"
    rate: float = 3.0
    kind: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        check_least(self.states, 2, "states")
        check_choice(self.schedule, (*SCHEDULES, "exponential"), "schedule")
        if not 0 < self.rate < 1000:
            raise SigdegError(f"rate must lie between 0 and 1000, got {self.rate}")

    def alpha(self, t: Tensor) -> Tensor:
        """Share of the tokens that are those of time 0, in double precision."""
        if self.schedule == "exponential":
            return torch.exp(-self.rate * t.double())
        return SCHEDULES[self.schedule](t.double())

    def kept(self, s: Time, t: Time, like: Tensor) -> Tensor:
        """Share of the tokens at s that are not drawn anew until t."""
        first = self.alpha(against(s, like))
        return torch.where(first > 0, self.alpha(against(t, like)) / first.clamp(min=1e-300), 1.0)

    def push(self, p: Tensor, s: Time, t: Time) -> Tensor:
        kept = self.kept(s, t, p)
        return kept * p.double() + (1 - kept) * p.double().mean(-1, keepdim=True)

    def likelihood(self, x: Tensor, s: Time, t: Time) -> Tensor:
        kept = self.kept(s, t, x)[..., None]
        same = torch.nn.functional.one_hot(x, self.states).double()
        return kept * same + (1 - kept) / self.states

    def reverse_rates(self, p: Tensor, x: Tensor, t: Time) -> Tensor:
        time = against(t, x)
        left = self.alpha(time)
        if not bool((left > 0).all()):
            raise SigdegError(
                f"with the schedule {self.schedule} nothing is left of a token at time 1, and its "
                "rates are infinite: take the schedule exponential, or the ancestral step"
            )
        rate = decay(self.alpha, time) / left / self.states
        found = rate[..., None] * self.push(self.shares(p, x, t), 0.0, t)
        return found.scatter(-1, x[..., None], 0.0)

    def stationary(self) -> Tensor:
        return torch.full((self.states,), 1 / self.states, dtype=torch.float64)


class RateMatrix(DiscreteProcess):
    r"""Any chain: $Q_{t|s} = \exp(R \int_s^t \beta)$, $\int_0^t \beta = b\, (c^t - 1)$.

    Arguments:
        rates: R, shape (S, S): `rates[i][j]` is the rate from i to j; what stands on the diagonal
            does not count.
        scale: $b$.
        growth: $c$, above 1: the rate grows from $b \log c$ to $c$ times that.

    Raises:
        SigdegError: If a rate is negative or not finite, or some state cannot be reached.
    """

    kind = "rates"

    def __init__(
        self, rates: Tensor | Sequence[Sequence[float]], scale: float = 3.0, growth: float = 100.0
    ) -> None:
        matrix = torch.as_tensor(rates, dtype=torch.float64).clone()
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
            raise SigdegError(f"rates are a square matrix, got shape {tuple(matrix.shape)}")
        matrix.fill_diagonal_(0)
        if not bool(matrix.isfinite().all() and (matrix >= 0).all()):
            raise SigdegError("rates must be finite and not negative")
        if not (scale > 0 and growth > 1):
            raise SigdegError(f"scale must be above 0 and growth above 1, got {scale} and {growth}")
        if connected_components(matrix.numpy() > 0, connection="strong")[0] > 1:
            raise SigdegError("rates must lead from every symbol to every other")
        self.rates = matrix - matrix.sum(1).diag()
        self.scale, self.growth = scale, growth
        self.states = len(matrix)
        self.law = self.solve()

    def solve(self) -> Tensor:
        """The stationary law: the one that the rates keep as it is."""
        system = torch.cat(
            [self.rates.T / self.rates.abs().max(), self.rates.new_ones(1, self.states)]
        )
        right = self.rates.new_zeros(self.states + 1, 1)
        right[-1] = 1
        law: Tensor = torch.linalg.lstsq(system, right, driver="gelsd").solution[:, 0]
        if not bool((law > 0).all()):
            raise SigdegError("rates are too unequal: some symbol has no share that can be told")
        return law

    def transition(self, s: Time, t: Time) -> Tensor:
        """$Q_{t|s}$, rows by the symbol at s: shape (S, S), or (batch, S, S)."""
        first, last = (torch.as_tensor(v, dtype=torch.float64).cpu() for v in (s, t))
        spent = self.scale * (self.growth**last - self.growth**first)
        return self.exponential(spent)

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor] | None:
        """Eigenvalues and vectors of the symmetric form, where the chain is reversible."""
        root = self.law.sqrt()
        symmetric = root[:, None] * self.rates / root
        if float((symmetric - symmetric.T).abs().max()) > 1e-9 * float(self.rates.abs().max()):
            return None
        values, vectors = torch.linalg.eigh((symmetric + symmetric.T) / 2)
        return values.clamp(max=0), vectors

    def exponential(self, spent: Tensor) -> Tensor:
        """The transition after rates have been at work for so long."""
        found: Tensor
        if self.spectrum is None:
            found = torch.linalg.matrix_exp(self.rates * spent[..., None, None])
        else:
            values, vectors = self.spectrum
            root = self.law.sqrt()
            middle = (vectors * (values * spent[..., None]).exp()[..., None, :]) @ vectors.T
            found = middle / root[:, None] * root
        found = found.where(found > ROUNDING, 0.0)
        return found / found.sum(-1, keepdim=True)

    def push(self, p: Tensor, s: Time, t: Time) -> Tensor:
        move = self.transition(s, t).to(p.device)
        moved: Tensor = torch.matmul(p.double().reshape(len(p), -1, self.states), move)
        return moved.reshape(p.shape)

    def likelihood(self, x: Tensor, s: Time, t: Time) -> Tensor:
        move: Tensor = self.transition(s, t).to(x.device).mT
        if move.ndim == 2:
            return move[x]
        rows = torch.arange(len(x), device=x.device).reshape(-1, *[1] * (x.ndim - 1))
        return move[rows, x]

    def reverse_rates(self, p: Tensor, x: Tensor, t: Time) -> Tensor:
        speed = self.scale * math.log(self.growth) * self.growth ** against(t, x)
        into = speed[..., None] * self.rates.T.to(x.device)[x]
        found = into * self.push(self.shares(p, x, t), 0.0, t)
        return found.scatter(-1, x[..., None], 0.0)

    def stationary(self) -> Tensor:
        return self.law

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RateMatrix) and self.config() == other.config()

    def __hash__(self) -> int:
        return hash((self.kind, self.states, self.scale, self.growth))

    def __repr__(self) -> str:
        """Its parameters: what is trained with it is told by them, in any session."""
        return f"{type(self).__name__}({self.config()})"

    def config(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "rates": self.rates.tolist(),
            "scale": self.scale,
            "growth": self.growth,
        }


class DiscretisedGaussian(RateMatrix):
    r"""Ordered tokens, as grey levels, that wander to near ones (the tauLDR process).

    From i in the lower half to j, $i < j < S - i$: $R_{ij} = e^{-(j - i - 1)^2 / \sigma_r^2}$; the
    upper half is its mirror image; the way back is by detailed balance with a Gaussian of standard
    deviation $\sigma_q$ about the middle, so nearly uniform.

    Arguments:
        states: The number S of levels.
        rate_std: $\sigma_r$ (default: $6 S / 256$, but at least 1).
        law_std: $\sigma_q$ (default: $2 S$).
        scale: $b$ of the time change (default: so much that the slowest mode of the chain decays
            by $e^{-6.2}$, as it does for 256 levels at the published 3).
        growth: $c$.
    """

    kind = "gaussian"
    ordered = True

    def __init__(
        self,
        states: int,
        rate_std: float | None = None,
        law_std: float | None = None,
        scale: float | None = None,
        growth: float = 100.0,
    ) -> None:
        check_least(states, 2, "states")
        rate_std = max(1.0, 6 * states / 256) if rate_std is None else rate_std
        law_std = 2.0 * states if law_std is None else law_std
        if not (rate_std > 0 and law_std > 0):
            raise SigdegError(f"standard deviations must be above 0, got {rate_std} and {law_std}")
        i, j = torch.meshgrid(*[torch.arange(states, dtype=torch.float64)] * 2, indexing="ij")
        out = (-(((j - i).abs() - 1) ** 2) / rate_std**2).exp()
        lower, upper = (i < j) & (j < states - i), (j < i) & (states - 1 - j < i + 1)
        away = torch.where(lower | upper, out, 0.0)
        law = (-(((torch.arange(states) - (states - 1) / 2) / law_std) ** 2) / 2).exp().double()
        law = law / law.sum()
        back = torch.where(away.T > 0, away.T * law[None, :] / law[:, None], 0.0)
        super().__init__(torch.where(away > 0, away, back), scale or 1.0, growth)
        if scale is None and self.spectrum is not None:
            self.scale = DECAY / float(-self.spectrum[0].topk(2).values[1]) / (growth - 1)
        self.given = {"states": states, "rate_std": rate_std, "law_std": law_std}

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, **self.given, "scale": self.scale, "growth": self.growth}


PROCESSES: dict[str, Any] = {
    cls.kind: cls for cls in (Absorbing, Uniform, RateMatrix, DiscretisedGaussian)
}


def process_from_config(config: dict[str, Any]) -> DiscreteProcess:
    """The process that `DiscreteProcess.config` described.

    Raises:
        SigdegError: If the kind is unknown, or its parameters do not fit.
    """
    given = dict(config)
    kind = given.pop("kind", None)
    check_choice(kind, PROCESSES, "process")
    try:
        made: DiscreteProcess = PROCESSES[kind](**given)
    except TypeError as error:
        raise SigdegError(f"process {kind} does not take what is given: {error}") from None
    return made
