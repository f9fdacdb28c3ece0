"""The input layer of a network: the first that sees all numbers of the state.

The network is called with numbered elements in the place of the state, until a layer sees all of
them, in whatever order and with whatever beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

__all__ = ["LAYERS", "Called", "Key", "as_whole", "find_layer"]

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
DIGIT = 128  # numbers that half precision tells apart
Key = int | str


@dataclass
class Called:
    """A call of a component: its name, the step it was made in, and what it was called with.

    Of its output and the state the pipeline steps on the sum with the weights `around`.
    """

    name: str
    k: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None
    around: tuple[float, float] = 1.0, 0.0

    def argument(self, key: Key) -> Any:
        """An argument by position or name."""
        return self.args[key] if isinstance(key, int) else self.kwargs[key]

    def items(self) -> Iterator[tuple[Key, Any]]:
        """All arguments."""
        yield from enumerate(self.args)
        yield from self.kwargs.items()

    def parts(self, state: Key, rows: int) -> list[Called]:
        """A call of copies of so many rows, by the argument of the state, as one call a copy."""
        copies = len(self.argument(state)) // rows

        def part(leaf: Any, i: int) -> Any:
            whole = isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == copies * rows
            return leaf[i * rows : (i + 1) * rows] if whole else leaf

        told = self.args, self.kwargs, self.output
        split = [pytree.tree_map(lambda leaf, i=i: part(leaf, i), told) for i in range(copies)]
        return [Called(self.name, self.k, *one) for one in split]


class Seen(Exception):  # noqa: N818  # a signal, no error
    """Raised when a layer has seen what was looked for."""


def as_whole(argument: Any) -> Tensor:
    """An argument as a tensor: some networks take a list of the samples."""
    return argument if isinstance(argument, Tensor) else torch.stack(list(argument))


def find_layer(
    net: nn.Module, called: Called, state: Key, only: str | None = None
) -> tuple[str | None, Tensor | None]:
    """The first layer that sees all the numbers of the state's argument, with others or without.

    Arguments:
        net: The network.
        called: A call of it.
        state: Argument of the state.
        only: The layer, where it is known.

    Returns:
        Its name, and which element of the argument stands at each place of its input, with the
        input's shape, -1 where none does; None for both where there is none.
    """
    shape = as_whole(called.argument(state)).shape
    numbers = torch.arange(math.prod(shape))
    modules = dict(net.named_modules())
    layers = {n: m for n, m in modules.items() if isinstance(m, LAYERS)}
    place: Tensor | None = None
    # Digit by digit: half precision holds no large whole numbers. None is 0, to be told apart.
    for power in range(max(1, math.ceil(math.log(len(numbers), DIGIT)))):
        digits = (numbers // DIGIT**power % DIGIT + 1).reshape(shape)
        if only is not None:  # by name: an adapter may stand around it
            layers = {only: modules[only]}
        only, seen = look_for(net, called, state, digits, layers)
        if only is None or seen is None:
            return None, None
        place = (seen - 1) * DIGIT**power + (0 if place is None else place)
    assert place is not None
    return only, place.clamp(min=-1)


def look_for(
    net: nn.Module, called: Called, state: Key, digits: Tensor, layers: Mapping[str, nn.Module]
) -> tuple[str | None, Tensor | None]:
    """The first of some layers that sees digits, and where: 0 at what is not of the state."""
    expected = digits.flatten().bincount(minlength=DIGIT + 1)
    found: dict[str, Tensor] = {}

    def look(layer: nn.Module, args: Any, name: str) -> None:
        if args and isinstance(args[0], Tensor) and args[0].numel() >= digits.numel():
            seen = args[0].detach().float().cpu()
            whole = seen[(seen == seen.round()) & (seen >= 1) & (seen <= DIGIT)].long()
            if bool((whole.bincount(minlength=DIGIT + 1) >= expected).all()):
                found[name] = seen
                raise Seen

    probe(net, called, state, digits, layers, look)
    if not found:
        return None, None
    ((name, seen),) = found.items()
    if seen.numel() > digits.numel():  # what does not change is not of the state

        def look_again(layer: nn.Module, args: Any, name: str) -> None:
            found[name] = seen * (args[0].detach().float().cpu() != seen)
            raise Seen

        probe(net, called, state, torch.zeros_like(digits), {name: layers[name]}, look_again)
    place = found[name].long()
    counts = place.flatten().bincount(minlength=DIGIT + 1)[1:]
    return (name, place) if bool((counts >= expected[1:]).all()) else (None, None)


def probe(
    net: nn.Module,
    called: Called,
    state: Key,
    numbers: Tensor,
    layers: Mapping[str, nn.Module],
    look: Callable[..., None],
) -> None:
    """Call a network with numbers in the place of the state, until a layer has been looked at."""
    argument = called.argument(state)
    args, kwargs = list(called.args), dict(called.kwargs)
    given: Any = numbers.to(as_whole(argument))
    if not isinstance(argument, Tensor):
        given = list(given)
    if isinstance(state, int):
        args[state] = given
    else:
        kwargs[state] = given

    def hook(name: str) -> Callable[..., None]:
        return lambda layer, args: look(layer, args, name)

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            net.forward(*args, **kwargs)
    except Seen:
        pass
    finally:
        for handle in handles:
            handle.remove()
