"""The models that come with the package: small, whole, and good for what they are for."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from sigdeg import SignatureStudent, load_model, sample
from sigdeg.cli import main
from sigdeg.codec import find_codec
from sigdeg.errors import SigdegError
from sigdeg.files import SHIPPED, find_folder
from sigdeg.integrations import load_teacher
from sigdeg.metrics import ClassifierExtractor, class_histogram
from sigdeg.metrics.extractors import load_classifier
from sigdeg.student import SignatureStudent as Student
from sigdeg.workflows import evaluate as workflow

ROOT = Path(__file__).parents[1]


def digits(steps: int, n: int) -> torch.Tensor:
    """Digits of the shipped student."""
    folder = find_folder("mnist")
    student = SignatureStudent.from_pretrained("mnist")
    latents = sample(
        student, student.grid(steps), (n, *student.sample_shape), seeds=range(n), batch_size=100
    )
    return find_codec(folder).decode(latents).clamp(-1, 1)


def test_they_are_small():
    sizes = {file.parent: file.stat().st_size for file in SHIPPED.rglob("*.safetensors")}
    assert len(sizes) == 7
    tokens = sizes.pop(SHIPPED / "mnist-tokens")
    assert tokens < 1e6
    assert sum(sizes.values()) < 6e6


@pytest.mark.parametrize(("steps", "sure"), [(4, 0.45), (1, 0.4)])
def test_the_student_of_tokens_draws_digits_of_all_kinds(steps, sure):
    """In one call, too: its teacher draws noise in the shape of the mean digit."""
    model = load_model("mnist-tokens")
    images = model.sample(300, steps, seed=0)
    assert set(images.unique().tolist()) == {-1.0, 1.0}
    p = ClassifierExtractor(load_classifier()).probabilities(images)
    assert float((p.amax(1) > 0.9).double().mean()) > sure
    assert int((class_histogram(p.argmax(1), 10) > 0.01).sum()) == 10
    again = model.sample(7, steps, seeds=range(5, 12), batch_size=3)
    assert torch.equal(again, images[5:12])  # whatever the batch


@pytest.mark.parametrize("steps", [10, 5])
def test_the_student_draws_every_digit_and_clear_ones(steps):
    """The classifier is sure of most of 300 digits, and sees each class."""
    p = ClassifierExtractor(load_classifier()).probabilities(digits(steps, 300))
    assert float((p.amax(1) > 0.9).double().mean()) > 0.6
    shares = class_histogram(p.argmax(1), 10)
    assert float(shares.min()) > 0.03
    assert float(shares.max()) < 0.25


def test_the_results_name_the_shipped_classifiers():
    results = json.loads((ROOT / "results" / "mnist.json").read_text())
    networks = [load_classifier(f"mnist-classifier{end}") for end in ("", "-2")]
    assert type(networks[0]) is not type(networks[1])
    for found, name, network in zip(
        results["extractors"], ("mnist", "mnist-2"), networks, strict=True
    ):
        assert (found["n"], found["extractor"]) == (10_000, name)
        assert found["digest"] == ClassifierExtractor(network, name).digest
        assert found["accuracy"] > 0.98
    assert results["extractor"]["digest"] == results["extractors"][0]["digest"]


def test_the_classifiers_have_nothing_in_common_but_that_they_know_digits():
    first, second = (load_classifier(f"mnist-classifier{end}") for end in ("", "-2"))
    kinds = [{type(part) for part in network.layers.modules()} for network in (first, second)]
    assert kinds[0] & kinds[1] <= {nn.Conv2d, nn.Flatten, nn.Linear, nn.Sequential, nn.SiLU}
    convolutions = [part for part in second.modules() if isinstance(part, nn.Conv2d)]
    assert [part.kernel_size for part in convolutions] == [(4, 4)]  # the patches
    drawn = digits(10, 100)
    seen = [ClassifierExtractor(network).probabilities(drawn) for network in (first, second)]
    assert float((seen[0].argmax(1) == seen[1].argmax(1)).double().mean()) > 0.8


def test_teacher_and_student_fit():
    teacher = load_teacher("mnist-teacher").guided(1.5, 0.6, load_teacher("mnist-weak"))
    student = Student.from_pretrained("mnist")
    assert teacher.shape == student.sample_shape == (4, 8, 8)
    assert teacher.codec.decode(torch.zeros(1, 4, 8, 8)).shape == (1, 1, 28, 28)
    assert student.steps == (10, 5, 2, 1)


def test_evaluate_guides_the_teacher_as_the_card_says(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(workflow, "evaluate", lambda *given, **_: given[1].card)
    shown = []
    monkeypatch.setattr("sigdeg.cli.evaluate.tell", shown.append)
    assert main(["evaluate", "mnist", "mnist-teacher", "--out", str(tmp_path / "out")]) == 0
    said = "note: guidance 1.5 below t = 0.6 by mnist-weak, as the student's card says\n"
    assert capsys.readouterr().err == said
    assert (shown[0].guidance, shown[0].guidance_until, shown[0].weak) == (1.5, 0.6, "mnist-weak")


def test_by_name_from_the_command_line(tmp_path, capsys):
    assert main(["sample", "mnist", "-n", "3", "--steps", "1", "--out", str(tmp_path / "s")]) == 0
    assert (tmp_path / "s" / "samples.png").exists()
    capsys.readouterr()
    assert main(["sample", "mnist", "--steps", "11", "--out", str(tmp_path / "t")]) == 2
    assert "distilled for 10, 5, 2, 1 steps, got 11" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


def test_images_of_another_size_are_refused():
    with pytest.raises(
        SigdegError, match=r"takes images of shape \(1, 28, 28\), got \(1, 32, 32\)"
    ):
        load_classifier().features(torch.zeros(2, 1, 32, 32))
