"""Masked language models as teachers: their laws are their own, and students start from them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from sigdeg.cli import main
from sigdeg.discrete import Confidence, Latent, Subwords, TokenModel
from sigdeg.discrete.denoiser import NetworkTokenDenoiser
from sigdeg.discrete.distill import make_student
from sigdeg.discrete.model import as_token_model
from sigdeg.errors import MissingPackageError, SigdegError
from sigdeg.files import save_json
from sigdeg.integrations.masked_lm import as_token_teacher, is_language_model, load_token_teacher
from sigdeg.networks import MaskedLM, build_network, network_config
from sigdeg.workflows.tokens import load_tokens

STATES, LENGTH, MASK = 13, 6, 4
SIZES = {
    "vocab_size": STATES,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
    "initializer_range": 0.5,
}
injected = pytest.mark.parametrize("inject", ["token", "add", "film"])


def bert() -> Any:
    return transformers.BertForMaskedLM(transformers.BertConfig(**SIZES))


def llada() -> Any:
    """Attention that looks both ways, a mask inside the vocabulary, no time."""
    config = transformers.LlamaConfig(
        **SIZES, is_causal=False, mask_token_id=MASK, num_key_value_heads=1
    )
    return transformers.LlamaForCausalLM(config)


class Rate(nn.Module):
    """As MDLM: told its rate of noise; the mask is one more symbol, the last."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=STATES, model_length=LENGTH)
        self.table, self.mix = (
            nn.Embedding(STATES, 8),
            nn.GRU(8, 4, 1, batch_first=True, bidirectional=True),
        )
        self.rate, self.head = nn.Linear(1, 8), nn.Linear(8, STATES)

    def forward(self, input_ids: Tensor, sigma: Tensor) -> Tensor:
        h = self.table(input_ids) + self.rate(sigma[:, None])[:, None]
        out: Tensor = self.head(self.mix(h)[0])
        return out


class Pictures(nn.Module):
    """As MaskGIT: logits of all symbols, the mask among them, and nothing else is told."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(STATES, 8), nn.Linear(8, STATES)

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        h = self.table(tokens)
        return (self.head(h + h.mean(1, keepdim=True)),)


MAKE: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "bert": (bert, {"mask": MASK, "length": LENGTH}),
    "llada": (llada, {"length": LENGTH}),
    "mdlm": (Rate, {"mask": STATES - 1}),
    "maskgit": (
        Pictures,
        {"mask": MASK, "states": STATES, "length": LENGTH, "parameterisation": "all"},
    ),
}
kinds = pytest.mark.parametrize("kind", MAKE)


def make(kind: str) -> tuple[Any, TokenModel]:
    torch.manual_seed(0)
    build, options = MAKE[kind]
    model = build().eval()
    return model, as_token_teacher(model, **options)


def state(teacher: TokenModel) -> Tensor:
    """Sequences, half of whose tokens are masked."""
    mask = teacher.process.mask
    x = torch.randint(STATES - 1, (3, LENGTH), generator=torch.Generator().manual_seed(2))
    x += (x >= mask).long()
    x[:, ::2] = mask
    return x


@kinds
def test_laws_are_those_of_the_model(kind: str) -> None:
    model, teacher = make(kind)
    x, t = state(teacher), torch.tensor([0.2, 0.5, 1.0])
    sigma = -(1 - 0.999 * t).log()
    output = model(x, sigma) if kind == "mdlm" else model(x)
    logits = output if isinstance(output, Tensor) else output[0]
    found = teacher.denoiser(x, t)
    if kind == "maskgit":
        torch.testing.assert_close(found, logits.log_softmax(-1), rtol=0, atol=1e-6)
        assert isinstance(teacher.step, Confidence)
        assert teacher.process.schedule == "arccos"
        return
    masked = x == teacher.process.mask
    others = torch.arange(STATES) != teacher.process.mask
    expected = logits[..., others].log_softmax(-1)
    torch.testing.assert_close(found[..., others][masked], expected[masked], rtol=0, atol=1e-6)
    assert float(found[masked][:, ~others].detach().max()) <= -40
    assert torch.equal(found.argmax(-1)[~masked], x[~masked])


@kinds
def test_teachers_leave_no_mask(kind: str) -> None:
    _, teacher = make(kind)
    drawn = teacher.sample(4, steps=3, seed=0)
    teacher.process.check_tokens(drawn)


@kinds
@injected
def test_students_keep_their_teacher_and_hear_a_latent(
    kind: str, inject: str, tmp_path: Path
) -> None:
    model, teacher = make(kind)
    student = make_student(teacher, Latent("uniform", 1), elastic=True, inject=inject, seed=1)
    network = student.network
    assert isinstance(network, MaskedLM)
    own = network.model.state_dict()
    assert all(torch.equal(own[k], v) for k, v in model.state_dict().items())
    x, latent = state(teacher), torch.rand(3, 1, generator=torch.Generator().manual_seed(0))
    first, other, further = (
        student(x, 0.5, v, step=s) for v, s in ((latent, 0.0), (1 - latent, 0.0), (latent, 0.4))
    )
    masked = x == teacher.process.mask
    for moved in (other, further):
        changed = (moved - first).detach().abs().amax(2)[masked]
        assert float(changed.min()) > 0
        assert float(changed.max()) > 1e-3
    assert isinstance(teacher.denoiser, NetworkTokenDenoiser)
    assert network.config["model"] == teacher.denoiser.network.config["model"]
    first.sum().backward()
    heard = [p.grad is not None for n, p in network.named_parameters() if "model." not in n]
    assert all(heard)
    # Saved and loaded again: what is tied once, and by itself where transformers knows the class.
    as_token_model(student).save_pretrained(tmp_path)
    theirs = None if network.config["model"] else network.like({})
    again = TokenModel.from_pretrained(tmp_path, network=theirs)
    torch.testing.assert_close(again.denoiser(x, 0.5, latent, step=0.0), first, rtol=0, atol=0)


@injected
def test_a_student_whose_new_layers_say_nothing_is_its_teacher(inject: str) -> None:
    _, teacher = make("bert")
    network = make_student(teacher, Latent("gaussian", 2), inject=inject).network
    x, latent = state(teacher), torch.ones(3, 2)
    assert isinstance(teacher.denoiser, NetworkTokenDenoiser)
    expected = teacher.denoiser.network(x)
    assert float((network(x, latent=latent) - expected).detach().abs().max()) > 1e-3
    with torch.no_grad():
        for name, value in network.named_parameters():
            if not name.startswith("model.") or ("attention.output.dense" in name):
                value.zero_()
        for name, value in teacher.denoiser.network.named_parameters():
            if "attention.output.dense" in name:  # a further token is seen by attention alone
                value.zero_()
    torch.testing.assert_close(network(x, latent=latent), teacher.denoiser.network(x))


def test_tied_weights_stay_tied() -> None:
    _, teacher = make("bert")
    student = make_student(teacher, Latent(), inject="add")
    model = student.network.model
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert table is head
    names = student.network.state_dict().keys()
    assert sum(STATES in v.shape and v.ndim == 2 for v in student.state_dict().values()) == 1
    assert not any("decoder.weight" in name for name in names)


def words(more: int = 0) -> Tokenizer:
    vocabulary = {"[MASK]" if i == MASK else f"w{i}": i for i in range(STATES + more)}
    found = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return found


def folder_of(model: Any, folder: Path, tokenizer: Any = None, **config: Any) -> Path:
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
        save_json(folder / "tokenizer_config.json", {"mask_token": "[MASK]", **config})
    return folder


def test_a_folder_says_its_mask_its_length_and_its_text(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = bert().eval()
    folder = folder_of(model, tmp_path / "a-bert", words(), model_max_length=LENGTH)
    assert is_language_model(folder)
    teacher = load_token_teacher(folder)
    assert (teacher.name, teacher.process.mask, teacher.shape) == ("a-bert", MASK, (LENGTH,))
    x = state(teacher)
    direct = as_token_teacher(model, mask=MASK, length=LENGTH)
    torch.testing.assert_close(teacher.denoiser(x, 0.5), direct.denoiser(x, 0.5))
    codec = teacher.codec
    assert isinstance(codec, Subwords)
    assert codec.text(torch.tensor([[1, 2, MASK]])) == ["w1 w2 [MASK]"]
    assert codec.encode(["w1 w2 w3", "w5 w0 w7"]).tolist() == [[1, 2, 3], [5, 0, 7]]
    with pytest.raises(SigdegError, match="one length, in tokens"):
        codec.encode(["w1", "w1 w2"])
    with pytest.raises(SigdegError, match="67% of the text is unknown to the tokenizer"):
        codec.encode(["xyz w1 QQQ"])
    student = make_student(teacher, Latent())
    as_token_model(student).save_pretrained(tmp_path / "student")
    again = load_token_teacher(tmp_path / "student")
    assert again.denoiser.latent == Latent()
    bidirectional = folder_of(llada(), tmp_path / "llada")
    assert load_token_teacher(bidirectional, length=LENGTH).process.mask == MASK


def test_a_folder_is_distilled_and_its_student_writes_text(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = folder_of(bert(), tmp_path / "teacher", words(), model_max_length=LENGTH)
    text = tmp_path / "some.txt"
    text.write_text(" ".join(f"w{i % 3}" for i in range(40 * LENGTH + 1)))
    data = load_tokens(text, load_token_teacher(folder))
    assert data.shape == (40, LENGTH)
    assert set(data.flatten().tolist()) == {0, 1, 2}
    run, drawn = tmp_path / "run", tmp_path / "drawn"
    told = ["--iterations", "2", "--batch-size", "4", "--latents", "2", "--samples", "8"]
    told += ["--steps", "2", "--data", str(text), "--tracker", "none"]
    place = ["--device", "cpu", "--no-progress"]
    assert main(["distill", str(folder), *told, "--out", str(run), *place]) == 0
    assert main(["sample", str(run), "-n", "2", "--out", str(drawn), *place]) == 0
    lines = [json.loads(line) for line in (drawn / "samples.txt").read_text().splitlines()]
    tokens = load_file(drawn / "samples.safetensors")["samples"]
    assert lines == [" ".join(f"w{i}" for i in row) for row in tokens.tolist()]
    text.write_text("w1 [MASK] w2 w1 w2 w1")
    with pytest.raises(SigdegError, match="hold the mask symbol 4"):
        load_tokens(text, load_token_teacher(folder))
    text.write_text("w1 w2")
    with pytest.raises(SigdegError, match="has 2 tokens, a sample 6"):
        load_tokens(text, load_token_teacher(folder))


def test_bidirectional_models_see_what_follows() -> None:
    """A causal model is no denoiser: its first token would know nothing of the last."""
    model, teacher = make("llada")
    x = state(teacher)
    other = x.clone()
    other[:, -1] = (x[:, -1] + 5) % STATES
    assert float((model(x).logits - model(other).logits)[:, 0].detach().abs().max()) > 1e-4


def test_what_is_no_teacher_is_one_line(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = bert()
    named = folder_of(model, tmp_path / "plain")
    folder_of(model, tmp_path / "more", words(more=1))
    folder_of(model, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"no weights")
    folder_of(transformers.BertModel(transformers.BertConfig(**SIZES)), tmp_path / "headless")
    folder_of(transformers.BertModel(transformers.BertConfig(**SIZES)), tmp_path / "relabelled")
    relabelled = tmp_path / "relabelled" / "config.json"
    config = json.loads(relabelled.read_text())
    save_json(relabelled, {**config, "architectures": ["BertForMaskedLM"]})
    causal = transformers.LlamaConfig(**SIZES, num_key_value_heads=1)
    folder_of(transformers.LlamaForCausalLM(causal), tmp_path / "causal")
    (tmp_path / "own").mkdir()
    code = {"auto_map": {"AutoModel": "modeling.Own"}, "architectures": ["Own"]}
    save_json(tmp_path / "own" / "config.json", {"model_type": "own", **code})
    save_json(tmp_path / "none" / "config.json", {"model_type": "bert"})
    options: dict[str, Any] = {"mask": MASK, "length": LENGTH}
    for path, asked, line in (
        (named, {}, "does not say which token is its mask: give mask"),
        (named, {**options, "length": 40}, "BertForMaskedLM cannot be called on 40 tokens"),
        (named, {**options, "mask": 13}, "mask must be one of the 13 symbols, got 13"),
        (named, {**options, "mask": -1}, "mask must be a whole number, got -1"),
        (named, {**options, "states": 10}, "not logits of 10 symbols each"),
        (named, {**options, "states": 20}, "cannot be called on 6 tokens of 20 symbols"),
        (tmp_path / "more", {}, "tokenizer knows 14 tokens, the network 13"),
        (tmp_path / "damaged", options, "BertForMaskedLM cannot be read"),
        (tmp_path / "headless", options, "holds a BertModel, no masked language model"),
        (tmp_path / "relabelled", options, "weight cls.predictions.* is missing"),
        (tmp_path / "causal", options, "in ForCausalLM with is_causal false"),
        (tmp_path / "own", options, "a Own whose code comes with it, and is not run"),
        (tmp_path / "none", options, "holds a bert, no masked language model"),
        (nn.Linear(2, 2), {**options, "states": 9}, "Linear cannot be called on 6 tokens"),
        (nn.Linear(2, 2), options, "does not say how many symbols it has: give states"),
        (
            Pictures(),
            {**options, "states": 13, "clock": "hour"},
            "unknown clock 'hour': choose from",
        ),
    ):
        with pytest.raises(SigdegError, match=line) as caught:
            load_token_teacher(path, **asked)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "changed", "line"),
    [
        ("config.json", {"architectures": 5}, "holds a bert, no masked language model"),
        ("config.json", {"architectures": []}, "holds a bert, no masked language model"),
        ("config.json", {"vocab_size": "many"}, "BertForMaskedLM cannot be read"),
        ("config.json", {"vocab_size": 10**9}, "BertForMaskedLM cannot be read"),
        ("config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number"),
        ("config.json", {"attn_implementation": "some/code", "auto_map": {"a": "b.c"}}, None),
        ("config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}, None),
        ("tokenizer_config.json", {"mask_token": 5}, "give mask"),
        ("tokenizer_config.json", {"mask_token": {"content": "[MASK]"}}, None),
        ("tokenizer_config.json", {"model_max_length": True}, None),
        ("tokenizer.json", {"model": 5}, "tokenizer.json cannot be read: this is no tokenizer"),
    ],
)
def test_a_folder_that_is_damaged_is_one_line_or_nothing(
    file: str, changed: dict[str, Any], line: str | None, tmp_path: Path
) -> None:
    folder = folder_of(bert(), tmp_path, words(), model_max_length=LENGTH)
    written = json.loads((folder / file).read_text())
    save_json(folder / file, {**written, **changed})
    if line is None:
        assert load_token_teacher(folder).process.mask == MASK
        return
    with pytest.raises(SigdegError, match=line) as caught:
        load_token_teacher(folder)
    assert "\n" not in str(caught.value)


def test_without_transformers_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(bert(), tmp_path)
    _, teacher = make("bert")
    assert isinstance(teacher.denoiser, NetworkTokenDenoiser)
    described = network_config(teacher.denoiser.network)
    monkeypatch.setitem(sys.modules, "transformers", None)
    for load in (lambda: load_token_teacher(folder), lambda: build_network(described)):
        with pytest.raises(MissingPackageError, match=r"pip install 'sigdeg\[tokens\]'"):
            load()


def test_no_class_but_one_of_transformers_is_built() -> None:
    _, teacher = make("bert")
    assert isinstance(teacher.denoiser, NetworkTokenDenoiser)
    config = teacher.denoiser.network.config
    for change, line in (
        ({"class": "AutoTokenizer"}, "transformers has no model 'AutoTokenizer'"),
        ({"class": "os.system"}, "transformers has no model"),
        ({"config": {"num_hidden_layers": 10**9}}, "num_hidden_layers must be a whole number"),
        (None, "a class of its own, which has to be passed"),
    ):
        model = None if change is None else {**config["model"], **change}
        with pytest.raises(SigdegError, match=line):
            build_network({"class": "MaskedLM", "config": {**config, "model": model}})
