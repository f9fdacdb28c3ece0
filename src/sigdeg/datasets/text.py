"""A small text: 1.1 million characters of Shakespeare's plays.

Source: Karpathy, *The unreasonable effectiveness of recurrent neural networks* (2015), whose
`tinyshakespeare` it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from sigdeg.datasets.download import fetch
from sigdeg.errors import SigdegError, check_least

__all__ = ["TextSplit", "load_text", "split_text", "windows"]

NAME = "tinyshakespeare.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
MIRRORS = [
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "https://storage.googleapis.com/download.tensorflow.org/data/shakespeare.txt",
]
SHARES = (0.9, 0.05)  # of the text: for training, for validation; the rest is the test


class TextSplit(NamedTuple):
    """A text, cut: nothing of a part is inside another.

    Arguments:
        train: Its beginning.
        validation: What follows.
        test: Its end.
    """

    train: str
    validation: str
    test: str


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
        text: The text.
        shares: The share of it for training and for validation; the test has the rest.

    Raises:
        SigdegError: If the shares leave nothing of a part.
    """
    first, second = (round(share * len(text)) for share in shares)
    split = TextSplit(text[:first], text[first : first + second], text[first + second :])
    if not all(split):
        sizes = ", ".join(f"{len(part):,}" for part in split)
        raise SigdegError(f"a text of {len(text):,} characters is cut into parts of {sizes}")
    return split


def windows(tokens: Tensor, length: int, stride: int | None = None) -> Tensor:
    """Pieces of a text: a view, with shape (pieces, length).

    Arguments:
        tokens: Its tokens, shape (characters,).
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
