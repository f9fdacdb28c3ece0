"""What judges texts: a recurrent network that predicts each character from those before it.

It shares nothing with the teachers and students that it judges but the text they were trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sigdeg.datasets import windows
from sigdeg.runs import fingerprint
from sigdeg.training import Job, TrainConfig, train

__all__ = ["Scorer", "train_scorer"]

HELD_OUT = 512  # pieces behind the second loss curve


class Scorer(nn.Module):
    r"""$\log p(x^d | x^{<d})$ by a GRU; the first token is predicted from nothing.

    Arguments:
        states: Number of tokens.
        width: Size of its memory.
    """

    def __init__(self, states: int, width: int = 256) -> None:
        super().__init__()
        self.embed = nn.Embedding(states + 1, width // 2)  # the last: nothing came before
        self.recur = nn.GRU(width // 2, width, batch_first=True)
        self.head = nn.Linear(width, states)

    def forward(self, tokens: Tensor) -> Tensor:
        """Log-probabilities, shape (n, length), of tokens (n, length)."""
        before = nn.functional.pad(tokens[:, :-1], (1, 0), value=self.embed.num_embeddings - 1)
        logits = self.head(self.recur(self.embed(before))[0])
        log_p: Tensor = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        return log_p


class Objective(nn.Module):
    """A scorer in training."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Nats a token."""
        return {"loss": -self.scorer(tokens).mean()}


def train_scorer(
    scorer: Scorer,
    text: Tensor,
    unseen: Tensor,
    length: int,
    out_dir: Path,
    config: TrainConfig,
    **options: Any,
) -> tuple[Scorer, Tensor]:
    """Train a scorer on pieces of a text; the same call goes on with an interrupted training.

    Arguments:
        scorer: The scorer.
        text: Tokens that it learns from, shape (characters,).
        unseen: Tokens behind the second loss curve.
        length: Characters of a piece.
        out_dir: Folder for checkpoints.
        config: How to train.
        options: As of `sigdeg.training.train`.

    Returns:
        The scorer with averaged weights, and the history (step, training loss, held-out loss).
    """
    pieces = windows(text, length, 1)
    objective = Objective(scorer)
    job = Job(
        objective,
        lambda g: pieces[torch.randint(len(pieces), (config.batch_size,), generator=g)],
        windows(unseen, length)[:HELD_OUT],
        {
            **config.identity(),
            "length": length,
            "network": fingerprint(objective),
            "data": [fingerprint(text), fingerprint(unseen)],
        },
    )
    trained = train(job, out_dir, config, label="scorer", **options)
    return trained.objective.scorer, trained.history
