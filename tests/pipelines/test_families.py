"""Every family of diffusers' pipelines: what one run tells of it, and that its student is exact."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from sigdeg.pipelines import (
    Calls,
    PipelineStudent,
    SigDEGScheduler,
    Trace,
    add_signature,
    replaced,
    trace,
    unguided,
)
from sigdeg.pipelines.calls import Kept
from sigdeg.pipelines.stepped import Logged
from sigdeg.pipelines.trace import call_pipeline, recorded
from sigdeg.signature import PartialSignature
from tests.pipelines.zoo import FAMILIES, Family

ORDER, STEPS = 2, 3
STUDENT = "student"
UNIT = 1, 0  # the network is told the scheduler's timesteps
PER_MILLE = 0.001, 0


@dataclass(frozen=True)
class Facts:
    """What is to be found: of a guided call copies of the state and calls, of another the output.

    Arguments:
        network: The component.
        layer: Its input layer.
        copies: Copies of the batch in one guided call.
        calls: Guided calls a step.
        time: Scale and shift from the scheduler's timesteps to the network's.
        axis: Axis on which other channels follow the state's.
        relation: What becomes of the unguided output.
    """

    network: str
    layer: str
    copies: int
    calls: int = 1
    time: tuple[float, float] = UNIT
    axis: int | None = None
    relation: str = "same"


FACTS = {
    "ddpm": Facts("unet", "conv_in", 1),
    "ldm": Facts("unet", "conv_in", 1),
    "sd15": Facts("unet", "conv_in", 2),
    "sd2_v": Facts("unet", "conv_in", 2),
    "sd_img2img": Facts("unet", "conv_in", 2),
    "sd_inpaint4": Facts("unet", "conv_in", 2),
    "sd_inpaint9": Facts("unet", "conv_in", 2, axis=1),
    "ip2p": Facts("unet", "conv_in", 3, axis=1),
    "sd_controlnet": Facts("unet", "conv_in", 2),
    "sdxl": Facts("unet", "conv_in", 2),
    "svd": Facts("unet", "conv_in", 2, axis=2),
    "kandinsky22": Facts("unet", "conv_in", 2),
    "dit": Facts("transformer", "pos_embed.proj", 1),
    "pixart": Facts("transformer", "pos_embed.proj", 2),
    "hunyuandit": Facts("transformer", "pos_embed.proj", 2),
    "sd3": Facts("transformer", "pos_embed.proj", 2),
    "flux": Facts("transformer", "x_embedder", 1, time=PER_MILLE),
    "sana": Facts("transformer", "patch_embed.proj", 2),
    "aura": Facts("transformer", "pos_embed.proj", 2, time=PER_MILLE),
    "qwen": Facts("transformer", "img_in", 1, 2, time=PER_MILLE),
    "lumina2": Facts("transformer", "x_embedder", 1, 2, time=(-0.001, 1), relation="negated"),
    "cogview4": Facts("transformer", "patch_embed.proj", 1, 2),
    "zimage": Facts("transformer", "all_x_embedder.2-1", 2, time=(-0.001, 1), relation="negated"),
    "wan": Facts("transformer", "patch_embedding", 1, 2),
    "ltx": Facts("transformer", "proj_in", 2),
    "cogvideox": Facts("transformer", "patch_embed.proj", 2),
    "stable_audio": Facts("transformer", "preprocess_conv", 2),
}


@dataclass
class Student:
    """A family with its student, its scheduler and the teacher's own sample before."""

    name: str
    two: Family
    one: Family
    guided: Trace
    found: Trace
    off: dict[str, Any]
    scheduler: SigDEGScheduler
    teacher: Tensor

    @property
    def network(self) -> nn.Module:
        """The student's network."""
        network: nn.Module = self.two.pipe.components[self.found.networks[0]]
        return network

    def draw(self, samples: int, **changes: Any) -> Tensor:
        """What the student's pipeline makes of the call of one sample or of two."""
        return march(self.of(samples), self.scheduler, samples, **changes)

    def of(self, samples: int) -> Family:
        """The family with the call of so many samples."""
        return {1: self.one, 2: self.two}[samples]


def march(family: Family, scheduler: Any, samples: int, **changes: Any) -> Tensor:
    """What a pipeline makes under a scheduler, a generator a sample."""
    generators = [Generator().manual_seed(i) for i in range(samples)]
    with replaced(family.pipe, scheduler):
        made = call_pipeline(family.pipe, family.call | changes, STEPS, generators)
    return torch.as_tensor(made[0])


def test_the_facts_are_those_of_all_families():
    assert FACTS.keys() == FAMILIES.keys()


@pytest.fixture(scope="module", params=FACTS)
def student(request: pytest.FixtureRequest) -> Student:
    """Each family in turn, its student untrained: the layer beside the input layer is at zero."""
    two, one = FAMILIES[request.param](2), FAMILIES[request.param](1)
    guided = trace(two.pipe, two.call)
    whole, found = unguided(two.pipe, two.call)
    off = {name: value for name, value in whole.items() if value is not two.call.get(name)}
    step = {"order": ORDER, "steps": [STEPS]}
    own = two.pipe.scheduler
    teacher = march(two, SigDEGScheduler.like(own, **step), 2)
    for name in found.networks:
        add_signature(two.pipe.components[name], found, ORDER, STUDENT)
        setattr(one.pipe, name, two.pipe.components[name])
    scheduler = SigDEGScheduler.like(own, **step, student=STUDENT)
    return Student(request.param, two, one, guided, found, off, scheduler, teacher)


def test_one_run_tells_all_of_a_pipeline(student):
    facts, guided, found = FACTS[student.name], student.guided, student.found
    assert guided.networks == found.networks == (facts.network,)
    assert guided.layer == found.layer == facts.layer
    assert (guided.copies, guided.calls) == (facts.copies, facts.calls)
    assert (found.copies, found.calls) == (1, 1)
    assert guided.axis == found.axis == facts.axis
    assert (guided.time_scale, guided.time_shift) == pytest.approx(facts.time, abs=1e-6)
    assert found.relation == facts.relation
    assert Trace.read(json.loads(json.dumps(found.written))) == found
    assert student.two.off.items() <= student.off.items()


def test_an_untrained_student_is_its_teacher_to_the_bit(student):
    assert torch.isfinite(student.teacher).all()
    assert torch.equal(student.draw(2), student.teacher)


@pytest.fixture(scope="module")
def trained(student: Student) -> Student:
    """The same student after its layer was given random weights, as if it were trained."""
    generator = Generator().manual_seed(7)
    with torch.no_grad():
        for p in student.network.signature.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / (2 * p.shape[1] ** 0.5))
    return student


def test_a_sample_is_the_same_in_any_batch(trained):
    both, alone = trained.draw(2), trained.draw(1)
    assert not torch.allclose(both, trained.teacher, rtol=0.01)
    assert (both[:1] - alone).abs().max() <= 5e-6 * alone.abs().max()


def replays(student: Student, samples: int) -> list[tuple[Logged, Tensor]]:
    """The steps of an unguided run, and what the calls recorded in it make of its states."""
    scheduler, found, pipe = student.scheduler, student.found, student.of(samples).pipe
    scheduler.log = log = []
    with recorded(pipe, scheduler, found.networks) as calls:
        student.draw(samples, **student.off)
    scheduler.log = None
    rows = len(log[0].before)
    kept = {f"{STEPS}.{called.k}": Kept.of(called, found, rows) for called in calls}
    places = torch.tensor([[0, row] for row in range(rows)])
    step = {k: v for k, v in scheduler.config.sigdeg.items() if k != "student"}
    networks = nn.ModuleDict({name: pipe.components[name] for name in found.networks})
    learner = PipelineStudent.read(
        step,
        network=networks,
        recorded=Calls(found, [kept], places),
        sample_shape=tuple(log[0].before.shape[1:]),
    )
    made = []
    for logged in log:
        t, s = scheduler.grid[logged.k : logged.k + 2]
        noise = PartialSignature((t - s).float(), logged.coefficients)
        made.append((logged, learner(logged.before, t, s, noise, row=torch.arange(rows))))
    return made


def test_recorded_calls_make_the_pipelines_own_steps(trained):
    for logged, made in replays(trained, 1):
        assert torch.equal(made, logged.after)


def test_the_path_can_be_learned(trained):
    trained.network.zero_grad()
    steps = replays(trained, 2)
    for logged, made in steps:  # joined rows are told their timesteps row by row: another rounding
        assert (made - logged.after).abs().max() <= 5e-6 * logged.after.abs().max()
    steps[0][1].square().mean().backward()
    for p in trained.network.signature.parameters():
        assert p.grad.abs().max() > 0
