"""Parts of a pipeline beside its networks: asked once for the same, out of the way of training."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from sigdeg.errors import extra

with extra("pipelines"):
    from transformers import PreTrainedModel

__all__ = ["remembered", "set_aside"]

ROOM = 2**28  # bytes of answers that are kept


class Memory:
    """What a module said, by what it was asked; of more than there is room for the last.

    Arguments:
        own: Its forward.
        room: Bytes of tensors that are kept.
    """

    def __init__(self, own: Callable[..., Any], room: int) -> None:
        self.own, self.room, self.kept = own, room, 0
        self.said: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        key = asked(args, kwargs)
        if key is None:
            return self.own(*args, **kwargs)
        if key in self.said:
            self.said.move_to_end(key)
            return self.said[key][0]
        answer = self.own(*args, **kwargs)
        size = sum(v.nbytes for v in pytree.tree_leaves(answer) if isinstance(v, Tensor))
        self.said[key] = answer, size
        self.kept += size
        while self.kept > self.room:
            self.kept -= self.said.popitem(last=False)[1][1]
        return answer


def asked(args: Any, kwargs: Any) -> str | None:
    """A digest of arguments, tensors and plain values; None where there are others."""
    leaves, structure = pytree.tree_flatten((args, kwargs))
    digest = hashlib.sha256(repr(structure).encode())
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            digest.update(f"{leaf.dtype} {tuple(leaf.shape)} {leaf.device}".encode())
            raw = leaf.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(raw.numpy().tobytes())
        elif leaf is None or isinstance(leaf, bool | int | float | str):
            digest.update(repr(leaf).encode())
        else:
            return None
    return digest.hexdigest()


@contextmanager
def remembered(pipe: Any, room: int = ROOM) -> Iterator[None]:
    """Encoders of texts and images answer at once in here what they were asked before.

    They are the parts that come from transformers: none of them sees a state of the diffusion.

    Arguments:
        pipe: The pipeline.
        room: Bytes of answers that are kept of each.
    """
    encoders = [part for part in pipe.components.values() if isinstance(part, PreTrainedModel)]
    for encoder in encoders:
        encoder.forward = Memory(encoder.forward, room)
    try:
        yield
    finally:
        for encoder in encoders:
            del encoder.forward


@contextmanager
def set_aside(pipe: Any, but: Sequence[str] = ()) -> Iterator[None]:
    """The parts of a pipeline leave their device to training in here, but for some.

    Those that accelerate moves as they are called are on none.
    """
    moved: list[tuple[Any, torch.device]] = []
    for name, part in pipe.components.items():
        fixed = not isinstance(part, nn.Module) or name in but or hasattr(part, "_hf_hook")
        if not fixed and part.device.type != "cpu":
            moved.append((part, part.device))
            part.to("cpu")
    try:
        yield
    finally:
        for part, device in moved:
            part.to(device)
