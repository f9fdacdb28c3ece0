"""What becomes of guidance: baked, told to the network, or left to be guided again."""

import copy
import warnings

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from sigdeg.errors import SigdegError
from sigdeg.grids import refine
from sigdeg.paths import Batch
from sigdeg.pipelines import PipelineRecipe, SigDEGScheduler, distill_pipeline, pipeline_config
from sigdeg.pipelines.calls import Calls
from sigdeg.pipelines.guidance import Guidance, find_guidance, most_guided
from sigdeg.pipelines.lora import add_adapter, load_adapter, remove_adapter, save_adapter
from sigdeg.pipelines.network import add_signature
from sigdeg.pipelines.student import PipelineStudent
from sigdeg.pipelines.teacher import PipelineTeacher
from sigdeg.pipelines.trace import call_pipeline, recorded, unguided
from tests.pipelines.student import draw, student_of
from tests.pipelines.zoo import FAMILIES

STEPS = 2
SCALES = [{"guidance_scale": scale} for scale in (1.0, 3.0, 5.0)]
WEAK, STRONG = SCALES[0], SCALES[-1]
CLASSES = [{"class_labels": labels, "guidance_scale": 1.0} for labels in ([1, 2], [2, 1])]


def teacher_of(family, guidance):
    off, trace = unguided(family.pipe, family.call)
    turned = {name: off[name] for name in off if off[name] is not family.call.get(name)}
    core = SigDEGScheduler.like(family.pipe.scheduler).core.written
    step = PipelineStudent.read({**core, "order": 2, "steps": [STEPS]})
    rows = list(refine(step.schedule, step.grid(), 2))
    return PipelineTeacher(family.pipe, turned, trace, step, rows, guidance)


@pytest.mark.parametrize("name", ["sd2_v", "sd3", "wan", "cogview4"])
def test_the_negative_half_is_the_call_of_the_negative_prompt(name):
    family = FAMILIES[name](2)
    teacher = teacher_of(family, Guidance("guidance_scale", (3.0,), off=True, dropout=0.5))
    run = teacher.run(family.call, 1)
    told = {k.removeprefix("negative_"): v for k, v in family.call.items() if "negative_" in k}
    through = 1, STEPS, 0, run.states
    found = teacher.record(family.call, *through, dropped=True)
    expected = teacher.record({**family.call, **told}, *through)
    assert found.keys() == expected.keys() == run.calls.keys()
    for place, call in found.items():
        assert call.kind == expected[place].kind
        pairs = list(zip(call.leaves, expected[place].leaves, strict=True))
        assert all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in pairs)
        other = run.calls[place]
        assert not all(
            torch.equal(a, b)
            for a, b in zip(call.leaves, other.leaves, strict=True)
            if torch.is_tensor(a)
        )


def test_without_a_condition_a_class_is_none_of_them():
    family = FAMILIES["dit"](1)
    teacher = teacher_of(family, Guidance("guidance_scale", (3.0,), off=True, dropout=0.5))
    run = teacher.run(family.call, 1, dropped=True)
    none = family.pipe.transformer.config.num_embeds_ada_norm
    labels = [leaf for call in run.calls.values() for leaf in call.leaves if torch.is_tensor(leaf)]
    assert len([v for v in labels if v.dtype == torch.long and bool((v == none).all())]) == STEPS


def test_guidance_by_three_outputs_is_refused():
    family = FAMILIES["ip2p"]()
    teacher = teacher_of(family, Guidance("guidance_scale", (3.0,), off=True, dropout=0.5))
    with pytest.raises(SigdegError, match="for 3 outputs"):
        teacher.run(family.call, 1, dropped=True)


def test_what_cannot_be_taught_is_refused():
    def asked(name, calls, off, **options):
        pipe = FAMILIES[name]().pipe
        return find_guidance(pipe, calls, off, ["unet"], **options)

    with pytest.raises(SigdegError, match=r"calls of several scales.*these have 5"):
        asked("sd15", [STRONG], {"guidance_scale": 1.0}, way="input")
    with pytest.raises(SigdegError, match="DDPMPipeline has no guidance"):
        asked("ddpm", [{}], {}, dropout=0.1)
    with pytest.raises(SigdegError, match="not both"):
        asked("sd15", SCALES, {"guidance_scale": 1.0}, way="input", dropout=0.1)
    with pytest.raises(SigdegError, match="unknown guidance 'some'"):
        asked("sd15", SCALES, {"guidance_scale": 1.0}, way="some")
    with pytest.raises(SigdegError, match=r"dropout must lie in \[0, 1\)"):
        asked("sd15", SCALES, {"guidance_scale": 1.0}, dropout=1.0)


@pytest.mark.parametrize(
    ("name", "call", "off", "options", "told"),
    [
        ("sd15", {"guidance_scale": 5}, {"guidance_scale": 1.0}, {}, ["scale 5", "no effect"]),
        ("sd15", {}, {"guidance_scale": 1.0}, {}, ["scale 7.5 is in its weights"]),
        ("sd15", {"guidance_scale": 1}, {}, {}, ["without guidance"]),
        ("ddpm", {}, {}, {}, ["without guidance"]),
        ("flux", {"guidance_scale": 3.5}, {}, {}, ["told the guidance by its pipeline", "3.5"]),
        ("qwen", {"true_cfg_scale": 4}, {"true_cfg_scale": 1.0}, {}, ["scale 4"]),
        ("sd15", {"guidance_scale": 2}, {"guidance_scale": 1.0}, {"dropout": 0.1}, ["again", "2"]),
    ],
)
def test_a_card_says_what_became_of_guidance(name, call, off, options, told):
    says = find_guidance(FAMILIES[name]().pipe, [call], off, [], **options).says()
    assert all(word in says for word in told)


def test_the_strongest_call_tells_how_guidance_is_turned_off():
    pipe = FAMILIES["sd15"]().pipe
    assert most_guided(pipe, [WEAK, STRONG, SCALES[1]]) is STRONG
    assert most_guided(pipe, [WEAK, {}]) == {}  # its default guides


def drawn(pipe, call, seed=1):
    made = call_pipeline(pipe, call, STEPS, torch.Generator().manual_seed(seed))[0]
    return torch.as_tensor(made)


@pytest.fixture(scope="module")
def conditioned():
    """A student of Stable Diffusion whose network is told the guidance, not trained."""
    family = FAMILIES["sd15"]()
    off, trace = unguided(family.pipe, family.call)
    core = SigDEGScheduler.like(family.pipe.scheduler).core.written
    step = {**core, "order": 2, "steps": [STEPS], "student": "mine"}
    pipe = copy.copy(family.pipe)
    pipe.scheduler = SigDEGScheduler.like(family.pipe.scheduler, **step)
    pipe.unet = copy.deepcopy(family.pipe.unet)
    add_signature(pipe.unet, trace, 2, "mine", condition=8)
    return family, pipe, off


def test_a_network_that_is_told_guidance_starts_without_it(conditioned):
    family, pipe, off = conditioned
    with recorded(pipe, pipe.scheduler, ("unet",)) as calls:
        strong = drawn(pipe, {**family.call, "guidance_scale": 7.5})
    assert [len(c.args[0]) for c in calls] == [1] * STEPS
    assert torch.equal(strong, drawn(pipe, {**family.call, "guidance_scale": 1.0}))
    plain = copy.copy(pipe)
    plain.unet = copy.deepcopy(family.pipe.unet)
    add_signature(plain.unet, pipe.unet.signature.trace, 2, "mine")
    assert torch.equal(strong, drawn(plain, off))


def test_adapters_keep_what_takes_the_guidance(conditioned, tmp_path):
    family, pipe, _ = conditioned
    pipe = copy.copy(pipe)
    pipe.unet = copy.deepcopy(pipe.unet)
    add_adapter(pipe.unet, 2)
    names = {name for name, p in pipe.unet.named_parameters() if p.requires_grad}
    assert "time_embedding.cond_proj.weight" in names
    nn.init.normal_(pipe.unet.time_embedding.cond_proj.weight)
    save_adapter({"unet": pipe.unet}, tmp_path)
    other, own = copy.copy(pipe), family.pipe.unet.state_dict()
    other.unet = copy.deepcopy(family.pipe.unet)
    load_adapter(other.components, tmp_path, "mine")
    images = [
        drawn(each, {**family.call, "guidance_scale": scale})
        for each in (pipe, other)
        for scale in (1.0, 7.5)
    ]
    assert torch.equal(images[0], images[2])
    assert torch.equal(images[1], images[3])
    assert not torch.equal(images[0], images[1])
    remove_adapter(other.unet)
    assert other.unet.state_dict().keys() == own.keys()
    assert other.unet.config.time_cond_proj_dim is None


def distilled(name, calls, tmp_path, weights=None, **options):
    """A student of two steps, taught by calls; weights are drawn anew at a scale."""
    family = FAMILIES[name](2)
    recipe = {"guidance": "baked", "dropout": 0.0} | options.pop("recipe")
    if weights is not None:
        generator = torch.Generator().manual_seed(0)
        for p in family.pipe.unet.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.data = weights * noise / (p[0].numel() if p.ndim > 1 else 1) ** 0.5
    recipe = PipelineRecipe((STEPS,), 2, residual_noise=None, lookahead=0.0, **recipe)
    budget = dict(paths=24, held_out=4, batch_size=8, refinement=6, warmup=10, ema=0.9)
    config = pipeline_config((STEPS,), **{**budget, **options}, tracker="none")
    calls = [{**family.call, **call} for call in calls]
    made = distill_pipeline(family.pipe, calls, tmp_path, recipe, config, progress=False)
    return family, made


def ends(made, runs):
    """Where the student ends on the paths of some runs, called as it was there."""
    teacher, counts = made.teacher, [len(run.states) for run in runs]
    rows = torch.tensor([(i, j) for i, n in enumerate(counts) for j in range(n)])
    networks = nn.ModuleDict({n: made.pipe.components[n] for n in teacher.trace.networks})
    calls = Calls(teacher.trace, [run.calls for run in runs], rows)
    step = made.pipe.scheduler.core
    student = PipelineStudent.read(step.written, networks, recorded=calls)
    states, noise = (
        torch.cat(v) for v in zip(*((r.states, r.coefficients) for r in runs), strict=True)
    )
    start = torch.zeros(len(rows), dtype=torch.long)
    batch = Batch(start, states, noise, {"row": torch.arange(len(rows))})
    with torch.no_grad():
        return batch.replay(student, step.grid()).split(counts)


@pytest.mark.parametrize("name", ["sd15", "wan"])  # two halves of a call, and two calls
def test_guidance_that_would_count_twice_is_warned_of(name):
    pipe, call = student_of(name, once=True)
    guided = {**FAMILIES[name]().call, "guidance_scale": 3.0}
    with pytest.warns(UserWarning, match="turn the pipeline's guidance off"):
        draw(pipe, guided)
    other, _ = student_of(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        draw(pipe, call)
        draw(pipe, {**call, "num_images_per_prompt": 2} if name == "sd15" else call)
        draw(other, guided)


@pytest.mark.parametrize("name", ["sd15", "dit"])  # that steps two copies of a guided state
def test_samples_of_one_noise_are_no_guidance(name):
    pipe, _ = student_of(name, once=True)
    family = FAMILIES[name](2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        draw(pipe, family.unguided | ({"class_labels": [0, 1]} if name == "dit" else {}), [0, 0])
    with pytest.warns(UserWarning, match="turn the pipeline's guidance off"):
        draw(pipe, family.call, [0, 0])


def cosine(one, other):
    return float((one * other).sum() / (one.norm() * other.norm()))


def follows(made, family, seed=501):
    """How the student's answer to a scale goes along with the teacher's, on one path."""
    runs = [made.teacher.run({**family.call, **scale}, seed) for scale in (WEAK, STRONG)]
    weak, strong = ends(made, runs)
    return cosine(strong - weak, runs[1].states[:, -1] - runs[0].states[:, -1])


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("told")
    recipe = {"guidance": "input"}
    return folder, *distilled(
        "sd3", SCALES, folder, recipe=recipe, iterations=50, learning_rate=1e-2
    )


def test_a_scale_that_is_told_acts_as_it_does_on_the_teacher(told):
    folder, family, made = told
    assert follows(made, family) > 0.6  # at first the scale does nothing
    call = {**family.call, **made.off}
    made.pipe.scheduler.guidance = 3.0
    middle = drawn(made.pipe, call)
    gone = {name: None for name, part in made.pipe.components.items() if part is None}
    loaded = DiffusionPipeline.from_pretrained(folder / "student", **gone)
    assert torch.equal(drawn(loaded, call), middle)  # the usual scale is the middle one
    assert not hasattr(family.pipe.transformer, "signature")


def test_each_sample_can_have_its_own_scale(told):
    _, family, made = told
    call, scheduler = {**family.call, **made.off}, made.pipe.scheduler
    found = []
    for scale in (1.0, 5.0, [1.0, 5.0]):
        scheduler.guidance = scale
        found.append(drawn(made.pipe, call))
    weak, strong, each = found
    size = float(each.abs().max())
    assert float((each[0] - weak[0]).abs().max()) <= 5e-6 * size
    assert float((each[1] - strong[1]).abs().max()) <= 5e-6 * size
    scheduler.guidance = None
    with pytest.raises(SigdegError, match=r"set pipe\.scheduler\.guidance"):
        drawn(made.pipe, call)


def test_a_student_of_dropped_conditions_can_be_guided_again(tmp_path):
    """Guidance goes from what it draws of any class towards what the teacher draws of this one."""
    recipe = {"dropout": 0.3}
    family, made = distilled(
        "dit", CLASSES, tmp_path, recipe=recipe, paths=32, iterations=60, learning_rate=1e-2
    )
    assert not made.pipe.scheduler.once
    calls = [{**family.call, **call} for call in CLASSES]
    runs = [made.teacher.run(call, 501) for call in calls]
    dropped = made.teacher.run(calls[0], 501, dropped=True)
    with_class, without = ends(made, [runs[0], dropped])
    towards = runs[0].states[:, -1] - runs[1].states[:, -1]  # of two classes, twice the mean's
    assert cosine(with_class - without, towards) > 0.6
    weak, strong = (drawn(made.pipe, {**calls[0], "guidance_scale": w}) for w in (1.0, 2.0))
    assert not torch.equal(weak, strong)


@pytest.mark.slow
def test_a_pipeline_that_tells_its_network_the_scale_teaches_it(tmp_path):
    family, made = distilled(
        "sd15",
        SCALES,
        tmp_path,
        weights=1.0,
        recipe={"guidance": "input"},
        iterations=150,
        learning_rate=1e-3,
    )
    assert made.off == {}
    assert follows(made, family) > 0.3
    weak, strong = (drawn(made.pipe, {**family.call, **scale}) for scale in (WEAK, STRONG))
    assert not torch.equal(weak, strong)
