"""Graphs of torch as ONNX files: without what only their makers read, in eight bits, and run."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from sigdeg.errors import SigdegError, extra, reason

__all__ = ["Array", "Run", "check_onnx", "onnx_runner", "quantise", "quiet", "save_onnx"]

LARGEST = 2**31 - 1  # bytes of a protocol buffer
PRODUCTS = ["MatMul", "Gemm"]  # convolutions of whole numbers are slower on a CPU
Array = np.ndarray[Any, np.dtype[Any]]
Run = Callable[[], Array]


def check_onnx(size: int) -> None:
    """Refuse weights of more bytes than one file holds.

    Raises:
        SigdegError: If they are.
        MissingPackageError: If a package is missing that writes or runs files.
    """
    with extra("export"):
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  # what torch converts with
    if size > LARGEST:
        raise SigdegError(f"an ONNX file holds 2 GB, the weights take {size:,} bytes: write a .pt2")


@contextmanager
def quiet() -> Iterator[None]:
    """What exporters say while they work goes nowhere: whole graphs, and packages they miss."""
    level = logging.root.manager.disable
    logging.disable()
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()), catch_warnings():
            simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def save_onnx(program: ExportedProgram, inputs: Sequence[str], output: str, file: Path) -> None:
    """Write a program as an ONNX file, with these names of what goes in and comes out.

    What unrolled steps have in common stands there once, and nothing for makers alone.

    Raises:
        SigdegError: If it has an operator that ONNX has not.
    """
    import onnx_ir as ir
    from onnx_ir import passes
    from onnx_ir.passes import common

    names: dict[str, Any] = {"input_names": inputs, "output_names": [output]}
    try:
        with quiet(), torch.no_grad():
            made: Any = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    except Exception as error:  # the exporter has errors of its own, with what to try next
        why = reason(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        raise SigdegError(f"ONNX cannot express the network: {why}") from None
    with quiet():
        shared = passes.Sequential(
            common.ClearMetadataAndDocStringPass(),
            common.CommonSubexpressionEliminationPass(),
            common.DeduplicateHashedInitializersPass(size_limit=LARGEST),
        )(ir.from_proto(made.model_proto))  # what was folded lies there in any order
    file.write_bytes(bare(ir.to_proto(shared.model)).SerializeToString())


def bare(model: Any) -> Any:
    """A model without the shapes in between, a third of a small one, and with one name for rows."""
    model.graph.ClearField("value_info")
    for value in (*model.graph.input, *model.graph.output):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param:
                side.dim_param = "batch"
    return model


def quantise(file: Path, small: Path, weights: Iterable[Tensor]) -> None:
    """Write another file with weights of matrix products in eight bits, inputs as they come.

    Weights that are transposed on the way are folded first: only constants become integers.

    Arguments:
        file: An ONNX file.
        small: The file to write.
        weights: The network's. Other constants keep their precision.
    """
    import onnx
    from onnx.numpy_helper import to_array
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    known = {content(w.numpy()) for weight in weights for w in (weight, weight.mT)}
    with TemporaryDirectory() as folder, quiet():
        folded = Path(folder, "folded.onnx")
        quant_pre_process(file, folded, skip_symbolic_shape=True)
        graph = onnx.load(folded).graph
        # By what they hold: whoever folds them gives them other names.
        ours = {v.name for v in graph.initializer if content(to_array(v)) in known}
        others = [
            name
            for node in graph.node
            if node.op_type in PRODUCTS and node.input[1] not in ours
            for name in (node.name, f"{node.name}_MatMul")  # what it makes of a Gemm
        ]
        kinds = {"op_types_to_quantize": PRODUCTS, "weight_type": QuantType.QInt8}
        quantize_dynamic(folded, small, nodes_to_exclude=others, **kinds)
    small.write_bytes(bare(onnx.load(small)).SerializeToString())


def content(array: Array) -> tuple[tuple[int, ...], str]:
    """A matrix known again by its shape and a digest of its numbers."""
    return array.shape, hashlib.sha256(array.tobytes()).hexdigest()


def onnx_runner(file: Path, given: Mapping[str, Tensor]) -> Run:
    """What runs a file on inputs by name, on one thread of the CPU; returns its first output."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors
    session = InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feed = {name: value.numpy() for name, value in given.items()}

    def run() -> Array:
        first: Array = session.run(None, feed)[0]
        return first

    return run
