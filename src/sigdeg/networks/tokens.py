r"""Networks of tokens: logits of every position's symbol, from tokens some of which are noise.

    network(x, timestep, latent=None, step=None, class_labels=None) -> logits (batch, D, S)

x are token ids (batch, D). Times lie in [0, 1], a scalar or one a sample. A latent (batch, k) is
what a mixture of products is indexed by; `step` is the end of the step that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigdeg.errors import SigdegError, check_choice
from sigdeg.networks.call import Configured
from sigdeg.networks.latent import FEATURES, LatentEmbedding, MixingWeights, two_layers
from sigdeg.networks.mlp import sinusoidal

__all__ = ["TokenMLP", "TokenNetwork", "TokenTransformer", "with_latent"]

MODULATES = ("film", "map")  # ways of a latent into a network by scales and shifts


class TokenNetwork(Configured):
    """What networks of tokens share: what they are told beside the tokens, and how it comes in.

    Times and classes modulate the blocks by scales and shifts (FiLM). So does a latent, "film"; or
    it is added to what all positions are embedded as, "add"; or it is one more "token", without a
    position, that is dropped before the last layer. `TokenUNet` knows a further way.

    Arguments:
        length: Tokens a sample, D.
        condition: Width of what modulates.
        embedded: Width of what a position is embedded as.
        config: The arguments that build the network again. Of these there are always:
            `states`, the number of symbols S, that of the mask included where there is one;
            `timed`, whether the network is told the time;
            `elastic`, whether it is told the end of the step, too;
            `classes`, the number of classes it can be told: a label of that very number, or none,
            means no class;
            `latent`, None or the arguments "kind" and "size" of `LatentEmbedding`;
            `inject`, how a latent comes in.
    """

    ways: ClassVar[tuple[str, ...]] = ("token", "add", "film")

    def __init__(self, length: int, condition: int, embedded: int, /, **config: Any) -> None:
        latent = None if config["latent"] is None else dict(config["latent"])
        super().__init__(**{**config, "latent": latent})
        check_choice(config["inject"], self.ways, "way of a latent into a network")
        self.length, self.states, self.inject = length, config["states"], config["inject"]
        timed, elastic, classes = (config[name] for name in ("timed", "elastic", "classes"))
        self.time = two_layers(FEATURES, condition) if timed else None
        self.end = two_layers(FEATURES, condition) if elastic else None
        self.classes = nn.Embedding(classes + 1, condition) if classes else None
        self.latent = None
        if latent is not None:
            if latent.keys() != {"kind", "size"}:
                raise SigdegError(f"latent must have a kind and a size, got {latent}")
            width = embedded if self.inject == "add" else condition
            self.latent = LatentEmbedding(**latent, width=width)
        informed = condition if timed or elastic or classes else 0
        self.mixing = None
        if latent is not None and latent["kind"] == "weighted":
            self.mixing = MixingWeights(length, self.states, latent["size"], informed)
        modulated = informed or (latent and self.inject in MODULATES)
        self.modulation = condition if modulated else 0

    def parts(
        self,
        x: Tensor,
        timestep: Tensor | float | None,
        step: Tensor | float | None,
        class_labels: Tensor | None,
    ) -> list[Tensor]:
        """Vectors of times and classes, with a row a sample or one for all.

        Raises:
            SigdegError: If tokens are not as many as they should be, or the end of the step is
                missing, or it was told what it does not know.
        """
        if x.ndim != 2 or x.shape[1] != self.length:
            shape = tuple(x.shape)
            raise SigdegError(f"this network takes tokens (batch, {self.length}), got {shape}")
        check_told("step", step, self.end)
        if class_labels is not None and self.classes is None:
            raise SigdegError("this network knows no classes")
        like = next(self.parameters())
        parts = [
            part(sinusoidal(torch.as_tensor(value, device=x.device).reshape(-1), FEATURES).to(like))
            for part, value in ((self.time, timestep), (self.end, step))
            if part is not None
        ]
        if self.classes is not None:
            if class_labels is None:
                class_labels = x.new_full((1,), self.classes.num_embeddings - 1)
            parts.append(self.classes(class_labels))
        return parts

    def told(
        self,
        x: Tensor,
        timestep: Tensor | float | None,
        latent: Tensor | None,
        step: Tensor | float | None,
        class_labels: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """What modulates the blocks, with a row a sample or one for all; and the latent's vector.

        Raises:
            SigdegError: As `parts` does, or if the latent is missing, or there is none.
        """
        parts = self.parts(x, timestep, step, class_labels)
        check_told("latent", latent, self.latent)
        vector = None if self.latent is None else self.latent(latent)
        if vector is not None and self.inject in MODULATES:
            parts.append(vector)
            vector = vector if self.inject == "map" else None
        return F.silu(sum(parts[1:], parts[0])) if parts else None, vector

    def log_weights(
        self,
        x: Tensor,
        timestep: Tensor | float | None = None,
        step: Tensor | float | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Log-weights of the components of a weighted latent, shape (batch, size).

        Raises:
            SigdegError: As `parts` does, or if its latent is of another kind.
        """
        if self.mixing is None:
            raise SigdegError("this network weighs no components: its latent is not weighted")
        parts = self.parts(x, timestep, step, class_labels)
        weights: Tensor = self.mixing(x, F.silu(sum(parts[1:], parts[0])) if parts else None)
        return weights

    def like(self, changed: Mapping[str, Any]) -> TokenNetwork:
        """One of the same build but for some arguments, with fresh weights."""
        build: Callable[..., TokenNetwork] = type(self)
        return build(**{**self.config, **changed})


def check_told(name: str, value: object, part: nn.Module | None) -> None:
    """Refuse what a network does not take, or lacks."""
    if (value is None) != (part is None):
        told = "takes no" if part is None else "has to be given its"
        raise SigdegError(f"this network {told} {name}")


def film(h: Tensor, told: Tensor | None) -> Tensor:
    """Scales and shifts, (batch or 1, 2 width) for h (batch, ..., width); None changes nothing."""
    if told is None:
        return h
    scale, shift = told.reshape(len(told), *[1] * (h.ndim - 2), -1).chunk(2, dim=-1)
    return torch.addcmul(shift, h, 1 + scale)


class TokenMLP(TokenNetwork):
    r"""Residual network on the one-hots of all tokens, for small problems.

    $$ h \leftarrow h + B\, \mathrm{silu}(A\, \mathrm{film}(\mathrm{norm}(h), c)). $$

    Its first layer sums what it makes of each token: one more token is the same as an addition.

    Arguments:
        length: Tokens a sample, D.
        states: Symbols, S.
        width: Hidden width; a block's inner layer is twice as wide.
        blocks: The number of residual blocks.
        timed: With `elastic`, `classes`, `latent` and `inject` as `TokenNetwork` has it.
    """

    def __init__(
        self,
        length: int,
        states: int,
        width: int = 128,
        blocks: int = 2,
        timed: bool = True,
        elastic: bool = False,
        classes: int = 0,
        latent: Mapping[str, Any] | None = None,
        inject: str = "film",
    ) -> None:
        sizes = {"length": length, "states": states, "width": width, "blocks": blocks}
        told = {"timed": timed, "elastic": elastic, "classes": classes}
        super().__init__(length, width, width, **sizes, **told, latent=latent, inject=inject)
        self.embed = nn.Linear(length * states, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(blocks)
        )
        self.films = nn.ModuleList(
            nn.Linear(width, 2 * width) for _ in range(blocks if self.modulation else 0)
        )
        self.head = nn.Linear(width, length * states)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor | float | None = None,
        latent: Tensor | None = None,
        step: Tensor | float | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Logits (batch, D, S) of tokens (batch, D)."""
        told, vector = self.told(x, timestep, latent, step, class_labels)
        h = self.embed(F.one_hot(x, self.states).flatten(1).to(self.embed.weight))
        if vector is not None:
            h = h + vector
        for k, (norm, block) in enumerate(zip(self.norms, self.blocks, strict=True)):
            h = h + block(film(norm(h), None if told is None else self.films[k](told)))
        logits: Tensor = self.head(F.silu(h)).unflatten(1, (self.length, self.states))
        return logits


class Attention(nn.Module):
    """Attention of all positions to all, of normed inputs.

    Arguments:
        width: Channels.
        heads: Heads, by which the width can be divided.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise SigdegError(f"a width of {width} cannot be divided by {heads} heads")
        self.heads = heads
        self.inside, self.outside = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        """Map (batch, positions, width) to the same shape."""
        q, k, v = self.inside(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed: Tensor = self.outside(
            F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        )
        return mixed


class TransformerBlock(nn.Module):
    """Attention and two layers a position, each after a norm that may be modulated."""

    def __init__(self, width: int, heads: int, modulation: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.film = nn.Linear(modulation, 4 * width) if modulation else None

    def forward(self, h: Tensor, told: Tensor | None) -> Tensor:
        first, second = (None, None) if self.film is None else self.film(told).chunk(2, dim=-1)
        h = h + self.attention(film(self.norms[0](h), first))
        out: Tensor = h + self.mlp(film(self.norms[1](h), second))
        return out


class TokenTransformer(TokenNetwork):
    r"""Transformer on tokens with learned positions; attention looks both ways, norms come first.

    Arguments:
        length: Tokens a sample, D.
        states: Symbols, S.
        width: Channels.
        depth: The number of blocks.
        heads: Attention heads.
        timed: With `elastic`, `classes`, `latent` and `inject` as `TokenNetwork` has it; the share
            of masks tells the time of an absorbing process.

    Reference:
        Peebles and Xie, *Scalable diffusion models with transformers* (2023), for the modulation.
    """

    def __init__(
        self,
        length: int,
        states: int,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        timed: bool = False,
        elastic: bool = False,
        classes: int = 0,
        latent: Mapping[str, Any] | None = None,
        inject: str = "token",
    ) -> None:
        sizes = {"length": length, "states": states, "width": width, "depth": depth, "heads": heads}
        told = {"timed": timed, "elastic": elastic, "classes": classes}
        super().__init__(length, width, width, **sizes, **told, latent=latent, inject=inject)
        self.embed = nn.Embedding(states, width)
        self.position = nn.Parameter(torch.randn(length, width))
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads, self.modulation) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, states)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor | float | None = None,
        latent: Tensor | None = None,
        step: Tensor | float | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Logits (batch, D, S) of tokens (batch, D)."""
        told, vector = self.told(x, timestep, latent, step, class_labels)
        h = self.embed(x) + self.position
        if vector is not None and self.inject == "add":
            h = h + vector[:, None]
        elif vector is not None:
            h = torch.cat([h, vector[:, None]], dim=1)
        for block in self.blocks:
            h = block(h, told)
        logits: Tensor = self.head(self.norm(h[:, : self.length]))
        return logits


def with_latent(
    network: nn.Module,
    latent: Mapping[str, Any] | None,
    inject: str | None = None,
    elastic: bool = False,
) -> TokenNetwork:
    """A network of the same build that takes a latent, with all the weights that are there.

    What is new keeps its initial values, from torch's default generator: `sigdeg.rng.seeded` makes
    them depend on a seed.

    Arguments:
        network: A network of tokens; one that has a latent keeps what belongs to it where the new
            one is the same.
        latent: The arguments of `LatentEmbedding` but the width, "kind" and "size".
        inject: How the latent comes in, see `TokenNetwork` (default: as the network has it).
        elastic: Whether the network is told the end of the step.

    Returns:
        The new network, on the same device and in the same mode, ready to train.

    Raises:
        SigdegError: If the network is of another class.
    """
    if not isinstance(network, TokenNetwork):
        raise SigdegError(f"{type(network).__name__} takes no latent: it is no network of tokens")
    inject = inject or network.inject
    student = network.like({"latent": latent, "elastic": elastic, "inject": inject})
    same = all(student.config[name] == network.config[name] for name in ("latent", "inject"))
    weights = network.state_dict()
    kept = {k: v for k, v in weights.items() if same or not k.startswith(("latent.", "mixing."))}
    student.load_state_dict(kept, strict=False)
    return student.to(next(network.parameters())).train(network.training)
