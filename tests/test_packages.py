"""What is installed: the core alone does the core's work, and a missing extra says its name."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# A Python that cannot find some packages.
HIDE = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in {hidden!r}
        return None if hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""
MODULES = {"pillow": "PIL"}


def packages(requirements: list[str]) -> set[str]:
    """Modules of requirements, those of extras included."""
    found: set[str] = set()
    for requirement in requirements:
        name, extras = re.fullmatch(r"([\w-]+)(?:\[([\w,]+)\])?.*", requirement).groups()
        if extras is None:
            found.add(MODULES.get(name, name.replace("-", "_")))
        for extra in extras.split(",") if extras else ():
            found |= packages(PROJECT["optional-dependencies"][extra])
    return found


CORE, EXTRAS = packages(PROJECT["dependencies"]), packages(["sigdeg[all]"])


def python(code: str, cwd: Path, hidden: set[str]) -> subprocess.CompletedProcess[str]:
    """Run code in a Python that has no such packages."""
    given = [sys.executable, "-c", HIDE.format(hidden=sorted(hidden)) + code]
    return subprocess.run(given, cwd=cwd, capture_output=True, text=True, check=False)


def test_all_has_every_extra() -> None:
    extras = set(PROJECT["optional-dependencies"]) - {"all", "dev"}
    assert PROJECT["optional-dependencies"]["all"] == [f"sigdeg[{','.join(sorted(extras))}]"]


def test_the_core_needs_no_extra(tmp_path: Path) -> None:
    """Distil a student of an exact law, sample it, save it, load it: by the core's packages."""
    code = """
import torch, sigdeg
from sigdeg import EulerMaruyama, GaussianDenoiser, SignatureStudent, VPLinear

denoiser = GaussianDenoiser(1.0, 0.5, VPLinear())
student = SignatureStudent.from_denoiser(denoiser, channels=1, steps=(2,))
work = dict(iterations=3, batch_size=16, paths=64, refinement=5, device="cpu")
student = sigdeg.distill(student, EulerMaruyama(denoiser), "run", **work).student
x = sigdeg.sample(student, student.grid(), (8, 1), seeds=range(8))
loaded = SignatureStudent.from_pretrained("run/student")
homes = sigdeg.homes()
assert all(hasattr(sigdeg, n) for n in sigdeg.__all__ if "sigdeg.pipelines" not in homes[n])
try:
    sigdeg.attach
except ImportError as error:
    assert "pip install 'sigdeg[pipelines]'" in str(error)
else:
    raise AssertionError("pipelines need no diffusers?")
assert torch.equal(x, sigdeg.sample(loaded, loaded.grid(), (8, 1), seeds=range(8)))
"""
    hidden = {*EXTRAS, *packages(PROJECT["optional-dependencies"]["dev"])} - CORE
    run = python(code, tmp_path, hidden)
    assert run.returncode == 0, run.stderr[-2000:]
    told = "training curves are not logged: pip install 'sigdeg[track]' for tensorboard"
    assert run.stderr.count(told) == 1


@pytest.mark.parametrize(
    ("command", "hidden", "extra"),
    [
        ("sample mnist -n 1", "diffusers", "diffusers"),
        ("sample mnist -n 1", "PIL", "report"),
        ("distill mnist-teacher", "matplotlib", "report"),
        ("export mnist", "onnxruntime", "export"),
        ("run mnist --preset quick", "pooch", "benchmarks"),
    ],
)
def test_a_missing_extra_says_its_name(
    command: str, hidden: str, extra: str, tmp_path: Path
) -> None:
    code = f"import sys; from sigdeg.cli import main; sys.exit(main({command.split()!r}))"
    run = python(code, tmp_path, {hidden})
    assert run.stderr == f"sigdeg: {hidden} is not installed: pip install 'sigdeg[{extra}]'\n"
    assert run.returncode == 2
    assert not list(tmp_path.iterdir())


def test_sampling_costs_torch_and_nothing_heavier(tmp_path: Path) -> None:
    code = """
import sys, sigdeg
assert "torch" not in sys.modules
sigdeg.sample
others = {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names
print(*sorted(name for name in others if not name.startswith("_")))
"""
    run = python(code, tmp_path, set())
    assert run.returncode == 0, run.stderr
    bare = python(
        "import torch, tqdm, safetensors" + code[code.index("\nothers") :], tmp_path, set()
    )
    assert set(run.stdout.split()) <= {*bare.stdout.split(), "sigdeg"}


def test_the_command_that_samples_loads_nothing_that_it_has_no_use_for(tmp_path: Path) -> None:
    code = """
import sys, torch
from sigdeg.cli import main
assert main("sample mnist -n 1 --steps 1 --no-progress --device cpu".split()) == 0
assert "diffusers" in sys.modules
heavy = {"torch._dynamo", "scipy.stats", "matplotlib", "jinja2", "pooch", "tensorboard"}
assert not heavy & {*sys.modules}
import diffusers  # a scheduler that needs what was left out
given = {"use_beta_sigmas": True, "use_karras_sigmas": False}
diffusers.EulerDiscreteScheduler(**given).set_timesteps(3)
assert "scipy.stats" in sys.modules
assert torch.compiler.disable(lambda x: x + 1)(1) == 2
assert "torch._dynamo" in sys.modules
"""
    run = python(code, tmp_path, set())
    assert run.returncode == 0, run.stderr


def test_public_names_come_from_where_they_are_defined() -> None:
    import sigdeg
    from sigdeg import api

    assert sorted(sigdeg.__all__) == sorted(api.__all__)
    assert all(getattr(sigdeg, name) is getattr(api, name) for name in api.__all__)
    assert set(api.__all__) <= set(dir(sigdeg))
    with pytest.raises(AttributeError, match="module 'sigdeg' has no attribute 'nothing'"):
        getattr(sigdeg, "nothing")  # noqa: B009
