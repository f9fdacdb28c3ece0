r"""Metrics of generated texts: how likely, how varied, how many are valid and new.

A set of texts is tokens with shape (n, length). Perplexity under a scorer falls where a sampler
repeats itself or gives all texts alike, so it is told together with entropy, distinct n-grams and
self-BLEU or not at all (`text_metrics`). All of these depend on the number of texts and their
length: compare sets of one size.

References:
    Li et al., *A diversity-promoting objective function* (arXiv 1510.03055), for distinct-n.
    Zhu et al., *Texygen* (arXiv 1802.01886), for self-BLEU.
    Papineni et al., *BLEU* (2002), for BLEU.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from sigdeg.errors import SigdegError, check_least

__all__ = ["distinct", "ngram_entropy", "own_entropy", "self_bleu", "text_metrics", "validity"]

Scorer = Callable[[Tensor], Tensor]  # log-probabilities of tokens, given those before them
LONGEST = 4  # n-grams of the metrics that are reported


def text_metrics(texts: Tensor, scorer: Scorer) -> dict[str, float]:
    r"""Perplexity under a scorer, and what tells whether it was bought by repeating.

    Arguments:
        texts: Tokens, shape (n, length).
        scorer: Gives $\log p(x^d | x^{<d})$ of every token, shape (n, length).

    Returns:
        `perplexity`, $\exp$ of the mean of $-\log p(x^d | x^{<d})$; `entropy` of the characters of
        a text, in nats; `entropy_4`, that of all 4-grams; `distinct_4`; `self_bleu`.
    """
    return {
        "perplexity": math.exp(-float(scorer(texts).double().mean())),
        "entropy": own_entropy(texts),
        f"entropy_{LONGEST}": ngram_entropy(texts, LONGEST),
        f"distinct_{LONGEST}": distinct(texts, LONGEST),
        "self_bleu": self_bleu(texts, LONGEST),
    }


def ngram_entropy(texts: Tensor, n: int = 1) -> float:
    r"""$-\sum_g p_g \log p_g$ of the shares $p_g$ of all n-grams of a set, in nats."""
    return entropy(ngrams(texts, n).flatten())


def own_entropy(texts: Tensor) -> float:
    """The mean over texts of the entropy of a text's own tokens, in nats."""
    codes = ngrams(texts, 1)
    return sum(entropy(row) for row in codes) / len(codes)


def distinct(texts: Tensor, n: int) -> float:
    """Distinct-n: the number of different n-grams over that of all n-grams of a set."""
    codes = ngrams(texts, n)
    return len(codes.unique()) / codes.numel()


def self_bleu(texts: Tensor, order: int = LONGEST) -> float:
    r"""The mean over texts of their BLEU against all others: 1 if all are alike.

    With $c_i(g)$ how often text $i$ holds the n-gram $g$, the precision of text $i$ is
    $p_{i,n} = \sum_g \min(c_i(g), \max_{j \ne i} c_j(g)) / \sum_g c_i(g)$, and its BLEU is
    $(\prod_{n=1}^{N} p_{i,n})^{1/N}$, without smoothing; all texts have one length, so that the
    brevity penalty is 1.

    Arguments:
        texts: Tokens, shape (n, length), at least 2 texts.
        order: The longest n-grams $N$.
    """
    check_least(len(texts), 2, "the number of texts")
    log_precisions = torch.zeros(len(texts), dtype=torch.float64)
    for n in range(1, order + 1):
        log_precisions += precisions(ngrams(texts, n)).log() / order
    return float(log_precisions.exp().mean())


def precisions(codes: Tensor) -> Tensor:
    """Of each row the share of its n-grams that another row holds as often."""
    counts = [Counter(row) for row in codes.tolist()]
    most: dict[int, list[int]] = {}  # how often the row richest in an n-gram and the next hold it
    for own in counts:
        for code, count in own.items():
            most[code] = sorted([*most.get(code, [0, 0]), count])[1:]
    shares = []
    for own in counts:
        # What the richest row holds beyond the next one, no other row has.
        held = (most[code][0] if count == most[code][1] else count for code, count in own.items())
        shares.append(sum(held) / codes.shape[1])
    return torch.tensor(shares, dtype=torch.float64)


def ngrams(texts: Tensor, n: int) -> Tensor:
    """A number for each n-gram, the same for the same one: shape (texts, length - n + 1)."""
    check_least(n, 1, "n")
    if not len(texts) or texts.shape[1] < n:
        raise SigdegError(f"texts of shape {tuple(texts.shape)} hold no {n}-grams")
    base = int(texts.max()) + 1
    places = base ** torch.arange(n)
    return texts.unfold(1, n, 1) @ places


def entropy(codes: Tensor) -> float:
    """Of the shares of different numbers, in nats."""
    counts = codes.unique(return_counts=True)[1].double()
    return float(torch.special.entr(counts / len(codes)).sum())


def validity(forms: Sequence[str | None], known: Collection[str]) -> dict[str, float]:
    """How many texts are valid, and how many of those are different and new.

    Arguments:
        forms: What each text stands for, the same for two that mean the same; None if invalid.
        known: Forms of the training data.

    Returns:
        `valid`, of all texts; `unique`, different forms over valid texts; `new`, of the different
        forms those not known. The last two are 0 where no text is valid.
    """
    valid = [form for form in forms if form is not None]
    different = set(valid)
    return {
        "valid": len(valid) / len(forms),
        "unique": len(different) / max(1, len(valid)),
        "new": len(different - set(known)) / max(1, len(different)),
    }
