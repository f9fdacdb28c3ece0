"""Runs of a teacher's pipeline on disk, made by many workers."""

import os
import signal

import pytest
import torch

from sigdeg.errors import SigdegError
from sigdeg.pipelines import PipelineRecipe, paths, pipeline_config, prepare
from tests.pipelines.zoo import FAMILIES

RUNS = 6
RECIPE = PipelineRecipe(steps=(2,), order=2)
CONFIG = pipeline_config(
    (2,), paths=2 * RUNS, held_out=4, batch_size=8, refinement=2, tracker="none"
)


def ready(folder):
    """A distillation of a pipeline whose weights are the same in every process."""
    torch.manual_seed(0)
    family = FAMILIES["dit"](2)
    calls = [{**family.call, "class_labels": [k, k + 1]} for k in range(3)]
    return prepare(family.pipe, calls, folder, RECIPE, CONFIG, progress=False)


def contents(folder):
    return {path.name: path.read_bytes() for path in (folder / "runs").iterdir()}


def test_a_worker_that_is_killed_costs_its_run(tmp_path):
    """It dies while it makes the third; who comes next goes on, to the same bytes."""
    child = os.fork()
    if child == 0:
        save, made = paths.save_tensors, []

        def saved(*args):
            made.append(args)
            if len(made) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            save(*args)

        paths.save_tensors = saved  # this process has moments to live
        try:
            ready(tmp_path / "shared").runs()
        finally:
            os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    left = sorted(contents(tmp_path / "shared"))
    assert left[0].startswith(".run-00002.safetensors.claim")
    assert left[1:] == ["run-00000.safetensors", "run-00001.safetensors"]
    source = ready(tmp_path / "shared").runs()
    assert len(source.rows) == 2 * RUNS
    ready(tmp_path / "whole").runs()
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["short", "other"])
def test_a_damaged_run_is_told_apart(tmp_path, damage):
    ready(tmp_path).runs()
    first, second = (tmp_path / "runs" / f"run-0000{k}.safetensors" for k in range(2))
    first.write_bytes(first.read_bytes()[:-9] if damage == "short" else second.read_bytes())
    with pytest.raises(SigdegError, match="run-00000"):
        ready(tmp_path).runs()
