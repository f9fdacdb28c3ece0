"""Models of tokens: a step, its grid, what its sequences stand for; their folders."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sigdeg.conditions import Classes, Unconditional
from sigdeg.discrete.codec import TokenCodec, codec_from_config
from sigdeg.discrete.denoiser import GuidedTokens, NetworkTokenDenoiser, TokenDenoiser
from sigdeg.discrete.latent import Latent
from sigdeg.discrete.process import DiscreteProcess, process_from_config
from sigdeg.discrete.steps import Ancestral, Hybrid, TokenStep
from sigdeg.discrete.student import MixtureStudent
from sigdeg.errors import SigdegError, check_whole
from sigdeg.files import find_student, load_weights, read_json, save_model, unseal
from sigdeg.grids import Grid
from sigdeg.model import CONDITIONS, Card, Model
from sigdeg.networks import build_network, network_config
from sigdeg.schema import flag, listed, mapped, maybe, number, record, text, whole

__all__ = ["FORMAT", "TokenClasses", "TokenModel", "Tokens", "as_token_model", "uniform_grid"]

FORMAT = "sigdeg-tokens"
FINEST = 1024  # steps that a model may take, unless its grid says otherwise
SAVED = record(  # config.json
    {"process": mapped(), "length": whole(1, 10**7), "network": mapped(), "parameterisation": text},
    {
        "latent": maybe(record({"kind": text, "size": whole(1, 10**6)}, {})),
        "elastic": flag,
        "times": listed(number(0, 1)),
        "steps": listed(whole(1)),
        "codec": maybe(mapped()),
    },
)


def uniform_grid(steps: int) -> Tensor:
    """Times from 1 to 0 in equal steps, float64, shape (steps + 1,)."""
    check_whole(steps, 1, "steps")
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def spaced_grid(times: Sequence[float], steps: Sequence[int] = ()) -> Grid:
    """The grid of given times, or of any number of equal steps where none are given."""
    if times:
        return Grid(tuple(times), tuple(steps))
    finest = tuple(uniform_grid(FINEST).tolist())
    return Grid(finest, tuple(steps), uniform_grid)


@dataclass(frozen=True)
class Tokens(Unconditional):
    """What a model of one law of sequences can be asked for: to keep tokens that are given.

    Arguments:
        length: Positions of a sequence.
        process: The process, which knows the tokens.
    """

    length: int
    process: DiscreteProcess

    def __call__(
        self,
        n: int | None = None,
        given: Tensor | None = None,
        prefix: Tensor | Sequence[int] | None = None,
        latent: Tensor | None = None,
        **request: Any,
    ) -> dict[str, Any]:
        """Conditions of n samples.

        Arguments:
            n: How many.
            given: Tokens to keep, (D,) or (n, D), -1 where free.
            prefix: Tokens that all samples begin with.
            latent: Latents of all steps, (n, width), in place of one a step.
            request: Nothing else may be requested.
        """
        super().__call__(n, **request)
        count = 1 if n is None else n
        asked: dict[str, Any] = {} if latent is None else {"latent": latent}
        if prefix is not None:
            if given is not None:
                raise SigdegError("give either a prefix or given tokens, not both")
            first = whole_tokens(prefix, "a prefix")
            self.process.check_tokens(first, "a prefix")
            if first.ndim != 1 or len(first) > self.length:
                raise SigdegError(
                    f"a prefix is at most {self.length} tokens, got {tuple(first.shape)}"
                )
            given = nn.functional.pad(first, (0, self.length - len(first)), value=-1)
        if given is not None:
            given = whole_tokens(given, "given tokens")
            if (
                given.shape[-1:] != (self.length,)
                or given.ndim > 2
                or len(given) not in ({count, 1} if given.ndim == 2 else {self.length})
            ):
                raise SigdegError(
                    f"given tokens are ({self.length},) or (n, {self.length}), -1 where free, got "
                    f"{tuple(given.shape)}"
                )
            self.process.check_tokens(given[given != -1], "given tokens")
            asked["given"] = given.expand(count, -1)
        return asked


def whole_tokens(value: Any, what: str) -> Tensor:
    """Tokens as a user gives them, a tensor or a list, in int64."""
    try:
        found = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise SigdegError(f"{what} must be whole numbers, got {value!r:.60}") from None
    if found.numel() and (found.is_floating_point() or found.dtype in (torch.bool, torch.cfloat)):
        raise SigdegError(f"{what} must be whole numbers, got {str(found.dtype)[6:]}")
    return found.long()


@dataclass(frozen=True)
class TokenClasses(Classes):
    """The same of a model of classes: a label, and all that `Tokens` takes.

    Arguments:
        labels, null: As of `Classes`.
        tokens: What else can be asked for.
    """

    tokens: Tokens = field(kw_only=True)

    def __call__(
        self, n: int | None = None, label: int | None = None, **request: Any
    ) -> dict[str, Any]:
        """Conditions of n samples."""
        asked = super().__call__(n, label)
        count = len(asked["class_labels"])
        return asked | self.tokens(count, **request)


@dataclass(frozen=True)
class TokenModel(Model):
    """A sampler of token sequences; arguments as of `Model`."""

    @property
    def denoiser(self) -> TokenDenoiser:  # type: ignore[override]
        """The denoiser of its step, teacher or student."""
        found = getattr(self.step, "denoiser", None)
        if not isinstance(found, TokenDenoiser):
            raise SigdegError(f"{self.name} is a {type(self.step).__name__}, without a denoiser")
        return found

    @property
    def process(self) -> DiscreteProcess:
        """Its process."""
        return self.denoiser.process

    def guided(
        self, scale: float, until: float = 1.0, weak: Model | None = None, ramp: bool = False
    ) -> TokenModel:
        """The same model, guided by a weaker version of it or else by its classes.

        See `GuidedTokens`.

        Arguments:
            scale: The scale; 1 is none.
            until: 1; there is no time above which there is none.
            weak: The weaker version.
            ramp: Whether the scale grows over the steps.

        Raises:
            SigdegError: As of `Model.guided`, or if there is a time above which there is none.
        """
        if until != 1:
            raise SigdegError("guidance of tokens is there at all times: leave its end out")
        if isinstance(weak, TokenModel):
            if (weak.shape, weak.conditions) != (self.shape, self.conditions):
                raise SigdegError(f"{weak.name} is no version of {self.name}: it cannot guide it")
            own = GuidedTokens(self.denoiser, scale, {}, weak.denoiser, ramp)
        elif weak is None:
            own = GuidedTokens(self.denoiser, scale, self.none(), ramp=ramp)
        else:
            raise SigdegError(f"{weak.name} is no model of tokens: it cannot guide {self.name}")
        name = None if weak is None else weak.name
        step = copy.deepcopy(self.step, {id(self.denoiser): own})  # a copy around the same network
        card = dataclasses.replace(self.card, guidance=scale, guidance_until=until, weak=name)
        return dataclasses.replace(self, step=step, card=card)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, for `from_pretrained` and `sigdeg sample`.

        Raises:
            SigdegError: If it has no network, or its step is not the ancestral one.
        """
        denoiser = self.denoiser
        if not isinstance(denoiser, NetworkTokenDenoiser) or type(self.step) is not Ancestral:
            raise SigdegError(
                f"a {type(self.step).__name__} of a {type(denoiser).__name__} cannot be saved: the "
                "Ancestral step of a network can"
            )
        classes = self.conditions if isinstance(self.conditions, Classes) else None
        latent, codec = denoiser.latent, self.codec
        own = self.grid.spaced is None
        config = {
            "format": FORMAT,
            "length": denoiser.length,
            "parameterisation": denoiser.parameterisation,
            "latent": None if latent is None else dataclasses.asdict(latent),
            "elastic": denoiser.elastic,
            "times": list(self.grid.times) if own else [],
            "steps": list(self.grid.steps),
            "codec": codec.config() if isinstance(codec, TokenCodec) else None,
            "conditions": classes and {"labels": list(classes.labels), "null": classes.null},
            "origin": self.card.written,
            "process": denoiser.process.config(),
            "network": network_config(denoiser.network),
        }
        save_model(Path(folder), config, denoiser.network.state_dict())

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, path: str | Path, network: nn.Module | None = None
    ) -> TokenModel:
        """Load a model from a folder, that of the run which made it, or a hub id.

        Raises:
            SigdegError: If the folder is missing, holds no such model, or is damaged.
        """
        folder = find_student(path)
        written = read_json(folder / "config.json")
        if written.get("format") != FORMAT:
            raise SigdegError(
                f"{folder} holds no model of tokens: its config.json is of another kind"
            )
        weights = folder / "model.safetensors"
        unseal(written, folder / "config.json")  # before anything is built as it says
        try:
            SAVED(written, "")
            process = process_from_config(written["process"])
            network = build_network(written["network"], weights, network)
            denoiser = denoiser_from(written, network, process)
            codec = codec_from_config(written.get("codec"))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise SigdegError(f"{folder / 'config.json'} does not fit a model: {error}") from None
        load_weights(network, weights, config=written)
        told = written.get("conditions")
        CONDITIONS(told, "conditions")
        card = Card.read(written.get("origin") or {})
        if card.name is None:
            name = folder.resolve().name if Path(path).is_dir() else str(path)
            card = dataclasses.replace(card, name=name)
        made = as_token_model(
            denoiser.eval(), written.get("times") or (), written.get("steps") or ()
        )
        asked: Any = made.conditions
        if told:
            asked = TokenClasses(tuple(told["labels"]), told.get("null"), tokens=asked)
        return dataclasses.replace(made, codec=codec, conditions=asked, card=card)


def denoiser_from(
    written: dict[str, Any], network: nn.Module, process: DiscreteProcess
) -> NetworkTokenDenoiser:
    """The denoiser that a `config.json` describes, around its network."""
    length, kind = written["length"], written["parameterisation"]
    if not written.get("latent"):
        return NetworkTokenDenoiser(network, process, length, kind)
    latent = Latent(**written["latent"])
    return MixtureStudent(network, process, length, latent, written.get("elastic", False), kind)


def as_token_model(
    step: TokenStep | Hybrid | TokenDenoiser,
    times: Sequence[float] = (),
    steps: Sequence[int] = (),
    name: str | None = None,
) -> TokenModel:
    """A denoiser (with its ancestral step) or a step as a model.

    Arguments:
        step: The denoiser, or the step.
        times: Its times, from 1 to 0 (default: any number of equal steps).
        steps: The step counts that it was trained for.
        name: Its name.
    """
    if isinstance(step, TokenDenoiser):
        step = Ancestral(step)
    length, process = step.denoiser.length, step.process
    return TokenModel(
        step,
        (length,),
        spaced_grid(times, steps),
        conditions=Tokens(length, process),
        card=Card(name),
    )
