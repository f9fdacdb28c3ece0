"""Calls of a pipeline from what users have: prompts, tables, JSON."""

import json
from io import BytesIO

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

import sigdeg
from sigdeg.errors import SigdegError
from sigdeg.pipelines.inputs import check_calls, join_rows, read_rows
from sigdeg.results import read_results
from tests.pipelines.zoo import FAMILIES


@pytest.fixture(scope="module")
def pipe():
    return FAMILIES["sd15"]().pipe


def written(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_prompts_are_lines(tmp_path):
    rows = read_rows(written(tmp_path, "prompts.txt", "a cat\n\n  a dog \n"))
    assert rows == [{"prompt": "a cat"}, {"prompt": "a dog"}]


def test_a_table_has_arguments_as_its_head(tmp_path):
    text = (
        'prompt,guidance_scale,class_labels,negative_prompt\n"a cat, grey",5.5,3,\na dog,2,4,ugly'
    )
    rows = read_rows(written(tmp_path, "calls.csv", text))
    assert rows == [
        {"prompt": "a cat, grey", "guidance_scale": 5.5, "class_labels": 3},
        {"prompt": "a dog", "guidance_scale": 2, "class_labels": 4, "negative_prompt": "ugly"},
    ]


def test_pictures_are_opened_by_the_folder_of_the_file(tmp_path):
    Image.new("RGB", (3, 2), "red").save(tmp_path / "red.png")
    text = json.dumps([{"prompt": "a cat", "image": "red.png", "ip": ["red.png"]}])
    (row,) = read_rows(written(tmp_path, "calls.json", text))
    assert row["image"].size == row["ip"][0].size == (3, 2)


def test_neighbours_join_where_only_samples_differ():
    rows = [
        {"prompt": p, "guidance_scale": w} for p, w in zip("abcde", (1, 1, 1, 2, 2), strict=True)
    ]
    assert join_rows(rows, 2) == [
        {"prompt": ["a", "b"], "guidance_scale": 1},
        {"prompt": ["c"], "guidance_scale": 1},
        {"prompt": ["d", "e"], "guidance_scale": 2},
    ]
    assert join_rows([{"class_labels": k} for k in range(3)]) == [{"class_labels": [0, 1, 2]}]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("empty.txt", "\n \n", "empty"),
        ("calls.json", "{", "no JSON"),
        ("calls.json", '{"prompt": "a"}', "list of objects"),
        ("calls.json", '[{"image": "none.png"}]', "no picture"),
        ("calls.csv", "prompt,guidance_scale\na cat", "another number of fields"),
        ("calls.csv", "prompt\na,b", "another number of fields"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, name, text, said):
    with pytest.raises(SigdegError, match=said):
        read_rows(written(tmp_path, name, text))


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path):
    with pytest.raises(SigdegError, match="No such file"):
        read_rows(tmp_path / "none.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SigdegError, match="no text"):
        read_rows(tmp_path / "bytes.txt")


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        ([], "no calls"),
        ("a cat", "a list of arguments"),
        (iter([{"prompt": "a"}]), "a list of arguments"),  # it could be gone through but once
        ([{"promt": "a"}], "did you mean prompt"),
        ([{"prompt": "a", "generator": None}], "chosen by the distillation"),
        ([{"prompt": ["a", "b"], "negative_prompt": ["c"]}], "2 of prompt, 1 of negative_prompt"),
    ],
)
def test_calls_that_a_pipeline_does_not_take_are_refused(pipe, calls, said):
    with pytest.raises(SigdegError, match=said):
        check_calls(pipe, calls)


def test_options_of_distilling_and_of_the_pipeline_are_told_apart(pipe, tmp_path):
    given = {"prompts": ["a cat"], "steps": 2, "out": tmp_path / "run", "progress": False}
    with pytest.raises(SigdegError, match="did you mean guidance_scale"):
        sigdeg.distill(pipe, **given, guidance_scal=3.0)
    with pytest.raises(SigdegError, match="give one of them"):
        sigdeg.distill(pipe, **given, calls=[{}])
    with pytest.raises(SigdegError, match="a dict is no diffusers pipeline"):
        sigdeg.distill({}, **given)
    for prompts in (3, {"a cat", "a dog"}, {"prompt": "a cat"}, b"a cat"):
        with pytest.raises(SigdegError, match="prompts are a list"):
            sigdeg.distill(pipe, **given | {"prompts": prompts})
    with pytest.raises(SigdegError, match="arguments are a mapping"):
        sigdeg.distill(pipe, **given, arguments="height")
    with pytest.raises(SigdegError, match="a call holds nan"):
        sigdeg.distill(pipe, **given, height=16, width=16, guidance_scale=float("nan"))
    with pytest.raises(SigdegError, match="too many"):
        sigdeg.distill(pipe, **given, height=16, width=16, paths=10**9)
    with pytest.raises(SigdegError, match="rank of a LoRA is at most"):
        sigdeg.distill(pipe, **given, rank=10**9)
    with pytest.raises(SigdegError, match="batch joins prompts"):
        sigdeg.distill(pipe, **{**given, "prompts": None}, calls=[{"prompt": "a cat"}], batch=4)
    assert not (tmp_path / "run").exists()
    size = {"height": 16, "width": 16, "guidance_scale": 3.0}
    budget = {"iterations": 2, "paths": 24, "held_out": 8, "batch_size": 8, "refinement": 2}
    made = sigdeg.distill(pipe, **given, **size, **budget, tracker="none")
    assert made.off == {"guidance_scale": 1.0}
    assert made.pipe.scheduler.once
    assert made.pipe.scheduler.core.steps == (2,)
    results = read_results(tmp_path / "run" / "results.json")
    assert [row["method"] for row in results["rows"]] == ["teacher", "sig-deg", "untrained"]
    assert [figure["file"] for figure in results["figures"]] == ["figures/samples.png"]
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def png(colour):
    out = BytesIO()
    Image.new("RGB", (2, 2), colour).save(out, "png")
    return out.getvalue()


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_dataset_of_the_hub_is_read_from_its_folder(tmp_path, kind):
    held = [{"bytes": png("red"), "path": "a.png"}, {"bytes": png("blue"), "path": None}]
    table = pyarrow.table({"text": ["a cat", "a dog"], "image": held, "guidance_scale": [2.5, 3.0]})
    file = tmp_path / "data" / f"train-00000-of-00001.{kind}"
    file.parent.mkdir()
    if kind == "parquet":
        parquet.write_table(table, file)
    else:  # as `save_to_disk` writes it
        with (
            pyarrow.OSFile(str(file), "wb") as out,
            pyarrow.ipc.new_stream(out, table.schema) as to,
        ):
            to.write_table(table)
    rows = read_rows(tmp_path)
    assert [row["prompt"] for row in rows] == ["a cat", "a dog"]
    assert [row["guidance_scale"] for row in rows] == [2.5, 3.0]
    assert [row["image"].getpixel((0, 0)) for row in rows] == [(255, 0, 0), (0, 0, 255)]


@pytest.mark.parametrize("told", ["", "metadata.csv", "metadata.jsonl"])
def test_pictures_are_read_from_their_folder(tmp_path, told):
    for name in ("red", "blue"):
        (tmp_path / f"{name}.png").write_bytes(png(name))
    more = {
        "metadata.csv": "file_name,text\nred.png,a cat\nblue.png,a dog\n",
        "metadata.jsonl": '{"file_name": "red.png", "text": "a cat"}\n'
        '{"file_name": "blue.png", "text": "a dog"}\n',
    }
    if told:
        (tmp_path / told).write_text(more[told])
    rows = read_rows(tmp_path)
    colours = [row["image"].getpixel((0, 0)) for row in rows]
    assert set(colours) == {(255, 0, 0), (0, 0, 255)}
    assert [row.get("prompt") for row in rows] == (["a cat", "a dog"] if told else [None, None])


def test_folders_that_hold_neither_are_refused(tmp_path):
    with pytest.raises(SigdegError, match="no pictures, and no dataset"):
        read_rows(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(SigdegError, match="no whole file of a dataset"):
        read_rows(tmp_path)
