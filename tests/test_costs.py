"""What work costs is said, and refused, beforehand; what folders hold is left alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from sigdeg import (
    Exponential,
    GaussianDenoiser,
    ResidualMLP,
    SigdegError,
    SignatureStudent,
    VPLinear,
    costs,
    distill,
)
from sigdeg.cli import main
from sigdeg.costs import check_room, size
from sigdeg.grids import refine
from sigdeg.paths import TeacherPaths
from sigdeg.training import Job, TrainConfig
from sigdeg.workflows.sample import write_samples

SMALL = {"iterations": 3, "batch_size": 8, "paths": 32, "refinement": 4, "tracker": "none"}


def student(shape: tuple[int, ...] = (2,), order: int = 2) -> SignatureStudent:
    torch.manual_seed(0)
    network = ResidualMLP(SignatureStudent.in_channels(shape[0], order), shape[0], 8, 1)
    return SignatureStudent(
        network, VPLinear(), shape[0], order, steps=(5,), sample_shape=shape, data_std=1.0
    )


def teacher() -> Exponential:
    return Exponential(GaussianDenoiser(0.0, 1.0, VPLinear()))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    student().save_pretrained(tmp_path / "run" / "student")
    return tmp_path / "run"


def test_a_distillation_says_what_it_takes(tmp_path: Path, capsys) -> None:
    """The disk it foresees is what its paths and its checkpoint fill."""
    distill(student(), teacher(), tmp_path, device="cpu", **SMALL)
    line = capsys.readouterr().err.splitlines()[0]
    assert line.startswith("32 paths, 640 teacher calls, 3 training steps: ")
    assert "about a minute" in line
    told = float(line.partition("steps: ")[2].split()[0]) * 1000
    files = [*tmp_path.glob("paths/*"), *tmp_path.glob("checkpoints/*.safetensors")]
    assert told == pytest.approx(sum(file.stat().st_size for file in files), rel=0.5)


@pytest.mark.parametrize(
    ("options", "where"),
    [({"paths": 10**15}, "on the disk of"), ({"batch_size": 10**13}, "of memory")],
)
def test_work_that_finds_no_room_is_refused_before_anything_is_made(
    options, where: str, tmp_path: Path
) -> None:
    with pytest.raises(SigdegError, match=where):
        distill(student(), teacher(), tmp_path / "out", progress=False, **SMALL | options)
    assert not (tmp_path / "out").exists()


def test_paths_that_are_there_need_no_more_room(tmp_path: Path, monkeypatch) -> None:
    many = SMALL | {"paths": 1024, "progress": False, "device": "cpu"}
    distill(student(), teacher(), tmp_path, **many)
    used = sum(file.stat().st_size for file in tmp_path.glob("paths/*"))
    free = costs.shutil.disk_usage(tmp_path)._replace(free=used)
    monkeypatch.setattr(costs.shutil, "disk_usage", lambda _: free)
    distill(student(), teacher(), tmp_path, **many)
    with pytest.raises(SigdegError, match="on the disk of"):
        distill(student(), teacher(), tmp_path / "anew", **many)


def test_bytes_in_words() -> None:
    assert [size(n) for n in (0, 999_000, 2.5e6, 3e9, 4e12, 5e18)] == [
        "0 kB",
        "999 kB",
        "2.5 MB",
        "3 GB",
        "4 TB",
        "5e+03 PB",
    ]


def test_what_a_gradient_needs_is_counted() -> None:
    """Of a layer its input, of tanh its output, in single precision; weights are there anyway."""
    layers = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    with (held := costs.Activations(layers)):
        layers(torch.ones(7, 3)).sum().backward()
    assert held.most == 4 * 7 * (3 + 5)
    assert held.now == 0


def test_what_weights_need_in_training() -> None:
    """Those that learn five times: with gradient, two moments and average; frozen ones once."""
    layers = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 8).bfloat16())
    frozen = list(layers[1].parameters())
    learnt, still = 4 * (15 + 5), 2 * (40 + 8)
    need = costs.Need.of(layers, frozen, TrainConfig(), 2)
    assert (need.disk, need.memory) == (4 * learnt, 5 * learnt + still)
    need = costs.Need.of(layers, frozen, TrainConfig(sharding="fsdp"), 2)
    assert (need.disk, need.memory) == (4 * learnt, (5 * learnt + still) // 2)


def test_a_training_says_what_it_takes_and_is_refused(monkeypatch, capsys) -> None:
    """By its loss of one row: the weights five times, and what the gradient needs a row."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1000, 500, bias=False)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": self.layer(x).sum()}

    job = Job(Mean(), lambda g: torch.ones(64, 1000), torch.ones(10, 1000), {})
    config, cpu = TrainConfig(iterations=70, batch_size=64), torch.device("cpu")
    costs.tell_job(job, 10, config, cpu, processes=2)
    line = capsys.readouterr().err
    weights, activations = 4 * 500_000, 4 * 1000 * 64 // 2
    assert line.startswith(f"70 training steps: {size(4 * weights)} on disk, ")
    assert f" {size(5 * weights + activations)} of memory, about a minute" in line
    sharing = TrainConfig(iterations=70, batch_size=64, sharding="fsdp")
    costs.tell_job(job, 10, sharing, cpu, processes=4)
    parts = f"{size(4 * weights)} on disk, {size(5 * weights / 4)} of memory beside activations"
    assert capsys.readouterr().err == f"70 training steps: {parts}\n"
    free = costs.psutil.virtual_memory()._replace(available=5 * weights)
    monkeypatch.setattr(costs.psutil, "virtual_memory", lambda: free)
    with pytest.raises(SigdegError, match=r"^this takes 10\.1 MB of memory, where 10 MB are free"):
        costs.tell_job(job, 10, config, cpu, processes=2)


def test_a_shared_network_is_not_tried_on_one_device(tmp_path: Path, capsys) -> None:
    rows = list(refine(VPLinear(), student().grid(), 4))
    paths = TeacherPaths(teacher(), rows, (2,), 2)
    config = TrainConfig(iterations=7, batch_size=8, sharding="fsdp")
    need = costs.check_training(tmp_path, paths, student(), 8, config, processes=2)
    costs.tell_training(paths, student(), 8, config, need, processes=2)
    weights = sum(p.nbytes for p in student().parameters())
    assert need.memory - 5 * weights // 2 == 8 * costs.path_bytes(5, 2, (2,))
    said = capsys.readouterr().err
    assert said.startswith("8 paths, 160 teacher calls, 7 training steps: ")
    assert said.endswith(" of memory beside activations\n")


def test_half_precision_is_tried_as_it_is_trained(capsys) -> None:
    """Frozen weights may be in half precision, what comes in is not."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(2, 2)
            self.layer = nn.Linear(2, 2).bfloat16().requires_grad_(False)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": self.layer(self.first(x)).float().sum()}

    job = Job(Half(), lambda g: torch.ones(4, 2), torch.ones(4, 2), {})
    config = TrainConfig(iterations=5, batch_size=4, mixed_precision="bf16")
    costs.tell_job(job, 4, config, torch.device("cpu"))
    assert capsys.readouterr().err.startswith("5 training steps: 0.096 kB on disk, ")


def test_a_gpus_memory_is_its_own(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda place: (10**9 * place.index, 10**10))
    costs.check_memory(10**9, "cuda:2")
    with pytest.raises(SigdegError, match=r"^this takes 3 GB of the GPU's memory, where 2 GB are"):
        costs.check_memory(3 * 10**9, torch.device("cuda", 2))


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        with pytest.raises(SigdegError, match="file is no folder that can be written to"):
            check_room(folder)
    check_room(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_samples_are_not_overwritten(saved: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """The same command draws the same samples anew; anything else is kept."""
    out = tmp_path / "out"
    command = ("sample", saved, "-n", 3, "--no-progress", "--out", out)
    for more in ((), ("--batch-size", 2)):
        assert main([str(a) for a in (*command, *more)]) == 0
    kept = (out / "samples.safetensors").read_bytes()
    for more in (("--seed", 1), ("-n", 4)):
        assert "holds other samples" in refused(capsys, *command, *more)
    assert (out / "samples.safetensors").read_bytes() == kept
    assert "holds other files" in refused(capsys, *command[:-1], saved)
    assert "is no folder that can" in refused(capsys, *command[:-1], out / "samples.safetensors")
    free = costs.psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(costs.psutil, "virtual_memory", lambda: free)
    assert "of memory" in refused(capsys, "sample", saved, "-n", 1000, "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_run_stands_for_its_student(saved: Path, tmp_path: Path) -> None:
    for name, place in (("a", saved), ("b", saved / "student")):
        assert main(["sample", str(place), "-n", "2", "--out", str(tmp_path / name)]) == 0
    drawn = [load_file(tmp_path / n / "samples.safetensors")["samples"] for n in ("a", "b")]
    assert torch.equal(*drawn)


def test_images_are_written_singly(tmp_path: Path, capsys) -> None:
    """Each file has the pixels of its sample."""
    drawn = torch.randn(3, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    written = write_samples(drawn, tmp_path / "out", {}, single=True)
    assert [path.name for path in written[2:]] == ["0000.png", "0001.png", "0002.png"]
    for image, path in zip(drawn, written[2:], strict=True):
        expected = ((image[0].double() + 1) * 127.5).clamp(0, 255).round()
        with Image.open(path) as opened:
            assert opened.size == (5, 4)
            assert (np.asarray(opened)[..., 0] == expected.numpy()).all()
    student().save_pretrained(tmp_path / "points")
    line = refused(capsys, "sample", tmp_path / "points", "--save", "png", "--out", tmp_path / "o")
    assert "samples of shape (2,) are no images: leave --save out" in line


def test_a_plan_is_not_overwritten(tmp_path: Path, capsys) -> None:
    spectrum = tmp_path / "spectrum.csv"
    spectrum.write_text("2.0, 0.5")
    out = tmp_path / "plans"
    command = ("plan", "merge", spectrum, "-T", 4, "--out", out)
    for _ in range(2):
        assert main([str(a) for a in command]) == 0
    kept = json.loads((out / "plan.json").read_text())
    assert "holds another plan.json" in refused(capsys, *command, "-s", 0.7)
    assert json.loads((out / "plan.json").read_text()) == kept
    assert main(["plan", "phase", "-T", "4", "--out", str(out)]) == 0
    assert "is no folder that can" in refused(capsys, *command[:-1], spectrum)
