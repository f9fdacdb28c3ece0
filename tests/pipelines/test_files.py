"""Students' pipelines as folders: saved, read by diffusers and by others, put onto other ones."""

import json
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from sigdeg import SigdegError, load_model
from sigdeg.files import PIPELINE_CARD
from sigdeg.model import Card
from sigdeg.pipelines import SigDEGScheduler, attach, load_pipeline, save_student
from sigdeg.pipelines.files import check_student, read_card
from sigdeg.pipelines.guidance import Guidance
from tests.pipelines.parts import images
from tests.pipelines.student import apart, draw, student_of
from tests.pipelines.zoo import FAMILIES

CALL = {"guidance_scale": 1.0}
CARD = Card(name="tiny", teacher="its teacher", verdict="It works.", seed=0)
GUIDANCE = Guidance("guidance_scale", (3.0,), off=True)
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    pipe, call = student_of("sd15", residual_noise="energy", lookahead=0.5)
    folder = tmp_path_factory.mktemp("students") / "student"
    save_student(pipe, folder, CALL, CARD, GUIDANCE)
    torch.save((call, draw(pipe, call)), folder.parent / "drawn.pt")
    return folder


def drawn(saved: Path):
    return torch.load(saved.parent / "drawn.pt")


@pytest.fixture
def damaged(saved, tmp_path):
    """A copy of the folder whose files can be changed, as JSON or as tensors."""
    import shutil

    folder = tmp_path / "damaged"
    shutil.copytree(saved, folder)

    def change(name: str, **values) -> Path:
        file = folder / name
        if file.suffix == ".json":
            held = json.loads(file.read_text())
            write = lambda kept: file.write_text(json.dumps(kept))  # noqa: E731
        else:
            held, write = load_file(file), lambda kept: save_file(kept, file)
        held |= values
        write({key: value for key, value in held.items() if value is not None})
        return folder

    return change


def test_diffusers_reads_it_to_the_bit(saved):
    call, expected = drawn(saved)
    pipe = DiffusionPipeline.from_pretrained(saved)
    assert type(pipe) is diffusers.StableDiffusionPipeline
    assert type(pipe.unet).__name__ == "SigDEGUNet2DConditionModel"
    assert isinstance(pipe.unet, diffusers.UNet2DConditionModel)
    assert torch.equal(draw(pipe, call), expected)
    again = saved.parent / "again"
    pipe.save_pretrained(again)
    assert torch.equal(draw(DiffusionPipeline.from_pretrained(again), call), expected)
    assert torch.equal(draw(load_pipeline(again), call), expected)  # without a card
    assert read_card(again) == ({}, Card())


def test_half_precision_is_asked_for_as_of_any_pipeline(saved):
    call, expected = drawn(saved)
    pipe = load_pipeline(saved, dtype=torch.bfloat16)
    assert pipe.unet.signature.extra.weight.dtype == torch.bfloat16
    assert apart(draw(pipe, call).float(), expected) < 0.05


def test_another_process_reads_it_once_sigdeg_is_imported(tmp_path):
    pipe, call = student_of("ddpm", residual_noise="energy", lookahead=0.5)
    save_student(pipe, tmp_path / "student")
    save_file({"drawn": draw(pipe, call).contiguous()}, tmp_path / "drawn.safetensors")
    source = f"""
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
try:
    DiffusionPipeline.from_pretrained({str(tmp_path / "student")!r})
except ValueError as error:
    assert "sigdeg" in str(error) and "has not been imported" in str(error), error
else:
    raise AssertionError("it was read without its classes")
import sigdeg
pipe = DiffusionPipeline.from_pretrained({str(tmp_path / "student")!r})
pipe.set_progress_bar_config(disable=True)
drawn = pipe(**{call!r}, num_inference_steps=4, generator=torch.Generator().manual_seed(0))[0]
expected = load_file({str(tmp_path / "drawn.safetensors")!r})["drawn"]
assert torch.equal(torch.as_tensor(drawn), expected)
"""
    run = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("options", [{"variant": "fp16"}, {"max_shard_size": "50KB"}])
def test_variants_and_shards_are_those_of_any_pipeline(tmp_path, options):
    pipe, call = student_of("sd15")
    pipe.save_pretrained(tmp_path, **options)
    asked = {k: v for k, v in options.items() if k == "variant"}
    assert torch.equal(draw(load_pipeline(tmp_path, **asked), call), draw(pipe, call))


def test_components_that_are_missing_stay_so(tmp_path):
    pipe, call = student_of("dit")
    bare, other = student_of("sd_img2img")
    for made, given in ((pipe, call), (bare, other)):
        save_student(made, tmp_path / "student")
        loaded = load_pipeline(tmp_path / "student")
        assert {k for k, v in loaded.components.items() if v is None} == {
            k for k, v in made.components.items() if v is None
        }
        assert apart(draw(loaded, given), draw(made, given)) < 5e-6


def test_its_card_says_what_made_it_and_how_to_call_it(saved):
    assert read_card(saved) == (CALL, CARD)
    text = (saved / "README.md").read_text()
    for told in ("its teacher", "num_inference_steps=4, guidance_scale=1.0", "It works.", "3"):
        assert told in text
    assert "from_pretrained" in text


def test_a_teacher_is_read_too(tmp_path):
    teacher = FAMILIES["ddpm"]().pipe
    teacher.save_pretrained(tmp_path)
    assert type(load_pipeline(tmp_path)) is diffusers.DDPMPipeline
    assert load_pipeline(teacher) is teacher
    with pytest.raises(SigdegError, match="without a student: there is nothing to attach"):
        attach(teacher, tmp_path)
    with pytest.raises(SigdegError, match="has no student in it"):
        save_student(teacher, tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_it_is_attached_to_any_pipeline_of_its_network(saved):
    call, expected = drawn(saved)
    teacher = FAMILIES["sd15"]().pipe
    assert attach(teacher, saved) is teacher
    assert torch.equal(draw(teacher, call), expected)
    student = load_pipeline(saved)
    family = FAMILIES["sd_controlnet"]()
    controlled = attach(family.pipe.to(torch.bfloat16), saved)
    assert controlled.unet.dtype == torch.bfloat16
    controlled.to(torch.float32)
    plain = draw(controlled, family.unguided, controlnet_conditioning_scale=0.0)
    assert apart(draw(controlled, family.unguided), plain) > 1e-3
    texts = {k: v for k, v in family.unguided.items() if k not in ("image", "num_inference_steps")}
    assert apart(plain, draw(student, texts)) < 5e-2  # weights that were in half precision
    family = FAMILIES["sd_img2img"]()
    assert draw(attach(family.pipe, saved), family.unguided, image=images(1)).isfinite().all()


def test_it_is_attached_to_no_other(saved):
    other = FAMILIES["ddpm"]().pipe
    network, scheduler = other.unet, other.scheduler
    with pytest.raises(SigdegError, match=r"unet is a SigDEGUNet2DCondition.* a UNet2DModel"):
        attach(other, saved)
    assert (other.unet, other.scheduler) == (network, scheduler)
    with pytest.raises(SigdegError, match=r"unet .* and this DiTPipeline has none"):
        attach(FAMILIES["dit"]().pipe, saved)


def test_nothing_is_overwritten_but_a_student(saved, tmp_path):
    pipe = load_pipeline(saved)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(SigdegError, match="holds other files"):
        save_student(pipe, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"
    for card in (CARD, Card(name="second")):
        save_student(pipe, tmp_path / "student", card=card)
        assert read_card(tmp_path / "student")[1] == card
    with pytest.raises(SigdegError, match="must be JSON"):
        save_student(pipe, tmp_path / "student", {"image": images(1)})
    assert read_card(tmp_path / "student")[1].name == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "student"]


SCHEDULER, NETWORK = "scheduler/scheduler_config.json", "unet/config.json"


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        (SCHEDULER, {"sigdeg": {"steps": 4}}, "schedule is missing"),
        (SCHEDULER, {"sigdeg": None}, "not of one student"),
        ("model_index.json", {"scheduler": ["diffusers", "DDIMScheduler"]}, "without its SigDEG"),
        (NETWORK, {"sigdeg": None}, "not of one student"),
        (NETWORK, {"sigdeg": {"student": "tiny", "order": 3}}, "trace is missing"),
        (f"unet/{WEIGHTS}", {"signature.extra.weight": None}, "signature.extra.weight"),
        (
            f"unet/{WEIGHTS}",
            {"signature.extra.weight": None, "signature.features.weight": None},
            "beside its input layer, is missing",
        ),
        (f"unet/{WEIGHTS}", {"signature.extra.weight": torch.zeros(8, 4, 3, 3)}, "shape"),
        (
            f"unet/{WEIGHTS}",
            {"conv_out.bias": torch.full((4,), torch.nan)},
            "conv_out.bias holds NaN",
        ),
    ],
)
def test_what_was_changed_is_one_line(damaged, name, change, told):
    folder = damaged(name, **change)
    with pytest.raises(SigdegError, match=told) as error:
        load_pipeline(folder)
    assert "\n" not in str(error.value)
    with pytest.raises(SigdegError):
        attach(FAMILIES["sd15"]().pipe, folder)


def test_parts_that_do_not_fit_are_one_line(damaged, saved):
    step = json.loads((saved / SCHEDULER).read_text())["sigdeg"]
    folder = damaged(SCHEDULER, sigdeg={**step, "order": step["order"] + 1})
    with pytest.raises(SigdegError, match="coefficients of the path, and its unet sees"):
        load_pipeline(folder)
    (folder / SCHEDULER).unlink()
    with pytest.raises(SigdegError, match="holds no readable scheduler_config"):
        load_pipeline(folder)
    (folder / SCHEDULER).write_text((saved / SCHEDULER).read_text())
    damaged(NETWORK, _class_name="SigDEGNone")
    with pytest.raises(SigdegError, match="no attribute 'SigDEGNone'"):
        attach(FAMILIES["sd15"]().pipe, folder)


def test_parts_of_a_teacher_that_are_sigdegs_make_no_student(tmp_path):
    index = {"_class_name": "LDMPipeline", "vqvae": ["sigdeg", "Autoencoder"]}
    assert check_student(tmp_path, index) == []


def test_a_layer_that_is_not_there_is_one_line(damaged, saved):
    told = json.loads((saved / NETWORK).read_text())["sigdeg"]
    folder = damaged(NETWORK, sigdeg={**told, "trace": {**told["trace"], "layer": "conv_input"}})
    with pytest.raises(SigdegError, match="conv_input"):
        load_pipeline(folder)


def test_an_axis_that_is_not_there_is_one_line(damaged, saved):
    call, _ = drawn(saved)
    told = json.loads((saved / NETWORK).read_text())["sigdeg"]
    folder = damaged(NETWORK, sigdeg={**told, "trace": {**told["trace"], "axis": 7}})
    with pytest.raises(SigdegError, match="is not its student's state") as error:
        draw(load_pipeline(folder), call)
    assert "\n" not in str(error.value)


def test_weights_that_are_cut_are_one_line(damaged):
    folder = damaged(NETWORK)
    file = folder / "unet" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SigdegError, match="not a whole safetensors file"):
        load_pipeline(folder)


def test_a_changed_card_is_refused(damaged):
    folder = damaged(PIPELINE_CARD, call={"guidance_scale": 9.0})
    with pytest.raises(SigdegError, match="was changed or damaged"):
        read_card(folder)


def test_what_is_no_pipeline_is_refused(tmp_path, saved):
    with pytest.raises(SigdegError, match="holds no pipeline"):
        load_pipeline(tmp_path)
    with pytest.raises(SigdegError, match="a dict is no diffusers pipeline"):
        load_pipeline({})
    with pytest.raises(SigdegError, match="student that is a pipeline: load_pipeline"):
        load_model(saved)


def test_the_folder_of_a_run_will_do(tmp_path):
    pipe, _ = student_of("ddpm")
    save_student(pipe, tmp_path / "run" / "student")
    assert isinstance(load_pipeline(tmp_path / "run").scheduler, SigDEGScheduler)
