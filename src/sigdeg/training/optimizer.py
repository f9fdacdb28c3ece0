"""Optimisers: Adam, or Muon for the matrices of hidden layers beside it."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Adam, Muon, Optimizer

from sigdeg.training.config import TrainConfig

__all__ = ["make_optimizers"]

HIDDEN = 64  # rows and columns of a matrix that Muon takes: the first and the last layer have fewer


def make_optimizers(objective: nn.Module, config: TrainConfig) -> list[Optimizer]:
    r"""Optimisers of all parameters, each group with the `factor` on its learning rate.

    Muon replaces the momentum $M = U S V^\top$ of a matrix by $U V^\top$, so that it learns along
    all directions alike; scaled to the size of Adam's steps, both take one learning rate.

    Reference:
        Jordan et al., *Muon: an optimizer for hidden layers in neural networks* (2024); the scale
        after Liu et al., *Muon is scalable for LLM training* (arXiv 2502.16982).
    """
    groups = parameter_groups(objective)
    if config.optimizer == "adam":
        return [Adam(groups, lr=config.learning_rate)]
    hidden, rest = (
        [
            {**group, "params": own}
            for group in groups
            if (own := [p for p in group["params"] if is_hidden(p) == muon])
        ]
        for muon in (True, False)
    )
    optimizers: list[Optimizer] = [Adam(rest, lr=config.learning_rate)] if rest else []
    if hidden:
        optimizers.append(
            Muon(
                hidden,
                lr=config.learning_rate,
                weight_decay=0.0,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


def is_hidden(parameter: nn.Parameter) -> bool:
    """Whether it is a matrix that is large both ways."""
    return parameter.ndim == 2 and min(parameter.shape) >= HIDDEN


def parameter_groups(objective: nn.Module) -> list[dict[str, Any]]:
    """Parameters with the factor on their learning rate: that of the module they are part of."""
    factors = dict.fromkeys(objective.parameters(), 1.0)
    for module in objective.modules():
        factor: Any = getattr(module, "rate_factor", None)
        if factor is not None:
            factors |= dict.fromkeys(module.parameters(), factor)
    return [
        {"params": [p for p, own in factors.items() if own == factor], "factor": factor}
        for factor in dict.fromkeys(factors.values())
    ]
