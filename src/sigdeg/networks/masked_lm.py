"""Masked language models of other packages as networks of tokens, and their students."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sigdeg.errors import SigdegError, extra
from sigdeg.networks.call import call_network
from sigdeg.networks.tokens import TokenNetwork, film
from sigdeg.schema import mapped, record, text, whole

__all__ = ["CLOCKS", "MaskedLM", "config_of", "logits_of"]

# What a network that is told the time is told; MDLM's rate of noise is -log of the share kept.
CLOCKS: dict[str, Callable[[Tensor], Tensor]] = {
    "time": lambda t: t,
    "sigma": lambda t: -torch.log1p(-(1 - 1e-3) * t),
}
LAYERS = ("num_hidden_layers", "n_layers", "num_layers", "n_layer")
DESCRIPTION = record({"class": text, "config": mapped()}, {})


class MaskedLM(TokenNetwork):
    r"""A masked language model, called on token ids, as a network of tokens.

    A latent comes in where tokens are embedded: added to all of them ("add"), as scales and shifts
    (FiLM), or as one more of them, the last ("token"), which takes a position of the network's.
    New layers start at the scale of the embeddings. Weights that the model ties stay tied, and are
    saved once.

    Arguments:
        model: The network, or what builds one of transformers again: the name of its "class" and
            its "config". It gives logits (batch, D, S), or an output that has them.
        length: Tokens a sample, D.
        states: Symbols, S.
        embedding: Name of the layer that embeds tokens.
        clock: What the network is told beside the tokens, a name in `CLOCKS`, or None.
        elastic: As `TokenNetwork` has it, with `latent` and `inject`.
        latent: See above.
        inject: See above.
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, Any],
        length: int,
        states: int,
        embedding: str,
        clock: str | None = None,
        elastic: bool = False,
        latent: Mapping[str, Any] | None = None,
        inject: str = "add",
    ) -> None:
        if not isinstance(model, nn.Module):
            model = build_model(model)
        table = next(model.get_submodule(embedding).parameters())
        width, scale = table.shape[-1], float(table.detach().std()) if not table.is_meta else 1.0
        sizes = {"model": describe(model), "length": length, "states": states}
        told = {"timed": False, "elastic": elastic, "classes": 0, "latent": latent}
        super().__init__(
            length, width, width, **sizes, **told, embedding=embedding, clock=clock, inject=inject
        )
        self.config = {k: v for k, v in self.config.items() if k not in ("timed", "classes")}
        self.embedding, self.clock = embedding, clock
        self.film = nn.Linear(width, 2 * width) if self.modulation else None
        with torch.no_grad():
            if self.film is not None:
                self.film.weight[width:] *= scale
                self.film.bias[width:] *= scale
            if self.latent is not None and inject != "film":
                last = self.latent.layers
                last = last[-1] if isinstance(last, nn.Sequential) else last
                for value in last.parameters():
                    value.mul_(scale)
        self.model = model
        hooked: Any = self
        hooked.register_state_dict_post_hook(drop_tied)
        hooked.register_load_state_dict_pre_hook(restore_tied)

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
        if told is None and vector is None:
            return self.run(x, timestep)
        layer = self.model.get_submodule(self.embedding)
        h = layer(x)
        if self.film is not None:
            h = film(h, self.film(told))
        if vector is not None and self.inject == "add":
            h = h + vector[:, None].to(h)
        elif vector is not None:
            h = torch.cat([h, vector[:, None].to(h)], dim=1)
            if self.clock is None and "inputs_embeds" in parameters(self.model):
                return logits_of(self.model(inputs_embeds=h))[:, : self.length]
        handle = layer.register_forward_hook(lambda module, args, output: h)
        try:
            return self.run(x, timestep)[:, : self.length]
        finally:
            handle.remove()

    def run(self, x: Tensor, timestep: Tensor | float | None) -> Tensor:
        """The logits of the model."""
        if self.clock is None:
            return logits_of(self.model(x))
        time = torch.as_tensor(timestep, dtype=torch.float32, device=x.device).expand(len(x))
        return logits_of(call_network(self.model, x, CLOCKS[self.clock](time), {}))

    def like(self, changed: Mapping[str, Any]) -> TokenNetwork:
        config = {**self.config, **changed, "model": copy.deepcopy(self.model)}
        return MaskedLM(**config)


def logits_of(output: Any) -> Tensor:
    """Logits, where a network gives more than them."""
    if isinstance(output, Tensor):
        return output
    found: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return found


def parameters(model: nn.Module) -> list[str]:
    """Names of what a model can be called with."""
    return list(inspect.signature(model.forward).parameters)


def describe(model: nn.Module) -> dict[str, Any] | None:
    """Class and configuration of a model of transformers, as JSON values; None of another."""
    if not type(model).__module__.startswith("transformers.models."):
        return None
    config: Any = model.config
    written = json.loads(config.to_json_string())
    return {"class": type(model).__name__, "config": written}


def build_model(description: Mapping[str, Any] | None) -> nn.Module:
    """A model of transformers, with fresh weights; none but its own classes are built."""
    if description is None:
        raise SigdegError("the model inside it is a class of its own, which has to be passed")
    with extra("tokens"):
        import transformers
    DESCRIPTION(description, "model")
    cls: Any = getattr(transformers, description["class"], None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise SigdegError(f"transformers has no model {description['class']!r}")
    model: nn.Module = cls(config_of(cls, description["config"]))
    return model


def config_of(cls: Any, written: Mapping[str, Any]) -> Any:
    """The configuration of a class of transformers, but for what would have code fetched or run.

    Raises:
        SigdegError: If it has more layers than can be built.
    """
    for name in LAYERS:
        if name in written:
            whole(0, 1024)(written[name], name)
    left_out = ("implementation", "quantization", "auto_map")
    kept = {k: v for k, v in written.items() if not any(word in k for word in left_out)}
    return cls.config_class.from_dict(kept)


def tied(network: nn.Module) -> dict[str, str]:
    """Names of parameters that are another one, by the name of that one."""
    first: dict[int, str] = {}
    named = network.named_parameters(remove_duplicate=False)
    return {n: first[id(p)] for n, p in named if first.setdefault(id(p), n) != n}


def drop_tied(network: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Leave out of a state what it holds under another name."""
    for name in tied(network):
        del state[prefix + name]


def restore_tied(network: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Put into a state what `drop_tied` left out."""
    for name, other in tied(network).items():
        if prefix + other in state:
            state.setdefault(prefix + name, state[prefix + other])
