r"""The student: one learned coarse step of the reverse SDE, driven by a partial signature.

The exponential step with a network in the place of the posterior mean,

$$ x_s = a\, x_t + b\, D_\theta(x_t, t, s, c) + \sum_k w_k c_k, $$

with $a, b$ of `exponential_coefficients` and $w$ of the closed-form `LinearResponse`, exact for
Gaussian data and so all that there is to learn of it. The network is the teacher's own, with the
coefficients and features of $s$ as further inputs whose weights start at zero: before any
training the student already *is* its teacher's exponential step (with `data_std` = 0, in law, an
ancestral sampler).

With `lookahead` $f$ the network is called part-way along the step, at the time $\tau$ where the
signal's share $\alpha / \sqrt{\alpha^2 + \sigma^2}$ has made $f$ of its way, on the state that
Gaussian data would have there, $\Phi x_t + \sum_k w'_k c_k$: a midpoint rule for the price of one
call. The posterior mean then answers to the noise of the path, and the call of a long step is made
where the network has something to say, not at pure noise.

The network is conditioned on t and s: one student can serve any grid. Around it stand two pure
halves, `inputs` and `outputs`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from sigdeg.denoiser import CalledNetwork, Denoiser, NetworkDenoiser
from sigdeg.errors import SigdegError, check_choice
from sigdeg.grids import Grid, check_span, coarse_grid
from sigdeg.inside import Corrected
from sigdeg.networks import (
    Call,
    Function,
    ModulatedMLP,
    Widened,
    class_labels,
    sinusoidal,
    widen,
)
from sigdeg.prediction import OF_DATA_STD, Preconditioning
from sigdeg.response import LinearResponse, exponential_coefficients, remember
from sigdeg.schedule import Schedule, expand
from sigdeg.signature import PartialSignature
from sigdeg.steps import GaussianStep, Time
from sigdeg.student_files import load_student, save_student

__all__ = ["NetworkInput", "PlainStudent", "ResidualNoise", "SignatureStudent", "kind_of_data"]

ResidualNoise = Literal["energy"]
GONE = {  # arguments of earlier versions
    "kind": "the paper's student is a PlainStudent, any other a SignatureStudent",
    "spacing": "power=1 spaces a grid evenly, times= gives any other",
}
NO_HEAD = 'the gaussian head is gone: take residual_noise="energy", which learns the whole law'
POINT = 16  # numbers of a sample up to which it is a point
STEP_FEATURES = 16  # sinusoidal features of s, as constant maps beside the coefficients


@dataclass(frozen=True)
class NetworkInput:
    r"""What a step gives its network, and what it needs to go on from the output.

    Attributes:
        inputs: What the network is called with: the scaled state, coefficients and features of the
            step, shape (batch, in_channels, \*).
        timestep: Its timestep, shape (batch,).
        state: The state that its mean is of, shape (batch, \*).
        around: How its output becomes a mean.
        carried: $a x_t$.
        gain: $b$, of the mean.
        noise: $\sum_k w_k c_k$.
    """

    inputs: Tensor
    timestep: Tensor
    state: Tensor
    around: Preconditioning
    carried: Tensor
    gain: Tensor | float
    noise: Tensor | float


class Scalars(NamedTuple):
    """What the times of a step decide by themselves, broadcast against a state."""

    at: Tensor
    around: Preconditioning
    timestep: Tensor
    features: Tensor
    a: Tensor
    b: Tensor


class SignatureStudent(CalledNetwork, GaussianStep):
    r"""A learned step; see the module's docstring for the formula.

    Arguments:
        network: The network, with `in_channels(channels, order, residual_noise)` input channels.
        schedule: The schedule of the teacher.
        channels: Channels of the state: its size along dimension 1.
        order: The number m of signature coefficients the network sees.
        data_std: The data's standard deviation: the linear response assumes it, `edm` and `edm_v`
            do.
            0 makes the untrained step the ancestral one.
        covariance: The data's covariance over all elements of a sample, shape (d, d), in place of
            `data_std` in the linear response: where elements are strongly correlated, as along a
            time series, it takes most of the work from the network.
        lookahead: Fraction of a step's way, from 0 (the default) to below 1, after which the
            network looks. The Gaussian law of `covariance` (or `data_std`; with neither, `distill`
            takes the covariance of the teacher's samples) says where the path is by then, and the
            linear response is that at a fixed mean.
        residual_noise: What to do about what m coefficients leave open. Regression learns its mean
            (None, the default). `energy` gives the network noise as a further input and trains it
            by the energy score, which learns the whole conditional law. The noise is one more
            coefficient of the path, independent of those that are seen: `order` of the step is
            then m + 1.
        steps: Step counts it is trained for, e.g. (10,); several make it elastic.
        power: Exponent of its grids, see `coarse_grid`.
        times: The times of its finest grid, from the schedule's `t_max` to 0, in place of a power;
            a grid of fewer steps takes every so many of them.
        sample_shape: Shape of one sample, for sampling from a saved student.
        called: How the network is called, see `CalledNetwork`: `prediction_type` (`edm` unless
            told), `clip`, `timesteps`, `call`.

    Raises:
        SigdegError: If an argument is out of its range, or none any more.
    """

    nfe = 1
    kind: ClassVar[str] = "warm"  # as files tell it from a plain one

    def __init__(
        self,
        network: Any,
        schedule: Schedule,
        channels: int,
        order: int = 2,
        *,
        data_std: float = 1.0,
        covariance: Tensor | None = None,
        lookahead: float = 0.0,
        residual_noise: ResidualNoise | None = None,
        steps: tuple[int, ...] = (10,),
        power: float = 1.5,
        times: Sequence[float] | None = None,
        sample_shape: tuple[int, ...] | None = None,
        **called: Any,
    ) -> None:
        for name in GONE.keys() & called.keys():
            raise SigdegError(f"{name} is no argument any more: {GONE[name]}")
        called = {"prediction_type": "edm", **called}
        super().__init__(network, schedule, data_std=data_std, **called)
        if order < 1:
            raise SigdegError(f"order must be at least 1, got {order}")
        check_noise(residual_noise)
        if not 0 <= lookahead < 1:
            raise SigdegError(f"lookahead must lie in [0, 1), got {lookahead}")
        if not steps or min(steps) < 1:
            raise SigdegError(
                f"a student needs at least one step count, each at least 1, got {steps}"
            )
        self.channels = channels
        self.seen = order
        self.lookahead = lookahead
        self.residual_noise = residual_noise
        self.steps = tuple(steps)
        self.power = power
        self.times = None if times is None else tuple(check_span(schedule, times).tolist())
        if self.times is not None and len(self.times) != max(self.steps) + 1:
            raise SigdegError(
                f"a grid of {max(self.steps)} steps has {max(self.steps) + 1} times, "
                f"got {len(self.times)}"
            )
        self.sample_shape = tuple(sample_shape) if sample_shape is not None else (channels,)
        if self.sample_shape[0] != channels:
            raise SigdegError(
                f"samples of {channels} channels have a sample_shape that begins with {channels}, "
                f"got {self.sample_shape}"
            )
        size = math.prod(self.sample_shape)
        self.response = LinearResponse(schedule, order, data_std, lookahead, size, covariance)
        self._scalars: dict[tuple[Any, ...], Scalars] = {}
        self.origin: dict[str, Any] = {}  # what it was distilled from, for people: kept with it

    def set_data_std(self, std: float) -> None:
        """Take another standard deviation of the data."""
        self.data_std = std
        self.response.set_data_std(std)

    @staticmethod
    def in_channels(channels: int, order: int, residual_noise: ResidualNoise | None = None) -> int:
        """Input channels of a student's network: state, coefficients, features of the step."""
        check_noise(residual_noise)
        return channels * (1 + order + (residual_noise == "energy")) + STEP_FEATURES

    @classmethod
    def from_denoiser(
        cls,
        denoiser: Denoiser,
        channels: int,
        order: int = 4,
        condition: Mapping[str, Tensor] | None = None,
        inside: bool | nn.Module = False,
        **options: Any,
    ) -> SignatureStudent:
        """The student to start with, of any teacher's denoiser.

        A network's student has that network, copied and widened: it starts as its teacher. One of
        another denoiser (an exact law, a function) has a `ModulatedMLP` of its own; or it has the
        denoiser inside, frozen, with that network beside it, and starts as its teacher too. That
        costs the denoiser's calls in every step, and is the better the shorter the training.

        Unless `options` say otherwise it looks ahead, half of each step's way, three quarters for
        points, and learns the whole law of what its coefficients leave open: on laws with sharp
        modes both decide whether few calls hit them (docs/recipe.md).

        Arguments:
            denoiser: The teacher's denoiser.
            channels: Channels of the state.
            order: Signature coefficients its network sees; with energy noise, what they leave open
                is learned too.
            condition: What a network of one's own takes beside state and timestep, one row each: it
                is called once, to find its first layer (see `sigdeg.networks.Widened`).
            inside: Whether the student is to have the denoiser inside; or the network beside it, of
                `in_channels` inputs, whose last layer should start at zero (default: a
                `ModulatedMLP`, for samples that are vectors). To load such a student, give
                `from_pretrained` the network of one that is built the same way.
            options: Further arguments of the class.

        Raises:
            SigdegError: If `options` ask for another `data_std` than the one an `edm` network was
                trained with; a denoiser without a network is of samples that are no vectors; or a
                network has no layer to widen.
        """
        shape = options.get("sample_shape") or (channels,)
        options.setdefault("lookahead", 0.75 if kind_of_data(shape) == "points" else 0.5)
        options.setdefault("residual_noise", "energy")
        inputs = cls.in_channels(channels, order, options["residual_noise"])
        network = getattr(denoiser, "network", None)
        if isinstance(denoiser, NetworkDenoiser) and not (inside or isinstance(network, Function)):
            own = denoiser.data_std if denoiser.prediction_type in OF_DATA_STD else 0.0
            if options.setdefault("data_std", own) != own and own:
                raise SigdegError(
                    f"the teacher's network was trained with data_std={own}: leave it out"
                )
            x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
            x = x.to(next(denoiser.network.parameters(), x))
            told = denoiser.timestep(x, denoiser.schedule.t_max)
            network = widen(denoiser.network, channels, inputs, (x, told), condition, denoiser.call)
            called = ("prediction_type", "clip", "timesteps")
            options |= {name: getattr(denoiser, name) for name in called}
        else:
            if len(shape) != 1 and not isinstance(inside, nn.Module):
                raise SigdegError(
                    "a teacher without a network of its own needs samples that are vectors, got "
                    f"{shape}: build the student with a network for them"
                )
            network = inside if isinstance(inside, nn.Module) else ModulatedMLP(inputs, channels)
            std = options.setdefault("data_std", 0.0)
            if inside:
                network = Corrected(denoiser, network, channels, std or 1.0)
                options |= {"prediction_type": "sample", "timesteps": "time"}
        return cls(network, denoiser.schedule, channels, order, **options)

    def requires_grad_(self, requires_grad: bool = True) -> SignatureStudent:
        """Of all parameters but those of a denoiser inside."""
        super().requires_grad_(requires_grad)
        for parameter in self.frozen():
            parameter.requires_grad_(False)
        return self

    def frozen(self) -> list[nn.Parameter]:
        """The parameters that are never trained: those of a denoiser inside."""
        inside = (part for part in self.modules() if isinstance(part, Denoiser))
        return [parameter for part in inside for parameter in part.parameters()]

    def at_times(
        self, times: Tensor | Sequence[float], steps: tuple[int, ...] | None = None
    ) -> SignatureStudent:
        """A copy with the same weights and another finest grid, to be distilled further.

        Arguments:
            times: Its times, from the schedule's `t_max` to 0.
            steps: Its step counts (default: all of the grid's steps).
        """
        other = copy.deepcopy(self)
        other.times = tuple(check_span(self.schedule, times).tolist())
        other.steps = (len(other.times) - 1,) if steps is None else steps
        return other

    @property
    def order(self) -> int:
        """Order of the signature the step takes: one more than is seen, where noise comes in."""
        return self.seen + (self.residual_noise is not None)

    @property
    def class_labels(self) -> list[int] | None:
        """The classes of a conditional student; what means no class is not among them."""
        return class_labels(self.network)

    @property
    def elastic(self) -> bool:
        """Whether it serves several step counts."""
        return len(self.steps) > 1

    @property
    def grids(self) -> Grid:
        """The grids it steps over."""
        if self.times is not None:
            return Grid(self.times, self.steps)
        spaced = partial(coarse_grid, self.schedule, power=self.power)
        return Grid(tuple(spaced(max(self.steps)).tolist()), self.steps, spaced)

    def grid(self, steps: int | None = None) -> Tensor:
        """The grid for a step count (default: the largest it is trained for).

        Raises:
            SigdegError: If the student is neither trained for that count nor elastic.
        """
        return self.grids.at(steps)

    def forward(
        self, x: Tensor, t: Time, s: Time, noise: PartialSignature, **condition: Any
    ) -> Tensor:
        """One coarse step, see `sigdeg.protocols.Step`."""
        given = self.inputs(x, t, s, noise)
        output = self.answer(given.inputs, given.timestep, x.shape, condition)
        return self.outputs(output, given)

    def inputs(self, x: Tensor, t: Time, s: Time, noise: PartialSignature) -> NetworkInput:
        r"""What the network is called with: the half of a step before it.

        Arguments:
            x: State at time t, shape (batch, \*).
            t: Start, a scalar or with shape (batch,).
            s: End, below t, a scalar or with shape (batch,).
            noise: Partial signature of the driving path over the step.
        """
        x, t, s = self._checked(x, t, s)
        known = self.scalars(t, s, x)
        c = noise.coefficients
        first = x if self.lookahead else known.around.scale(x)
        told = c[:, : self.order].flatten(1, 2), maps(known.features, x)
        inputs, state = torch.cat([first, *told], dim=1), x
        if self.lookahead:  # state and coefficients lie side by side in the inputs already
            linear = 1 + self.seen, self.channels
            parts = inputs[:, : math.prod(linear)].unflatten(1, linear)
            state = self.response.state(parts, t, s, known.at)
            inputs[:, : self.channels] = known.around.scale(state)
        return NetworkInput(
            inputs,
            known.timestep.expand(x.shape[0]),
            state,
            known.around,
            known.a * x,
            known.b,
            self.response.noise(c[:, : self.seen], t, s),
        )

    def outputs(self, output: Tensor, given: NetworkInput) -> Tensor:
        r"""The state at the end of the step: the half after the network, shape (batch, \*)."""
        mean = self.mean(output, given.state, given.around)
        return given.carried + given.gain * mean + given.noise

    def scalars(self, t: Tensor, s: Tensor, x: Tensor) -> Scalars:
        """What the times alone decide, kept for the next batch where all samples share them."""
        key = None if t.ndim else (float(t), float(s), x.dtype, x.device, self.data_std)
        if key in self._scalars:
            return self._scalars[key]
        at = self.response.looks_at(t, s)
        a, b = (expand(v, x) for v in exponential_coefficients(self.schedule, t, s))
        features = sinusoidal(s.reshape(-1).to(x.device), STEP_FEATURES).to(x)
        timestep = self.timestep(x if t.ndim else x.new_empty(1), at)
        found = Scalars(at, self.preconditioning(x, at), timestep, features, a, b)
        return found if key is None else remember(self._scalars, key, found)

    def _checked(self, x: Tensor, t: Time, s: Time) -> tuple[Tensor, Tensor, Tensor]:
        """The state, if it is of this student's samples, and the times in double precision."""
        if x.shape[1] != self.channels:
            raise SigdegError(
                f"this student draws samples of shape {self.sample_shape}, got {tuple(x.shape[1:])}"
            )
        t, s = (torch.as_tensor(v, dtype=torch.float64) for v in (t, s))
        return x, t, s

    def save_pretrained(self, folder: str | Path, **more: Any) -> None:
        """Write `config.json` and `model.safetensors`, atomically; the folder is made if needed.

        Arguments:
            folder: The folder.
            more: What else `config.json` is to hold, as JSON, see `Model.save_pretrained`.
        """
        save_student(self, Path(folder), more)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        network: nn.Module | None = None,
        schedule: Schedule | None = None,
        call: Call | None = None,
    ) -> SignatureStudent:
        """Load a student from a folder, or from a repository id of the Hugging Face hub.

        Arguments:
            path: Folder written by `save_pretrained`, that of the run which made it, or a hub id.
            network: The network, where it is a class of your own; its weights are loaded into it.
            schedule: The schedule, where it is a class of your own.
            call: How the network is called, where that is different, see `CalledNetwork`.

        Raises:
            SigdegError: If the folder is missing, is no student, or its weights are damaged, of
                another format or of another shape; if its configuration was changed by itself. A
                pickle is refused, never opened.
        """
        student: SignatureStudent = load_student(path, KINDS, network, schedule)
        if call is not None:
            called = student.network if isinstance(student.network, Widened) else student
            called.call = call
        return student


class PlainStudent(SignatureStudent):
    r"""The paper's student (Eq. 9), $x_s = x_t + N_\theta(x_t, t, (h, W, A))$.

    A network from scratch on the raw triple: no teacher inside, no exponential step around it.

    Arguments:
        network: The network, with `in_channels(channels)` input channels.
        schedule: The schedule of the teacher.
        channels: Channels of the state.
        order: 2, the coefficients that W and A are made of.
        options: Further arguments of `SignatureStudent`, but for `covariance` and `lookahead`.

    Raises:
        SigdegError: If one of those is given, or another order.
    """

    kind = "plain"

    def __init__(
        self, network: Any, schedule: Schedule, channels: int, order: int = 2, **options: Any
    ) -> None:
        if order != 2 or options.get("lookahead") or options.get("covariance") is not None:
            raise SigdegError(
                "a plain student has order 2, and neither a covariance nor a lookahead"
            )
        super().__init__(network, schedule, channels, order, **options)

    @staticmethod
    def in_channels(
        channels: int, order: int = 2, residual_noise: ResidualNoise | None = None
    ) -> int:
        """Input channels of its network: state, W, A, further noise if any, h."""
        check_noise(residual_noise)
        return channels * (1 + order + (residual_noise == "energy")) + 1

    @classmethod
    def from_denoiser(cls, *arguments: Any, **options: Any) -> SignatureStudent:
        """It starts from no teacher.

        Raises:
            SigdegError: Always.
        """
        raise SigdegError("only a warm student starts from a teacher; build a plain one itself")

    def inputs(self, x: Tensor, t: Time, s: Time, noise: PartialSignature) -> NetworkInput:
        """State, W, A and h, see `SignatureStudent.inputs`."""
        x, t, s = self._checked(x, t, s)
        more = noise.coefficients[:, self.seen : self.order].flatten(1, 2)
        h = maps(expand((t - s)[..., None], x), x)
        inputs = torch.cat([x, noise.W, noise.time_integral, h, more], dim=1)
        as_it_is = Preconditioning(1, 0, 1, 1)
        return NetworkInput(inputs, self.timestep(x, t), x, as_it_is, x, 1.0, 0.0)


def check_noise(residual_noise: str | None) -> None:
    """Refuse what is no residual noise, and the kind that there was once."""
    if residual_noise == "gaussian":
        raise SigdegError(NO_HEAD)
    if residual_noise is not None:
        check_choice(residual_noise, get_args(ResidualNoise), "residual noise")


def kind_of_data(shape: Sequence[int]) -> Literal["points", "series", "images"]:
    """What samples of a shape are taken for where defaults are chosen.

    Points are vectors of at most 16 numbers, series longer ones and channels along a line, images
    have two dimensions and more beside the channels.
    """
    if len(shape) > 2:
        return "images"
    return "points" if math.prod(shape) <= POINT else "series"


def maps(features: Tensor, x: Tensor) -> Tensor:
    """Features (batch or 1, k) as k constant channels beside a state (batch, channels, *)."""
    features = features.reshape(features.shape[0], -1, *(1,) * (x.ndim - 2))
    return features.expand(x.shape[0], -1, *x.shape[2:])


KINDS = {cls.kind: cls for cls in (SignatureStudent, PlainStudent)}
