"""`sigdeg sample` of a student that is a pipeline."""

import pytest
import torch
from safetensors.torch import load_file

from sigdeg.cli import main
from sigdeg.pipelines import save_student
from tests.pipelines.student import apart, draw, student_of


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("students")
    for family in ("sd15", "dit"):
        pipe, _ = student_of(family)
        save_student(pipe, folder / family / "student", {"guidance_scale": 1.0})
    return folder


def sample(*arguments) -> int:
    return main(["sample", *map(str, arguments), "--no-progress", "--device", "cpu"])


def test_prompts_are_drawn_a_seed_a_sample_in_any_batches(saved, tmp_path):
    pipe, call = student_of("sd15")
    size = '{"height": 16, "width": 16}'
    asked = saved / "sd15", "--prompt", "seven", "--arguments", size, "-n", 3, "--seed", 5
    assert sample(*asked, "--out", tmp_path / "one", "--save", "png") == 0
    assert sample(*asked, "--out", tmp_path / "other", "--batch-size", 2) == 0
    one, other = (load_file(tmp_path / f / "samples.safetensors") for f in ("one", "other"))
    assert one["samples"].shape == (3, 3, 16, 16)
    assert apart(one["samples"], other["samples"]) < 1e-4
    given = {"prompt": "seven", "height": 16, "width": 16, "guidance_scale": 1.0}
    expected = torch.as_tensor(draw(pipe, given, 6, output_type="pt"))
    assert apart(one["samples"][1:2], 2 * expected - 1) < 1e-4
    assert call["prompt"] != ["seven"]
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {"samples.safetensors", "samples.png", "0000.png", "0001.png", "0002.png"}
    assert sample(*asked, "--out", tmp_path / "one") == 0  # the very same


def test_labels_are_drawn_and_latents_as_they_are(saved, tmp_path):
    asked = saved / "dit", "--label", 3, "-n", 2, "--steps", 4, "--out", tmp_path / "out"
    assert sample(*asked) == 0
    (samples,) = load_file(tmp_path / "out" / "samples.safetensors").values()
    assert samples.ndim == 4
    assert samples.abs().max() <= 1
    latent = saved / "sd15", "--prompt", "one", "-n", 1, "--out", tmp_path / "latent"
    size = '{"height": 16, "width": 24, "output_type": "latent"}'
    assert sample(*latent, "--arguments", size) == 0
    (samples,) = load_file(tmp_path / "latent" / "samples.safetensors").values()
    assert samples.shape == (1, 4, 8, 12)


@pytest.mark.parametrize(
    ("family", "arguments", "told"),
    [
        ("sd15", (), "is asked for samples of something: give --prompt"),
        ("sd15", ("--prompt", "a", "--label", 1), "takes no class_labels: leave --label out"),
        ("dit", ("--label", 1, "--prompt", "a"), "takes no prompt: leave --prompt out"),
        ("dit", ("--label", 1, "--steps", 9), "distilled for 4 steps, got 9"),
        ("sd15", ("--prompt", "a", "--arguments", "[1]"), "--arguments is a JSON object"),
        ("sd15", ("--prompt", "a", "--arguments", '{"hight": 8}'), "did you mean height?"),
        (
            "sd15",
            ("--prompt", "a", "--arguments", '{"guidance_scale": "strong"}'),
            "Pipeline fails",
        ),
        ("mnist", ("--prompt", "a"), "--prompt is for students that are pipelines"),
    ],
)
def test_what_it_does_not_take_is_one_line(saved, tmp_path, capsys, family, arguments, told):
    model = saved / family if family != "mnist" else family
    assert sample(model, *arguments, "-n", 1, "--out", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_samples_in_the_folder_are_kept(saved, tmp_path, capsys):
    asked = saved / "dit", "--label", 3, "-n", 1, "--out", tmp_path
    assert sample(*asked) == 0
    before = (tmp_path / "samples.safetensors").read_bytes()
    assert sample(*asked, "--seed", 1) == 2
    assert "holds other samples" in capsys.readouterr().err
    assert (tmp_path / "samples.safetensors").read_bytes() == before
