"""Killed at any moment, the same command goes on and ends with the same bytes.

Run as a program, this file distils a tiny problem in processes that are killed with SIGKILL: right
before and right after files move into place, and at random moments in between.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

from sigdeg.denoiser import GaussianMixtureDenoiser
from sigdeg.distillation import Batch, CachedPaths, Distilled, FreshPaths, Objective, distill
from sigdeg.distillation.objective import Segments
from sigdeg.errors import SigdegError, TrainingError
from sigdeg.files import read_tensors
from sigdeg.networks import ResidualMLP
from sigdeg.schedule import VPLinear
from sigdeg.signature import PartialSignature
from sigdeg.steps import EulerMaruyama
from sigdeg.student import SignatureStudent
from sigdeg.training import job

TEACHER = EulerMaruyama(GaussianMixtureDenoiser([-2.0, 2.0], [0.5, 0.5], [0.5, 0.5], VPLinear()))


def untrained(width: int = 8) -> SignatureStudent:
    network = ResidualMLP(SignatureStudent.in_channels(1, 2), 1, width, 1)
    for i, p in enumerate(network.parameters()):
        nn.init.uniform_(p, -0.1, 0.1, generator=Generator().manual_seed(i))
    return SignatureStudent(network, VPLinear(), 1, data_std=2.06, steps=(3,))


def run(folder: Path, width: int = 8, **options: object) -> Distilled:
    arguments = {
        "iterations": 120,
        "batch_size": 32,
        "checkpoint_every": 10,
        "warmup": 10,
        "ema": 0.9,
        "paths": 60,
        "held_out": 20,
        "shard_size": 10,
        "refinement": 3,
        "tracker": "none",
        **options,
    }
    return distill(untrained(width), TEACHER, folder, device="cpu", progress=False, **arguments)


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the time it took and the litter of writes that were killed."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith("."))
    files = (p for p in files if p.name != "seconds.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def die(count: int, after: bool) -> None:
    """Kill this process at its `count`-th move of a file into place, before or after the move."""
    move, moves = Path.replace, iter(range(1, 1_000_000))

    def replace(self: Path, target: Path) -> Path:
        fatal = next(moves) == count
        if fatal and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        moved = move(self, target)
        if fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return moved

    Path.replace = replace  # type: ignore[method-assign]  # this process has moments to live


def forked(folder: Path, count: int = 0, after: bool = False, delay: float | None = None) -> bool:
    """Run in a child that dies at a move or after a delay; whether it came to its end."""
    child = os.fork()
    if child == 0:
        if count:
            die(count, after)
        run(folder)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        sys.exit("a child failed")
    return os.WIFEXITED(status)


def main(folder: Path) -> None:
    """An uninterrupted run in one folder, one with many deaths in another; prints the deaths."""
    run(folder / "whole")
    deaths, done, luck = 0, False, random.Random(0)
    # The folder's claim, the shards, the first checkpoints: one move further at each life.
    for count, after in ((1, False), (1, True), (1, False), (2, False), (1, True), (3, True)) * 2:
        done = done or forked(folder / "killed", count, after)
        deaths += not done
    while not done:  # lives grow longer, so that slow machines come to the end as well
        done = forked(folder / "killed", delay=luck.uniform(0.0, 0.02 * (deaths - 8)))
        deaths += not done
    print(deaths)


def test_killed_many_times(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 12
    whole, killed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert list(whole) == list(killed)
    for name, data in whole.items():
        assert data == killed[name], name
    assert "student/model.safetensors" in whole
    assert "paths/paths-00005.safetensors" in whole


def test_nothing_is_left_to_do(tmp_path: Path) -> None:
    """A finished run is found finished: no teacher call, no step, the same result."""
    first = run(tmp_path)
    before = contents(tmp_path)
    again = run(tmp_path)
    assert contents(tmp_path) == before
    assert torch.equal(first.history, again.history)
    assert first.history[:, 0].tolist() == [100, 120]
    for one, other in zip(first.student.parameters(), again.student.parameters(), strict=True):
        assert torch.equal(one, other)


class Interrupted(BaseException):
    pass


def interrupt(folder: Path, monkeypatch: pytest.MonkeyPatch, step: int, **options: object) -> None:
    """Run until a step's batch is drawn."""
    for source in (CachedPaths, FreshPaths):
        draw, draws = source.batch, iter(range(1_000_000))

        def batch(self, n, generator, draw=draw, draws=draws):
            if next(draws) == step:
                raise Interrupted
            return draw(self, n, generator)

        monkeypatch.setattr(source, "batch", batch)
    with pytest.raises(Interrupted):
        run(folder, **options)
    monkeypatch.undo()


@pytest.mark.parametrize(
    "options", [{"q": 0}, {"paths": 0}, {"normalise": False, "gradient_clip": 0.01}], ids=str
)
def test_every_kind_of_run_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    options = {"iterations": 20, "checkpoint_every": 6, "paths": 40, **options}
    run(tmp_path / "whole", **options)
    interrupt(tmp_path / "broken", monkeypatch, 15, **options)
    run(tmp_path / "broken", **options)
    assert contents(tmp_path / "whole") == contents(tmp_path / "broken")


def step_of(folder: Path) -> int:
    with safe_open(folder / "checkpoints" / "last.safetensors", "pt") as file:
        return int(file.metadata()["step"])


class TestDivergence:
    """A loss that is not finite: one line, and the last good state stays."""

    def test_absurd_learning_rate(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The weights explode in step 12: the state kept is the one before, and goes on well."""
        options = {"iterations": 30, "checkpoint_every": 1}
        run(tmp_path / "whole", **options)
        sane = job.learning_rate
        monkeypatch.setattr(job, "learning_rate", lambda k, c: 1e30 if k == 12 else sane(k, c))
        with pytest.raises(
            TrainingError, match=r"not finite at step 13: .*learning rate"
        ) as caught:
            run(tmp_path / "broken", **options)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 1
        assert step_of(tmp_path / "broken") == 12
        monkeypatch.undo()
        run(tmp_path / "broken", **options)
        assert contents(tmp_path / "whole") == contents(tmp_path / "broken")

    @pytest.mark.parametrize("step", [0, 29])
    def test_in_the_first_or_the_last_step(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
    ) -> None:
        """Weights ruined by the very last step are found out too, and never saved."""
        sane = job.learning_rate
        monkeypatch.setattr(job, "learning_rate", lambda k, c: 1e30 if k == step else sane(k, c))
        with pytest.raises(TrainingError, match="not finite at step") as caught:
            run(tmp_path, iterations=30, checkpoint_every=29)
        assert ("checkpoint" in str(caught.value)) == (step == 29)
        assert not (tmp_path / "student").exists()
        assert (tmp_path / "checkpoints" / "last.safetensors").exists() == (step == 29)

    def test_poison(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """NaN in a batch at step 15 leaves the checkpoint of step 10, from which it goes on."""
        draw, draws = CachedPaths.batch, iter(range(1000))

        def batch(self: CachedPaths, n: int, generator: Generator) -> Batch:
            good = draw(self, n, generator)
            return (
                Batch(good.start, good.states * torch.nan, good.coefficients)
                if (next(draws) == 15)
                else good
            )

        monkeypatch.setattr(CachedPaths, "batch", batch)
        with pytest.raises(TrainingError, match=r"not finite at step 15: .*checkpoints"):
            run(tmp_path / "a")
        assert step_of(tmp_path / "a") == 10
        assert not (tmp_path / "a" / "student").exists()
        monkeypatch.undo()
        run(tmp_path / "a")
        run(tmp_path / "b")
        assert contents(tmp_path / "a") == contents(tmp_path / "b")

    def test_infinite_gradient_of_a_finite_loss(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Weights that such a step would ruin are not kept as the last good ones."""
        forward, calls = Objective.forward, iter(range(1000))

        def poisoned(self: Objective, drawn: Segments) -> dict[str, Tensor]:
            loss = forward(self, drawn)["loss"]
            if loss.requires_grad and next(calls) == 19:
                first = next(self.parameters()).flatten()[0]
                loss = loss + (first - first.detach()).clamp(min=0).sqrt()  # 0, with slope inf
            return {"loss": loss}

        monkeypatch.setattr(Objective, "forward", poisoned)
        with pytest.raises(TrainingError, match="not finite at step"):
            run(tmp_path, checkpoint_every=1)
        assert step_of(tmp_path) == 19
        monkeypatch.undo()
        assert bool(torch.isfinite(run(tmp_path, checkpoint_every=1).history).all())

    def test_teacher(self, tmp_path: Path) -> None:
        class Broken(EulerMaruyama):
            def forward(self, x: Tensor, t, s, signature: PartialSignature, **_: object) -> Tensor:
                return x * torch.nan

        with pytest.raises(SigdegError, match="the teacher gave NaN"):
            distill(
                untrained(),
                Broken(TEACHER.denoiser),
                tmp_path,
                paths=5,
                tracker="none",
                device="cpu",
                progress=False,
            )


class TestCheckpoint:
    """Checkpoints that cannot be used say so in one line."""

    @pytest.mark.parametrize("length", [0, 7, 200, -1])
    def test_truncated(self, tmp_path: Path, length: int) -> None:
        run(tmp_path, iterations=10)
        file = tmp_path / "checkpoints" / "last.safetensors"
        file.write_bytes(file.read_bytes()[:length])
        with pytest.raises(SigdegError, match=r"not a whole checkpoint: .*start anew") as caught:
            run(tmp_path, iterations=10)
        assert "\n" not in str(caught.value)

    def test_of_another_model(self, tmp_path: Path) -> None:
        run(tmp_path / "a", iterations=10)
        run(tmp_path / "b", iterations=10, width=9)
        other = tmp_path / "b" / "checkpoints" / "last.safetensors"
        other.replace(tmp_path / "a" / "checkpoints" / "last.safetensors")
        with pytest.raises(SigdegError, match="belongs to another model") as caught:
            run(tmp_path / "a", iterations=10)
        assert "\n" not in str(caught.value)

    def test_of_another_run_of_the_same_model(self, tmp_path: Path) -> None:
        """All of it fits, nothing is damaged, and it would give another student."""
        run(tmp_path / "a", iterations=10)
        run(tmp_path / "b", iterations=10, seed=1)
        other = tmp_path / "b" / "checkpoints" / "last.safetensors"
        other.replace(tmp_path / "a" / "checkpoints" / "last.safetensors")
        with pytest.raises(SigdegError, match="belongs to another model or run"):
            run(tmp_path / "a", iterations=10)

    @pytest.mark.parametrize("place", ["metadata", "history", "optimizer", "average", "objective"])
    def test_changed(self, tmp_path: Path, place: str) -> None:
        """One number, or one tensor less, in any part of it."""
        run(tmp_path, iterations=10)
        file = tmp_path / "checkpoints" / "last.safetensors"
        tensors, metadata = read_tensors(file)
        first = next(name for name in tensors if place in name or place == "metadata")
        if place == "metadata":
            metadata["step"] = "9"
        elif place == "optimizer":
            del tensors[first]
        else:
            tensors[first] = tensors[first] + 1
        save_file(tensors, file, metadata)
        with pytest.raises(SigdegError, match=r"not a whole checkpoint: .*digest.*start anew"):
            run(tmp_path, iterations=10)

    def test_without_metadata(self, tmp_path: Path) -> None:
        run(tmp_path, iterations=10)
        student = tmp_path / "student" / "model.safetensors"
        student.replace(tmp_path / "checkpoints" / "last.safetensors")
        with pytest.raises(SigdegError, match="not a whole checkpoint"):
            run(tmp_path, iterations=10)

    @pytest.mark.parametrize(
        "text", ["{}", '{"seconds": null}', '{"seconds": -1}', "[]", "", "1e9"]
    )
    def test_seconds_that_are_none(self, tmp_path: Path, text: str) -> None:
        run(tmp_path, iterations=10)
        (tmp_path / "checkpoints" / "seconds.json").write_text(text)
        with pytest.raises(SigdegError, match=r"seconds.*delete it to count from 0") as caught:
            run(tmp_path, iterations=10)
        assert "\n" not in str(caught.value)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
