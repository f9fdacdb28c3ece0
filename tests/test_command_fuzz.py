"""Bad commands at random: one line each, exit code 2, and nothing left behind."""

import contextlib
import io
import random
import string
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sigdeg import ResidualMLP, SignatureStudent, VPLinear
from sigdeg.cli import main

HUGE = ("99999999999999999999", "4294967296000", "-1", "1e400", "-inf", "nan", "1e-400", "0x10")
WORDS = ("", " ", "abc", "1,5", "--", "\x00", "é中\U0001f600", "'; rm", "../..", "a" * 300, "None")
# Options that take a number, those that take one of a few words, and flags, by command.
COMMANDS = {
    "run mixture1d --preset quick": (("--seed",), ("--preset", "--device"), ("--progress",)),
    "distill TEACHER": (
        ("--steps", "--order", "--iterations", "--batch-size", "--learning-rate", "--paths", "--q",
         "--refinement", "--matching", "--guidance", "--guidance-until", "--times", "--lookahead",
         "--samples", "--seed"),
        ("--grid", "--residual-noise", "--mixed-precision", "--device", "--plan", "--tracker"),
        ("--progress",),
    ),
    "sample STUDENT": (
        ("-n", "--steps", "--seed", "--label", "--batch-size"), ("--save", "--device"),
        ("--progress",),
    ),
    "evaluate STUDENT TEACHER": (
        ("--samples", "--refinement", "--guidance", "--guidance-until", "--seed"), ("--device",),
        ("--progress",),
    ),
    "plan spectrum DATA": (
        ("-T", "--samples", "--sampling-steps", "--seed"), ("--schedule",), ("--json",),
    ),
    "plan merge DATA": (
        ("-T", "-s", "--seed"), ("--schedule", "--accounting"), ("--json",),
    ),
    "plan grid DATA": (
        ("--steps", "--order", "--budget", "--fine-steps", "--candidates", "--paths", "--axes",
         "--refinement", "--samples", "--seed"),
        ("--start", "--schedule", "--weighing"), ("--measure", "--json"),
    ),
    "plan phase": (
        ("-T", "--variances", "--training-times"), ("--schedule", "--accounting"), ("--json",),
    ),
}  # fmt: skip
NAMES = ("STUDENT", "TEACHER", "DATA")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student, a spectrum, a file, broken models and a run of something else."""
    import diffusers

    folder = tmp_path_factory.mktemp("place")
    torch.manual_seed(0)
    network = ResidualMLP(SignatureStudent.in_channels(1, 2), 1, 8, 1)
    SignatureStudent(network, VPLinear(), 1, 2, data_std=1.0).save_pretrained(folder / "STUDENT")
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder / "TEACHER")
    (folder / "DATA").with_suffix(".csv").write_text("2.0, 1.0, 0.1")
    (folder / "file").write_text("in the way")
    for name, text in (("empty", None), ("other", "{}"), ("list", "[]"), ("torn", '{"format":')):
        (folder / name).mkdir()
        if text is not None:
            (folder / name / "config.json").write_text(text)
    return folder


def bad_number(draw: random.Random) -> str:
    return draw.choice((*HUGE, *WORDS, "1.5.2", str(-draw.randint(1, 10**6)), "10**3"))


def bad_name(draw: random.Random) -> str:
    """What is no student, no teacher and no data."""
    nothing = "".join(draw.choices(string.ascii_letters + "é/.-~", k=draw.randint(1, 40)))
    return draw.choice(("empty", "other", "list", "torn", "file", "", "\x00", f"./{nothing}", "~"))


def command(draw: random.Random) -> list[str]:
    """A command with one fault or more; each fault is bad whatever stands beside it."""
    line = draw.choice(list(COMMANDS))
    numbers, words, flags = COMMANDS[line]
    out = [] if draw.random() < 0.2 else ["--out", draw.choice(("out", "a/b/out"))]
    parts = [*("DATA.csv" if part == "DATA" else part for part in line.split()), *out]
    faults: list[Callable[[], list[str]]] = [
        lambda: [draw.choice(numbers), bad_number(draw)],
        lambda: [draw.choice(words), draw.choice(WORDS[:-1] + HUGE)],
        lambda: [draw.choice(numbers + words)],  # without its value, last
        lambda: ["--" + "".join(draw.choices(string.ascii_lowercase, k=5))],
        lambda: [draw.choice(flags) + "s"],
        lambda: [draw.choice(WORDS[2:4])],  # one value too many
        lambda: ["--out", draw.choice(("", "file", "file/a", "\x00", "x" * 300, "file/a/b"))],
        lambda: [draw.choice(numbers) + "=" + bad_number(draw)],
    ]
    chosen = [draw.choice(faults)() for _ in range(draw.choice((1, 1, 1, 2, 3)))]
    names = [i for i, part in enumerate(parts) if part in (*NAMES, "DATA.csv", "mixture1d")]
    if names and draw.random() < 0.2:
        parts[draw.choice(names)] = bad_name(draw)
        chosen = chosen[1:]
    elif draw.random() < 0.1:
        parts[0] = draw.choice(("", "smaple", "--sample", "Plan", "distil", "\x00"))
    return [*parts, *(part for fault in chosen for part in fault)]


def tree(folder: Path) -> dict[str, int]:
    """Everything below a folder, with its time of change."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def mark(arguments: list[str], folder: Path) -> str | None:
    """What is wrong with the answer to a bad command; None if nothing is."""
    before, out, err = tree(folder), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code: object = main(arguments)
        except BaseException as error:
            code = repr(error)
    said = err.getvalue()
    if code != 2 or said.count("\n") != 1 or not said.startswith("sigdeg: "):
        return f"{arguments}: exit {code}, said {said[-300:]!r}"
    if tree(folder) != before:
        return f"{arguments}: left {sorted(set(tree(folder)) ^ set(before))}"
    return None


@pytest.mark.parametrize(
    ("count", "seed"), [(80, 0), pytest.param(1000, 1, marks=pytest.mark.slow)]
)
def test_bad_commands(count: int, seed: int, place: Path, monkeypatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    draw = random.Random(seed)
    found = [mark(command(draw), place) for _ in range(count)]
    assert not [line for line in found if line is not None]
