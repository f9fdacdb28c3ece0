"""Student pipelines as graphs: the march of their networks, with what they are told as inputs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from sigdeg import SigdegError
from sigdeg.cli import main
from sigdeg.pipelines.export import observe_student
from sigdeg.pipelines.files import save_student
from sigdeg.timing import paired_seconds
from sigdeg.workflows.export import export
from tests.pipelines.student import apart, student_of
from tests.pipelines.zoo import FAMILIES

PROMPTS, OTHERS = ["one", "seven", "nine"], ["two", "two", "four"]


@pytest.fixture(autouse=True)
def timed_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be timed runs once: its times matter elsewhere."""
    brief = partial(paired_seconds, rounds=1, least=0.0)
    monkeypatch.setattr("sigdeg.workflows.export.paired_seconds", brief)


def three(family: str, **step: Any) -> tuple[Any, dict[str, Any]]:
    """A student with everything, and a call of three samples."""
    known = {"residual_noise": "energy", "lookahead": 0.5, "steps": (2,), **step}
    pipe, call = student_of(family, **known)
    if "class_labels" in call:
        return pipe, {**call, "class_labels": [1, 2, 3]}
    return pipe, {**call, "batch_size" if family == "ddpm" else "num_images_per_prompt": 3}


def texts(prompts: list[str]) -> tuple[Any, dict[str, Any]]:
    """The student of prompts, and a call of some."""
    pipe, call = student_of("sd15", residual_noise="energy", lookahead=0.5, steps=(2,))
    return pipe, {**call, "prompt": prompts, "negative_prompt": ["blurred"] * len(prompts)}


@pytest.mark.parametrize(
    ("family", "told"),
    [
        ("ddpm", {}),
        ("dit", {"class_labels": (3,)}),
        (
            "sdxl",
            {
                "encoder_hidden_states": (3, 12, 16),
                "added_cond_kwargs.text_embeds": (3, 16),
                "added_cond_kwargs.time_ids": (3, 6),
            },
        ),
        ("flux", {"guidance": (3,)}),
        ("lumina2", {"encoder_hidden_states": (3, 6, 16), "encoder_attention_mask": (3, 6)}),
    ],
)
def test_the_march_is_the_pipeline_s(family: str, told: dict[str, tuple[int, ...]]) -> None:
    """Of packed, permuted and negated states, too; the noise is that of the run."""
    pipe, call = three(family)
    sampler, given, expected = observe_student(pipe, call, None)
    assert {name: tuple(value.shape) for name, value in given[2].items()} == told
    assert given[1].shape == (3, 2, 3, *given[0].shape[1:])
    assert torch.equal(sampler(*given), expected)
    assert apart(sampler(given[0], -given[1], given[2]), expected) > 1e-3


def test_other_prompts_come_in() -> None:
    pipe, call = texts(PROMPTS)
    sampler, given, drawn = observe_student(pipe, call, 2)
    _, others, expected = observe_student(pipe, texts(OTHERS)[1], 2)
    assert torch.equal(given[0], others[0])
    assert apart(drawn, expected) > 1e-3
    assert apart(sampler(*others), expected) < 1e-6


def test_a_saved_student_is_a_program_of_any_batch(tmp_path: Path, capsys) -> None:
    """Of one step, too, whose timestep is no condition."""
    pipe, call = three("dit", steps=(1,))
    off = {name: value for name, value in call.items() if name != "class_labels"}
    save_student(pipe, tmp_path / "run/student", {**off, "guidance_scale": 1.0})
    rows = [{"class_labels": label} for label in (1, 2, 3)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    asked = ["--calls", str(tmp_path / "rows.json"), "--out", str(tmp_path / "dit.pt2")]
    assert main(["export", str(tmp_path / "run"), "--steps", "1", *asked, "--no-progress"]) == 0
    report = json.loads((tmp_path / "dit.json").read_text())
    assert report["batch"] == [1, None]
    assert report["inputs"]["class_labels"] == {"type": "int64", "shape": [None]}
    assert report["files"]["dit.pt2"]["largest_error"] < 1e-4
    program = torch.export.load(tmp_path / "dit.pt2").module()
    _, (noise, coefficients, told), expected = observe_student(pipe, call, 1)
    assert told.keys() == {"class_labels"}
    for rows in (slice(1, 2), slice(0, 2)):
        own = {name: value[rows] for name, value in told.items()}
        assert apart(program(noise[rows], coefficients[rows], own), expected[rows]) < 1e-5


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("sd_img2img", "turn guidance off in its call, and start from no image"),
        ("sd_inpaint4", "does more with its states than its network and scheduler do"),
        ("sd_inpaint9", "sees more than its state"),
        ("sd_controlnet", "changes from step to step with the state"),
    ],
)
def test_what_no_graph_of_the_network_shows_is_one_line(family: str, words: str) -> None:
    pipe, call = student_of(family, steps=(4,))
    with pytest.raises(SigdegError, match=words):
        observe_student(pipe, call, None)


def test_what_cannot_be_exported_is_one_line(tmp_path: Path) -> None:
    pipe, call = texts(PROMPTS)
    out, half = tmp_path / "out.pt2", texts(PROMPTS)[0]
    teacher = FAMILIES["sd15"]()
    for words, arguments, more in [
        ("turn guidance off", (pipe, out), {"call": {**call, "guidance_scale": 5.0}}),
        ("is no student: sigdeg distill it first", (teacher.pipe, out), {"call": teacher.call}),
        ("for 2 steps, got 5", (pipe, out, 5), {"call": call}),
        ("of as many samples, got 3", (pipe, out), {"call": call, "batch": 2}),
        ("give a call of two or more", (pipe, out), {"call": texts(["one"])[1]}),
        ("in single precision", (half.to(torch.bfloat16), out), {"call": call}),
        ("fails: ", (pipe, out), {"call": {**call, "prompt": 7}}),
        ("is for students that are pipelines", ("mnist", out), {"call": call}),
    ]:
        with pytest.raises(SigdegError, match=words):
            export(*arguments, **more)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["dit", "sd15", "aura"])
def test_onnx_draws_what_the_pipeline_draws(family: str, tmp_path: Path) -> None:
    pipe, call = three(family)
    report = export(pipe, tmp_path / "out.onnx", call=call, int8=True)
    assert report["files"]["out.onnx"]["largest_error"] < 1e-4
    _, (noise, coefficients, told), expected = observe_student(pipe, call, 2)
    feed = {"noise": noise, "coefficients": coefficients, **told}
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx")
    for rows in (slice(2, 3), slice(0, 3)):
        drawn = session.run(["sample"], {name: v[rows].numpy() for name, v in feed.items()})[0]
        np.testing.assert_allclose(drawn, expected[rows], atol=1e-4 * float(expected.std()))
