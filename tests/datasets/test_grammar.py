"""Languages: brackets against their enumeration, molecules against RDKit."""

import itertools
import math
import random
import sys
from collections import Counter

import pytest
import torch

from sigdeg.datasets.grammar import Brackets, Molecules, balanced, molecule, opening
from sigdeg.errors import MissingPackageError, SigdegError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def every(length: int) -> list[str]:
    """All balanced strings, of all strings."""
    strings = map("".join, itertools.product("()[]", repeat=length))
    return [text for text in strings if balanced(text)]


@pytest.mark.parametrize("length", [2, 4, 6, 8])
def test_brackets_are_counted(length: int) -> None:
    half = length // 2
    catalan = math.comb(length, half) // (half + 1)
    assert Brackets(length).count == len(every(length)) == catalan * 2**half


def test_every_string_of_brackets_is_equally_likely() -> None:
    """The chances along each string multiply to one over the count; draws agree."""
    for text in every(8):
        chance, height = 1.0, 0
        for place, symbol in enumerate(text):
            opens = opening(8 - place, height)
            chance *= opens / 2 if symbol in "([" else 1 - opens
            height += 1 if symbol in "([" else -1
        assert chance == pytest.approx(1 / Brackets(8).count, rel=1e-12)
    language = Brackets(6)
    drawn = Counter(language.sample(20_000, generator()))
    assert drawn.keys() == set(every(6))
    expected = 20_000 / language.count
    squares = sum((n - expected) ** 2 / expected for n in drawn.values())
    assert squares < 39 + 5 * math.sqrt(2 * 39)  # chi square of 39 degrees of freedom


def test_brackets_that_do_not_match_are_invalid() -> None:
    texts = ["([])", "([)]", "(())", "()", "))((", "(((("]
    assert Brackets(4).forms(texts) == ["([])", None, "(())", None, None, None]
    with pytest.raises(SigdegError, match="even length, got 5"):
        Brackets(5)


def test_molecules_are_molecules() -> None:
    """RDKit accepts every string, and reads as many atoms as were asked for."""
    from rdkit import Chem

    language = Molecules(20)
    texts = language.sample(400, generator())
    assert {len(text) for text in texts} == {20}
    assert None not in language.forms(texts)
    assert len(set(language.forms(texts))) > 200
    assert set("".join(texts)) == set(language.alphabet)
    draw = random.Random(0)
    for atoms in range(1, 30):
        assert Chem.MolFromSmiles(molecule(draw, atoms)).GetNumHeavyAtoms() == atoms


def test_a_molecule_has_one_form() -> None:
    forms = Molecules().forms(["OCC_____", "CCO", "C(O)C", "c1ccccc1_"])
    assert forms == ["CCO", "CCO", "CCO", "c1ccccc1"]
    wrong = ["C1CC", "C(", "CF=C", "______", "C_C", "C=1CC1", "c1cccc1"]
    assert Molecules().forms(wrong) == [None] * 5 + ["C1=CC1", None]


@pytest.mark.parametrize("language", [Brackets(), Molecules()])
def test_a_generator_gives_the_same_strings(language: Brackets | Molecules) -> None:
    first, again = (language.sample(20, generator(3)) for _ in range(2))
    assert first == again
    assert len(first) == 20
    assert first != language.sample(20, generator(4))


def test_without_rdkit_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'sigdeg\[chemistry\]'"):
        Molecules().forms(["C"])
