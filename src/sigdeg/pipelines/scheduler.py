r"""The scheduler that takes the place of a pipeline's own: the pipeline becomes the reverse SDE.

Guidance, packing, text encoders, masks and ControlNet stay the pipeline's business: `step` gets
what it made of the network's outputs. Over a fine grid, with a network that knows nothing of paths,
this is the teacher's exponential march; over the grid of a student, with a network of
`signature_class`, it is the student.
"""

from __future__ import annotations

import inspect
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor

from sigdeg.errors import SigdegError, extra
from sigdeg.grids import coarse_grid
from sigdeg.pipelines.noise import PathNoise, tiled
from sigdeg.pipelines.stepped import (
    Logged,
    Look,
    Stepped,
    check_scales,
    first_number,
    precise,
    scales_of,
)
from sigdeg.pipelines.student import PipelineStudent, describe_step
from sigdeg.response import remember
from sigdeg.schedule import RectifiedFlow, expand
from sigdeg.schema import whole
from sigdeg.signature import PartialSignature
from sigdeg.student import NetworkInput

with extra("pipelines"):
    from diffusers import ConfigMixin, DDPMScheduler, SchedulerMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

__all__ = ["SigDEGScheduler", "replaced", "running"]

KEEP = "this network is a Sig-DEG student: keep its SigDEGScheduler, and call it by its pipeline"
TWICE = (
    "this Sig-DEG student draws guided samples by itself: turn the pipeline's guidance off, or it "
    "counts twice, at twice the cost"
)


class Runs(threading.local):
    """The schedulers at work in a thread, by the id of their student."""

    def __init__(self) -> None:
        self.by: weakref.WeakValueDictionary[str, SigDEGScheduler] = weakref.WeakValueDictionary()


RUNS = Runs()


class SigDEGScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is not typed
    """A march of the reverse SDE by exponential steps, the teacher's or a student's.

    The path of a run is a function of its starting noise, see `PathNoise`: the same seed gives the
    same sample in any batch. Times are the scheduler's own: of `timesteps`, `sigmas` and `mu` that
    a pipeline gives only their number counts.

    Arguments:
        num_train_timesteps: As for `DDPMScheduler`, like the next five: what stands for the
            schedule where `sigdeg` does not say.
        beta_start: See there.
        beta_end: See there.
        beta_schedule: See there.
        trained_betas: See there.
        prediction_type: See there.
        sigdeg: The step as JSON, that of a student's `config.json`; `student`, the id by which its
            network finds it; the scale of `guidance`, where the scheduler tells it the network: it
            can be set between runs, to a number or to one a sample; whether the network is called
            `once` a step, for it draws guided samples already; and `rows`, how many of those that
            the pipeline steps are one sample: the pictures of a film.
    """

    order = 1
    _compatibles = [kind.name for kind in KarrasDiffusionSchedulers]  # noqa: RUF012  # diffusers' own

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        sigdeg: dict[str, Any] | None = None,
    ) -> None:
        if sigdeg is None:
            own = DDPMScheduler(
                num_train_timesteps,
                beta_start,
                beta_end,
                beta_schedule,
                trained_betas=trained_betas,
                prediction_type=prediction_type,
                clip_sample=False,
            )
            sigdeg = describe_step(own)
        known = dict(sigdeg)
        self.student: str = known.pop("student", "")
        self.guidance: Any = known.pop("guidance", None)
        self.once = bool(known.pop("once", False))
        check_scales(self.guidance)
        self.rows = known.pop("rows", 1)
        whole(1)(self.rows, "sigdeg.rows")
        self.core = PipelineStudent.read(known).eval()
        # 1 where variance is preserved, as the pipelines' own schedulers have it.
        self.init_noise_sigma = max(1.0, self.core.schedule.prior_std)
        self.log: list[Logged] | None = None
        self.forced: Sequence[Tensor] | None = None
        self.order_drawn = self.core.order  # coefficients of the path: a teacher's runs keep more
        self._generators: Generator | Sequence[Generator] | None = None
        self._timesteps: dict[tuple[float, ...], Tensor] = {}
        self.start(coarse_grid(self.core.schedule, min(num_train_timesteps, 1000)), "cpu")

    @classmethod
    def like(cls, scheduler: Any, **step: Any) -> SigDEGScheduler:
        """One that marches as another scheduler's network was trained, with `step` in its JSON.

        Its configuration keeps what the other's says: `from_config` of a third one finds its betas.

        Raises:
            SigdegError: If the scheduler is not one of a diffusion.
        """
        told = {k: v for k, v in dict(scheduler.config).items() if not k.startswith("_")}
        known = told.pop("sigdeg", None) or describe_step(scheduler)
        own = {k: told.pop(k) for k in inspect.signature(cls).parameters if k in told}
        made: SigDEGScheduler = cls(**own, sigdeg={**known, **step})
        made.register_to_config(**told)
        return made

    def set_noise(self, generators: Generator | Sequence[Generator] | None = None) -> None:
        """Take the path of the next run from generators, one for all samples or one a sample."""
        self._generators = generators

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        **others: Any,
    ) -> None:
        """Begin a run of so many steps.

        Arguments:
            num_inference_steps: Their number.
            device: Where `timesteps` go.
            timesteps: In its place a list of as many.
            sigmas: In its place a list of as many.
            mu: Of no account: the student's times are its own.
            others: Of no account.

        Raises:
            SigdegError: If the student does not know that number of steps.
        """
        given = sigmas if sigmas is not None else timesteps
        if num_inference_steps is None and given is None:
            raise SigdegError("a run needs a number of steps: give num_inference_steps")
        count = num_inference_steps if num_inference_steps is not None else len(given)
        if not self.student and count not in self.core.steps:
            grid = coarse_grid(self.core.schedule, int(count), power=self.core.power)
        else:
            grid = self.core.grid(int(count))
        self.start(grid, device)
        RUNS.by[self.student] = self

    def start(self, grid: Tensor, device: Any) -> None:
        """Take a grid, and forget the last run."""
        starts, ends = grid[:-1], grid[1:]
        key = tuple(grid.tolist())
        if key not in self._timesteps:  # kept for the next run
            looks = self.core.response.looks_at(starts, ends)
            remember(self._timesteps, key, self.core.timestep(looks.float(), looks))
        self.grid, self.k = grid, 0
        self.num_inference_steps = len(starts)
        self.timesteps = self._timesteps[key].to(device)
        sigma, alpha = self.core.schedule.sigma(starts), self.core.schedule.alpha(starts)
        flow = isinstance(self.core.schedule, RectifiedFlow)
        noisy = sigma if flow else sigma / alpha  # as the schedulers of each kind have it
        self.sigmas = torch.cat([noisy, torch.zeros(1, dtype=noisy.dtype)]).float()
        self.asked: set[int] = set()
        self.looked = 0  # rows that the networks were shown in the step that the run is at
        self.begun = False  # whether a call has said with which step the run begins
        self.first = 0  # which one that is
        finest = self.core.grid() if self.core.elastic else None
        self.noise = PathNoise(grid, self.order_drawn, finest, self._generators)
        self._generators = None

    @property
    def begin_index(self) -> int:
        """The step that the run began with, or is at."""
        return self.k

    @property
    def step_index(self) -> int:
        """The step that the run is at."""
        return self.k

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin the run with a later step, as pipelines do that start from an image."""
        self.k = begin_index

    def begin(self, timestep: Any) -> None:
        """Begin the run with the step of a timestep, unless it has begun: not all pipelines say."""
        if not self.begun:
            k = self.index_for_timestep(timestep)
            self.k = self.first = k if self.is_at(k, timestep) else self.k
        self.begun = True

    def is_at(self, k: int, timestep: Any) -> bool:
        """Whether a timestep, which half precision may have rounded, is that of a step."""
        told, own = first_number(timestep), float(self.timesteps[k])
        return abs(told - own) <= 0.01 * max(abs(own), float(self.timesteps[0]) / 1000)

    def index_for_timestep(self, timestep: Any) -> int:
        """The step of a timestep: the nearest."""
        told = torch.as_tensor(timestep).flatten()[:1]  # one for all samples, or one a sample
        apart = self.timesteps.cpu() - told.cpu()
        return int(apart.abs().argmin())

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The state as a network sees it that knows nothing of paths; a student's is left alone."""
        if self.noise.seeds is None and self.rows == 1:  # some noise states again in a step
            self.noise.start(sample)
        if self.student or self.k >= len(self.grid) - 1:
            return sample
        return self.core.preconditioning(sample, self.grid[self.k]).scale(sample).to(sample.dtype)

    def look(self, x: Tensor, timestep: Tensor | None = None) -> Look:
        r"""What the student's network is to see in the place of a state x, shape (rows, \*).

        Arguments:
            x: The state, or copies of it.
            timestep: What the pipeline told the network, in the units of `timesteps`.

        Raises:
            SigdegError: If that is not the timestep of the step that the run is at.
        """
        if self.k >= len(self.grid) - 1:
            raise SigdegError(KEEP)
        if timestep is not None:
            self.begin(timestep)
            if not self.is_at(self.k, timestep):
                told, own = first_number(timestep), float(self.timesteps[self.k])
                raise SigdegError(f"{KEEP} (it was told timestep {told:.5g} for {own:.5g})")
        given, c = self.seen(x)
        self.asked.add(self.k)
        self.looked += len(x)
        scale = None if self.guidance is None else scales_of(self.guidance, len(x))
        end = self.grid[self.k + 1].expand(len(x))
        return Look(given.inputs.to(x.dtype), c[:, : self.core.order], end, scale)

    def seen(self, x: Tensor) -> tuple[NetworkInput, Tensor]:
        """What the step that the run is at makes of a state, and the coefficients of its path."""
        t, s = self.grid[self.k], self.grid[self.k + 1]
        c = self.noise.step(self.k, x)
        return self.core.inputs(precise(x), t, s, PartialSignature((t - s).float(), c)), c

    def whole(self, values: Tensor) -> Tensor:
        """Rows that the pipeline steps as samples."""
        return values if self.rows == 1 else values.unflatten(0, (-1, self.rows))

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
        **others: Any,
    ) -> Stepped | tuple[Tensor, Tensor]:
        r"""Take the step that the run is at.

        Arguments:
            model_output: What the pipeline made of the network's outputs; of twice as many channels
                as the state has, a learned variance, half go.
            timestep: That of the step which the run begins with; later steps follow one another.
            sample: The state, shape (batch, \*).
            generator: Of no account: the path is the run's.
            return_dict: Whether to return a `Stepped`, not a tuple.
            others: Of no account.

        Raises:
            SigdegError: If the run has ended, or its network is no student and should be.
        """
        if self.k >= len(self.grid) - 1:
            raise SigdegError("all steps of this run are done: set_timesteps begins another")
        self.begin(timestep)
        if self.forced is not None:  # through states that are known: nothing is to be computed
            new = self.forced[self.k].to(sample).reshape(-1, *sample.shape[1:])
            new = tiled(new, len(sample))
            if self.log is not None:
                self.log.append(Logged(self.k, sample, new, new, model_output, len(new)))
            self.k += 1
            return Stepped(new, new) if return_dict else (new, new)
        if self.student and self.k not in self.asked:
            raise SigdegError(
                "this scheduler belongs to a Sig-DEG student, and another network was called: keep "
                "the two together"
            )
        if model_output.shape != sample.shape:
            model_output = model_output[:, : sample.shape[1]]
        shape, sample, model_output = sample.shape, self.whole(sample), self.whole(model_output)
        given, c = self.seen(sample)
        mean = self.core.mean(precise(model_output), given.state, given.around)
        new = (given.carried + given.gain * mean + given.noise).to(sample.dtype)
        if self.log is not None:
            states = sample.clone(), new.clone()  # some pipelines write into their state
            samples = len(self.noise.seeds or ())
            self.log.append(Logged(self.k, *states, c, model_output, samples))
        if self.once and self.noise.exceeded(self.looked, new):
            warnings.warn(TWICE, stacklevel=2)
        self.k, self.looked = self.k + 1, 0
        self.noise.prepare(self.k, sample.shape[1:])
        made = Stepped(new.reshape(shape), mean.to(sample.dtype).reshape(shape))
        return made if return_dict else made.to_tuple()

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        r"""Noised data $\alpha x_0 + \sigma \varepsilon$ at the start of the steps of timesteps.

        Where a run begins with them, its path is a function of this noise: the data would tell in
        the signs of its first state.

        Raises:
            SigdegError: If there is no timestep: of a few steps a small strength leaves none.
        """
        told = torch.as_tensor(timesteps).reshape(-1)
        if not len(told):
            count = self.num_inference_steps
            raise SigdegError(f"0 of {count} steps are left: strength must be at least 1/{count}")
        steps = [self.index_for_timestep(v) for v in told]
        if self.noise.seeds is None:
            self.k = steps[0]
            self.noise.start(self.whole(noise))
        times = self.grid[steps].to(original_samples.device)
        times = times if len(times) == len(original_samples) else times[0]
        alpha, sigma = (expand(f(times), original_samples) for f in self.scales)
        return (alpha * original_samples + sigma * noise).to(original_samples.dtype)

    @property
    def alphas_cumprod(self) -> Tensor:
        """Squares of alpha at whole timesteps, for pipelines that look them up."""
        schedule: Any = self.core.schedule
        table: Tensor = schedule.alphas_cumprod.float()
        return table

    @property
    def scales(self) -> tuple[Any, Any]:
        """The functions alpha and sigma of time."""
        return self.core.schedule.alpha, self.core.schedule.sigma

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        """As `add_noise`, in the order that schedulers of flows have."""
        return self.add_noise(sample, noise, timestep)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)


SigDEGScheduler.__module__ = "sigdeg"  # where a saved pipeline is to find it


def running(student: str) -> SigDEGScheduler:
    """The scheduler of a student's run in this thread.

    Raises:
        SigdegError: If there is none: its network was called by something else.
    """
    found = RUNS.by.get(student)
    if found is None:
        raise SigdegError(KEEP)
    return found


@contextmanager
def replaced(pipe: Any, scheduler: Any) -> Iterator[Any]:
    """A pipeline with another scheduler in the place of its own, in here."""
    own = pipe.scheduler
    pipe.scheduler = scheduler
    try:
        yield pipe
    finally:
        pipe.scheduler = own
