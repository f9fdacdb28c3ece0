"""The image benchmark at toy size: every part runs, resumes, and what it writes can be used."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sigdeg import SignatureStudent
from sigdeg.cli import main
from sigdeg.codec import Identity, find_codec
from sigdeg.distillation import DistillConfig
from sigdeg.experiments import bench, mnist, mnist_bench, mnist_judges, mnist_networks
from sigdeg.experiments.mnist_presets import PRESETS, Guided, Settings, Weak, student
from sigdeg.files import SHIPPED
from sigdeg.integrations import load_teacher
from sigdeg.metrics import (
    Activations,
    ClassifierExtractor,
    Extractor,
    Reference,
    frechet_distance,
)
from sigdeg.metrics import images as image_metrics_module
from sigdeg.metrics.extractors import load_classifier
from sigdeg.networks import Classifier, Mixer
from sigdeg.training import TrainConfig

TINY = {"iterations": 3, "batch_size": 8, "tracker": "none"}
CONFIG = DistillConfig(**TINY, paths=36, held_out=8, refinement=2, shard_size=8)
PAIRED = student((2, 1), order=2)
MATCHED = replace(PAIRED, start=PAIRED)
SETTINGS = Settings(
    widths=(16, 16, 16),
    autoencoder=TrainConfig(**TINY),
    classifiers={name: TrainConfig(**TINY) for name in mnist_judges.EXTRACTORS},
    teacher=TrainConfig(**TINY),
    specs=(
        replace(MATCHED, start=MATCHED, teacher="guided"),
        student((1,), order=1, residual_noise=None, study="Side table", variant="regression"),
    ),
    config=CONFIG,
    matching=replace(CONFIG, q=0, matching=1.0),
    train_steps=4,
    times=(1.0, 0.4, 0.0),
    peers=(2,),
    guided_peers=(2,),
    scales=((1.0, 1.0), (2.0, 0.6)),
    guided=Guided(TrainConfig(**TINY), 2.0, student((2,), order=1, teacher="classes"), CONFIG),
    weak=Weak(
        (16, 16, 16), TrainConfig(**TINY, seed=1), 2.0, 0.6, replace(CONFIG, q=0, matching=1.0)
    ),
    draws=2,
    n=16,
    tried=16,
    timing_n=2,
)


@pytest.fixture
def toy(monkeypatch):
    """Sixty digits of noise, a benchmark to match, and metrics that take so few."""
    rng = np.random.default_rng(0)
    digits = rng.integers(0, 256, (60, 28, 28), dtype=np.uint8), np.arange(60, dtype=np.uint8) % 10
    monkeypatch.setattr(mnist_judges, "load_mnist", lambda split, data_dir: digits)
    monkeypatch.setattr(mnist_networks, "HELD_OUT", 10)
    monkeypatch.setattr(image_metrics_module, "MINIMUM", 16)
    monkeypatch.setattr(mnist, "SHOWN", 4)
    monkeypatch.setattr(
        bench, "paired_seconds", lambda functions: {k: 1.0 + len(f()) for k, f in functions.items()}
    )
    monkeypatch.setitem(mnist.PRESETS, "quick", SETTINGS)


@pytest.mark.usefixtures("toy")
def test_runs_from_end_to_end(tmp_path, capsys):
    out = tmp_path / "run"
    command = ["run", "mnist", "--preset", "quick", "--no-progress", "--device", "cpu"]
    assert main([*command, "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    rows = results["rows"]
    main_rows = [row for row in rows if not row.get("study")]
    solvers = ("ddim", "dpm-solver++", "sde-dpm-solver++", "unipc")
    assert [(row["method"], row["nfe"]) for row in main_rows[:-4]] == [
        ("teacher", 5),
        ("teacher", 4),
        ("teacher", 6),
        ("teacher", 4),  # the pipeline's own
        ("sig-deg", 2),
        ("sig-deg", 1),
        ("untrained", 2),
        *[(m, 2) for m in solvers],
    ]
    assert [row["method"] for row in main_rows[-4:]] == list(solvers)  # of the guided teacher
    assert all(row["nfe"] <= 2 for row in main_rows[-4:])
    assert [bool(row.get("teacher")) for row in main_rows] == [
        *(False, False, True, False, True, True),
        *5 * [False],
        *4 * [True],
    ]
    assert main_rows[0]["metrics"] == {}  # timed only: what speed is compared with
    both = {"fid", "kid", "precision", "recall", "fid_shares", "ambiguous"}
    for row in main_rows[1:]:
        assert both | {f"{key}_2" for key in both} <= row["metrics"].keys()
        assert all(math.isfinite(metric["mean"]) for metric in row["metrics"].values())
        assert row["metrics"]["fid"]["n"] == row["metrics"]["fid_2"]["n"]
        assert row["speedup"] == 1.0  # the clock was stopped
    for row in (*main_rows[1:3], *main_rows[4:6]):
        assert row["metrics"]["fid"]["n"] == 2
        assert 0 <= row["metrics"]["tv"]["mean"] <= 1
    assert main_rows[4]["elastic"]
    assert main_rows[4]["teacher_nfe"] == 36 * (4 + 6)
    scales = [row for row in rows if "Scale" in (row.get("study") or "")]
    assert [row["variant"] for row in scales] == ["1 below t = 1", "2 below t = 0.6"]
    guided = [row for row in rows if "guidance 2" in (row.get("study") or "")]
    assert [(row["method"], row["nfe"]) for row in guided] == [("teacher", 8), ("sig-deg", 2)]
    assert all(0 <= row["metrics"]["accuracy"]["mean"] <= 1 for row in guided)
    first, second = results["extractors"]
    assert first == results["extractor"] | {k: first[k] for k in ("accuracy", "ambiguous")}
    assert first["n"] == second["n"] == 60
    assert len({first["digest"], second["digest"]}) == 2
    assert {"test", "teacher, 6 calls", "student, 2 calls"} <= set(results["nearest"])
    assert all((out / figure["file"]).exists() for figure in results["figures"])

    assert main([*command, "--out", str(out)]) == 0  # finished: found finished
    again = json.loads((out / "results.json").read_text())["rows"]
    assert [row["metrics"] for row in again] == [row["metrics"] for row in rows]

    # What is shipped is what was trained, in half precision, and draws digits.
    shipped = out / "pretrained"
    student = SignatureStudent.from_pretrained(shipped / "mnist")
    whole = SignatureStudent.from_pretrained(out / "student")
    for own, other in zip(student.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-6)
    teacher, weak = (load_teacher(shipped / f"mnist-{name}") for name in ("teacher", "weak"))
    teacher.check_version(weak)
    assert teacher.shape == student.sample_shape
    classifiers = [shipped / f"mnist-classifier{end}" for end in ("", "-2")]
    kinds = [type(load_classifier(folder)) for folder in classifiers]
    assert kinds == [Classifier, Mixer]
    assert not isinstance(find_codec(shipped / "mnist"), Identity)
    assert main(["sample", str(shipped / "mnist"), "-n", "2", "--out", str(tmp_path / "s")]) == 0
    assert (tmp_path / "s" / "samples.png").exists()
    capsys.readouterr()
    assert main([*command, "--seed", "1", "--out", str(out)]) == 2
    assert "holds another run" in capsys.readouterr().err


@pytest.mark.usefixtures("toy")
@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(tmp_path, monkeypatch):
    """Interrupted after its teacher paths, the run ends as one that never stopped."""
    single = replace(SETTINGS, peers=(), guided=None, specs=SETTINGS.specs[:1], draws=1)
    monkeypatch.setitem(mnist.PRESETS, "quick", single)
    whole = mnist.run(tmp_path / "whole", "quick", device="cpu", progress=False).parent
    real = bench.distill

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "distill", killed)
    with pytest.raises(KeyboardInterrupt):
        mnist.run(tmp_path / "killed", "quick", device="cpu", progress=False)
    monkeypatch.setattr(bench, "distill", real)
    again = mnist.run(tmp_path / "killed", "quick", device="cpu", progress=False).parent
    rows = [json.loads((folder / "results.json").read_text())["rows"] for folder in (whole, again)]
    for one, other in zip(*rows, strict=True):
        assert one["metrics"] == other["metrics"]


def test_choices_see_training_images_and_the_first_extractor_only(tmp_path):
    """Test images and the second extractor change what is reported, never what is chosen."""

    class Looking(torch.nn.Module):
        """Features of images of one pixel: as they are, or of another sign."""

        def __init__(self, sign):
            super().__init__()
            self.sign = torch.nn.Parameter(torch.tensor(sign))

    class Pixels(Extractor):
        def outputs(self, images):
            features = self.network.sign * images.flatten(1)
            return features, torch.zeros(len(images), mnist_networks.CLASSES)

    g = torch.Generator().manual_seed(0)

    class Around(torch.nn.Module):
        """A step that draws around a mean."""

        def __init__(self, mean):
            super().__init__()
            self.mean = mean

        def calls(self, t, s):
            return 1

    def around(mean, n=64):
        return (mean + 0.05 * torch.randn(n, 1, 1, 2, generator=g)).clamp(-1, 1)

    def chosen(test, second):
        settings = replace(SETTINGS, n=32, tried=32, peer_draws=2)
        digits = mnist.Mnist(settings, tmp_path / f"{test} {second}")
        extractors = [Pixels(Looking(sign), "", "", 64) for sign in (1.0, second)]
        real = around(test), torch.arange(mnist_networks.CLASSES)
        digits.judges = mnist_judges.Judges(extractors, (around(0.5), None), real)
        digits.decode = lambda latents: latents
        digits.march = lambda step, _: lambda n, _: around(step.mean, n)
        tried = {str(step.mean): (step, torch.ones(2)) for step in map(Around, (-0.5, 0.1, 0.6))}
        row = digits.add_best("ddim", tried)
        return row["grid"], {key: row["metrics"][key]["mean"] for key in ("fid", "fid_2")}

    first, second, third = chosen(0.5, 1.0), chosen(-0.5, 1.0), chosen(0.5, -1.0)
    assert first[0] == second[0] == third[0] == "0.6"
    assert first[1]["fid"] < 0.1 < second[1]["fid"]
    assert first[1]["fid_2"] != third[1]["fid_2"]


@pytest.mark.slow
@pytest.mark.usefixtures("toy")
def test_the_shipped_models_are_judged_without_training(tmp_path, monkeypatch):
    def forbidden(*arguments, **options):
        raise AssertionError("trained")

    monkeypatch.setattr(bench, "distill", forbidden)
    for name in ("train_autoencoder", "train_classifier", "train_teacher"):
        monkeypatch.setattr(mnist_bench, name, forbidden)
    own = replace(
        SETTINGS,
        shipped=True,
        classifiers={},
        specs=(student((10, 5, 2, 1), teacher="guided"),),
        config=replace(CONFIG, paths=16),
        times=PRESETS["shipped"].times,
        peers=(),
        guided_peers=(),
        scales=(),
        guided=None,
        weak=replace(PRESETS["shipped"].weak, matching=replace(CONFIG, paths=16)),
        train_steps=1000,
        draws=1,
    )
    monkeypatch.setitem(mnist.PRESETS, "quick", own)
    monkeypatch.setattr(bench, "paired_seconds", lambda functions: dict.fromkeys(functions, 1.0))
    out = mnist.run(tmp_path / "run", "quick", device="cpu", progress=False).parent
    results = json.loads((out / "results.json").read_text())
    students = [row for row in results["rows"] if row["method"] == "sig-deg"]
    assert [row["nfe"] for row in students] == [10, 5, 2, 1]
    assert all(row["metrics"]["path"]["mean"] < 1 for row in students[:2])
    for extractor, (_, folder) in zip(
        results["extractors"], mnist_judges.EXTRACTORS.values(), strict=True
    ):
        network = load_classifier(SHIPPED / folder)
        assert extractor["digest"] == ClassifierExtractor(network).digest
    assert not (out / "pretrained").exists()


def test_classes_may_be_weighted_to_their_real_shares():
    """Classes drawn too often are made up for; digits that look otherwise are not."""
    g = torch.Generator().manual_seed(0)
    means = torch.tensor([[0.0, 0.0], [4.0, 1.0]])

    def seen(counts, shift=0.0):
        labels = torch.arange(2).repeat_interleave(torch.tensor(counts))
        features = means[labels] + torch.randn(len(labels), 2, generator=g) + shift
        probabilities = torch.nn.functional.one_hot(labels, 10).double()
        return Activations(features.double(), probabilities)

    reference = Reference(*seen([4000, 4000]), "toy", "none")
    shares = torch.tensor([0.5, 0.5, *8 * [0.0]], dtype=torch.float64)
    skewed, moved = seen([6000, 2000]), seen([4000, 4000], 0.5)
    plain = frechet_distance(skewed.features, reference.statistics)
    assert plain > 0.5
    assert mnist_judges.frechet_at_shares(skewed, reference, shares) < 0.02
    assert mnist_judges.frechet_at_shares(moved, reference, shares) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_fit_together(preset):
    """Every student's steps divide the finest grid, and its coefficients are in the cache."""
    settings = PRESETS[preset]
    finest = len(settings.times) - 1
    for spec in settings.specs:
        assert finest % max(spec.steps) == 0
        assert spec.q <= min(spec.steps)
        assert all(max(spec.steps) % steps == 0 for steps in spec.steps)
    assert settings.n >= image_metrics_module.MINIMUM
    assert any(not spec.study for spec in settings.specs)
    assert settings.config.paths >= settings.n  # their ends are the teacher's samples
    assert len({spec.slug for spec in settings.specs}) == len(settings.specs)
