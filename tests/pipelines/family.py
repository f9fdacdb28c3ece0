"""A family of diffusers' pipelines: a tiny pipeline and a call of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.pipelines.parts import PIXELS

LATENT = {"output_type": "latent"}
SIZE = {"height": PIXELS, "width": PIXELS}
ATTENTION = {"num_attention_heads": 2, "attention_head_dim": 8}
GUIDED = {"guidance_scale": 3.0}


@dataclass
class Family:
    """A pipeline, the arguments of a guided call of it, and those that turn its guidance off."""

    pipe: Any
    call: dict[str, Any]
    off: dict[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})

    def __post_init__(self) -> None:
        self.pipe.set_progress_bar_config(disable=True)

    @property
    def unguided(self) -> dict[str, Any]:
        """The call without guidance: the network is asked about the condition alone."""
        return {**self.call, **self.off}
