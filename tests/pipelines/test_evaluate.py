"""`sigdeg evaluate STUDENT PIPELINE --prompts FILE`: a student judged anew, beside real images."""

import copy
import json
import shutil

import pytest
import torch
from PIL import Image

from sigdeg import SigdegError
from sigdeg.cli import main
from sigdeg.files import read_tensors, save_tensors
from sigdeg.pipelines import (
    PipelineRecipe,
    SigDEGScheduler,
    add_signature,
    attach,
    distill_pipeline,
    evaluate_pipeline,
    load_pipeline,
    pipeline_config,
    save_student,
    unguided,
)
from sigdeg.pipelines.guidance import Guidance
from sigdeg.runs import fingerprint
from tests.pipelines.zoo import FAMILIES

STEPS = (2, 1)
BUDGET = {"paths": 24, "held_out": 8, "batch_size": 8, "refinement": 2, "iterations": 2}
QUICK = {"refinement": 2, "progress": False}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A pipeline, a student of adapters that it taught with guidance, prompts and pictures."""
    place = tmp_path_factory.mktemp("evaluated")
    family = FAMILIES["sd15"]()
    family.pipe.save_pretrained(place / "teacher")
    (place / "prompts.txt").write_text("a cat\na dog\n")
    call = {"prompt": ["a cat", "a dog"], "guidance_scale": 3.0, "height": 16, "width": 16}
    recipe = PipelineRecipe(STEPS, 2, rank=2)
    config = pipeline_config(STEPS, **BUDGET, tracker="none")
    distill_pipeline(family.pipe, [call], place / "run", recipe, config, progress=False)
    for name, size in (("real", 16), ("large", 20)):
        (place / name).mkdir()
        for i in range(8):
            image = Image.new("RGB", (size, size), (30 * i, 0, 90))
            image.save(place / name / f"{i}.png")
    return place


def run(places, *options, out="evaluation"):
    folders = str(places / "run"), str(places / "teacher")
    asked = ["--samples", "4", "--refinement", "2", "--out", str(places / out)]
    return main(["evaluate", *folders, *asked, *options, "--no-progress"])


SIZE = ("--arguments", json.dumps({"height": 16, "width": 16}))


@pytest.fixture(scope="module")
def evaluated(places):
    """The student's run folder beside real images, from the command line."""
    assert run(places, *asked(places), *real(places)) == 0
    return places / "evaluation"


def asked(places):
    return ["--prompts", str(places / "prompts.txt"), *SIZE]


def real(places):
    return ["--data", str(places / "real"), "--features", "pixels"]


def test_it_writes_a_report_beside_real_images(places, evaluated, capsys):
    results = json.loads((evaluated / "results.json").read_text())
    rows = [(row["method"], row["nfe"]) for row in results["rows"]]
    assert rows == [("teacher", 4), *((m, k) for k in STEPS for m in ("sig-deg", "untrained"))]
    assert all({"sliced_w1", "fid", "recall"} <= row["metrics"].keys() for row in results["rows"])
    assert results["floor"]["fid"]["mean"] >= 0
    assert (evaluated / "figures" / "samples.png").is_file()
    runs = sorted((evaluated / "runs").iterdir())
    before = [path.stat().st_mtime_ns for path in runs]
    assert run(places, *asked(places), *real(places)) == 0  # it is there already
    assert capsys.readouterr().out.splitlines()[-1].endswith("report.html")
    assert [path.stat().st_mtime_ns for path in runs] == before
    assert run(places, *asked(places)) == 2  # another one: without real images
    assert "holds another run" in capsys.readouterr().err


def test_guidance_is_what_the_student_was_taught(places, evaluated):
    pipe = load_pipeline(places / "teacher")
    call = {"prompt": ["a cat", "a dog"], "height": 16, "width": 16}
    guided = {**call, "guidance_scale": 3.0}
    before = fingerprint(pipe.unet)
    made = evaluate_pipeline(places / "run", pipe, [guided], places / "one", 4, **QUICK)
    assert made.teacher.off == {"guidance_scale": 1.0} == made.off
    assert fingerprint(pipe.unet) == before  # the student's adapters are not on the teacher
    assert not hasattr(pipe.unet, "signature")
    told = [
        json.loads((place / "config.json").read_text()) for place in (places / "one", evaluated)
    ]
    assert [c["guidance_scale"] for c in told[1]["calls"]] == [3.0]
    assert told[0].items() <= told[1].items()  # which has the real images besides


def test_a_student_that_learnt_nothing_is_the_untrained_step(tmp_path):
    family = FAMILIES["dit"](2)
    pipe = copy.copy(family.pipe)
    _, known = unguided(pipe, family.call)
    step = {"order": 2, "steps": list(STEPS), "response_std": 1.0, "student": "mine"}
    pipe.scheduler = SigDEGScheduler.like(pipe.scheduler, **step)
    pipe.transformer = add_signature(copy.deepcopy(pipe.transformer), known, 2, "mine")
    save_student(pipe, tmp_path / "student", guidance=Guidance(off=True))
    given = tmp_path / "student", family.pipe, [family.call], tmp_path / "run", 4
    judged = evaluate_pipeline(*given, **QUICK).judged
    for count in STEPS:
        assert torch.equal(judged.student[count], judged.untrained[count])
        assert float((judged.student[count] - judged.teacher).abs().max()) > 1e-3
    other = evaluate_pipeline(*given[:3], tmp_path / "other", 4, **QUICK, seed=2).judged
    assert not torch.equal(other.teacher, judged.teacher)
    with pytest.raises(SigdegError, match="this pipeline is a student"):
        evaluate_pipeline(tmp_path / "student", pipe, *given[2:], **QUICK)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "give one of them"),
        (("--prompts", "PROMPTS", "--guidance", "2"), "other students than pipelines"),
        (("--prompts", "PROMPTS", "--data", "PLACE/large", "--features", "pixels"), "20 x 20"),
        (("--prompts", "PROMPTS", "--data", "PLACE/none", "--features", "pixels"), "neither"),
        (("--prompts", "PROMPTS", "--resize"), "give --data"),
        (("--prompts", "PLACE/none.txt"), "No such file"),
    ],
)
def test_bad_input_is_one_line_and_claims_nothing(places, capsys, options, told):
    prompts = str(places / "prompts.txt")
    given = [o.replace("PROMPTS", prompts).replace("PLACE", str(places)) for o in options]
    assert run(places, *given, *SIZE, out="refused") == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sigdeg: ")]
    assert len(said) == 1
    assert told in said[0]
    assert not (places / "refused").exists()


def test_prompts_are_for_pipelines(capsys, tmp_path):
    asked = ["mnist", "mnist-teacher", "--prompts", "x.txt", "--out", str(tmp_path / "run")]
    assert main(["evaluate", *asked]) == 2
    assert "for students that are pipelines" in capsys.readouterr().err


def test_calls_of_several_sizes_make_the_samples_that_are_asked_for(places, tmp_path):
    pipe = load_pipeline(places / "teacher")
    size = {"height": 16, "width": 16, "guidance_scale": 3.0}
    calls = [{"prompt": prompts, **size} for prompts in (["a", "b", "c"], ["d"])]
    made = evaluate_pipeline(places / "run", pipe, calls, tmp_path / "run", 4, **QUICK)
    assert [n for _, _, n in made.judged.asked] == [3, 1, 3, 1]
    assert made.verdict.n == 4


def test_weights_of_adapters_are_finite(places, tmp_path):
    for file in ("signature.safetensors", "pytorch_lora_weights.safetensors"):
        folder = shutil.copytree(places / "run" / "student", tmp_path / file)
        tensors, metadata = read_tensors(folder / file)
        name = max(tensors)
        tensors[name] = torch.full_like(tensors[name], torch.nan)
        metadata.pop("digest")
        save_tensors(folder / file, tensors, metadata)
        pipe = load_pipeline(places / "teacher")
        with pytest.raises(SigdegError, match=rf"{file} is damaged: its .* holds NaN"):
            attach(pipe, folder)
        assert not hasattr(pipe.unet, "signature")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"width": 7}, "not told its guidance as its card says"),
        ({"way": "input"}, "not told its guidance as its card says"),
        ({"way": "input", "scales": []}, "guidance.scales must be what the student is told"),
        ({"way": "told"}, "guidance.way"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(places, tmp_path, capsys, changed, told):
    folder = shutil.copytree(places / "run" / "student", tmp_path / "student")
    card = json.loads((folder / "sigdeg.json").read_text())
    card.pop("_digest")
    card["guidance"] |= changed
    (folder / "sigdeg.json").write_text(json.dumps(card))
    asked = ["--prompts", str(places / "prompts.txt"), *SIZE, "--out", str(tmp_path / "run")]
    assert main(["evaluate", str(folder), str(places / "teacher"), *asked]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_student_of_another_teacher_is_refused(places, tmp_path):
    def refused(pipe, call, told):
        with pytest.raises(SigdegError, match=told):
            evaluate_pipeline(places / "run", pipe, [call], tmp_path / "x", 4, **QUICK)
        assert not (tmp_path / "x").exists()

    refused(FAMILIES["ddpm"]().pipe, {"batch_size": 2}, "does not fit")
    pipe = load_pipeline(places / "teacher")
    call = {"prompt": ["a cat", "a dog"], "height": 16, "width": 16}
    for change, told in (({"beta_end": 0.03}, "noise levels"), ({"prediction_type": "sample"}, "")):
        other = copy.copy(pipe)
        other.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, **change)
        refused(other, call, told or "other predictions")
