r"""The linear regime: Gaussian data, DDIM steps that are diagonal matrices, and what merging does.

Data $x_0 \sim N(0, \mathrm{diag}(\lambda))$ in its principal axes, $z_t = \alpha_t x_0 + \sigma_t
\varepsilon$ for $t = 0, \dots, T$ with $\alpha_0 = 1$, $\sigma_0 = 0$. In one direction put
$v_t = (\alpha_t \sqrt\lambda, \sigma_t)$, so that $\mathrm{Var}\, z_t = n_t^2 = |v_t|^2$. The
teacher's DDIM step is $z_{t-1} = A_t z_t$, the projection of $v_{t-1}$ on $v_t$:

$$ A_t = \frac{\alpha_{t-1} \alpha_t \lambda + \sigma_{t-1} \sigma_t}{n_t^2}. $$

By Cauchy-Schwarz $A_t \le n_{t-1} / n_t$, so the teacher itself shrinks the data:
$\prod_t A_t \le \sqrt\lambda / n_T$. A student that starts at `init` and regresses on `target` by
gradient flow for a time s (learning rate times steps) ends at
$(1 - \gamma)\, target + \gamma\, init$ with $\gamma_t = e^{-2 s n_t^2}$.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike

from sigdeg.errors import SigdegError, check_choice, check_least
from sigdeg.planning.plans import Plan, fold, plan_steps
from sigdeg.planning.spectrum import Floats
from sigdeg.schedule import Cosine, Schedule, VPLinear

__all__ = [
    "SCHEDULES",
    "StepSchedule",
    "check_operators",
    "composites",
    "data_target",
    "discretise",
    "final_operator",
    "gamma",
    "teacher_ops",
    "w2",
    "windows",
]

SCHEDULES: dict[str, Schedule] = {"cosine": Cosine(), "vp": VPLinear()}


@dataclass(frozen=True)
class StepSchedule:
    r"""A schedule at the T + 1 times of a teacher of T steps, data first.

    Arguments:
        alpha: $\alpha_0 = 1 > \alpha_1 > \dots > \alpha_T \ge 0$, shape (T + 1,).
        sigma: $0 = \sigma_0 < \sigma_1 < \dots < \sigma_T$, shape (T + 1,).

    Raises:
        SigdegError: If they are not such sequences.
    """

    alpha: Floats
    sigma: Floats

    def __post_init__(self) -> None:
        a, s = self.alpha, self.sigma
        if a.ndim != 1 or a.shape != s.shape or len(a) < 2:
            raise SigdegError(
                f"alpha and sigma must be two rows of T + 1 values, got shapes {a.shape}, {s.shape}"
            )
        if a[0] != 1 or s[0] != 0 or (np.diff(a) >= 0).any() or (np.diff(s) <= 0).any():
            raise SigdegError("alpha must fall from 1 and sigma must rise from 0 at every step")
        if a[-1] < 0:
            raise SigdegError(f"alpha must not be negative, got {a[-1]:g}")

    @property
    def steps(self) -> int:
        """The number of steps T."""
        return len(self.alpha) - 1


def discretise(schedule: Schedule | Literal["cosine", "vp"], steps: int) -> StepSchedule:
    r"""A schedule at $t = 0, 1/T, \dots, 1$.

    | name | schedule |
    |---|---|
    | `cosine` | $\alpha = \cos\theta$, $\sigma = \sin\theta$, $\theta = \pi t / 2$ |
    | `vp` | $\alpha = e^{-\frac12 \int_0^t \beta}$, $\beta = 0.1 + 19.9 t$ |

    Arguments:
        schedule: One of the names, or any schedule whose data end is clean.
        steps: The number of steps T, at least 1.

    Raises:
        SigdegError: If steps < 1, or the name is unknown.
    """
    check_least(steps, 1, "steps")
    if isinstance(schedule, str):
        check_choice(schedule, SCHEDULES, "schedule")
        schedule = SCHEDULES[schedule]
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t).numpy().copy(), schedule.sigma(t).numpy().copy()
    alpha[0], sigma[0] = 1, 0
    return StepSchedule(alpha, sigma)


def teacher_ops(schedule: StepSchedule, spectrum: ArrayLike) -> tuple[Floats, Floats]:
    r"""The teacher's DDIM operators and the variances of their inputs.

    Arguments:
        schedule: The schedule of T steps.
        spectrum: Variances $\lambda > 0$ of the data, a scalar or with shape (d,).

    Returns:
        $A_t$ and $n_t^2$ for $t = 1, \dots, T$, row t - 1 of shape (T,) or (T, d).

    Raises:
        SigdegError: If a variance is not positive.
    """
    lam = np.asarray(spectrum, dtype=np.float64)
    if lam.ndim > 1 or lam.size == 0 or not (np.isfinite(lam) & (lam > 0)).all():
        raise SigdegError("a spectrum must be a row of positive, finite variances")
    a, s = (v.reshape(-1, *(1,) * lam.ndim) for v in (schedule.alpha, schedule.sigma))
    n2 = a[1:] ** 2 * lam + s[1:] ** 2
    return (a[:-1] * a[1:] * lam + s[:-1] * s[1:]) / n2, n2


def gamma(n2: ArrayLike, s: float) -> Floats:
    r"""What is left of the initialisation after training, $\gamma = e^{-2 s n^2}$, as shape of n2.

    The loss is $E\|a z - target\|^2$, summed over directions, minimised by gradient descent at a
    small rate; s = rate x steps. Half that loss halves the exponent, and the mean over d directions
    divides it by d.

    Raises:
        SigdegError: If s is negative.
    """
    if not s >= 0:
        raise SigdegError(f"the training time s must not be negative, got {s}")
    return np.exp(-2 * s * np.asarray(n2, dtype=np.float64))


def check_operators(operators: ArrayLike, gammas: ArrayLike) -> tuple[Floats, Floats]:
    """Operators of at least 0 and gammas in [0, 1] as float64, of one shape (T,) or (T, d)."""
    a, g = np.asarray(operators, dtype=np.float64), np.asarray(gammas, dtype=np.float64)
    if a.shape != g.shape or a.ndim not in (1, 2) or a.size == 0:
        raise SigdegError(
            f"operators and gammas must share a shape (T,) or (T, d), got {a.shape} and {g.shape}"
        )
    if not (np.isfinite(a) & (a >= 0)).all():
        raise SigdegError("operators must be finite and not negative")
    if not ((g >= 0) & (g <= 1)).all():
        raise SigdegError("gammas must lie in [0, 1]")
    return a, g


def final_operator(
    plan: Plan,
    operators: ArrayLike,
    gammas: ArrayLike,
    init: Literal["current", "teacher"] = "current",
) -> Floats:
    r"""The operator that a plan ends with.

    Arguments:
        plan: The plan.
        operators: The teacher's $A_t$, row t - 1 of shape (T,) or (T, d).
        gammas: $\gamma_t$ of a merge with input time t, same shape.
        init: What a student starts as: the `current` operator of its input time, or the `teacher`'s
            original step $A_t$ there.

    Returns:
        The operator X from time T to 0, a scalar or with shape (d,).

    Raises:
        SigdegError: If the plan is broken, or operators and gammas are not of its size.
    """
    a, g = check_operators(operators, gammas)
    if plan_steps(plan) != len(a):
        raise SigdegError(f"the plan merges {plan_steps(plan)} steps, the operators are {len(a)}")
    return merged(plan, a, g, init)


def merged(
    plan: Plan, a: Floats, g: Floats, init: Literal["current", "teacher"] = "current"
) -> Floats:
    """`final_operator` of what has been checked."""

    def merge(children: list[Floats], time: int) -> Floats:
        *others, right = children
        start = right if init == "current" else a[time - 1]
        keep = g[time - 1]
        return np.asarray((1 - keep) * np.prod(others, axis=0) * right + keep * start)

    return np.asarray(fold(plan, lambda t: a[t - 1], merge))


def composites(operators: Floats) -> Floats:
    r"""Products of consecutive operators, $C_{lr} = \prod_{t=l+1}^{r} A_t$.

    Returns:
        An array of shape (T + 1, T + 1, \*); 1 on and below the diagonal. $C_{0T}$ is the teacher.
    """
    total = np.ones((len(operators) + 1,) * 2 + operators.shape[1:])
    for r in range(1, len(total)):
        total[:r, r] = total[:r, r - 1] * operators[r - 1]
    return total


def data_target(spectrum: ArrayLike, n2: Floats) -> Floats:
    r"""The exact flow's operator from noise to data, $n_0 / n_T = \sqrt{\lambda} / n_T$."""
    return np.asarray(np.sqrt(np.asarray(spectrum, dtype=np.float64) / n2[-1]))


def w2(first: ArrayLike, second: ArrayLike, variance: ArrayLike = 1.0) -> Floats:
    r"""Wasserstein-2 distance of the outputs of two diagonal operators.

    $$ W_2^2 = \sum_k n_{T,k}^2 (|X_k| - |X'_k|)^2 $$

    Arguments:
        first: Operators X, shape (\*, d), or a scalar.
        second: Operators X', shape (\*, d), or a scalar.
        variance: Variances $n_T^2$ of the input $z_T$, shape (d,), or a scalar.

    Returns:
        The distances, shape (\*).
    """
    difference = np.abs(np.atleast_1d(first)) - np.abs(np.atleast_1d(second))
    return np.asarray(np.sqrt((np.asarray(variance) * difference**2).sum(-1)))


def windows(schedule: StepSchedule) -> tuple[float, float]:
    r"""The spectra for which the best plan is known: all below the first, or all above the second.

    $A_t \le 1$ exactly when $\lambda \le \rho_t = \sigma_t (\sigma_t - \sigma_{t-1}) / (\alpha_t
    (\alpha_{t-1} - \alpha_t))$. With the teacher's composite as target, sequential BOOT is the best
    plan for $\lambda \le \lambda_B = \min_{t<T} \rho_t$ and vanilla for $\lambda \ge \lambda_V =
    \max_{t<T} \rho_t$, whatever the training time.

    On the cosine schedule, $\delta = \pi / 2T$: $\lambda_V = 1 + 1 / \cos\delta$ and, over a
    continuum of times, $\lambda_B = (x + \sqrt{1 + x^2})^2$ with $x = \tan(\delta / 2)$, a lower
    bound of the minimum over the T steps. They tend to 1 and 2 as T grows.

    Returns:
        $\lambda_B$ and $\lambda_V$; infinity and 0 for a teacher of one step.
    """
    a, s = schedule.alpha[:-1], schedule.sigma[:-1]
    rho = s[1:] * np.diff(s) / (a[1:] * -np.diff(a))
    return float(rho.min(initial=np.inf)), float(rho.max(initial=0.0))
