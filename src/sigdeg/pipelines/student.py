r"""The student of a pipeline: the mathematics of a learned step, around a network of any kind.

It is a `SignatureStudent` whose network takes the path beside its own input, not as further
channels of it (`sigdeg.pipelines.network`), and whatever else the pipeline gives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from sigdeg.errors import SigdegError
from sigdeg.integrations.schedulers import describe
from sigdeg.prediction import Preconditioning
from sigdeg.schedule import Schedule, expand, schedule_from_config
from sigdeg.schema import listed, mapped, maybe, number, record, text, whole
from sigdeg.signature import PartialSignature
from sigdeg.steps import Time
from sigdeg.student import NetworkInput, SignatureStudent

if TYPE_CHECKING:
    from sigdeg.pipelines.calls import Calls

__all__ = ["PipelineStudent", "describe_step"]

THRESHOLD = "a quantile", "a largest value"
STEP = record(  # what a scheduler's configuration says of it
    {"schedule": mapped(), "prediction_type": text},
    {
        "order": whole(1, 1000),
        "data_std": number(0),
        "response_std": number(0),
        "lookahead": number(0),
        "residual_noise": maybe(text),
        "clip": maybe(number(0)),
        "threshold": maybe(listed(number(0))),
        "steps": listed(whole(1)),
        "power": number(0),
        "times": maybe(listed(number(0, 1))),
        "timesteps": text,
    },
)


class PipelineStudent(SignatureStudent):
    r"""A learned step of a pipeline; see `SignatureStudent` for formula and arguments.

    The same object does the arithmetic of `SigDEGScheduler`, without a network of its own, and is
    what training trains: there the network replays the calls that the pipeline made of it.

    Arguments:
        network: A network of a class of `signature_class`.
        schedule: The schedule of the teacher.
        order: The number of coefficients that the network sees.
        response_std: The data's standard deviation that the linear response assumes, where that is
            another than the network's: 0 makes the untrained step the ancestral one.
        sample_shape: Shape of one state of its training.
        threshold: Dynamic thresholding, a quantile q and a largest value (Saharia et al. 2022): of
            each mean, s is the quantile q of its absolute values, between 1 and the largest value;
            the mean is clamped to [-s, s] and divided by s.
        recorded: The calls to replay: `forward` then takes the number of a row in them, `row`.
        options: Further arguments of `SignatureStudent`.
    """

    kind = "pipeline"

    def __init__(
        self,
        network: Any,
        schedule: Schedule,
        order: int = 1,
        *,
        response_std: float = 0.0,
        sample_shape: tuple[int, ...] = (1,),
        threshold: Sequence[float] | None = None,
        recorded: Calls | None = None,
        **options: Any,
    ) -> None:
        shape = tuple(sample_shape)
        super().__init__(network, schedule, shape[0], order, sample_shape=shape, **options)
        self.response.set_data_std(response_std)
        self.threshold = threshold
        self.recorded = recorded

    def train(self, mode: bool = True) -> Self:
        """Networks learn as they sample: dropout, of labels too, would teach them another law."""
        return super().train(False)

    def set_scale(self, samples: Tensor) -> None:
        """Take the standard deviation of samples, where the step looks ahead and needs one."""
        if self.lookahead and not self.response.data_std:
            self.response.set_data_std(float(samples.std()))

    @property
    def written(self) -> dict[str, Any]:
        """The step as JSON, without network and calls: see `read`."""
        table = self.schedule.config().items()
        return {
            "schedule": {k: list(v) if isinstance(v, tuple) else v for k, v in table},
            "prediction_type": self.prediction_type,
            "order": self.seen,
            "data_std": self.data_std,
            "response_std": self.response.data_std,
            "lookahead": self.lookahead,
            "residual_noise": self.residual_noise,
            "clip": self.clip,
            "threshold": None if self.threshold is None else list(self.threshold),
            "steps": list(self.steps),
            "power": self.power,
            "times": None if self.times is None else list(self.times),
            **({} if self.timesteps == "continuous" else {"timesteps": self.timesteps}),
        }

    @classmethod
    def read(cls, written: Mapping[str, Any], network: Any = None, **more: Any) -> Self:
        """The step that `written` gave.

        Raises:
            SigdegError: If the JSON does not fit one.
        """
        try:
            STEP(dict(written), "sigdeg")
            known = dict(written)
            if known.get("threshold") is not None and len(known["threshold"]) != len(THRESHOLD):
                raise SigdegError(f"sigdeg.threshold must be {' and '.join(THRESHOLD)}")
            schedule = schedule_from_config(known.pop("schedule"))
            known["steps"] = tuple(known.get("steps", (10,)))
            return cls(network, schedule, **known, **more)
        except TypeError as error:
            raise SigdegError(f"what a scheduler says of its step does not fit: {error}") from None

    def inputs(self, x: Tensor, t: Time, s: Time, noise: PartialSignature) -> NetworkInput:
        r"""What the network is to see of a state, shape (batch, \*), see `SignatureStudent.inputs`.

        Its size along dimension 1 may be any: pipelines serve many resolutions.
        """
        t, s = (torch.as_tensor(v, dtype=torch.float64) for v in (t, s))
        known, seen, state = self.scalars(t, s, x), noise.coefficients[:, : self.seen], x
        if self.lookahead:
            state = self.response.state(torch.cat([x[:, None], seen], dim=1), t, s, known.at)
        return NetworkInput(
            known.around.scale(state),
            known.timestep.expand(x.shape[0]),
            state,
            known.around,
            known.a * x,
            known.b,
            self.response.noise(seen, t, s),
        )

    def mean(self, output: Tensor, x: Tensor, around: Preconditioning) -> Tensor:
        """The posterior mean that an output stands for, clipped or thresholded at the very end."""
        mean = super().mean(output, x, around)
        if self.threshold is None:
            return mean
        quantile, most = self.threshold
        s = mean.abs().flatten(1).quantile(quantile, dim=1).clamp(1, most)
        s = expand(s, mean)
        return mean.clamp(-s, s) / s

    def forward(
        self, x: Tensor, t: Time, s: Time, noise: PartialSignature, **condition: Any
    ) -> Tensor:
        """One coarse step, the network called as the pipeline called it in the rows `row`."""
        if self.recorded is None:
            raise SigdegError("the network of a pipeline is called by its pipeline: call that")
        given = self.inputs(x, t, s, noise)
        ends = torch.as_tensor(s, dtype=torch.float64).expand(len(x))
        beside = noise.coefficients[:, : self.order], ends
        starts = torch.as_tensor(t, dtype=torch.float64).expand(len(x))
        output = self.recorded.replay(
            self.network, given.inputs, beside, starts, condition["row"], self.grids
        )
        return self.outputs(output, given)


def describe_step(scheduler: Any) -> dict[str, Any]:
    """The exponential step of a scheduler's network, of order 1, as JSON."""
    found = describe(scheduler)
    kind, std = found.prediction, found.data_std
    step = PipelineStudent(
        None,
        found.schedule,
        data_std=std,
        prediction_type=kind,
        clip=found.clip,
        threshold=found.threshold,
    )
    return step.written
