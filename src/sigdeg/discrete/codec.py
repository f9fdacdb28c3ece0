"""What sequences of tokens stand for: pictures of grey levels, or text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from sigdeg.codec import Codec, Identity
from sigdeg.errors import SigdegError, check_choice, check_least, extra, reason

__all__ = [
    "Characters",
    "GreyLevels",
    "Subwords",
    "TextCodec",
    "TokenCodec",
    "codec_from_config",
]


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


class TextCodec(TokenCodec):
    """Abstract: samples are tokens; `text` makes strings of them, `encode` tokens of strings.

    Attributes:
        unit: What its tokens are called.
    """

    unit: ClassVar[str] = "tokens"

    def decode(self, states: Tensor) -> Tensor:
        """The tokens."""
        return states

    @abstractmethod
    def text(self, tokens: Tensor) -> list[str]:
        """Strings of tokens (n, D)."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Tokens (n, D) of strings.

        Raises:
            SigdegError: If a string has no tokens, or they are not equally many.
        """


@dataclass(frozen=True)
class Characters(TextCodec):
    """Text, a token a character.

    Arguments:
        alphabet: The characters, each once, in the order of their tokens.
    """

    alphabet: str
    kind: ClassVar[str] = "characters"
    unit: ClassVar[str] = "characters"

    def __post_init__(self) -> None:
        if not self.alphabet or len(set(self.alphabet)) != len(self.alphabet):
            raise SigdegError("an alphabet has one or more characters, each once")

    def text(self, tokens: Tensor) -> list[str]:
        return ["".join(self.alphabet[i] for i in row) for row in tokens.tolist()]

    def encode(self, texts: Sequence[str]) -> Tensor:
        place = {character: i for i, character in enumerate(self.alphabet)}
        unknown = sorted({c for line in texts for c in line} - place.keys())
        if unknown:
            raise SigdegError(f"{unknown[0]!r} is not among the {len(place)} characters")
        return batch([[place[c] for c in line] for line in texts])


@dataclass(frozen=True)
class Subwords(TextCodec):
    """Text, by a tokenizer of the tokenizers library, none of whose tokens is left out or added.

    Arguments:
        definition: The tokenizer as JSON, what a `tokenizer.json` holds.

    Raises:
        SigdegError: If it is no tokenizer.
    """

    definition: str
    kind: ClassVar[str] = "subwords"

    def __post_init__(self) -> None:
        _ = self.tokenizer

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        with extra("tokens"):
            import tokenizers
        try:
            return tokenizers.Tokenizer.from_str(self.definition)
        except Exception as error:  # the library raises nothing more special
            raise SigdegError(f"this is no tokenizer: {reason(error)}") from None

    def text(self, tokens: Tensor) -> list[str]:
        lines: list[str] = self.tokenizer.decode_batch(tokens.tolist(), skip_special_tokens=False)
        return lines

    def encode(self, texts: Sequence[str]) -> Tensor:
        found = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        unknown = self.tokenizer.token_to_id(getattr(self.tokenizer.model, "unk_token", None) or "")
        tokens = batch([line.ids for line in found])
        if unknown is not None and (share := float((tokens == unknown).double().mean())) > 0.5:
            raise SigdegError(
                f"{share:.0%} of the text is unknown to the tokenizer: is it of another language?"
            )
        return tokens


def batch(lines: list[list[int]]) -> Tensor:
    """Tokens of strings as one tensor."""
    if len({len(line) for line in lines}) > 1:
        raise SigdegError("strings of a batch have one length, in tokens")
    return torch.tensor(lines, dtype=torch.int64)


CODECS: dict[str, Any] = {cls.kind: cls for cls in (GreyLevels, Characters, Subwords)}


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
