"""What sequences of tokens stand for: pictures of grey levels, or text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sigdeg.codec import Codec, Identity
from sigdeg.errors import SigdegError, check_choice, check_least

__all__ = ["Characters", "GreyLevels", "TokenCodec", "codec_from_config"]


class TokenCodec(ABC):
    """Abstract: a codec of tokens, saved with its model as JSON."""

    kind: ClassVar[str]

    @abstractmethod
    def decode(self, states: Tensor) -> Tensor:
        r"""Samples, shape (n, \*), of states (n, D)."""

    def config(self) -> dict[str, Any]:
        """It as JSON, for `codec_from_config`."""
        fields: Any = self
        return {"kind": self.kind, **asdict(fields)}


@dataclass(frozen=True)
class GreyLevels(TokenCodec):
    """Pixels as tokens, row by row: level k of L is the value 2 k / (L - 1) - 1.

    Arguments:
        levels: The number L of levels.
        height: Rows.
        width: Columns.
    """

    levels: int
    height: int
    width: int
    kind: ClassVar[str] = "grey"

    def __post_init__(self) -> None:
        check_least(self.levels, 2, "levels")
        check_least(min(self.height, self.width), 1, "height and width")

    def encode(self, images: Tensor) -> Tensor:
        """Tokens (n, D) of images (n, 1, H, W) in [-1, 1], to the nearest level."""
        whole = ((images + 1) / 2 * (self.levels - 1)).round().long()
        return whole.clamp(0, self.levels - 1).flatten(1)

    def decode(self, states: Tensor) -> Tensor:
        """Images (n, 1, H, W) in [-1, 1] of tokens (n, D)."""
        grey = states.float() * 2 / (self.levels - 1) - 1
        return grey.reshape(len(states), 1, self.height, self.width)


@dataclass(frozen=True)
class Characters(TokenCodec):
    """Text, a token a character. Samples are tokens; `text` and `encode` turn them and back.

    Arguments:
        alphabet: The characters, each once, in the order of their tokens.
    """

    alphabet: str
    kind: ClassVar[str] = "characters"

    def __post_init__(self) -> None:
        if not self.alphabet or len(set(self.alphabet)) != len(self.alphabet):
            raise SigdegError("an alphabet has one or more characters, each once")

    def decode(self, states: Tensor) -> Tensor:
        """The tokens."""
        return states

    def text(self, tokens: Tensor) -> list[str]:
        """Strings of tokens (n, D)."""
        return ["".join(self.alphabet[i] for i in row) for row in tokens.tolist()]

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Tokens (n, D) of strings of one length.

        Raises:
            SigdegError: If a character is not of the alphabet, or lengths differ.
        """
        place = {character: i for i, character in enumerate(self.alphabet)}
        unknown = sorted({c for line in texts for c in line} - place.keys())
        if unknown:
            raise SigdegError(f"{unknown[0]!r} is not among the {len(place)} characters")
        if len({len(line) for line in texts}) > 1:
            raise SigdegError("strings of a batch have one length")
        return torch.tensor([[place[c] for c in line] for line in texts], dtype=torch.int64)


CODECS: dict[str, Any] = {cls.kind: cls for cls in (GreyLevels, Characters)}


def codec_from_config(config: dict[str, Any] | None) -> Codec:
    """The codec that `TokenCodec.config` described; none is the tokens themselves.

    Raises:
        SigdegError: If the kind is unknown, or its parameters do not fit.
    """
    if config is None:
        return Identity()
    given = dict(config)
    kind = given.pop("kind", None)
    check_choice(kind, CODECS, "codec")
    try:
        made: Codec = CODECS[kind](**given)
    except TypeError as error:
        raise SigdegError(f"codec {kind} does not take what is given: {error}") from None
    return made
