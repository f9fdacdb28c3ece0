"""Bad commands at random: one line each, exit code 2, and nothing left behind."""

import contextlib
import io
import random
import string
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sigdeg import ResidualMLP, SignatureStudent, VPLinear, costs
from sigdeg.cli import main
from sigdeg.discrete import Absorbing, NetworkTokenDenoiser, as_token_model
from sigdeg.integrations import load_teacher
from sigdeg.networks import TokenMLP
from tests.pipelines.zoo import FAMILIES
from tests.tiny import tiny_unet

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
    "distill PIPELINE --prompts prompts.txt": (
        ("--steps", "--order", "--iterations", "--batch-size", "--learning-rate", "--paths", "--q",
         "--refinement", "--times", "--rank", "--seed", "--guidance"),
        ("--arguments", "--calls", "--mixed-precision", "--device", "--tracker", "--plan"),
        ("--progress", "--runs-only"),
    ),
    "sample PIPELINE": (
        ("-n", "--steps", "--seed", "--label", "--batch-size"), ("--save", "--arguments"),
        ("--progress",),
    ),
    "distill TOKENS": (
        ("--steps", "--iterations", "--batch-size", "--learning-rate", "--paths", "--latents",
         "--alpha", "--samples", "--seed", "--guidance"),
        ("--mixed-precision", "--device", "--tracker", "--data"), ("--progress",),
    ),
    "sample TOKENS": (
        ("-n", "--steps", "--seed", "--label", "--batch-size"), ("--save", "--device"),
        ("--progress",),
    ),
    "sample STUDENT": (
        ("-n", "--steps", "--seed", "--label", "--batch-size"), ("--save", "--device"),
        ("--progress",),
    ),
    "export STUDENT": (("--steps", "--batch"), ("--out",), ("--int8", "--progress")),
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
    "plan tokens bits2": (
        ("--steps", "--distance", "--candidates", "--samples", "--seed"), ("--device",),
        ("--json", "--progress"),
    ),
}  # fmt: skip
NAMES = ("STUDENT", "TEACHER", "TOKENS", "DATA", "PIPELINE")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student, a spectrum, a file, broken models and a run of something else."""
    import diffusers

    folder = tmp_path_factory.mktemp("place")
    torch.manual_seed(0)
    network = ResidualMLP(SignatureStudent.in_channels(1, 2), 1, 8, 1)
    SignatureStudent(network, VPLinear(), 1, 2, data_std=1.0).save_pretrained(folder / "STUDENT")
    product = NetworkTokenDenoiser(TokenMLP(4, 3, 8, 1), Absorbing(2), 4)
    as_token_model(product).save_pretrained(folder / "TOKENS")
    unet = tiny_unet()
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder / "TEACHER")
    teacher = load_teacher(str(folder / "TEACHER"))
    SignatureStudent.from_denoiser(
        teacher.denoiser, 1, 1, steps=(2,), sample_shape=(1, 8, 8), lookahead=0.0
    ).save_pretrained(folder / "OWN")
    FAMILIES["sd15"]().pipe.save_pretrained(folder / "PIPELINE")
    (folder / "prompts.txt").write_text("a cat\n")
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


DISTIL = (
    "distill TEACHER --steps 2 --order 1 --iterations 6 --batch-size 4 --paths 16 --refinement 2 "
    "--samples 4 --tracker none --no-progress --out o "
)
GRID = "plan grid TEACHER --steps 2 --candidates 4 --samples 4 --paths 30 --no-progress --out o "


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (DISTIL + "--times 1 0.5 0 --grid planned", "leave the others out"),
        (DISTIL + "--times 1 0.5 0 --start OWN", "leave the others out"),
        (DISTIL + "--times 1 0.5", "times"),
        (DISTIL + "--grid planned --steps 100", "at most 64 steps, got 100"),
        (DISTIL + "--grid planned --q 3", "q must lie between 1 and 2"),
        (DISTIL + "--grid planned --tracker foo", "tracker 'foo'"),
        (DISTIL + "--tracker wandb", "'wandb' is not installed"),
        (DISTIL + "--samples 10000000", "of memory"),
        (DISTIL + "--paths 1000000000 --steps 1000", "on the disk of"),
        (DISTIL + "--batch-size 10000000 --steps 1000", "of memory"),
        (DISTIL + "--weak TEACHER", "give guidance"),
        (DISTIL + "--plan boot --q 2", "with q=1"),
        ("distill TOKENS --alpha 4 --out o", "has no lower bound and diverges"),
        ("distill TOKENS --latents 1 --out o", "learns no correlations"),
        ("distill TOKENS --order 3 --out o", "--order is for teachers that paths drive"),
        ("distill TOKENS --data DATA.csv --out o", "DATA.csv"),
        ("distill TOKENS --samples 10000000 --out o", "of memory"),
        ("distill TEACHER --latents 8 --out o", "--latents is for teachers of tokens"),
        ("evaluate TOKENS TOKENS --out o", "is a teacher"),
        ("evaluate OWN TEACHER --samples 10000000 --out o", "of memory"),
        ("evaluate OWN TEACHER --guidance 2 --out o", "guidance"),
        ("evaluate STUDENT TEACHER --out o", "it is not its teacher"),
        ("sample OWN -n 1000000000 --out o", "this takes"),
        ("sample OWN --label 3 --out o", "knows no classes"),
        (GRID + "--candidates 1000 --paths 10000000", "of memory"),
        (GRID + "--samples 1000000000", "--samples"),
        (GRID + "--no-measure --weighing plain", "leave --weighing out"),
        (GRID + "--order 8", "features need more than 30 paths"),
        ("plan grid DATA.csv --weighing plain --out o", "leave --weighing out"),
        ("plan spectrum rbergomi --samples 10000000 --out o", "of memory"),
        ("plan tokens sudoku4 --samples 10000000 --out o", "of memory"),
        ("plan tokens STUDENT --out o", "no masked language model"),
        ("run mixture1d --preset quick --out STUDENT", "choose another folder"),
        ("report file", "results.json"),
        ("report empty", "results.json"),
        ("report OWN", "results.json"),
    ],
)
def test_options_that_do_not_fit_together(
    line: str, words: str, place: Path, monkeypatch, capsys
) -> None:
    """Each is right by itself; the whole is refused before any work, and leaves nothing."""
    monkeypatch.chdir(place)
    # As large as the machine may be, this is not free.
    free = costs.psutil.virtual_memory()._replace(available=10**10)
    monkeypatch.setattr(costs.psutil, "virtual_memory", lambda: free)
    before = tree(place)
    assert main(line.split()) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.startswith("sigdeg: ")
    assert said.count("\n") == 1
    assert tree(place) == before


def test_costs_are_told_first(place: Path, tmp_path: Path, capsys) -> None:
    """One line each."""
    for line, words in (
        (f"sample {place}/OWN -n 3 --out {tmp_path}/a", "3 samples, 6 network calls: "),
        (
            f"evaluate {place}/OWN {place}/TEACHER --samples 4 --refinement 2 --out {tmp_path}/b",
            "two sets of 4 samples, 64 network calls: ",
        ),
        (
            f"plan grid {place}/TEACHER --steps 2 --candidates 4 --samples 4 --paths 300 --axes 2 "
            f"--refinement 2 --out {tmp_path}/c",
            "measuring 300 paths, 1,800 network calls: ",
        ),
    ):
        assert main(line.split()) == 0
        told = [said for said in capsys.readouterr().err.splitlines() if words in said]
        assert len(told) == 1
        assert told[0].endswith("about a minute")
