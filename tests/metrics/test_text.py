"""Metrics of texts against what is counted by hand, and against every pair of texts."""

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from sigdeg.errors import SigdegError
from sigdeg.metrics import (
    distinct,
    ngram_entropy,
    own_entropy,
    self_bleu,
    text_metrics,
    validity,
)

TEXTS = torch.tensor([[0, 1, 0, 1], [0, 1, 2, 2], [3, 3, 3, 3]])


def bleu(own: list[int], others: list[list[int]], order: int) -> float:
    """BLEU as the paper has it, for references as long as the text."""

    def grams(text: list[int], n: int) -> Counter[tuple[int, ...]]:
        return Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))

    product = 1.0
    for n in range(1, order + 1):
        counts = grams(own, n)
        held = sum(min(c, max(grams(o, n)[g] for o in others)) for g, c in counts.items())
        product *= held / counts.total()
    return product ** (1 / order)


def test_entropy_is_that_of_the_shares() -> None:
    shares = torch.tensor([3, 3, 2, 4]) / 12
    assert ngram_entropy(TEXTS) == pytest.approx(-float((shares * shares.log()).sum()))
    pairs = torch.tensor([3, 1, 1, 1, 3]) / 9  # 01, 10, 12, 22, 33
    assert ngram_entropy(TEXTS, 2) == pytest.approx(-float((pairs * pairs.log()).sum()))
    assert ngram_entropy(torch.arange(8).view(2, 4)) == pytest.approx(math.log(8))
    own = [math.log(2), 1.5 * math.log(2), 0.0]
    assert own_entropy(TEXTS) == pytest.approx(sum(own) / 3)


def test_distinct_counts_different_ngrams() -> None:
    assert distinct(TEXTS, 1) == 4 / 12
    assert distinct(TEXTS, 2) == 5 / 9
    assert distinct(TEXTS, 4) == 1.0


def test_self_bleu_by_hand() -> None:
    """Unigrams of the first: one 0 and one 1 of two each; bigrams: one 01 of 01, 10, 01."""
    first = math.sqrt(2 / 4 * 1 / 3)
    second = math.sqrt(2 / 4 * 1 / 3)
    assert self_bleu(TEXTS, 2) == pytest.approx((first + second) / 3)
    assert self_bleu(TEXTS[[0, 0]]) == 1.0
    assert self_bleu(torch.arange(16).view(2, 8)) == 0.0


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_self_bleu_is_bleu_against_all_others(order: int) -> None:
    texts = torch.randint(3, (12, 9), generator=torch.Generator().manual_seed(order))
    rows = texts.tolist()
    each = [bleu(row, rows[:i] + rows[i + 1 :], order) for i, row in enumerate(rows)]
    assert self_bleu(texts, order) == pytest.approx(sum(each) / len(each), rel=1e-12)


def test_perplexity_comes_with_what_may_have_bought_it() -> None:
    """A scorer of the characters' own shares: its perplexity is that of their entropy."""
    texts = torch.randint(5, (40, 20), generator=torch.Generator().manual_seed(0))
    shares = texts.flatten().bincount() / texts.numel()

    def scorer(given: Tensor) -> Tensor:
        return shares.log()[given]

    found = text_metrics(texts, scorer)
    assert math.log(found["perplexity"]) == pytest.approx(ngram_entropy(texts), rel=1e-6)
    assert found == {
        "perplexity": found["perplexity"],
        "entropy": own_entropy(texts),
        "entropy_4": ngram_entropy(texts, 4),
        "distinct_4": distinct(texts, 4),
        "self_bleu": self_bleu(texts),
    }


def test_valid_unique_new() -> None:
    found = validity(["a", "a", "b", "c", None], {"a", "z"})
    assert found == {"valid": 4 / 5, "unique": 3 / 4, "new": 2 / 3}
    assert validity([None], {"a"}) == {"valid": 0.0, "unique": 0.0, "new": 0.0}


def test_what_holds_no_ngram_is_refused() -> None:
    with pytest.raises(SigdegError, match="hold no 5-grams"):
        distinct(TEXTS, 5)
    with pytest.raises(SigdegError, match="number of texts must be at least 2"):
        self_bleu(TEXTS[:1])
