"""What is said of arguments that are wrong, and of errors that no one foresaw."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sigdeg
from sigdeg import cli
from sigdeg.cli import main
from sigdeg.errors import guard


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("", "Expected one of {run, distill, sample, export, evaluate, report, plan}."),
        ("distil x", "unknown 'distil': did you mean distill? choose from run, distill, sample"),
        ("plan grd", "plan: unknown 'grd': did you mean grid? choose from spectrum, merge, grid"),
        ("plan", "plan: Expected one of {spectrum, merge, grid, phase, tokens}."),
        ("sample", "Missing from sigdeg sample: STUDENT Folder or hub id of a student"),
        ("sample x --sed 3", "unknown '--sed': did you mean --seed? see sigdeg sample --help"),
        ("sample x --no-progres", "unknown '--no-progres': did you mean --no-progress?"),
        ("plan phase --jsn", "plan phase: unknown '--jsn': did you mean --json?"),
        ("sample x y", "sample: unknown 'y': see sigdeg sample --help"),
        ("sample x --seed", "Missing value for argument '--seed'. Expected 1 values."),
        ("sample x --seed=x", "--seed must be a whole number from 0 to 4,294,967,295, got 'x'"),
        (f"sample x -n {'9' * 5000}", "-n/--n must be a whole number from 1 to 1,000,000,000"),
        ("distill x --times 1 abc", "--times must be a number from 0 to 1, got 'abc'"),
        ("distill x --mixed-precision fp8", "Expected one of ('no', 'bf16')."),
        ("plan phase --variances 1", "Missing value for argument '--variances'. Expected 2"),
    ],
)
def test_a_bad_argument_is_one_line(arguments: str, line: str, capsys) -> None:
    """It names the fault and what would be right, a near name too."""
    assert main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert not out
    assert line in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("option", ["--out", "--device"])
def test_empty_text_is_no_path(option: str, capsys) -> None:
    assert main(["sample", "mnist", option, ""]) == 2
    assert f"{option} must be " in capsys.readouterr().err
    assert main(["sample", ""]) == 2
    assert "STUDENT must be some text, got ''" in capsys.readouterr().err


def fail(error: BaseException) -> int:
    raise error


def test_an_error_that_no_one_foresaw_leaves_its_traceback_in_a_file(capsys) -> None:
    assert guard(lambda: fail(ZeroDivisionError("by\nzero"))) == 1
    err = capsys.readouterr().err
    assert err.startswith("sigdeg: this should not happen: ZeroDivisionError: by zero (traceback")
    assert err.count("\n") == 1
    log = Path(err.partition("traceback in ")[2].removesuffix(")\n"))
    assert "ZeroDivisionError: by\nzero" in log.read_text()
    log.unlink()


def test_an_interrupt_is_one_line(capsys) -> None:
    assert guard(lambda: fail(KeyboardInterrupt())) == 1
    assert capsys.readouterr().err.startswith("sigdeg: interrupted; ")


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_interrupt_while_libraries_are_imported(library: str, tmp_path: Path) -> None:
    """One line, no traceback, nothing left behind."""
    command = ["sample", "mnist", "-n", "9999", "--no-progress", "--out", tmp_path / "o"]
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "sigdeg", *command],  # tells what is imported
        stderr=subprocess.PIPE,
        text=True,
        # A background job, which the tests may be, is deaf to Ctrl-C; a user's command is not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    imported = iter(process.stderr.readline, "")
    assert any(line.rpartition("|")[2].strip().startswith(f"{library}.") for line in imported)
    process.send_signal(signal.SIGINT)
    rest = [line for line in process.communicate()[1].splitlines() if "import time:" not in line]
    assert process.returncode == 1
    assert rest == ["sigdeg: interrupted; the same command goes on or starts again"]
    assert not (tmp_path / "o").exists()


def test_the_command_line_starts_without_torch() -> None:
    """Bad arguments need not wait for it."""
    code = "import sys, sigdeg.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_package_gives_what_it_lists() -> None:
    assert {"SignatureStudent", "distill", "__version__"} <= set(dir(sigdeg))
    assert sigdeg.distill is sys.modules["sigdeg.workflows.distill"].distill
    assert sigdeg.cli is cli
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sigdeg.nothing  # noqa: B018


def test_interrupt_while_options_are_parsed() -> None:
    """What is then written to stderr is kept for later: the line is not."""
    code = """
import contextlib, io, types
from sigdeg.__main__ import interrupt
importing = types.SimpleNamespace(co_filename="<frozen importlib._bootstrap>")
with contextlib.redirect_stderr(io.StringIO()):
    interrupt(2, types.SimpleNamespace(f_code=importing, f_back=None))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 1
    assert found.stderr.startswith("sigdeg: interrupted; ")
