r"""A student's network: the teacher's, with a layer beside its input layer that sees the path.

$$ \text{input}(x) + E\, (c_0, \dots, c_{m-1}) + F\, \varphi(s), $$

E a layer like the input layer, without bias, of the coefficients of the step's path; F a linear map
of sinusoidal features of where it ends. Both start at zero: the network is then its teacher's to
the bit. Class, configuration and weights of the teacher are untouched: adapters, ControlNet and
`from_pretrained` find what they expect.
"""

from __future__ import annotations

import inspect
import threading
from typing import Any

import torch
from torch import Tensor, nn

from sigdeg.errors import SigdegError, extra, reason
from sigdeg.networks import sinusoidal
from sigdeg.pipelines.facts import Trace
from sigdeg.pipelines.guidance import add_condition, remove_condition
from sigdeg.pipelines.layer import Called, as_whole, find_layer
from sigdeg.pipelines.noise import tiled
from sigdeg.pipelines.scheduler import SigDEGScheduler, running
from sigdeg.schema import flag, listed, maybe, number, record, text, whole

with extra("pipelines"):
    import diffusers
    from diffusers.configuration_utils import FrozenDict, register_to_config

__all__ = ["SignatureInput", "add_signature", "remove_signature", "signature_class"]

FEATURES = 16  # sinusoidal ones, of the end of a step
PREFIX = "SigDEG"


def key(value: Any, name: str) -> None:
    """An argument of a call, by position or name."""
    (text if isinstance(value, str) else whole(0, 256))(value, name)


VIEW = record(
    {
        "begin": whole(),
        **dict.fromkeys(("part", "whole", "sizes", "strides"), listed(whole(1), 16)),
    },
    {},
)
TRACE = record(
    {
        "networks": listed(text),
        "state": key,
        "time": maybe(key),
        "channels": whole(1),
        "time_scale": number(),
        "time_shift": number(),
        "layer": text,
    },
    {
        **{"axis": maybe(whole(1, 8)), "begin": whole(0, 65536), "rows": whole(1)},
        **{"listed": maybe(listed(whole(1, 8))), "place": maybe(VIEW), "answer": maybe(VIEW)},
    },
)
BESIDE = record(
    {"trace": TRACE, "order": whole(1, 1000), "student": text},
    {"guided": flag, "condition": maybe(whole(1, 65536))},
)
ADAPTER = "sigdeg"  # a student's adapters, beside those of styles
PERCENT = 100  # of a scale of guidance: its features are those of a time
MADE: dict[Any, Any] = {}  # classes of networks' classes


class Added(threading.local):
    """What the input layers of a thread's networks are to add: their inputs, by layer."""

    def __init__(self) -> None:
        self.by: dict[int, tuple[Tensor, Tensor]] = {}


ADDED = Added()


class SignatureInput(nn.Module):
    """The layer beside a network's input layer, and the hooks that feed it.

    Arguments:
        network: The network.
        trace: What is known of it.
        order: Coefficients that it sees.
        student: The id by which the scheduler of a run is found.
        guided: Whether it is told the scale of the guidance.
    """

    def __init__(
        self, network: nn.Module, trace: Trace, order: int, student: str, guided: bool = False
    ) -> None:
        super().__init__()
        layer: Any = network.get_submodule(trace.layer)
        self.trace, self.order, self.student, self.guided = trace, order, student, guided
        self.extra: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
        if isinstance(layer, nn.Linear):
            width = layer.out_features
            self.extra = nn.Linear(order * layer.in_features, width, bias=False)
        else:
            width = layer.out_channels
            names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
            options = {name: getattr(layer, name) for name in names}
            self.extra = type(layer)(order * layer.in_channels, width, bias=False, **options)
        self.features = nn.Linear(FEATURES * (1 + guided), width, bias=False)
        for own in (self.extra, self.features):
            nn.init.zeros_(own.weight)
        self.to(layer.weight.device, layer.weight.dtype)
        self.adapted: list[Any] = []  # a layer of its adapters, where it has some; no part of this
        self._places: dict[tuple[int, ...], Tensor] = {}
        # Bound methods: a copy of the network has hooks of its own.
        network.register_forward_pre_hook(self.before, with_kwargs=True)
        layer.register_forward_hook(self.after)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a run's state is in no graph
    def before(self, network: nn.Module, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Take the path from the call or from the run, and the state that is to be seen."""
        if any(ADAPTER not in layer.active_adapters for layer in self.adapted):
            raise SigdegError(
                "the adapters of this student are off: name them beside those of styles, "
                f'pipe.set_adapters(["{ADAPTER}", ...])'
            )
        args, kwargs = list(args), dict(kwargs)
        given = kwargs.pop("sigdeg", None)
        place: Any = args if isinstance(self.trace.state, int) else kwargs
        try:
            argument = place[self.trace.state]
        except (KeyError, IndexError):
            name = type(network).__name__
            raise SigdegError(f"{name} is called without its state, {self.trace.state}") from None
        try:
            state = self.trace.part(argument)
        except (IndexError, RuntimeError, TypeError, AttributeError) as error:
            name = type(network).__name__
            raise SigdegError(
                f"what {name} is called with is not its student's state: {reason(error)}"
            ) from None
        if given is None:
            look = running(self.student).look(state, self.timestep(args, kwargs))
            coefficients, told = look.coefficients, (look.end, look.guidance)
            if look.state is not state:
                argument = place[self.trace.state] = self.trace.filled(argument, look.state)
        else:
            coefficients, told = given[0], (*given[1:], None)[:2]
        called = Called("", 0, tuple(args), kwargs)
        rows = state.shape[0]
        maps = self.maps(network, called, tiled(coefficients.to(state), rows))
        features = self.told(*told).to(state)
        ADDED.by[id(self)] = maps, tiled(features, rows)
        return tuple(args), kwargs

    def told(self, ends: Tensor, guidance: Tensor | None) -> Tensor:
        """Features of the ends of steps, and of scales of guidance, shape (rows, features)."""
        features = [sinusoidal(ends, FEATURES)]
        if self.guided:
            if guidance is None:
                raise SigdegError(
                    "this student is told its guidance: set pipe.scheduler.guidance to its scale"
                )
            features.append(sinusoidal(guidance.to(ends) / PERCENT, FEATURES))
        return torch.cat(features, dim=1)

    def timestep(self, args: Any, kwargs: Any) -> Tensor | None:
        """The timestep of a call, in the units of the scheduler."""
        key = self.trace.time
        if key is None:
            return None
        try:
            told = args[key] if isinstance(key, int) else kwargs[key]
        except (KeyError, IndexError):
            raise SigdegError(f"a student's network is called without its time, {key}") from None
        told = torch.as_tensor(told).detach().float()
        return (told - self.trace.time_shift) / self.trace.time_scale

    def maps(self, network: nn.Module, called: Called, coefficients: Tensor) -> Tensor:
        """The coefficients on the way of the state to the input layer, channels side by side."""
        argument = as_whole(called.argument(self.trace.state))
        shape = tuple(argument.shape[1:])
        if shape not in self._places and argument.shape not in self._places:
            ADDED.by.pop(id(self), None)  # the network is called with numbers, and as it is
            _, place = find_layer(network, called, self.trace.state, self.trace.layer)
            if place is None:
                kind = type(network).__name__
                raise SigdegError(f"{kind}: its layer {self.trace.layer} no longer sees the state")
            own = by_sample(place, argument)
            self._places[argument.shape if own is None else shape] = place if own is None else own
        alone = shape in self._places  # one sample tells of all, and of any number of them
        place = self._places[shape if alone else argument.shape].to(argument.device)
        coefficients = self.trace.spread(coefficients, shape)
        flat = coefficients.flatten(2) if alone else coefficients.transpose(0, 1).flatten(1)[None]
        # At place -1: what stands there is not of the state.
        none = flat.new_zeros(*flat.shape[:2], 1)
        rows = torch.cat([flat, none], dim=2)[:, :, place.flatten()]
        axis = -1 if isinstance(self.extra, nn.Linear) else 1
        parts = rows.unflatten(2, tuple(place.shape)).unbind(1)
        return torch.cat([part.flatten(0, 1) for part in parts], dim=axis)

    def after(self, layer: nn.Module, args: Any, output: Tensor) -> Tensor:
        """What the input layer gives, with what is seen beside it added."""
        given = ADDED.by.get(id(self))
        if given is None or given[0].shape[0] != args[0].shape[0]:
            return output
        maps, features = given
        told: Tensor = self.features(features.to(self.features.weight.dtype))
        told = told.repeat_interleave(output.shape[0] // told.shape[0], 0)
        if not isinstance(self.extra, nn.Linear):
            told = told.reshape(*told.shape, *(1,) * (output.ndim - 2))
        else:
            told = told.reshape(told.shape[0], *(1,) * (output.ndim - 2), -1)
        seen: Tensor = self.extra(maps.to(self.extra.weight.dtype))
        return output + seen.to(output.dtype) + told.to(output.dtype)


def by_sample(place: Tensor, argument: Tensor) -> Tensor | None:
    """Where the elements of the first sample stand, if those of the others stand likewise."""
    samples = len(argument)
    if len(place) % samples:
        return None
    own = place.unflatten(0, (samples, -1))
    starts = torch.arange(samples).reshape(-1, *(1,) * place.ndim) * argument[0].numel()
    alike = torch.equal(own, (own[0] + starts).where(own[0] >= 0, -1))
    return own[0] if alike else None


class Kind(type):
    """Classes that pass for their base: `from_pipe` moves networks of the very class it expects."""

    def __eq__(cls, other: object) -> bool:
        return cls is other or cls.__base__ is other

    __hash__ = type.__hash__


def read_signature(network: nn.Module, written: dict[str, Any]) -> SignatureInput:
    """The layer beside a network's input layer, of what its configuration says.

    Raises:
        SigdegError: If that does not fit one, or the network has no such layer.
    """
    try:
        BESIDE(written, "sigdeg")
        trace = Trace.read(written["trace"])
        guided = written.get("guided", False)
        return SignatureInput(network, trace, written["order"], written["student"], guided)
    except (AttributeError, TypeError) as error:
        kind = type(network).__name__
        raise SigdegError(
            f"what a {kind} says of its student does not fit: {reason(error)}"
        ) from None


def signature_class(base: Any) -> Any:
    """The class of a student's network: `base` with one more registered argument, `sigdeg`.

    That is JSON: the trace, `order` and `student`. Where it is None there is no layer beside.
    """
    if base in MADE:
        return MADE[base]
    init = base.__init__
    parameters = inspect.signature(init).parameters
    inner = inspect.unwrap(init)

    def __init__(self: Any, *args: Any, sigdeg: dict[str, Any] | None = None, **own: Any) -> None:  # noqa: N807
        inner(self, *args, **own)
        if sigdeg is not None:
            self.signature = read_signature(self, sigdeg)

    told = inspect.Parameter("sigdeg", inspect.Parameter.KEYWORD_ONLY, default=None)
    made: Any = __init__
    made.__signature__ = inspect.Signature([*parameters.values(), told])
    name = PREFIX + base.__name__
    body = {
        "__init__": register_to_config(made),
        "__module__": "sigdeg",
        "__qualname__": name,
        "_skip_layerwise_casting_patterns": (
            *(getattr(base, "_skip_layerwise_casting_patterns", None) or ()),
            "signature",  # small, and beside an input layer, which is left out as well
        ),
    }
    MADE[base] = Kind(name, (base,), body)
    return MADE[base]


def add_signature(
    network: Any,
    trace: Trace,
    order: int,
    student: str,
    guided: bool = False,
    condition: int | None = None,
) -> Any:
    """The network of a student: of `signature_class`, with the weights of the network, shared.

    Its layer beside the input layer is at zero.

    Arguments:
        network: The network; it is changed.
        trace: What is known of it.
        order: Coefficients that it sees.
        student: The id by which the scheduler of a run is found.
        guided: Whether that layer is told the scale of the guidance.
        condition: The width of its embedding, where the network itself is told it.
    """
    base = type(network)
    if hasattr(network, "signature"):
        raise SigdegError(f"this {base.__name__} is a student's already")
    network.signature = SignatureInput(network, trace, order, student, guided)
    network.__class__ = signature_class(base)
    written = {"trace": trace.written, "order": order, "student": student}
    written |= {"guided": True} if guided else {}
    if condition is not None:
        add_condition(network, condition)
        written["condition"] = condition
    network.register_to_config(sigdeg=written)
    return network


def remove_signature(network: Any) -> None:
    """Undo `add_signature`: the network is what it was."""
    layer = network.get_submodule(network.signature.trace.layer)
    for hooks in (network._forward_pre_hooks, layer._forward_hooks):
        for key, hook in list(hooks.items()):
            if getattr(hook, "__self__", None) is network.signature:
                del hooks[key]
    if "condition" in network.config.sigdeg:
        remove_condition(network)
    del network.signature
    network.__class__ = type(network).__base__
    network._internal_dict = FrozenDict(
        {key: value for key, value in network.config.items() if key != "sigdeg"}
    )


def served(name: str) -> Any:
    """A class of this package that diffusers looks for by its name.

    Raises:
        AttributeError: If there is none.
    """
    if name in ("ModelMixin", "SchedulerMixin"):  # where it takes its loading methods from
        return getattr(diffusers, name)
    if name == SigDEGScheduler.__name__:
        return SigDEGScheduler
    base = getattr(diffusers, name.removeprefix(PREFIX), None)
    if not name.startswith(PREFIX) or not isinstance(base, type):
        raise AttributeError(f"module 'sigdeg' has no attribute {name!r}")
    return signature_class(base)
