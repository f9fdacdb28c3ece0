"""Models of tokens: what they can be asked for, guidance, folders that give the same samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sigdeg.discrete import (
    Absorbing,
    Ancestral,
    Confidence,
    DiscretisedGaussian,
    ExactDenoiser,
    GreyLevels,
    Latent,
    MixtureStudent,
    NetworkTokenDenoiser,
    TokenModel,
    Uniform,
    as_token_model,
)
from sigdeg.discrete.model import TokenClasses, Tokens
from sigdeg.errors import SigdegError
from sigdeg.files import seal, unseal
from sigdeg.model import Card
from sigdeg.networks import TokenMLP
from sigdeg.rng import seeded

LENGTH = 4


def network(**options: Any) -> TokenMLP:
    """A small one, with weights that depend on nothing."""
    return seeded(0, lambda: TokenMLP(LENGTH, 3, width=8, blocks=1, **options)).eval()


def product(**options: Any) -> TokenModel:
    return as_token_model(NetworkTokenDenoiser(network(**options), Absorbing(2), LENGTH))


def classed(null: int | None = 2, **options: Any) -> TokenModel:
    """A model of two classes, whose label 2 means none."""
    model = product(classes=2, **options)
    asked = TokenClasses((0, 1), null, tokens=Tokens(LENGTH, model.process))
    return TokenModel(model.step, model.shape, model.grid, conditions=asked, card=Card("two"))


# --- what it can be asked for ---------------------------------------------------------------------


def test_known_tokens_are_asked_for_alone_or_beside_a_label() -> None:
    for model in (product(), classed()):
        drawn = model.sample(5, 3, seed=0, prefix=[1, 0])
        assert bool((drawn[:, :2] == torch.tensor([1, 0])).all())
        one = model.sample(5, 3, seed=0, given=torch.tensor([-1, -1, -1, 1]))
        assert bool((one[:, 3] == 1).all())
    assert torch.equal(
        model.sample(4, 2, seed=0, label=1, prefix=[1]),
        model.sample(4, 2, seeds=range(4), label=1, given=torch.tensor([1, -1, -1, -1])),
    )
    labels = model.conditions(3, prefix=[1])
    assert labels["class_labels"].tolist() == [0, 1, 0]
    assert labels["given"].tolist() == [[1, -1, -1, -1]] * 3


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"prefix": [0] * 5}, r"a prefix is at most 4 tokens, got \(5,\)"),
        ({"prefix": [0], "given": torch.zeros(4).long()}, "either a prefix or given tokens"),
        ({"given": torch.zeros(2, 2, 4).long()}, r"given tokens are \(4,\) or \(n, 4\), -1 where"),
        ({"given": torch.tensor([0, 2, -1, -1])}, "given tokens hold the mask symbol 2"),
        ({"prefix": [7]}, "a prefix must lie between 0 and 1, got 7"),
        ({"label": 1}, "this model knows no classes: leave label out"),
        ({"latent": torch.zeros(2, 1)}, "a latent is given to a product, which hears none"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(asked: dict[str, Any], line: str) -> None:
    with pytest.raises(SigdegError, match=line):
        product().sample(2, 1, seed=0, **asked)


def test_a_label_that_there_is_not_is_refused() -> None:
    with pytest.raises(SigdegError, match="label must be one of the 2 classes, got 2"):
        classed().sample(1, 1, seed=0, label=2)


# --- guidance -------------------------------------------------------------------------------------


def test_guidance_at_scale_1_is_the_model_and_beyond_it_goes_on() -> None:
    """In odds, against the formula; the model itself is left as it is."""
    model, x = classed(), torch.full((1, LENGTH), 2)
    own, none = (
        model.denoiser(x, torch.tensor(1.0), class_labels=torch.tensor([k])) for k in (1, 2)
    )
    for scale in (1.0, 2.5):
        guided = model.guided(scale)
        found = guided.denoiser(x, torch.tensor(1.0), class_labels=torch.tensor([1]))
        odds = (none + scale * (own - none))[..., :2].diff(dim=-1)
        torch.testing.assert_close(found[..., :2].diff(dim=-1), odds)
        assert guided.step.calls(1.0, 0.0) == 2
    assert model.step.calls(1.0, 0.0) == 1
    assert guided.card.guidance == 2.5
    assert torch.equal(model.guided(1.0).sample(9, 2, seed=0), model.sample(9, 2, seed=0))
    assert not torch.equal(guided.sample(9, 2, seed=0), model.sample(9, 2, seed=0))


def test_a_weaker_version_guides_without_classes() -> None:
    weak = as_token_model(
        ExactDenoiser(torch.zeros(1, LENGTH).long(), torch.ones(1), Absorbing(2)), name="weak"
    )
    guided = product().guided(2.0, weak=weak)
    assert guided.card.weak == "weak"
    assert guided.sample(3, 2, seed=0).shape == (3, LENGTH)


def test_what_cannot_guide_is_refused() -> None:
    with pytest.raises(SigdegError, match="knows no classes: guidance needs a conditional teacher"):
        product().guided(2.0)
    with pytest.raises(SigdegError, match="two is not known to have a class that means none"):
        classed(null=None).guided(2.0)
    other = as_token_model(ExactDenoiser(torch.zeros(1, 3).long(), torch.ones(1), Absorbing(2)))
    with pytest.raises(SigdegError, match="it cannot guide it"):
        product().guided(2.0, weak=other)
    with pytest.raises(SigdegError, match="at all times: leave its end out"):
        classed().guided(2.0, until=0.5)


# --- folders --------------------------------------------------------------------------------------

LATENT = {"kind": "uniform", "size": 2}


def mixture() -> TokenModel:
    net = network(latent=LATENT, elastic=True)
    student = MixtureStudent(net, Absorbing(2), LENGTH, Latent(**LATENT), elastic=True)
    return as_token_model(student, steps=(4, 2))


def grey() -> TokenModel:
    process = DiscretisedGaussian(3)
    model = as_token_model(NetworkTokenDenoiser(network(), process, LENGTH), (1.0, 0.4, 0.0))
    return TokenModel(model.step, model.shape, model.grid, GreyLevels(3, 2, 2), model.conditions)


def maskgit() -> TokenModel:
    return as_token_model(NetworkTokenDenoiser(network(), Absorbing(2), LENGTH, "all"))


@pytest.mark.parametrize("build", [product, classed, mixture, grey, maskgit])
def test_a_folder_gives_the_same_samples(build: Any, tmp_path: Path) -> None:
    model = build()
    model.save_pretrained(tmp_path / "model")
    again = TokenModel.from_pretrained(tmp_path / "model")
    assert torch.equal(again.sample(6, 2, seed=0), model.sample(6, 2, seed=0))
    assert again.conditions == model.conditions
    assert again.codec == model.codec
    assert again.grid == model.grid
    assert again.process == model.process
    assert again.denoiser.latent == model.denoiser.latent
    assert again.name == (model.card.name or "model")


def test_a_finer_grid_than_its_own_is_refused(tmp_path: Path) -> None:
    grey().save_pretrained(tmp_path)
    with pytest.raises(SigdegError, match="this model's grid has 2 steps, got 3"):
        TokenModel.from_pretrained(tmp_path).sample(1, 3, seed=0)


def test_what_has_no_network_cannot_be_saved(tmp_path: Path) -> None:
    law = torch.zeros(1, LENGTH).long(), torch.ones(1)
    exact = as_token_model(ExactDenoiser(*law, Uniform(2)))
    ordered = as_token_model(Confidence(product().denoiser))
    for model, kind in ((exact, "Ancestral of a Exact"), (ordered, "Confidence of a Network")):
        with pytest.raises(SigdegError, match=f"a {kind}.* cannot be saved"):
            model.save_pretrained(tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"format": "sigdeg-teacher"}, "holds no model of tokens: its config.json is of another"),
        ({"length": 0}, "does not fit a model: .*length"),
        ({"process": {"kind": "none"}}, "unknown process 'none': choose from absorbing"),
        ({"process": {"kind": "absorbing", "states": 3}}, "absorbing does not take what is given"),
        ({"latent": {"kind": "odd", "size": 1}}, "unknown latent 'odd': choose from uniform"),
        ({"parameterisation": "some"}, "unknown parameterisation 'some': choose from masked, all"),
        ({"codec": {"kind": "sound"}}, "unknown codec 'sound': choose from"),
    ],
)
def test_a_folder_that_fits_no_model_is_refused_in_one_line(
    change: dict[str, Any], line: str, tmp_path: Path
) -> None:
    """Sealed anew: whoever wrote it meant it."""
    product().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    written = unseal(json.loads(config.read_text()), config)
    config.write_text(json.dumps(seal(written | change)))
    with pytest.raises(SigdegError, match=line) as error:
        TokenModel.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_a_step_of_any_kind_is_a_model() -> None:
    step = Confidence(product().denoiser)
    seen: list[Tensor] = []
    as_token_model(step).sample(2, 2, seed=0, callback=lambda k, t, x: seen.append((x == 2).sum(1)))
    assert [masks.tolist() for masks in seen] == [[4, 4], [2, 2], [0, 0]]
    with pytest.raises(SigdegError, match="without a denoiser"):
        _ = TokenModel(torch.nn.Identity(), (4,), product().grid).denoiser  # type: ignore[arg-type]
    assert isinstance(product().step, Ancestral)


def test_a_damaged_folder_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    product().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"elastic": True}))
    with pytest.raises(SigdegError, match="was changed or damaged since it was written"):
        TokenModel.from_pretrained(tmp_path)
