"""`sigdeg distill PIPELINE --prompts FILE`: a saved pipeline of any kind, from the command line."""

import json

import pytest

from sigdeg.cli import main
from tests.pipelines.zoo import FAMILIES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pipelines") / "cats"
    FAMILIES["sd15"]().pipe.save_pretrained(place)
    (place.parent / "prompts.txt").write_text("a cat\na dog\n")
    return place


def run(folder, *options):
    return main(["distill", str(folder), "--out", str(folder.parent / "run"), *options])


BUDGET = ["--iterations", "2", "--paths", "20", "--batch-size", "4", "--refinement", "2"]
BUDGET += ["--steps", "2", "--tracker", "none"]
SIZE = {"height": 16, "width": 16}


def test_it_makes_a_pipeline_and_a_report(folder, capsys):
    from diffusers import DiffusionPipeline

    prompts = str(folder.parent / "prompts.txt")
    asked = ["--prompts", prompts, "--guidance-scale", "3", "--arguments", json.dumps(SIZE)]
    assert run(folder, *asked, *BUDGET, "--no-progress", "--runs-only") == 0
    runs = folder.parent / "run" / "runs"
    assert capsys.readouterr().out.splitlines() == [str(runs)]
    before = {path.name: path.stat().st_mtime_ns for path in runs.iterdir()}
    assert run(folder, *asked, *BUDGET, "--no-progress") == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("report.html")
    assert {path.name: path.stat().st_mtime_ns for path in runs.iterdir()} == before
    student = DiffusionPipeline.from_pretrained(folder.parent / "run" / "student")
    student.set_progress_bar_config(disable=True)
    image = student("a cat", num_inference_steps=2, guidance_scale=1.0, **SIZE)
    assert image.images[0].size == (16, 16)


@pytest.mark.slow
def test_it_makes_adapters_that_are_told_their_guidance(folder, tmp_path):
    from sigdeg.pipelines import attach, load_pipeline

    rows = [{"prompt": "a cat", "guidance_scale": scale, **SIZE} for scale in (1.0, 4.0)]
    (tmp_path / "calls.json").write_text(json.dumps(rows))
    asked = ["--calls", str(tmp_path / "calls.json"), "--guidance-input", "--rank", "2"]
    out = str(tmp_path / "run")
    assert main(["distill", str(folder), "--out", out, *asked, *BUDGET, "--no-progress"]) == 0
    student = attach(load_pipeline(folder), out)
    student.set_progress_bar_config(disable=True)
    image = student("a cat", num_inference_steps=2, guidance_scale=4.0, **SIZE)
    assert image.images[0].size == (16, 16)
    told = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "told the guidance: guidance_scale from 1 to 4" in told


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--prompts, --calls"),
        (("--guidance-scale", "3"), "given --prompts or --calls"),
        (("--prompts", "none.txt"), "No such file"),
        (("--rank", "4"), "given --prompts or --calls"),
        (("--prompts", "PROMPTS", "--guidance-input"), "calls of several scales"),
        (("--prompts", "PROMPTS", "--calls", "PROMPTS"), "one of them"),
        (("--prompts", "PROMPTS", "--plan", "vanilla"), "--plan"),
        (("--prompts", "PROMPTS", "--arguments", "[1]"), "JSON object"),
        (("--prompts", "PROMPTS", "--arguments", '{"heigt": 16}'), "did you mean height"),
    ],
)
def test_bad_input_is_one_line_and_claims_nothing(folder, capsys, options, said):
    given = [o.replace("PROMPTS", str(folder.parent / "prompts.txt")) for o in options]
    out = folder.parent / "refused"
    assert main(["distill", str(folder), "--out", str(out), *given]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sigdeg: ")]
    assert len(told) == 1
    assert said in told[0]
    assert not out.exists()
