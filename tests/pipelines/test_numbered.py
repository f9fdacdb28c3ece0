"""States that are packed, cut and turned are found by numbers, and their students are exact."""

import json

import pytest
import torch

from sigdeg.errors import SigdegError
from sigdeg.pipelines import (
    PipelineRecipe,
    SigDEGScheduler,
    Trace,
    add_signature,
    distill_pipeline,
    pipeline_config,
    replaced,
    unguided,
)
from sigdeg.pipelines.network import read_signature
from sigdeg.pipelines.numbered import BASE, PHASES, digits, numbers_of
from sigdeg.pipelines.trace import call_pipeline
from tests.pipelines.films import CHANNELS, PICTURES, SIDE, TOKENS, films, seeds
from tests.pipelines.inventory import follow

STEPS = 3
HELD = (PICTURES - 1, CHANNELS, SIDE, SIDE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_are_told_by_their_digits(dtype):
    state = torch.empty(3, 200, 100, dtype=dtype)  # more than have two digits
    assert state.numel() > BASE**2
    other = torch.tensor([0.0, 1.0, 0.5, -3.0], dtype=dtype)  # stands still: no number
    shown = {k: torch.cat([digits(state, k).flatten(), other]) for k in range(2, 2 + PHASES)}
    expected = torch.cat([torch.arange(state.numel()), torch.full((4,), -1)])
    assert torch.equal(numbers_of(shown), expected)
    assert numbers_of({k: v for k, v in shown.items() if k > 2}) is None  # a digit is missing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [True, False])
def test_a_state_is_found_that_is_packed_and_cut_and_stepped_picture_by_picture(rows, dtype):
    found = unguided(films().to(dtype), {"rows": rows})[1]
    assert (found.rows, found.samples) == (PICTURES - 1 if rows else 1, 2)
    assert found.place.part == found.answer.part == HELD
    assert found.place.whole == found.answer.whole == (TOKENS, CHANNELS * 4)
    assert (found.copies, found.calls, found.relation) == (1, 1, "negated")
    assert (found.layer, found.time) == ("first", 1)
    assert Trace.read(json.loads(json.dumps(found.written))) == found


@pytest.mark.parametrize("rows", [True, False])
def test_its_student_is_exact(rows):
    assert follow(films(), {"rows": rows}) == "transformer: first"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"sound": True}, "FilmPipeline steps several states side by side"),
        ({"once": True}, "its transformer the state in another place from step to step"),
    ],
)
def test_what_is_no_state_of_a_student_is_refused(given, line):
    with pytest.raises(SigdegError, match=line):
        unguided(films(), given)


@pytest.mark.parametrize("name", ["rows", "place", "answer"])
def test_damaged_facts_are_one_line(name):
    pipe = films()
    found = unguided(pipe, {})[1].written
    hostile = [-1, 10**30, 0.5, "abc", [], {}, [10**9] * 9]
    cases = [*hostile, 0]
    if name != "rows":
        cases += [{**found[name], field: value} for field in found[name] for value in hostile]
    for value in cases:
        written = {"trace": {**found, name: value}, "order": 2, "student": "films"}
        with pytest.raises(SigdegError, match=f"{name}|are no part"):
            read_signature(pipe.transformer, written)


def draw(pipe, scheduler, samples, **more):
    with replaced(pipe, scheduler):
        return call_pipeline(pipe, {"batch_size": samples, **more}, STEPS, seeds(samples)).frames


@pytest.fixture(scope="module")
def student():
    """One that looks ahead, with random weights beside its input layer."""
    pipe = films()
    found = unguided(pipe, {})[1]
    network = add_signature(pipe.transformer, found, 2, "films")
    for p in network.signature.parameters():
        torch.nn.init.normal_(p, std=0.3, generator=seeds(1)[0])
    step = {"order": 2, "steps": [STEPS], "lookahead": 0.5, "response_std": 1.0}
    return pipe, SigDEGScheduler.like(pipe.scheduler, **step, rows=found.rows, student="films")


def test_what_is_held_stays_and_a_film_is_the_same_in_any_batch(student):
    both = draw(*student, 2)
    held = torch.stack([torch.randn(PICTURES, *HELD[1:], generator=g)[0] for g in seeds(2)])
    assert torch.equal(both[:, 0], held)
    assert (both[:1] - draw(*student, 1)).abs().max() <= 5e-6 * both.abs().max()


def test_films_of_another_size_are_refused(student):
    with pytest.raises(SigdegError, match="keep the size and the length that it was distilled at"):
        draw(*student, 1, side=2 * SIDE)


def test_films_can_be_distilled(tmp_path):
    recipe = PipelineRecipe(steps=(2,), order=2, residual_noise=None, lookahead=0.0)
    budget = dict(paths=32, held_out=8, batch_size=16, learning_rate=1e-2, refinement=4, warmup=5)
    config = pipeline_config((2,), iterations=60, tracker="none", **budget)
    pipe = films()
    made = distill_pipeline(pipe, [{}], tmp_path, recipe, config, progress=False)
    assert made.history[-1, 2] < 0.8  # 1 is the untrained student
    assert made.pipe.scheduler.rows == PICTURES - 1
    step = made.pipe.scheduler.config.sigdeg
    again = SigDEGScheduler.from_config(json.loads(json.dumps({"sigdeg": dict(step)})))
    drawn = draw(made.pipe, again, 2, num_inference_steps=2)
    assert torch.equal(drawn, made.pipe(num_inference_steps=2, generator=seeds(2)).frames)
    assert made.judged.teacher.shape[1:] == HELD
