"""A student's whole sampler as one graph, for runtimes that know neither torch nor this package."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from tqdm.auto import tqdm

from sigdeg.costs import check_room
from sigdeg.errors import SigdegError, check_least, reason
from sigdeg.files import atomic_write, is_pipeline, save_json
from sigdeg.integrations import load_model
from sigdeg.integrations.onnx import Array, Run, check_onnx, onnx_runner, quantise, quiet, save_onnx
from sigdeg.model import Model, as_model
from sigdeg.results import versions
from sigdeg.rng import randn, seed_generators
from sigdeg.runs import fingerprint
from sigdeg.signature import PartialSignature
from sigdeg.student import SignatureStudent
from sigdeg.timing import paired_seconds

__all__ = ["Sampler", "draw", "export", "named"]

ONNX, PT2 = ".onnx", ".pt2"
SAMPLES = 4  # drawn to trace, to check and to time a sampler of any batch


class Sampler(nn.Module):
    r"""All steps of a student, as a function of its noise alone.

    It marches the student as `sigdeg.sampling.sample` does, from $\sigma_{t_{max}} \varepsilon$ to
    the data, and decodes. A trace of it unrolls the steps: they share the one network's weights,
    and what the times decide is constant.

    Arguments:
        model: The student, with its codec; it is copied.
        grid: The times.
    """

    def __init__(self, model: Model, grid: Tensor) -> None:
        super().__init__()
        step: Any = copy.deepcopy(model.step)
        step.response.factor()  # a matrix a step would outweigh the network
        self.step = step
        self.codec: Any = copy.deepcopy(model.codec)  # a module where it has weights
        self.prior_std = model.schedule.prior_std
        self.times = tuple(grid.tolist())
        self.to("cpu").eval().requires_grad_(False)

    def forward(
        self, noise: Tensor, coefficients: Tensor, condition: Mapping[str, Tensor]
    ) -> Tensor:
        r"""Samples in the user's own units.

        Arguments:
            noise: $\varepsilon$, standard normal, shape (batch, \*shape).
            coefficients: Those of the path over each step, standard normal, shape
                (batch, steps, order, \*shape).
            condition: What the network takes beside state and time, a row a sample.
        """
        x = self.prior_std * noise
        for (t, s), c in zip(pairwise(self.times), coefficients.unbind(1), strict=True):
            x = self.step(x, t, s, PartialSignature(torch.as_tensor(t - s), c), **condition)
        samples: Tensor = self.codec.decode(x)
        return samples


class Prepared(NamedTuple):
    """A sampler to be written, and an example: what it takes, and what is to come out."""

    name: str
    sampler: Any
    given: tuple[Tensor, Tensor, dict[str, Tensor]]
    expected: Tensor
    seeds: Sequence[int]


def export(
    student: Any,
    path: str | Path,
    steps: int | None = None,
    *,
    int8: bool = False,
    batch: int | None = None,
    call: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    r"""Write a student's sampler as one file: ONNX, or an exported program of torch.

    Its inputs are `noise` (batch, \*shape) and `coefficients` (batch, steps, order, \*shape), all
    standard normal, and the student's conditions, such as `class_labels` (batch,), by their names;
    its output is `sample`, decoded. An exported program takes the conditions as one dictionary.

    Of a pipeline it is the march of its denoiser, to the states that the pipeline decodes. The
    conditions are those of a call: what the network gets a row a sample.

    The file is run before it is handed over, on the noise of some seeds, and compared with what the
    student draws of them. A report with its name and the ending `.json` says what was found.

    Arguments:
        student: The student: a `Model`, a `SignatureStudent`, a pipeline; or its folder, hub id or
            name.
        path: The file; its ending, `.onnx` or `.pt2`, says which kind.
        steps: Its number of steps (default: all of its grid).
        int8: Write a second ONNX file beside it, ending in `.int8.onnx`, with the weights of matrix
            products in eight bits.
        batch: Samples a run (default: any number that the network takes).
        call: Arguments of a pipeline for the samples that it is tried on, such as two prompts.
        progress: Show a progress bar.

    Returns:
        The report.

    Raises:
        SigdegError: If there is no such student or it does not know so many steps, if a file stands
            in the way or none can be written, or if the network cannot be traced.
        MissingPackageError: If a package of the extra `export` is missing.
    """
    files = check_files(Path(path), int8)
    if batch is not None:
        check_least(batch, 1, "batch")
    made = prepare(student, steps, batch, call)
    size = sum(value.nbytes for value in made.sampler.state_dict().values())
    if files[0].suffix == ONNX:
        check_onnx(size)
    check_room(files[0].parent, disk=2 * size, memory=3 * size)
    bar = tqdm(disable=not progress, bar_format="{desc}{elapsed}")
    with bar, TemporaryDirectory() as folder:
        written = [Path(folder, file.name) for file in files]
        report = make(made, written, batch, bar)
        for file, source in zip(files, written, strict=True):
            atomic_write(file, partial(shutil.copyfile, source))
    save_json(files[0].with_suffix(".json"), report)
    return report


def check_files(path: Path, int8: bool) -> list[Path]:
    """The files of weights that are to be written; refuses those that cannot be."""
    if path.suffix not in (ONNX, PT2):
        raise SigdegError(f"a sampler is written to a file in {ONNX} or {PT2}, got {path}")
    if int8 and path.suffix != ONNX:
        raise SigdegError(f"eight bits are for ONNX: leave int8 out, or end {path} in {ONNX}")
    files = [path, *([path.with_suffix(".int8.onnx")] if int8 else [])]
    for file in (*files, path.with_suffix(".json")):
        if file.exists():
            raise SigdegError(f"{file} exists: choose another file, or delete it")
    check_room(path.parent)
    return files


def prepare(
    student: Any, steps: int | None, batch: int | None, call: Mapping[str, Any] | None
) -> Prepared:
    """The sampler of a student, and a run of it."""
    if is_pipeline(student) if isinstance(student, str | Path) else hasattr(student, "components"):
        return prepare_pipeline(student, steps, batch, call or {})
    if call:
        raise SigdegError("a call is for students that are pipelines: leave it out")
    model = as_student(student)
    sampler, seeds = Sampler(model, model.grid.at(steps)), range(batch or SAMPLES)
    given = draw(model, sampler.times, seeds)
    expected = model.sample(len(seeds), grid=sampler.times, seeds=seeds).cpu()
    return Prepared(model.name, sampler, given, expected, seeds)


def prepare_pipeline(
    student: Any, steps: int | None, batch: int | None, call: Mapping[str, Any]
) -> Prepared:
    """The sampler of a student pipeline, and a run of a call."""
    from sigdeg.pipelines.export import SEED, observe_student

    sampler, given, expected = observe_student(student, call, steps)
    samples = len(expected)
    if batch is not None and batch != samples:
        raise SigdegError(
            f"a batch of {batch} is tried on a call of as many samples, got {samples}"
        )
    if batch is None and samples < 2:
        raise SigdegError(
            "a call of one sample does not tell what any number of them shares: give a call of "
            "two or more, or a batch of 1"
        )
    name = str(student) if isinstance(student, str | Path) else type(student).__name__
    return Prepared(name, sampler, given, expected, [SEED])


def as_student(student: Any) -> Model:
    """A student as a model."""
    if isinstance(student, str | Path):
        student = load_model(student)
    model = as_model(student) if isinstance(student, SignatureStudent) else student
    if not isinstance(model, Model) or not isinstance(model.step, SignatureStudent):
        name = model.name if isinstance(model, Model) else f"a {type(model).__name__}"
        raise SigdegError(f"{name} is no student driven by paths: only such a one is exported")
    return model


def make(
    made: Prepared, files: Sequence[Path], batch: int | None, bar: tqdm[Any]
) -> dict[str, Any]:
    """Trace, write and run a sampler; returns the report."""
    name, sampler, given, expected, seeds = made
    bar.set_description("tracing")
    program = trace(sampler, given, dynamic=batch is None)
    bar.set_description("converting")
    matrices = [p for p in sampler.parameters() if p.ndim == 2]
    runs = write(program, given, files, matrices)
    bar.set_description("measuring")
    return {
        "student": name,
        "fingerprint": fingerprint(sampler),
        "steps": len(sampler.times) - 1,
        "times": list(sampler.times),
        "inputs": {key: describe(value, batch) for key, value in named(given).items()},
        "sample": describe(expected, batch),
        "batch": [batch or 1, batch or most(program)],
        "samples": len(expected),
        "seeds": list(seeds),
        "files": judge(sampler, given, runs, expected.numpy()),
        "versions": versions(),
    }


def draw(
    model: Model, times: Sequence[float], seeds: Sequence[int]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """What a sampler takes, of seeds: the noise that `sample` draws, and conditions."""
    generators, size = seed_generators(seeds), (len(seeds), *model.shape)
    noise = randn(size, generators)
    paths = [model.gaussian.noise(t, s, size, generators) for t, s in pairwise(times)]
    coefficients = torch.stack([path.coefficients for path in paths], dim=1)
    condition = model.condition(len(seeds))
    return noise, coefficients, {key: value.cpu() for key, value in condition.items()}


def named(given: tuple[Any, ...]) -> dict[str, Tensor]:
    """The inputs of a sampler by their names."""
    return {"noise": given[0], "coefficients": given[1], **given[2]}


def describe(value: Tensor, batch: int | None) -> dict[str, Any]:
    """Type and shape of an input or an output."""
    shape = [batch, *value.shape[1:]]  # JSON's null is any number
    return {"type": str(value.dtype).removeprefix("torch."), "shape": shape}


@torch.no_grad()
def trace(sampler: Any, given: tuple[Any, ...], dynamic: bool) -> ExportedProgram:
    """The sampler as a graph of torch's operators, of any number of rows if it is dynamic."""
    rows = {0: Dim.DYNAMIC}
    shapes = (rows, rows, dict.fromkeys(given[2], rows)) if dynamic else None
    sampler(*given)  # a run fills the caches of what the times decide with numbers
    try:
        with quiet():
            return torch.export.export(sampler, given, dynamic_shapes=shapes)
    except Exception as error:  # whatever a network of one's own makes of it
        hint = " (of a fixed batch it may be)" if dynamic else ""
        raise SigdegError(f"the student cannot be traced{hint}: {reason(error)}") from None


def most(program: ExportedProgram) -> int | None:
    """The largest batch that a dynamic program takes; None without a bound."""
    noise = next(node for node in program.graph.nodes if node.name == "noise")
    upper = program.range_constraints[noise.meta["val"].shape[0].node.expr].upper
    return int(upper) if upper.is_Integer else None


def write(
    program: ExportedProgram,
    given: tuple[Any, ...],
    files: Sequence[Path],
    matrices: Sequence[Tensor],
) -> dict[Path, Run]:
    """Write a program into one file or two; returns what runs each of them."""
    first = files[0]
    if first.suffix == PT2:
        with quiet():
            torch.export.save(program, first)
        module = torch.export.load(first).module()
        return {first: lambda: module(*given).numpy()}
    inputs = named(given)
    save_onnx(program, [*inputs], "sample", first)
    for small in files[1:]:
        quantise(first, small, matrices)
    return {file: onnx_runner(file, inputs) for file in files}


def judge(
    sampler: Any, given: tuple[Any, ...], runs: Mapping[Path, Run], expected: Array
) -> dict[str, dict[str, float]]:
    """Bytes, errors, and seconds of a run of all samples on one thread, of each file."""

    def eager() -> Tensor:
        with torch.no_grad():
            samples: Tensor = sampler(*given)
            return samples

    seconds = paired_seconds({None: eager, **runs})
    found = {}
    for file, run in runs.items():
        error = run() - expected
        found[file.name] = {
            "bytes": file.stat().st_size,
            "largest_error": float(np.abs(error).max()),
            "relative_error": float(np.sqrt((error**2).mean()) / expected.std()),
            "seconds": seconds[file],
            "eager_seconds": seconds[None],
        }
    return found
