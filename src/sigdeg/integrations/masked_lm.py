"""Masked language models as teachers of tokens: folders of transformers, and networks like them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sigdeg.codec import Codec, Identity
from sigdeg.discrete import (
    Absorbing,
    Ancestral,
    Confidence,
    NetworkTokenDenoiser,
    Subwords,
    TokenModel,
    as_token_model,
)
from sigdeg.discrete.denoiser import Parameterisation
from sigdeg.discrete.model import FORMAT
from sigdeg.errors import SigdegError, check_choice, extra, reason
from sigdeg.files import find_folder, find_student, read_json
from sigdeg.networks import MaskedLM, call_network
from sigdeg.networks.masked_lm import CLOCKS, config_of, logits_of

__all__ = ["as_token_teacher", "is_language_model", "load_token_teacher"]

# What a network calls its second argument, where that is the noise level.
TOLD = {"sigma": "sigma", "timesteps": "sigma", "timestep": "time", "t": "time"}
LENGTHS = ("model_length", "max_position_embeddings", "max_sequence_length", "n_positions")


def is_language_model(folder: Path) -> bool:
    """Whether a folder is one of transformers."""
    file = folder / "config.json"
    return file.is_file() and "model_type" in read_json(file)


def load_token_teacher(
    path: Any,
    *,
    mask: int | None = None,
    length: int | None = None,
    **options: Any,
) -> TokenModel:
    """A teacher of tokens from a folder, a hub id, or a network in memory.

    A folder holds a model of tokens, or what `save_pretrained` of transformers writes of a masked
    language model: BERT and its kin, or a language model whose attention looks both ways
    (`"is_causal": false` in its `config.json`, as LLaDA's does). Code that comes with a folder is
    never run, and pickles are not opened. A `tokenizer.json` beside it makes text of the samples.

    Arguments:
        path: Folder, hub id, `TokenModel`, or a network, see `as_token_teacher`.
        mask: The token that masks (default: what the folder says).
        length: Tokens of a sequence (default: as many as the folder says there may be).
        options: As `as_token_teacher` has them.

    Raises:
        SigdegError: If it is no such model, or does not say which token is its mask.
    """
    if isinstance(path, TokenModel):
        return path
    if isinstance(path, nn.Module):
        return as_token_teacher(path, mask=mask, length=length, **options)
    folder = find_folder(path)
    place = find_student(folder)
    written = read_json(place / "config.json")
    if written.get("format") == FORMAT:
        return TokenModel.from_pretrained(path)
    model = read_model(place, written)
    codec, named = read_tokenizer(place, int(getattr(model.config, "vocab_size", 0)))
    mask = named if mask is None else mask
    longest = read_length(place, written)
    name = folder.resolve().name if folder == Path(path) else str(path)
    options = {"name": name, **options}
    teacher = as_token_teacher(model, mask=mask, length=length or longest, **options)
    return replace(teacher, codec=codec)


def as_token_teacher(
    network: nn.Module,
    *,
    states: int | None = None,
    mask: int | None = None,
    length: int | None = None,
    parameterisation: Parameterisation = "masked",
    clock: str | None = None,
    schedule: str | None = None,
    name: str | None = None,
) -> TokenModel:
    """A network in memory as a teacher of tokens.

    It is called on token ids, and on its noise level where its second argument is `sigma` or
    `timesteps` (MDLM's rate) or `timestep` or `t` (the time), and gives logits of all symbols.

    Arguments:
        network: The network.
        states: Symbols S, that of the mask included (default: the `vocab_size` of its config).
        mask: The symbol that masks (default: the `mask_token_id` of its config).
        length: Tokens of a sequence (default: what its config says).
        parameterisation: `masked`, as language models are trained, or `all`, as MaskGIT is: a
            softmax over all symbols at all positions, and tokens kept in order of confidence.
        clock: "sigma" or "time" (default: by its second argument, see above).
        schedule: Share of the tokens that are kept over time (default: `linear`; `arccos`,
            MaskGIT's, where the parameterisation is `all`).
        name: Its name.

    Raises:
        SigdegError: If it cannot be called so, or something is not said.
    """
    config = getattr(network, "config", None)
    states = asked(states, config, ("vocab_size",), "how many symbols it has", "states")
    mask = asked(mask, config, ("mask_token_id",), "which token is its mask", "mask")
    length = asked(length, config, LENGTHS, "how long its sequences are", "length")
    if clock is None:
        second = list(inspect.signature(network.forward).parameters)[1:2]
        clock = TOLD.get(second[0]) if second else None
    if clock is not None:
        check_choice(clock, CLOCKS, "clock")
    every = parameterisation == "all"
    process = Absorbing(states, mask, schedule or ("arccos" if every else "linear"))
    if process.states != states:
        raise SigdegError(f"the mask must be one of the {states} symbols, got {mask}")
    embedding = find_embedding(network, length, states, clock)
    wrapped = MaskedLM(network, length, states, embedding, clock)
    denoiser = NetworkTokenDenoiser(wrapped, process, length, parameterisation).eval()
    step = Confidence(denoiser) if every else Ancestral(denoiser)
    return as_token_model(step, name=name or type(network).__name__)


def asked(value: int | None, config: Any, names: tuple[str, ...], what: str, option: str) -> int:
    """What was given, or the first of some fields of a configuration."""
    told = [value, *(getattr(config, name, None) for name in names)]
    found = next((v for v in told if v is not None), None)
    if found is None:
        raise SigdegError(
            f"the network does not say {what}: give {option}, as in "
            f"sigdeg.integrations.load_token_teacher(..., {option}=...)"
        )
    if not isinstance(found, int) or isinstance(found, bool) or found < 0:
        raise SigdegError(f"{option} must be a whole number, got {found!r}")
    return found


@torch.no_grad()
def find_embedding(network: nn.Module, length: int, states: int, clock: str | None) -> str:
    """The name of the layer that embeds tokens: the first to make vectors of them in a call."""
    x = (states - 1 - torch.arange(length) % states)[None]
    x = x.to(next((p.device for p in network.parameters()), x.device))
    seen: list[str] = []

    def note(name: str, given: tuple[Any, ...], output: Any) -> None:
        same = bool(given) and isinstance(given[0], Tensor) and torch.equal(given[0], x)
        if same and isinstance(output, Tensor) and output.shape[:-1] == x.shape:
            seen.append(name)

    handles = [
        part.register_forward_hook(lambda _, given, output, name=name: note(name, given, output))
        for name, part in network.named_modules()
        if name
    ]
    training = network.training
    try:
        told = () if clock is None else (CLOCKS[clock](torch.full((1,), 0.5, device=x.device)),)
        logits = call_network(network.eval(), x, *told, {}) if told else network(x)
        logits = logits_of(logits)
    except Exception as error:  # whatever a network makes of what it was not made for
        raise SigdegError(
            f"{type(network).__name__} cannot be called on {length} tokens of {states} symbols: "
            f"{reason(error)}"
        ) from None
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    if logits.shape != (1, length, states):
        raise SigdegError(
            f"{type(network).__name__} gives {tuple(logits.shape)} for {length} tokens, not logits "
            f"of {states} symbols each"
        )
    if not seen:
        raise SigdegError(f"{type(network).__name__} has no layer that embeds tokens")
    return seen[0]


def read_model(folder: Path, written: dict[str, Any]) -> Any:
    """A masked language model of transformers, from a folder."""
    with extra("tokens"):
        import transformers
    named = written.get("architectures")
    kind = written.get("model_type") or written.get("format") or "model of no known kind"
    name = str(named[0] if isinstance(named, list) and named else kind)
    cls: Any = getattr(transformers, name, None)
    if cls is None and "auto_map" in written:
        raise SigdegError(
            f"{folder} holds a {name} whose code comes with it, and is not run: load it by "
            "yourself and give load_token_teacher the network"
        )
    sees_all = name.endswith("ForMaskedLM") or (
        name.endswith("ForCausalLM") and written.get("is_causal") is False
    )
    known = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
    if not known or not sees_all:
        raise SigdegError(
            f"{folder} holds a {name}, no masked language model: its architecture must end in "
            "ForMaskedLM, or in ForCausalLM with is_causal false"
        )
    options = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32}
    try:
        with quiet(transformers.logging):
            config = config_of(cls, written)
            model, told = cls.from_pretrained(
                folder, config=config, output_loading_info=True, **options
            )
    except Exception as error:  # whatever a damaged folder makes of its reader
        raise SigdegError(f"{folder}: {name} cannot be read: {reason(error)}") from None
    lacking = sorted(told["missing_keys"])
    if lacking:
        raise SigdegError(f"{folder}: weight {lacking[0]} of {name} is missing")
    return model


@contextmanager
def quiet(logging: Any) -> Iterator[None]:
    """Transformers says nothing in here: what there is to say is said in one line."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def read_tokenizer(folder: Path, symbols: int) -> tuple[Codec, int | None]:
    """The codec of a folder with a tokenizer, and the token that masks, where it has one."""
    file, beside = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not file.is_file():
        return Identity(), None
    try:
        codec = Subwords(file.read_text())
    except (OSError, ValueError) as error:  # a SigdegError is one
        raise SigdegError(f"{file} cannot be read: {reason(error)}") from None
    known = codec.tokenizer.get_vocab_size()
    if known > symbols:
        raise SigdegError(
            f"{folder}: the tokenizer knows {known:,} tokens, the network {symbols:,}: they do not "
            "belong together"
        )
    said = read_json(beside).get("mask_token") if beside.is_file() else None
    token = said.get("content") if isinstance(said, dict) else said
    return codec, None if token is None else codec.tokenizer.token_to_id(str(token))


def read_length(folder: Path, written: dict[str, Any]) -> int | None:
    """The longest sequence that a folder says its network takes."""
    beside = folder / "tokenizer_config.json"
    said = [read_json(beside).get("model_max_length") if beside.is_file() else None]
    said += [written.get(name) for name in LENGTHS]
    return min((v for v in said if type(v) is int and v > 0), default=None)
