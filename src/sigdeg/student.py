r"""The student: one learned coarse step of the reverse SDE, driven by a partial signature.

`plain` is the paper's (Eq. 9): $x_s = x_t + N_\theta(x_t, t, (h, W, A))$.

`warm`, the default, is the exponential step with a network in the place of the posterior mean,

$$ x_s = a\, x_t + b\, D_\theta(x_t, t, s, c) + \sum_k w_k c_k, $$

with $a, b$ of `exponential_coefficients` and $w$ the closed-form linear response: numbers for data
of one standard deviation, matrices $U \operatorname{diag}(w_k) U^\top$ for data of covariance
$U \Lambda U^\top$, exact for Gaussian data and so all that the network has to learn of it. It is
the teacher's own, its input widened by the coefficients and by features of $s$ whose weights start
at zero: before any training the student already *is* its teacher's exponential step (with
`data_std` = 0, in law, an ancestral sampler).

With `lookahead` $f$ the network is called part-way along the step, at the time $\tau$ where the
signal's share $\alpha / \sqrt{\alpha^2 + \sigma^2}$ has made $f$ of its way, on the state that
Gaussian data would have there, $\Phi x_t + \sum_k w'_k c_k$: a midpoint rule for the price of one
call. The posterior mean then answers to the noise of the path, and the call of a long step is made
where the network has something to say, not at pure noise.

Both are conditioned on t and s: one student can serve any grid.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sigdeg.codec import find_codec
from sigdeg.denoiser import CalledNetwork, Denoiser, NetworkDenoiser, Timesteps, unwrap
from sigdeg.errors import SigdegError
from sigdeg.files import count_weights, find_student, load_weights, read_json, save_model
from sigdeg.grids import Spacing, check_span, coarse_grid
from sigdeg.networks import (
    ModulatedMLP,
    build_network,
    class_labels,
    network_config,
    sinusoidal,
    widen,
)
from sigdeg.prediction import Prediction
from sigdeg.schedule import Schedule, expand, schedule_from_config
from sigdeg.schema import flag, listed, mapped, maybe, number, record, text, whole
from sigdeg.signature import PartialSignature
from sigdeg.steps import Time, exponential_coefficients, response, weigh

__all__ = ["ResidualNoise", "SignatureStudent", "kind_of_data"]

ResidualNoise = Literal["gaussian", "energy"]
COVARIANCE = ("directions", "stds")  # saved beside the network's weights
CACHED = 64  # steps whose response is kept
POINT = 16  # numbers of a sample up to which it is a point
STEP_FEATURES = 16  # sinusoidal features of s, as constant maps beside the coefficients
SAVED = record(  # config.json
    {"channels": whole(1), "covariance": flag, "schedule": mapped(), "network": mapped()},
    {
        "order": whole(0, 1000),
        "kind": text,
        "prediction_type": text,
        "data_std": number(0),
        "lookahead": number(0),
        "residual_noise": maybe(text),
        "clip": maybe(number(0)),
        "steps": listed(whole()),
        "spacing": text,
        "power": number(0),
        "times": listed(number(0, 1)),
        "sample_shape": listed(whole(1), 8),
        "timesteps": text,
        "decoder": text,
        "origin": mapped(),
    },
)


class SignatureStudent(CalledNetwork):
    r"""A learned step; see the module's docstring for the formula.

    Arguments:
        network: Called as `network(inputs, timestep, **condition)` with
            `in_channels(channels, order, kind)` input channels.
        schedule: The schedule of the teacher.
        channels: Channels of the state: its size along dimension 1.
        order: The number m of signature coefficients the network sees.
        kind: `warm` or `plain`.
        prediction_type: What a warm network predicts, see `posterior_mean`.
        data_std: The data's standard deviation: the linear response assumes it, and `edm` does.
            0 makes the untrained warm step the ancestral one.
        covariance: The data's covariance over all elements of a sample, shape (d, d), in place of
            `data_std` in the linear response: where elements are strongly correlated, as along a
            time series, it takes most of the work from the network.
        lookahead: Fraction of a step's way, from 0 (the default) to below 1, after which a warm
            network looks. The Gaussian law of `covariance` (or `data_std`; with neither, `distill`
            takes the covariance of the teacher's samples) says where the path is by then, and the
            linear response is that at a fixed mean.
        residual_noise: What to do about what m coefficients leave open. Regression learns its mean
            (None, the default). `gaussian` adds a head for its variance, element by element.
            `energy` gives the network noise as a further input and trains it by the energy score,
            which learns the whole conditional law. The noise is one more coefficient of the path,
            independent of those that are seen: `order` of the step is then m + 1.
        clip: Clamp the predicted mean of a warm student, as the teacher does.
        steps: Step counts it is trained for, e.g. (10,); several make it elastic.
        spacing: Spacing of its grids, see `coarse_grid`.
        power: Exponent of `power` spacing.
        times: The times of its finest grid, from the schedule's `t_max` to 0, in place of a
            spacing; a grid of fewer steps takes every so many of them.
        sample_shape: Shape of one sample, for sampling from a saved student.
        timesteps: `integer` for a network that takes whole timesteps only, see `NetworkDenoiser`.
    """

    nfe = 1
    directions: Tensor | None
    stds: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        channels: int,
        order: int = 2,
        kind: Literal["warm", "plain"] = "warm",
        prediction_type: Prediction = "edm",
        data_std: float = 1.0,
        covariance: Tensor | None = None,
        lookahead: float = 0.0,
        residual_noise: ResidualNoise | None = None,
        clip: float | None = None,
        steps: tuple[int, ...] = (10,),
        spacing: Spacing = "power",
        power: float = 1.5,
        times: Sequence[float] | None = None,
        sample_shape: tuple[int, ...] | None = None,
        timesteps: Timesteps = "continuous",
    ) -> None:
        super().__init__(network, schedule, prediction_type, clip, data_std, timesteps)
        if order < 1 or (kind == "plain" and order != 2):
            raise SigdegError(
                f"order must be at least 1 (and 2 for the plain student), got {order}"
            )
        if residual_noise not in (None, *get_args(ResidualNoise)):
            raise SigdegError(
                f"unknown residual noise {residual_noise!r}: gaussian, energy or None"
            )
        if kind not in ("warm", "plain"):
            raise SigdegError(f"unknown kind of student {kind!r}: choose warm or plain")
        if spacing not in get_args(Spacing):
            raise SigdegError(f"unknown {spacing!r}: choose from {', '.join(get_args(Spacing))}")
        if not 0 <= lookahead < 1 or (lookahead and kind != "warm"):
            raise SigdegError(
                f"lookahead is for a warm student and lies in [0, 1), got {lookahead} and {kind}"
            )
        if not steps or min(steps) < 1:
            raise SigdegError(
                f"a student needs at least one step count, each at least 1, got {steps}"
            )
        self.channels = channels
        self.seen = order
        self.kind = kind
        self.lookahead = lookahead
        self.residual_noise = residual_noise
        self.steps = tuple(steps)
        self.spacing: Spacing = spacing
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
        self._weights: dict[tuple[Any, ...], Tensor] = {}
        self._times: dict[tuple[float, float] | None, Tensor] = {}
        self._folder: Path | None = None  # where it was loaded from
        self.origin: dict[str, Any] = {}  # what it was distilled from, for people: kept with it
        self.register_buffer("directions", None)  # U and the square root of Lambda, in float64
        self.register_buffer("stds", None)
        if covariance is not None:
            self.set_covariance(covariance)

    def set_covariance(self, covariance: Tensor) -> None:
        """Take the data's covariance over all elements of a sample, shape (d, d).

        Raises:
            SigdegError: If the student is a plain one, or its samples have another size.
        """
        size = math.prod(self.sample_shape)
        if self.kind != "warm" or covariance.shape != (size, size):
            raise SigdegError(
                f"a covariance is for a warm student and has shape ({size}, {size}), "
                f"got {tuple(covariance.shape)} and {self.kind}"
            )
        variances, self.directions = torch.linalg.eigh(covariance.double())
        self.stds = variances.clamp(min=0).sqrt()
        self._weights.clear()

    def make_room(self, weights: Path) -> None:
        """Buffers for a covariance to be read from a file, if it is large enough to hold one."""
        size = math.prod(self.sample_shape)
        if size**2 > count_weights(weights):
            raise SigdegError(f"{weights} holds no covariance of samples of {size:,} elements")
        self.directions = torch.zeros(size, size, dtype=torch.float64)
        self.stds = torch.zeros(size, dtype=torch.float64)

    @staticmethod
    def in_channels(
        channels: int, order: int, kind: str = "warm", residual_noise: str | None = None
    ) -> int:
        """Input channels of a student's network: state, coefficients, features of the step."""
        order += residual_noise == "energy"
        return channels * (1 + order) + (1 if kind == "plain" else STEP_FEATURES)

    @classmethod
    def from_denoiser(
        cls,
        denoiser: Denoiser,
        channels: int,
        order: int = 4,
        condition: Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> SignatureStudent:
        """The warm student to start with, of any teacher's denoiser.

        A network's student has that network, copied and widened: it starts as its teacher. One of
        another denoiser (an exact law, a function) has a `ModulatedMLP` of its own.

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
            options: Further arguments of the class.

        Raises:
            SigdegError: If `options` ask for a plain student, or for another `data_std` than the
                one an `edm` network was trained with; a denoiser without a network is of
                samples that are no vectors; or a network has no layer to widen.
        """
        if options.get("kind", "warm") != "warm":
            raise SigdegError("only a warm student starts from a teacher; build a plain one itself")
        shape = options.get("sample_shape") or (channels,)
        options.setdefault("lookahead", 0.75 if kind_of_data(shape) == "points" else 0.5)
        options.setdefault("residual_noise", "energy")
        noise = options["residual_noise"]
        inputs = cls.in_channels(channels, order, residual_noise=noise)
        outputs = channels * (2 if noise == "gaussian" else 1)
        if isinstance(denoiser, NetworkDenoiser):
            own = denoiser.data_std if denoiser.prediction_type == "edm" else 0.0
            if options.setdefault("data_std", own) != own and own:
                raise SigdegError(
                    f"the teacher's network was trained with data_std={own}: leave it out"
                )
            shape = options.get("sample_shape") or (channels,)
            x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
            x = x.to(next(denoiser.network.parameters(), x))
            told = denoiser.timestep(x, denoiser.schedule.t_max)
            network = widen(
                denoiser.network, inputs, outputs, channels, (x, told), **condition or {}
            )
            options |= {
                "prediction_type": denoiser.prediction_type,
                "clip": denoiser.clip,
                "timesteps": denoiser.timesteps,
            }
        else:
            if len(shape) != 1:
                raise SigdegError(
                    "a teacher without a network of its own needs samples that are vectors, got "
                    f"{shape}: build the student with a network for them"
                )
            network = ModulatedMLP(inputs, outputs)
            options.setdefault("data_std", 0.0)
        return cls(network, denoiser.schedule, channels, order, **options)

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
        """Order of the signature the step takes: one more than the network sees, with a head."""
        return self.seen + (self.residual_noise is not None)

    @property
    def classes(self) -> int | None:
        """The number of classes of a conditional student, to be sampled with `class_labels`."""
        return None if self.class_labels is None else len(self.class_labels)

    @property
    def class_labels(self) -> list[int] | None:
        """Their labels; what means no class is not among them."""
        return class_labels(self.network)

    def labels(self, n: int) -> Tensor:
        """Classes of n samples of a conditional student, all in turn, shape (n,).

        Raises:
            SigdegError: If it knows no classes.
        """
        if self.class_labels is None:
            raise SigdegError("this student knows no classes: sample without class_labels")
        return torch.tensor(self.class_labels)[torch.arange(n) % len(self.class_labels)]

    def decode(self, samples: Tensor) -> Tensor:
        """Samples in the user's units, by the codec in the folder it came from."""
        if self._folder is None:
            return samples
        codec = find_codec(self._folder)
        if isinstance(codec, nn.Module):
            codec.to(samples.device)
        return codec.decode(samples)

    @property
    def elastic(self) -> bool:
        """Whether it serves several step counts."""
        return len(self.steps) > 1

    def grid(self, steps: int | None = None) -> Tensor:
        """The grid for a step count (default: the largest it is trained for).

        Raises:
            SigdegError: If the student is neither trained for that count nor elastic.
        """
        steps = max(self.steps) if steps is None else steps
        if steps not in self.steps and (not self.elastic or steps > max(self.steps)):
            known = ", ".join(map(str, self.steps))
            raise SigdegError(f"this student was distilled for {known} steps, got {steps}")
        if self.times is None:
            return coarse_grid(self.schedule, steps, self.spacing, self.power)
        at = torch.linspace(0, len(self.times) - 1, steps + 1, dtype=torch.float64).round().int()
        return check_span(self.schedule, [self.times[i] for i in at.tolist()])

    def forward(
        self, x: Tensor, t: Time, s: Time, signature: PartialSignature, **condition: Any
    ) -> Tensor:
        """One coarse step, see `sigdeg.steps.Step`."""
        mean, std = self.predict(x, t, s, signature, **condition)
        return mean if std is None else mean + std * signature.coefficients[:, self.seen]

    def predict(
        self, x: Tensor, t: Time, s: Time, signature: PartialSignature, **condition: Any
    ) -> tuple[Tensor, Tensor | None]:
        r"""Mean and standard deviation of $x_s$ given $x_t$ and the coefficients it sees.

        Returns:
            The mean, shape (batch, \*), and the standard deviation, or None without a Gaussian
            head. With `energy` the first is a draw: noise is among the inputs.
        """
        if x.shape[1] != self.channels:
            raise SigdegError(
                f"this student draws samples of shape {self.sample_shape}, got {tuple(x.shape[1:])}"
            )
        t, s = (torch.as_tensor(v, dtype=torch.float64) for v in (t, s))
        at = self.looks_at(t, s)
        timestep = self.timestep(x, at)
        if self.kind == "plain":
            inputs = [
                x,
                signature.W,
                signature.time_integral,
                maps(expand((t - s)[..., None], x), x),
            ]
            if self.residual_noise == "energy":
                inputs.append(signature.coefficients[:, self.seen])
            output = unwrap(self.network(torch.cat(inputs, dim=1), timestep, **condition))
            change, head = output[:, : self.channels], output[:, self.channels :]
            mean = x + change
            scale = torch.ones_like(expand(t, x))
        else:
            c, looked = signature.coefficients, x
            if self.lookahead:
                parts = torch.cat([x[:, None], c[:, : self.seen]], dim=1)
                looked = self.combine(parts, t, s, at)
            around = self.preconditioning(x, at)
            scaled = around.scale(looked)
            features = sinusoidal(s.reshape(-1).to(x.device), STEP_FEATURES).to(x)
            seen = self.order if self.residual_noise == "energy" else self.seen
            inputs = [scaled, c[:, :seen].flatten(1, 2), maps(features, x)]
            output = unwrap(self.network(torch.cat(inputs, dim=1), timestep, **condition))
            output, head = output[:, : self.channels], output[:, self.channels :]
            D = self.mean(output, looked, around)
            a, b = (expand(v, x) for v in exponential_coefficients(self.schedule, t, s))
            mean = a * x + b * D + self.combine(c[:, : self.seen], t, s)
            scale = b
        if self.residual_noise != "gaussian":
            return mean, None
        # Starts at a twentieth of the scale of the mean: small, yet with a gradient to grow by.
        return mean, scale * torch.exp(head.clamp(-7, 5) - 3)

    def looks_at(self, t: Tensor, s: Tensor) -> Tensor:
        """The time at which the network is called, float64."""
        if not self.lookahead:
            return t
        key = None if t.ndim else (float(t), float(s))
        if key not in self._times:

            def share(time: Tensor) -> Tensor:
                return torch.sigmoid(2 * self.schedule.log_snr(time)).sqrt()

            target = torch.lerp(share(t), share(s), self.lookahead)
            at = self.schedule.time_at(torch.logit(target**2) / 2)
            if key is None:
                return at
            if len(self._times) >= CACHED:
                self._times.clear()
            self._times[key] = at
        return self._times[key]

    def combine(self, parts: Tensor, t: Tensor, s: Tensor, at: Tensor | None = None) -> Tensor:
        r"""Linear part of a step, in full precision: $\sum_k w_k c_k$, or the state looked at.

        Arguments:
            parts: Coefficients; with `at` the state before them. Shape (batch, k, \*).
            t: Start, float64, shape () or (batch,).
            s: End.
            at: The time part-way that the network looks at, to have the state there.
        """
        with torch.autocast(parts.device.type, enabled=False):
            if not t.ndim:
                key = float(t), float(s), at is None, parts.dtype, parts.device
                if key not in self._weights:  # kept for the next batch
                    if len(self._weights) >= CACHED:
                        self._weights.clear()
                    w = self.weights(t.cpu(), s.cpu(), None if at is None else at.cpu())
                    if w.ndim == 2 and self.directions is not None:  # one matrix for all parts
                        U = self.directions.cpu()
                        w = torch.einsum("id,dk,jd->kij", U, w, U).flatten(0, 1)
                    self._weights[key] = w.to(parts)
                w = self._weights[key]
                if w.ndim == 1:
                    return weigh(w, parts)
                return (parts.flatten(1) @ w).reshape(parts.shape[0], *parts.shape[2:])
            # A batch knows few different steps: each costs a quadrature.
            times = torch.stack([t, s] if at is None else [t, s, at], dim=1)
            steps, rows = times.unique(dim=0, return_inverse=True)
            w = self.weights(*steps.T)[rows].to(parts)
            if w.ndim == 2 or self.directions is None:
                return weigh(w, parts)
            U = self.directions.to(parts)
            along = (parts.flatten(2) @ U * w.transpose(1, 2)).sum(1)
            return (along @ U.T).reshape(parts.shape[0], *parts.shape[2:])

    def weights(self, t: Tensor, s: Tensor, at: Tensor | None = None) -> Tensor:
        r"""Weights of the parts of `combine`: (\*, k), or (\*, d, k) in the data's directions."""
        stds = torch.tensor(self.data_std, dtype=torch.float64) if self.stds is None else self.stds
        stds = stds.to(t.device)
        if at is not None and self.stds is None and not self.data_std:
            raise SigdegError(
                "a student that looks ahead needs the data's covariance or a data_std: distil it, "
                "or give one"
            )
        if at is None:
            still = torch.zeros((), dtype=torch.float64)  # data of one point: a fixed mean
            return response(self.schedule, t, s, self.seen, still if self.lookahead else stds)
        w = response(self.schedule, t, s, self.seen, stds, until=at)
        if stds.ndim:
            t, at = t[..., None], at[..., None]
        alpha, alpha_at = self.schedule.alpha(t), self.schedule.alpha(at)
        before = alpha**2 * stds**2 + self.schedule.sigma(t) ** 2
        after = alpha_at**2 * stds**2 + self.schedule.sigma(at) ** 2
        carried = alpha * after / (alpha_at * before)
        return torch.cat([carried[..., None], w], dim=-1)

    def save_pretrained(self, folder: str | Path, **more: Any) -> None:
        """Write `config.json` and `model.safetensors`, atomically; the folder is made if needed.

        Arguments:
            folder: The folder.
            more: What else `config.json` is to hold, as JSON, see `Model.save_pretrained`.
        """
        folder = Path(folder)
        config = {
            "format": "sigdeg-student",
            "channels": self.channels,
            "order": self.seen,
            "kind": self.kind,
            "prediction_type": self.prediction_type,
            "data_std": self.data_std,
            "covariance": self.stds is not None,
            "lookahead": self.lookahead,
            "residual_noise": self.residual_noise,
            "clip": self.clip,
            "timesteps": self.timesteps,
            "steps": list(self.steps),
            "spacing": self.spacing,
            "power": self.power,
            **({} if self.times is None else {"times": list(self.times)}),
            "sample_shape": list(self.sample_shape),
            **({"origin": self.origin} if self.origin else {}),
            **more,
            "schedule": self.schedule.config(),
            "network": network_config(self.network),
        }
        # The network's own names, so that its weights can be read without the student.
        own = {n: b for n, b in self.named_buffers(recurse=False) if n in COVARIANCE}
        save_model(folder, config, self.network.state_dict() | own)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        network: nn.Module | None = None,
        schedule: Schedule | None = None,
    ) -> SignatureStudent:
        """Load a student from a folder, or from a repository id of the Hugging Face hub.

        Arguments:
            path: Folder written by `save_pretrained`, that of the run which made it, or a hub id.
            network: The network, where it is a class of your own; its weights are loaded into it.
            schedule: The schedule, where it is a class of your own.

        Raises:
            SigdegError: If the folder is missing, is no student, or its weights are damaged, of
                another format or of another shape; if its configuration was changed by itself. A
                pickle is refused, never opened.
        """
        folder = find_student(path)
        written = read_json(folder / "config.json")
        config = {key: value for key, value in written.items() if not key.startswith("_")}
        if config.pop("format", None) != "sigdeg-student":
            raise SigdegError(
                f"{folder} holds no sigdeg student: its config.json is of another kind"
            )
        weights = folder / "model.safetensors"
        try:
            SAVED(config, "")
            description, known = config.pop("network"), config.pop("covariance")
            origin = config.pop("origin", {})
            for key in ("conditions", "decoder"):  # of whoever samples, see `Model`
                config.pop(key, None)
            parameters = description.get("config", {})
            if (parameters.get("num_class_embeds") or 0) > 1:
                # Before it was noted, the last one meant none.
                parameters.setdefault("null_class", parameters["num_class_embeds"] - 1)
            network = build_network(description, weights, network)
            config["schedule"] = schedule_from_config(config["schedule"], schedule)
            for key in ("steps", "sample_shape"):
                config[key] = tuple(config[key])
            student = cls(network, **config)
            if known:  # its eigenvectors stand beside the weights
                student.make_room(weights)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise SigdegError(f"{folder / 'config.json'} does not fit a student: {error}") from None
        load_weights(
            student,
            weights,
            lambda name: name if name in COVARIANCE else f"network.{name}",
            written,
        )
        student._folder, student.origin = folder, origin
        return student.eval()


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
