"""Languages in which a program decides what is valid: brackets of two kinds, and small molecules.

Of brackets all is known: how many strings there are, and how to draw each as often. Molecules are
written in SMILES by a grammar that counts valences; whether a string is one is for RDKit to say.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Generator

from sigdeg.errors import SigdegError, check_least, extra

__all__ = ["Brackets", "Language", "Molecules"]

CLOSES = {")": "(", "]": "["}


class Language(Protocol):
    """Strings of one length, and a program that tells which of them belong.

    Attributes:
        length: Characters of a string.
        alphabet: The characters that they are made of, each once.
    """

    @property
    def length(self) -> int: ...

    @property
    def alphabet(self) -> str: ...

    def sample(self, n: int, generator: Generator) -> list[str]:
        """Draw `n` strings of it."""

    def forms(self, texts: Sequence[str]) -> list[str | None]:
        """What each string stands for, the same for two that mean the same; None if invalid."""


@dataclass(frozen=True)
class Brackets:
    r"""Balanced brackets of two kinds, each string as likely as any other.

    The number of strings of length $2k$ is $2^k C_k$, $C_k$ the Catalan numbers.

    Arguments:
        length: Characters of a string, an even number.

    Raises:
        SigdegError: If the length is odd or below 2.
    """

    length: int = 16
    alphabet: ClassVar[str] = "()[]"

    def __post_init__(self) -> None:
        """Refuse a length that no balanced string has."""
        check_least(self.length, 2, "length")
        if self.length % 2:
            raise SigdegError(f"balanced brackets have an even length, got {self.length}")

    @property
    def count(self) -> int:
        """The number of strings."""
        return completions(self.length, 0)

    def sample(self, n: int, generator: Generator) -> list[str]:
        """Draw `n` strings, all equally likely: a bracket opens as often as in those that go on."""
        uniform = torch.rand(n, self.length, 2, generator=generator, dtype=torch.float64)
        height = torch.zeros(n, dtype=torch.int64)
        kinds = torch.zeros(n, self.length // 2 + 1, dtype=torch.int64)  # of the open brackets
        rows, tokens = torch.arange(n), torch.empty(n, self.length, dtype=torch.int64)
        for place in range(self.length):
            left = self.length - place
            shares = [opening(left, h) for h in range(self.length // 2 + 1)]
            opens = uniform[:, place, 0] < torch.tensor(shares, dtype=torch.float64)[height]
            kind = (uniform[:, place, 1] < 0.5).long()
            height = torch.where(opens, height, height - 1)
            kind = torch.where(opens, kind, kinds[rows, height])
            kinds[rows, height] = kind
            tokens[:, place] = 2 * kind + (~opens).long()
            height = torch.where(opens, height + 1, height)
        return ["".join(self.alphabet[i] for i in row) for row in tokens.tolist()]

    def forms(self, texts: Sequence[str]) -> list[str | None]:
        """The strings themselves where they are balanced."""
        return [text if balanced(text) and len(text) == self.length else None for text in texts]


def balanced(text: str) -> bool:
    """Whether every bracket closes the last one that is open, and none stays open."""
    open_ones: list[str] = []
    for symbol in text:
        if symbol not in CLOSES:
            open_ones.append(symbol)
        elif not open_ones or open_ones.pop() != CLOSES[symbol]:
            return False
    return not open_ones


@functools.cache
def completions(left: int, height: int) -> int:
    """In how many ways so many further brackets close all of those that are open."""
    if left == 0 or not 0 <= height <= left:
        return int(left == height == 0)
    return 2 * completions(left - 1, height + 1) + completions(left - 1, height - 1)


def opening(left: int, height: int) -> float:
    """The share of the completions that begin with an opening bracket."""
    opened = 2 * completions(left - 1, height + 1)
    return opened / (completions(left, height) or 1)


VALENCES = {"C": 4, "N": 3, "O": 2, "S": 2, "F": 1}
ELEMENTS = "CCCCCCNNOOSF"  # each as likely as it comes often
BONDS = ("", "", "=", "#")  # by their order; the first atom has none to another before it
RING = 0.35  # how likely a ring is where there are atoms for one
MOST = 2  # rings open at a time
ATOMS = (4, 12)  # of a molecule, hydrogen not counted


@dataclass(frozen=True)
class Molecules:
    """Small molecules in SMILES, padded at the end: chains, branches and rings of C, N, O, S, F.

    Every atom has the bonds that its valence allows, and hydrogen has the rest. Rings are saturated
    or aromatic; digits tell where they close.

    Arguments:
        length: Characters of a string, padding included.

    Raises:
        SigdegError: If there is no room for a molecule.
    """

    length: int = 24
    padding: ClassVar[str] = "_"
    alphabet: ClassVar[str] = "#()12=CFNOS_cnos"

    def __post_init__(self) -> None:
        """Refuse a length that most molecules do not fit."""
        check_least(self.length, 2 * ATOMS[0], "length")

    def sample(self, n: int, generator: Generator) -> list[str]:
        """Draw `n` molecules that fit."""
        draw = random.Random(int(torch.randint(2**62, (), generator=generator)))
        texts: list[str] = []
        while len(texts) < n:
            text = molecule(draw, draw.randint(*ATOMS))
            if len(text) <= self.length:
                texts.append(text.ljust(self.length, self.padding))
        return texts

    def forms(self, texts: Sequence[str]) -> list[str | None]:
        """Canonical SMILES of what RDKit takes for molecules.

        Raises:
            MissingPackageError: If RDKit is not installed.
        """
        with extra("chemistry"):
            from rdkit import Chem, rdBase
        forms: list[str | None] = []
        with rdBase.BlockLogs():  # it would print why each is none
            for text in texts:
                written = text.rstrip(self.padding)
                found = Chem.MolFromSmiles(written) if written else None
                forms.append(None if found is None else Chem.MolToSmiles(found))
        return forms


def molecule(draw: random.Random, atoms: int, order: int = 0, rings: int = 0) -> str:
    """A tree of so many atoms and rings, hung on a bond of some order, inside so many rings."""
    if order < 2 and atoms >= 5 and rings < MOST and draw.random() < RING:
        return ring(draw, atoms, order, rings + 1)
    fits = [e for e in ELEMENTS if VALENCES[e] >= order + (atoms > 1)]
    element = draw.choice(fits)
    free, left = VALENCES[element] - order, atoms - 1
    sizes = parts(draw, left, min(free, left, draw.choice((1, 1, 1, 2, 2, 3))))
    branches = []
    for place, size in enumerate(sizes):
        later = len(sizes) - place - 1
        bond = min(draw.choice((1, 1, 1, 1, 2, 3)), free - later, 3)
        free -= bond
        branches.append(BONDS[bond] + molecule(draw, size, bond, rings))
    return element + "".join(f"({b})" for b in branches[:-1]) + "".join(branches[-1:])


def ring(draw: random.Random, atoms: int, order: int, digit: int) -> str:
    """A ring, at whose first atom it hangs, and what hangs on one of its others."""
    aromatic = draw.random() < 0.5
    size = min(atoms, draw.choice((5, 6, 6)) if aromatic else draw.choice((3, 4, 5, 6)))
    carbon = "c" if aromatic else "C"
    other = "n" if aromatic else draw.choice("NOS")
    members = [carbon] + [other if draw.random() < 0.15 else carbon for _ in range(size - 1)]
    if aromatic and size == 5:  # four electrons of two double bonds, and two of oxygen or sulphur
        members[draw.randrange(1, size)] = draw.choice("os")
    carbons = [i for i in range(1, size) if members[i] == carbon]
    if atoms > size and carbons:
        place = draw.choice(carbons)
        hung = molecule(draw, atoms - size, 1, digit)
        members[place] += f"({hung})"
    members[0] += str(digit)
    members[-1] = members[-1][0] + str(digit) + members[-1][1:]
    return "".join(members)


def parts(draw: random.Random, total: int, count: int) -> list[int]:
    """A number as a sum of so many, each at least 1."""
    cuts = draw.sample(range(1, total), count - 1) if total else []
    return [b - a for a, b in itertools.pairwise(sorted({0, total, *cuts}))]
