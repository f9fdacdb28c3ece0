"""Adapters of students: trained beside a frozen base, kept in a folder, fused, taken off."""

import copy
import importlib
import sys

import pytest
import torch
from peft import LoraConfig
from torch import nn

from sigdeg.distillation.levels import Levels
from sigdeg.distillation.objective import Objective, Segments
from sigdeg.errors import MissingPackageError, SigdegError
from sigdeg.files import read_tensors, save_tensors
from sigdeg.grids import refine
from sigdeg.paths import Batch
from sigdeg.pipelines import (
    PipelineRecipe,
    SigDEGScheduler,
    attach,
    distill_pipeline,
    load_pipeline,
    pipeline_config,
    save_student,
)
from sigdeg.pipelines.distill import new_student
from sigdeg.pipelines.files import read_card
from sigdeg.pipelines.lora import (
    LORA,
    SIDE,
    add_adapter,
    fuse_adapter,
    load_adapter,
    remove_adapter,
    save_adapter,
    sharing,
)
from sigdeg.pipelines.network import add_signature
from sigdeg.pipelines.prepare import first_step, open_runs
from sigdeg.pipelines.scheduler import replaced
from sigdeg.pipelines.teacher import PipelineTeacher
from sigdeg.pipelines.trace import call_pipeline, unguided
from sigdeg.training import Job, train
from tests.pipelines.parts import randomised
from tests.pipelines.zoo import FAMILIES

RANK = 4
STEP = {"order": 2, "lookahead": 0.5, "response_std": 1.0, "steps": [2]}


def two_experts(n=1):
    """A pipeline of two networks, one for the noisy half of the way and one for the rest."""
    from diffusers import WanPipeline

    family = FAMILIES["wan"](n)
    pipe = family.pipe
    parts = {name: part for name, part in pipe.components.items() if name != "transformer_2"}
    second = randomised(copy.deepcopy(pipe.transformer), seed=9)
    family.pipe = WanPipeline(**{**parts, "transformer_2": second, "boundary_ratio": 0.8})
    family.pipe.set_progress_bar_config(disable=True)
    return family


MADE = {name: FAMILIES[name] for name in ("sd15", "svd", "dit", "sana")}
MADE["two experts"] = two_experts


def trained(network, seed):
    """A network whose trained parts are no longer where they began."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=generator)
    return network


def make_scheduler(family):
    core = SigDEGScheduler.like(family.pipe.scheduler).core.written
    return SigDEGScheduler.like(family.pipe.scheduler, **{**core, **STEP}, student="mine")


def make_student(family):
    """The pipeline as a student with adapters, its scheduler, its networks and its calls."""
    off, trace = unguided(family.pipe, family.call)
    scheduler = make_scheduler(family)
    networks = {name: family.pipe.components[name] for name in trace.networks}
    for seed, network in enumerate(networks.values()):
        add_signature(network, trace, 2, "mine")
        add_adapter(network, RANK)
        trained(network, seed)
    return scheduler, networks, off


def sample(pipe, call, scheduler):
    with replaced(pipe, scheduler):
        made = call_pipeline(pipe, call, 2, torch.Generator().manual_seed(1))[0]
    return torch.as_tensor(made)


@pytest.fixture(scope="module", params=MADE)
def kept(request, tmp_path_factory):
    """A student, what it draws, and the folder of its adapters."""
    family, folder = MADE[request.param](), tmp_path_factory.mktemp("adapter")
    scheduler, networks, off = make_student(family)
    save_adapter(networks, folder)
    drawn = sample(family.pipe, off, scheduler)
    return MADE[request.param], family, scheduler, networks, off, drawn, folder


def test_a_student_comes_back_whole_and_goes_without_a_trace(kept):
    make, _, scheduler, networks, off, drawn, folder = kept
    tensors, _ = read_tensors(folder / LORA)
    layers = sum("lora_A" in name for n in networks.values() for name, _ in n.named_parameters())
    assert len(tensors) == 2 * layers
    other = make().pipe
    own = copy.deepcopy({name: other.components[name].state_dict() for name in networks})
    before = sample(other, off, SigDEGScheduler.like(other.scheduler))
    assert load_adapter(other.components, folder, "mine") == list(networks)
    assert torch.equal(sample(other, off, scheduler), drawn)
    assert not torch.equal(before, drawn)
    for name in networks:
        remove_adapter(other.components[name])
        found = other.components[name].state_dict()
        assert found.keys() == own[name].keys()
        assert all(torch.equal(found[key], value) for key, value in own[name].items())
        assert type(other.components[name]) is type(make().pipe.components[name])
        assert "sigdeg" not in other.components[name].config
    assert torch.equal(sample(other, off, SigDEGScheduler.like(other.scheduler)), before)


def test_fused_adapters_are_layers_of_a_whole_student(kept):
    _, family, scheduler, networks, off, drawn, _ = kept
    whole = copy.copy(family.pipe)
    fused = {name: copy.deepcopy(network) for name, network in networks.items()}
    for name, network in fused.items():
        fuse_adapter(network)
        setattr(whole, name, network)
        assert not any("lora" in key for key in network.state_dict())
    found = sample(whole, off, scheduler)
    assert float((found - drawn).abs().max()) <= 1e-6 * float(drawn.abs().max())


def test_all_layers_are_adapted_but_the_input_layer_and_groups(kept):
    _, _, _, networks, _, _, _ = kept
    for network in networks.values():
        first = network.config.sigdeg["trace"]["layer"]
        adapted = {
            n.partition(".lora_A")[0] for n, _ in network.named_parameters() if "lora_A" in n
        }
        fuse_adapter(network := copy.deepcopy(network))
        for name, layer in network.named_modules():
            plain = isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
            left = name == first or name.startswith("signature") or getattr(layer, "groups", 1) > 1
            assert (name in adapted) == (plain and not left)


@pytest.fixture(scope="module")
def adapted():
    """A network in half precision with adapters, and a call of it."""
    family = FAMILIES["sd3"]()
    pipe = family.pipe.to(torch.bfloat16)
    scheduler, networks, off = make_student(family)
    return pipe, scheduler, networks["transformer"], off


def test_what_is_trained_is_single_and_all_of_it_learns(adapted):
    pipe, scheduler, network, off = adapted
    learning = {n: p for n, p in network.named_parameters() if p.requires_grad}
    assert all(("lora_" in name) or name.startswith("signature.") for name in learning)
    assert {p.dtype for p in learning.values()} == {torch.float32}
    assert {p.dtype for n, p in network.named_parameters() if n not in learning} == {torch.bfloat16}
    seen = []
    handle = network.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    assert bool(sample(pipe, off, scheduler).isfinite().all())
    handle.remove()
    args, kwargs = seen[0]
    state = kwargs["hidden_states"]
    beside = torch.ones(len(state), 2, *state.shape[1:]), torch.full((len(state),), 0.3)
    network(*args, **{**kwargs, "return_dict": False}, sigdeg=beside)[0].float().sum().backward()
    unmoved = [name for name, p in learning.items() if not (p.grad is not None and p.grad.any())]
    # The last block drops what it makes of the text.
    assert all("context" in name or "add_" in name for name in unmoved)


def test_activations_computed_anew_give_the_same_gradient():
    family = FAMILIES["sd15"]()
    _, networks, off = make_student(family)
    network, calls = networks["unet"], []
    handle = network.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    sample(family.pipe, off, make_scheduler(family))
    handle.remove()
    args, kwargs = calls[0]
    beside = torch.ones(1, 2, *args[0].shape[1:]), torch.full((1,), 0.3)
    gradients = []
    for anew in (False, True):
        if anew:
            network.enable_gradient_checkpointing()
        network.zero_grad()
        network(*args, **{**kwargs, "return_dict": False}, sigdeg=beside)[0].sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.requires_grad])
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*gradients, strict=True))
    assert all(bool(g.any()) for g in gradients[0])


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_an_adapter_of_a_style_stays_when_ours_goes():
    family = FAMILIES["sd15"]()
    scheduler, networks, off = make_student(family)
    network = networks["unet"]
    style = LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    network.add_adapter(style, "style")
    with pytest.raises(SigdegError, match="adapters of this student are off"):
        sample(family.pipe, off, scheduler)
    network.set_adapters(["sigdeg", "style"])
    both = sample(family.pipe, off, scheduler)
    fused = copy.deepcopy(network)
    fuse_adapter(fused)
    with_style = copy.copy(family.pipe)
    with_style.unet = fused
    found = sample(with_style, off, scheduler)
    assert float((found - both).abs().max()) <= 1e-5 * float(both.abs().max())
    remove_adapter(network)
    assert list(network.peft_config) == ["style"]
    assert any("style" in name for name, _ in network.named_parameters())


def test_copies_of_a_frozen_network_share_its_weights():
    network = FAMILIES["dit"]().pipe.transformer
    other = sharing(network)
    pairs = list(zip(network.parameters(), other.parameters(), strict=True))
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)
    assert all(a.requires_grad and not b.requires_grad for a, b in pairs)


def damaged(folder, change):
    """The folder with other adapters."""
    tensors, _ = read_tensors(folder / LORA)
    save_tensors(folder / LORA, change(dict(tensors)))


def test_what_does_not_fit_is_refused_and_leaves_the_pipeline_alone(tmp_path):
    family = FAMILIES["dit"]()
    _, networks, _ = make_student(family)
    with pytest.raises(SigdegError, match="adapters of a student already"):
        add_adapter(networks["transformer"], RANK)
    other = FAMILIES["dit"]().pipe
    own = other.transformer.state_dict()

    def refused(match, components=None):
        with pytest.raises(SigdegError, match=match):
            load_adapter(components or other.components, tmp_path, "mine")
        assert other.transformer.state_dict().keys() == own.keys()
        assert not hasattr(other.transformer, "signature")

    refused("is missing")
    save_adapter(networks, tmp_path)
    refused("which this pipeline has not", FAMILIES["sd15"]().pipe.components)
    refused("does not fit this SD3Transformer2DModel", FAMILIES["sd3"]().pipe.components)
    first = "transformer.proj_out_1.lora_A.weight"
    changes = [
        ("have no counterpart", lambda t: {**t, first.replace("1", "3"): t[first].clone()}),
        (
            "of transformer_2, which",
            lambda t: {**t, "transformer_2.a.lora_A.weight": torch.ones(4)},
        ),
        ("one rank", lambda t: {**t, first: t[first][:2]}),
        ("one rank", lambda t: {}),
        ("is of shape", lambda t: {**t, first: t[first][:, 1:]}),
    ]
    for match, change in changes:
        save_adapter(networks, tmp_path)
        damaged(tmp_path, change)
        refused(match)
    save_adapter(networks, tmp_path)
    tensors, metadata = read_tensors(tmp_path / SIDE)
    cut = {name: value[..., :1] for name, value in tensors.items()}
    told = {"sigdeg": metadata["sigdeg"]}
    save_tensors(tmp_path / SIDE, cut, told)
    refused("is of shape")
    save_tensors(tmp_path / SIDE, tensors, {})
    refused("does not say what it belongs to")


def test_without_peft_one_line_says_which_extra_has_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "sigdeg.pipelines.lora")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingPackageError, match=r"peft is not installed.*sigdeg\[pipelines\]"):
        importlib.import_module("sigdeg.pipelines.lora")


def test_both_networks_of_a_pipeline_learn(tmp_path):
    family = two_experts(2)
    recipe = PipelineRecipe((2,), order=2, residual_noise=None, lookahead=0.0, rank=RANK)
    budget = dict(paths=8, held_out=2, batch_size=4, learning_rate=1e-2, refinement=2, warmup=2)
    config = pipeline_config(recipe.steps, iterations=10, tracker="none", **budget)
    made = distill_pipeline(family.pipe, [family.call], tmp_path, recipe, config, progress=False)
    other = attach(two_experts(2).pipe, tmp_path)
    for name in ("transformer", "transformer_2"):
        network = other.components[name]
        assert bool(network.signature.extra.weight.any())
        assert any(bool(p.any()) for n, p in network.named_parameters() if "lora_B" in n)
    call = {**family.call, **made.off}
    drawn = [sample(pipe, call, pipe.scheduler) for pipe in (other, made.pipe)]
    assert torch.equal(*drawn)


def test_distilling_with_adapters_leaves_a_folder_that_attaches(tmp_path):
    family = FAMILIES["sd3"](2)
    recipe = PipelineRecipe(steps=(2,), order=2, rank=RANK)
    budget = dict(paths=24, held_out=8, batch_size=8, learning_rate=6e-3, refinement=3, warmup=5)
    config = pipeline_config(recipe.steps, iterations=25, tracker="none", **budget)
    own = copy.deepcopy(family.pipe.transformer.state_dict())
    made = distill_pipeline(family.pipe, [family.call], tmp_path, recipe, config, progress=False)
    assert made.history[-1, 2] < 0.9
    found = family.pipe.transformer.state_dict()
    assert all(torch.equal(found[name], value) for name, value in own.items())
    folder = tmp_path / "student"
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.*"))
    assert {LORA, SIDE, "scheduler/scheduler_config.json"} <= set(files)
    other = attach(FAMILIES["sd3"](2).pipe, tmp_path)
    call = {**family.call, **made.off}
    drawn = [sample(pipe, call, pipe.scheduler) for pipe in (other, made.pipe)]
    assert torch.equal(*drawn)
    told, card = read_card(folder)
    assert told == made.off
    assert card.verdict == made.verdict.headline()
    assert "sigdeg.attach(pipe" in (folder / "README.md").read_text()


def test_adapters_attach_to_other_pipelines_of_their_network(tmp_path):
    from diffusers import StableDiffusionImg2ImgPipeline

    family = FAMILIES["sd15"]()
    scheduler, _, _ = make_student(family)
    family.pipe.scheduler = scheduler
    save_student(family.pipe, tmp_path / "adapter", {"guidance_scale": 1.0})
    other = FAMILIES["sd_img2img"]()
    pipe = attach(StableDiffusionImg2ImgPipeline(**other.pipe.components), tmp_path / "adapter")
    call = {**other.unguided, "strength": 1.0}
    drawn = call_pipeline(pipe, call, 2, torch.Generator().manual_seed(1))[0]
    assert bool(torch.isfinite(torch.as_tensor(drawn)).all())
    with pytest.raises(SigdegError, match="attach puts them onto"):
        load_pipeline(tmp_path / "adapter")
    with pytest.raises(SigdegError, match="which this pipeline has not"):
        attach(FAMILIES["sd3"]().pipe, tmp_path / "adapter")
    other_student = SigDEGScheduler.like(scheduler, student="another")
    other_student.save_pretrained(tmp_path / "adapter" / "scheduler")
    with pytest.raises(SigdegError, match="not of one student"):
        attach(FAMILIES["sd15"]().pipe, tmp_path / "adapter")


WORDS = (
    "one two three four five six seven eight nine ten red green blue cat dog sun sea sky tree owl"
)


@pytest.mark.slow
@pytest.mark.parametrize(("beside", "least", "most"), [(True, 0.0, 0.5), (False, 0.85, 1.0)])
def test_adapters_live_on_the_path_beside_the_input_layer(beside, least, most, tmp_path):
    """Held-out loss over that of the untrained student; adapters alone learn little of the path."""
    family, generator = FAMILIES["sd3"](2), torch.Generator().manual_seed(0)
    for p in family.pipe.transformer.parameters():  # small, as in a network that was trained
        noise = torch.randn(p.shape, generator=generator)
        p.data = 0.3 * noise / (p.shape[-1] if p.ndim > 1 else 1) ** 0.5
    words = WORDS.split()
    calls = [{**family.call, "prompt": words[i : i + 2]} for i in range(0, len(words), 2)]
    recipe = PipelineRecipe((4,), order=2, residual_noise=None, lookahead=0.0, rank=RANK)
    budget = dict(paths=len(words), held_out=4, batch_size=4, refinement=15)
    config = pipeline_config(
        (4,), iterations=150, learning_rate=1e-2, warmup=10, ema=0.9, tracker="none", **budget
    )
    step = first_step(family.pipe, recipe)
    rows = list(refine(step.schedule, step.grid(), config.refinement))
    _, trace = unguided(family.pipe, calls[0])
    teacher = PipelineTeacher(family.pipe, {"guidance_scale": 1.0}, trace, step, rows)
    source = open_runs(teacher, tmp_path, calls, teacher.rehearse(calls), config, {"calls": []})
    student = new_student(teacher, "mine", source, RANK)
    student.network["transformer"].signature.requires_grad_(beside)
    levels, whole = Levels.of(student, 1), source.held_out(4)
    windows = [
        Batch(whole.start + k, states, whole.coefficients[:, k : k + 1], whole.condition)
        for k, states in enumerate(whole.states.unfold(1, 2, 1).movedim(-1, 2).unbind(1))
    ]
    untrained = Objective(student, levels.grids)
    untrained.normalise(whole)

    def draw(generator):
        return Segments(levels.cut(source.batch(config.batch_size, generator), generator))

    @torch.no_grad()
    def loss(objective):
        return float(torch.cat(objective.errors(windows, [0] * len(windows))).mean())

    assert loss(untrained) == pytest.approx(1, abs=1e-5)
    job = Job(untrained, draw, Segments(windows[:1]), {"beside": beside})
    learnt = train(job, tmp_path / "run", config, device="cpu", progress=False).objective
    assert least < loss(learnt) < most
