"""What a pipeline is asked for: prompts, tables, JSON and folders as calls, checked beforehand."""

from __future__ import annotations

import csv
import inspect
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from sigdeg.errors import SigdegError, check_whole, did_you_mean, extra, reason

__all__ = ["BATCH", "check_calls", "join_rows", "read_rows"]

BATCH = 8  # samples of a call that is made of several rows
OURS = ("num_inference_steps", "generator", "timesteps", "sigmas", "latents", "return_dict")
IMAGE, CAPTION = {"file_name": "image"}, {"text": "prompt"}  # names that datasets of pictures use
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def read_rows(file: str | Path) -> list[dict[str, Any]]:
    """Arguments of a pipeline by sample: from a text, a table, JSON or a folder.

    Of a `.json` a list of objects, of a `.csv` a row each with names of arguments as its head, of
    any other text a prompt a line. Names of picture files, by the folder of the file, are opened.
    Of a folder see `read_folder`.

    Raises:
        SigdegError: If the file is missing, empty or none of these; or a picture cannot be read.
    """
    file = Path(file)
    if file.is_dir():
        return read_folder(file)
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise SigdegError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SigdegError(f"{file} is no text: prompts are lines, CSV or JSON, in UTF-8") from None
    rows: list[Any]
    if file.suffix == ".json":
        try:
            rows = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise SigdegError(f"{file} is no JSON: {reason(error)}") from None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise SigdegError(
                f'{file} must hold a list of objects, such as [{{"prompt": "a cat"}}]'
            )
    elif file.suffix == ".csv":
        rows = read_table(file, text)
    else:
        rows = [{"prompt": line.strip()} for line in text.splitlines() if line.strip()]
    if not rows:
        raise SigdegError(f"{file} is empty: give a prompt a line, or a row a sample")
    return [{name: opened(value, file) for name, value in row.items()} for row in rows]


def read_folder(folder: Path) -> list[dict[str, Any]]:
    """Arguments of a pipeline by sample, from a dataset of the Hugging Face hub or from pictures.

    Of a dataset, saved by `save_to_disk` or downloaded as parquet, columns are arguments. Of
    pictures each is an `image`; `metadata.csv` or `metadata.jsonl` has more of them by `file_name`.
    What either calls `text` is the prompt.

    Raises:
        SigdegError: If the folder holds neither.
    """
    tables = sorted(folder.rglob("*.parquet")) or sorted(folder.rglob("*.arrow"))
    told, lines = folder / "metadata.csv", folder / "metadata.jsonl"
    if tables:
        rows = [row for table in tables for row in read_dataset(table)]
    elif told.is_file() or lines.is_file():
        file = told if told.is_file() else lines
        text = file.read_text(encoding="utf-8")
        try:
            rows = read_table(file, text) if told == file else [*map(json.loads, text.splitlines())]
        except (json.JSONDecodeError, RecursionError) as error:
            raise SigdegError(f"{file} is no JSON: {reason(error)}") from None
        rows = [{IMAGE.get(name, name): value for name, value in row.items()} for row in rows]
    else:
        names = (p.name for p in sorted(folder.iterdir()) if p.suffix.lower() in PICTURES)
        rows = [{"image": name} for name in names]
    if not rows:
        raise SigdegError(f"{folder} holds no pictures, and no dataset of parquet or arrow")
    return [
        {CAPTION.get(name, name): opened(value, folder / "metadata") for name, value in row.items()}
        for row in rows
    ]


def read_dataset(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of a dataset."""
    with extra("datasets"):
        import pyarrow
        from pyarrow import parquet
    try:
        if file.suffix == ".parquet":
            return list(parquet.read_table(file).to_pylist())
        with pyarrow.memory_map(str(file)) as source:
            return list(pyarrow.ipc.open_stream(source).read_all().to_pylist())
    except Exception as error:  # whatever a damaged file makes of its reader
        raise SigdegError(f"{file} is no whole file of a dataset: {reason(error)}") from None


def read_table(file: Path, text: str) -> list[dict[str, Any]]:
    """The rows of a CSV: numbers are numbers, an empty field is not given."""
    reader = csv.DictReader(text.splitlines())
    rows = []
    for row in reader:
        if None in row or None in row.values():
            line = reader.line_num
            raise SigdegError(f"{file}: line {line} has another number of fields than the head")
        rows.append({name: parsed(value) for name, value in row.items() if value != ""})
    return rows


def parsed(value: str) -> Any:
    """A number where a field is one, else the text."""
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def opened(value: Any, file: Path) -> Any:
    """A value, or the picture that it names or holds, as datasets do."""
    if isinstance(value, list):
        return [opened(part, file) for part in value]
    held = isinstance(value, dict) and value.keys() == {"bytes", "path"}
    named = isinstance(value, str) and value.lower().endswith(PICTURES)
    if not (held or named):
        return value
    with extra("diffusers"):
        from PIL import Image
    inside = held and value["bytes"] is not None
    place = file.parent / str(value["path"] if held else value)
    try:
        with Image.open(BytesIO(value["bytes"]) if inside else place) as picture:
            return picture.convert("RGB")
    except Exception as error:  # whatever a damaged file makes of its reader
        raise SigdegError(f"{place} is no picture: {reason(error)}") from None


def join_rows(rows: Iterable[Mapping[str, Any]], batch: int = BATCH) -> list[dict[str, Any]]:
    """Calls of several samples from rows of one: neighbours that share all but what is a list.

    Prompts, class labels and pictures become lists, one a sample; everything else, a scale or a
    size, is one for a call.

    Raises:
        SigdegError: If a call were to have less than one sample.
    """
    check_whole(batch, 1, "the batch of a call")

    def shared(row: Mapping[str, Any]) -> str:
        told = {k: v if not is_sample(k, v) else type(v).__name__ for k, v in row.items()}
        return json.dumps(told, sort_keys=True, default=repr)

    calls = []
    for _, group in itertools.groupby(rows, key=shared):
        members = list(group)
        for first in range(0, len(members), batch):
            part = members[first : first + batch]
            calls.append(
                {
                    name: [row[name] for row in part] if is_sample(name, value) else value
                    for name, value in part[0].items()
                }
            )
    return calls


def is_sample(name: str, value: Any) -> bool:
    """Whether an argument is one a sample: a prompt, a label, a picture."""
    prompt = isinstance(value, str) and "prompt" in name
    label = name == "class_labels" and isinstance(value, int)
    return prompt or label or hasattr(value, "getbands")


def check_calls(pipe: Any, calls: Sequence[Mapping[str, Any]]) -> None:
    """Refuse calls that a pipeline does not take.

    Raises:
        SigdegError: If there are none, or an argument is unknown, ours to choose, or missing.
    """
    name = type(pipe).__name__
    known = inspect.signature(type(pipe).__call__).parameters
    if not isinstance(calls, list | tuple) or not all(isinstance(call, Mapping) for call in calls):
        raise SigdegError(
            f"calls are a list of arguments of a pipeline, such as [{{'prompt': 'a cat'}}], got "
            f"{calls!r:.60}"
        )
    if not calls:
        raise SigdegError("there are no calls to distil: give one or more, such as {'prompt': ...}")
    for call in calls:
        for argument in call:
            if argument in OURS:
                raise SigdegError(
                    f"{argument} is chosen by the distillation: leave it out of calls"
                )
            if argument not in known:
                hint = did_you_mean(argument, known)
                raise SigdegError(f"{name} takes no {argument!r}{hint}")
        sizes = {k: len(v) for k, v in call.items() if isinstance(v, list) and "prompt" in k}
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{count} of {argument}" for argument, count in sizes.items())
            raise SigdegError(f"a call of {name} has one of each a sample, got {told}")
