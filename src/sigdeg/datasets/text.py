"""A small text as tokens, one a character: 1.1 million characters of Shakespeare's plays.

Source: Karpathy, *The unreasonable effectiveness of recurrent neural networks* (2015), whose
`tinyshakespeare` it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sigdeg.datasets.download import fetch
from sigdeg.errors import SigdegError, check_least

__all__ = ["Alphabet", "TextSplit", "load_text", "split_text", "windows"]

NAME = "tinyshakespeare.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
MIRRORS = [
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "https://storage.googleapis.com/download.tensorflow.org/data/shakespeare.txt",
]
SHARES = (0.9, 0.05)  # of the text: for training, for validation; the rest is the test


@dataclass(frozen=True)
class Alphabet:
    """The characters that tokens stand for: token i is the i-th.

    Arguments:
        symbols: The characters, each once.

    Raises:
        SigdegError: If one comes twice.
    """

    symbols: str

    def __post_init__(self) -> None:
        """Refuse two tokens of one character."""
        if len(set(self.symbols)) != len(self.symbols):
            raise SigdegError(f"an alphabet has every character once, got {self.symbols!r:.80}")

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, text: str) -> Tensor:
        """Tokens of a text, int64 with shape (characters,).

        Raises:
            SigdegError: If it has a character that is none of the alphabet's.
        """
        place = {symbol: i for i, symbol in enumerate(self.symbols)}
        if foreign := sorted(set(text) - place.keys()):
            raise SigdegError(
                f"{foreign[0]!r} is no character of the alphabet {self.symbols!r:.120}"
            )
        return torch.tensor([place[symbol] for symbol in text], dtype=torch.int64)

    def decode(self, tokens: Tensor) -> list[str]:
        """Texts of tokens, shape (n, length).

        Raises:
            SigdegError: If a token stands for no character, as a mask does.
        """
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < len(self):
            raise SigdegError(
                f"tokens of an alphabet of {len(self)} lie between 0 and {len(self) - 1}, got "
                f"{int(tokens.min())} to {int(tokens.max())}"
            )
        return ["".join(self.symbols[i] for i in row) for row in tokens.tolist()]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Alphabet:
        """The characters of texts, in the order of their code points."""
        return cls("".join(sorted(set().union(*texts))))


class TextSplit(NamedTuple):
    """A text's tokens, cut in the order of the text: nothing of a part is inside another.

    Arguments:
        train: Of its beginning, shape (characters,).
        validation: Of what follows.
        test: Of its end.
        alphabet: What the tokens stand for.
    """

    train: Tensor
    validation: Tensor
    test: Tensor
    alphabet: Alphabet


def load_text(data_dir: str | Path | None = None) -> str:
    """Load the text; see `sigdeg.datasets.download.fetch` for where it is looked for.

    Arguments:
        data_dir: The data folder, which holds the file or a folder `text` with it.

    Raises:
        SigdegError: If the file is missing, damaged or out of reach.
    """
    return fetch("text", NAME, SHA256, MIRRORS, data_dir).decode("ascii")


def split_text(text: str, shares: Sequence[float] = SHARES) -> TextSplit:
    """Cut a text into its beginning, what follows, and its end.

    Arguments:
        text: The text; all its characters are the alphabet.
        shares: The share of it for training and for validation; the test has the rest.

    Raises:
        SigdegError: If the shares leave nothing of a part.
    """
    alphabet = Alphabet.of(text)
    tokens = alphabet.encode(text)
    train, validation = (round(share * len(tokens)) for share in shares)
    sizes = train, validation, len(tokens) - train - validation
    if min(sizes) < 1:
        raise SigdegError(f"a text of {len(tokens):,} characters leaves parts of {sizes}")
    first, second, third = tokens.split(sizes)
    return TextSplit(first, second, third, alphabet)


def windows(tokens: Tensor, length: int, stride: int | None = None) -> Tensor:
    """Pieces of a text: a view, with shape (pieces, length).

    Arguments:
        tokens: Of the text, shape (characters,).
        length: Characters of a piece.
        stride: From one piece's beginning to the next one's (default: the length, so that no two
            pieces share a character).

    Raises:
        SigdegError: If the text is shorter than a piece.
    """
    check_least(length, 1, "length")
    if len(tokens) < length:
        raise SigdegError(f"a text of {len(tokens):,} characters has no piece of {length:,}")
    return tokens.unfold(0, length, length if stride is None else stride)
