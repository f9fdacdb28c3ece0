"""Distilling a pipeline: what comes back is the pipeline, with a student that learnt in it."""

import pytest
import torch
from safetensors.torch import load_file

import sigdeg
from sigdeg.errors import SigdegError
from sigdeg.pipelines import PipelineRecipe, SigDEGScheduler, distill_pipeline, pipeline_config
from sigdeg.pipelines.prepare import prepare
from sigdeg.pipelines.trace import call_pipeline
from tests.pipelines.zoo import FAMILIES

RECIPE = PipelineRecipe(steps=(4, 2), order=2)
BUDGET = dict(paths=60, held_out=20, batch_size=16, learning_rate=3e-3, refinement=4, warmup=5)


def config(iterations, **options):
    return pipeline_config(RECIPE.steps, iterations=iterations, tracker="none", **BUDGET, **options)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    family, out = FAMILIES["sd3"](2), tmp_path_factory.mktemp("sd3")
    made = distill_pipeline(family.pipe, [family.call], out, RECIPE, config(40))
    return family, out, made


def sample(pipe, call, steps, seed=1):
    images = call_pipeline(pipe, call, steps, torch.Generator().manual_seed(seed))[0]
    return torch.as_tensor(images)


def test_the_student_learns_and_says_so(distilled):
    _, _, made = distilled
    assert made.history[-1, 2] < 0.6  # 1 is the untrained student
    assert made.verdict.n == 10
    near = made.verdict.levels[0].path
    assert near.student.mean < near.untrained.mean


def test_the_student_is_the_pipeline_of_its_teacher(distilled):
    from diffusers import DiffusionPipeline

    family, out, made = distilled
    gone = {name: None for name, part in made.pipe.components.items() if part is None}
    loaded = DiffusionPipeline.from_pretrained(out / "student", **gone)
    assert type(loaded) is type(family.pipe)
    assert isinstance(loaded.scheduler, SigDEGScheduler)
    call = {**family.call, **made.off}
    for steps in (4, 2):
        found = sample(loaded, call, steps)
        assert torch.equal(found, sample(made.pipe, call, steps))
    assert not isinstance(family.pipe.scheduler, SigDEGScheduler)
    assert not hasattr(family.pipe.transformer, "signature")


def test_an_interrupted_run_goes_on_to_the_same_weights(distilled, tmp_path):
    family, _, made = distilled
    with pytest.raises(KeyboardInterrupt):
        stop_after(
            3,  # a rehearsal, and two that are kept
            lambda: distill_pipeline(
                family.pipe, [family.call], tmp_path, RECIPE, config(40), progress=False
            ),
        )
    runs = sorted(path.name for path in (tmp_path / "runs").glob("run-*"))
    assert runs == ["run-00000.safetensors", "run-00001.safetensors"]
    again = distill_pipeline(
        family.pipe, [family.call], tmp_path, RECIPE, config(40), progress=False
    )
    own, other = (m.pipe.transformer.state_dict() for m in (made, again))
    assert all(torch.equal(own[name], other[name]) for name in own)


def stop_after(runs, work):
    """Interrupt work once the teacher has run so often."""
    from sigdeg.pipelines.teacher import PipelineTeacher

    own, count = PipelineTeacher.run, 0

    def run(*args):
        nonlocal count
        if count == runs:
            raise KeyboardInterrupt
        count += 1
        return own(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PipelineTeacher, "run", run)
        work()


@pytest.mark.parametrize(
    ("own", "learns"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)]
)
def test_a_pipeline_in_half_precision_learns_in_single_and_none_in_less(own, learns, tmp_path):
    family = FAMILIES["sd3"](2)
    family.pipe.to(dtype=own)
    call = {
        name: value.to(own) if isinstance(value, torch.Tensor) else value
        for name, value in family.call.items()
    }
    recipe = PipelineRecipe(steps=(2,), order=2)
    made = distill_pipeline(family.pipe, [call], tmp_path, recipe, config(4), progress=False)
    assert {p.dtype for p in made.pipe.transformer.parameters()} == {own}
    weights = load_file(tmp_path / "checkpoints" / "last.safetensors")
    trained = [v for k, v in weights.items() if k.endswith("signature.extra.weight")]
    assert trained
    assert all(v.dtype == learns for v in trained)
    assert torch.isfinite(made.history).all()


def test_a_folder_of_another_run_is_refused(distilled):
    family, out, _ = distilled
    with pytest.raises(SigdegError, match="another run"):
        distill_pipeline(family.pipe, [family.call], out, RECIPE, config(41), progress=False)


def test_a_student_is_no_teacher_of_itself(distilled, tmp_path):
    family, _, made = distilled
    with pytest.raises(SigdegError, match="student already"):
        distill_pipeline(made.pipe, [{**family.call, **made.off}], tmp_path / "new", RECIPE)
    assert not (tmp_path / "new").exists()


def test_ids_of_as_many_tokens_as_there_are_samples_are_no_rows(tmp_path):
    """Of 16 samples of 16 tokens the tokens' places belong to all samples."""
    family, recipe = FAMILIES["flux"](16), PipelineRecipe(steps=(2,), order=1)
    ready = prepare(family.pipe, [family.call], tmp_path / "run", recipe, config(1), progress=False)
    kept = ready.teacher.run(ready.calls[0], seed=0).calls["2.0"]
    shapes = [getattr(leaf, "shape", ())[:] for leaf in kept.leaves]
    assert not kept.by_row[shapes.index((16, 3))]
    assert sum(kept.by_row) == sum(shape[:1] == (16,) for shape in shapes) - 1


def test_a_decoder_that_fails_costs_no_more_than_the_pictures(tmp_path):
    """Of calls for states the pipeline never decodes: the report tries to, and does without."""
    family = FAMILIES["flux"](2)
    assert family.call["output_type"] == "latent"
    family.pipe.vae.register_to_config(shift_factor=None)
    given = {"paths": 12, "held_out": 4, "batch_size": 4, "refinement": 2, "iterations": 1}
    out = tmp_path / "run"
    sigdeg.distill(
        family.pipe, calls=[family.call], out=out, steps=2, tracker="none", progress=False, **given
    )
    assert (out / "report.html").is_file()
    assert not (out / "figures" / "samples.png").exists()
