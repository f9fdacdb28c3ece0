"""Files that workers make together: each once, and all of them, whoever dies.

Run as a program, this file is a worker that begins a file and never ends it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sigdeg.errors import SigdegError
from sigdeg.paths.claims import arrived, work

NAMES = [f"part-{i}" for i in range(8)]


class Worker:
    """Writes files, and remembers which."""

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        self.folder, self.seconds = folder, seconds
        self.made: list[str] = []

    def __call__(self, name: str) -> None:
        self.made.append(name)
        time.sleep(self.seconds)
        (self.folder / name).write_text(name)


def test_workers_side_by_side_make_each_file_once(tmp_path: Path) -> None:
    """And all return when all is there."""
    workers = [Worker(tmp_path / "new", 0.1) for _ in range(3)]
    threads = [threading.Thread(target=work, args=(w.folder, NAMES, w)) for w in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for worker in workers for name in worker.made) == NAMES
    assert all(worker.made for worker in workers)
    assert sorted(os.listdir(tmp_path / "new")) == NAMES  # and no claim is left


def test_a_worker_gives_signs_of_life(tmp_path: Path) -> None:
    """Its claim is touched for as long as it works."""
    seen = []

    def make(name: str) -> None:
        claim = tmp_path / ".slow.claim-0"
        for _ in range(3):
            seen.append(claim.stat().st_mtime_ns)
            while claim.stat().st_mtime_ns == seen[-1]:
                time.sleep(0.01)
        (tmp_path / name).write_text(name)

    work(tmp_path, ["slow"], make, stale=0.2)
    assert sorted(set(seen)) == seen


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    assert arrived(tmp_path / "not yet", NAMES) == []
    for name in ("part-5", "part-1", "another"):
        (tmp_path / name).write_text("kept")
    assert arrived(tmp_path, NAMES) == ["part-1", "part-5"]
    work(tmp_path, NAMES, worker)
    assert worker.made == [name for name in NAMES if name not in ("part-1", "part-5")]
    assert (tmp_path / "part-1").read_text() == "kept"


def test_a_failure_leaves_the_file_to_others(tmp_path: Path) -> None:
    def broken(name: str) -> None:
        raise SigdegError("no")

    with pytest.raises(SigdegError, match=r"^no$"):
        work(tmp_path, NAMES, broken)
    with pytest.raises(SigdegError, match=r"part-0 was to be made, and is not there$"):
        work(tmp_path, NAMES, lambda name: None)
    assert not os.listdir(tmp_path)
    worker = Worker(tmp_path)
    work(tmp_path, NAMES, worker)
    assert worker.made == NAMES


def test_a_file_made_between_the_look_and_the_claim_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder was listed before another had claimed, written and given up."""
    monkeypatch.setattr("sigdeg.paths.claims.arrived", lambda folder, names: arrived(folder, []))
    worker = Worker(tmp_path)
    (tmp_path / "part-0").write_text("another's")

    def end(seconds: float) -> None:  # instead of the first pause
        monkeypatch.undo()

    monkeypatch.setattr(time, "sleep", end)
    work(tmp_path, NAMES[:1], worker)
    assert worker.made == []
    assert (tmp_path / "part-0").read_text() == "another's"


def test_a_worker_killed_in_the_middle_costs_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On this machine it is known at once, on another when its claim is stale, and no sooner."""
    here, there = tmp_path / "here", tmp_path / "there"
    command = [sys.executable, __file__, str(here), str(there)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        assert sorted(victim.stdout.readline().split()) == ["part-2", "part-2"]
        begun = {folder: sorted(os.listdir(folder)) for folder in (here, there)}
        victim.send_signal(signal.SIGKILL)
    assert begun[here] == begun[there] == [".part-2.claim-0", "part-0", "part-1"]

    worker = Worker(here)
    work(here, NAMES, worker, stale=300.0)
    assert worker.made == NAMES[2:]

    monkeypatch.setattr(socket, "gethostname", lambda: "another machine")
    first = there / ".part-2.claim-0"
    os.utime(first)
    began = time.time()
    workers = [Worker(there, 0.05), Worker(there, 0.05)]
    threads = [threading.Thread(target=work, args=(there, NAMES, w, 1.0)) for w in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(workers[0].made + workers[1].made) == NAMES[2:]
    assert (there / "part-2").stat().st_mtime - began >= 1.0
    assert sorted(os.listdir(there)) == sorted(os.listdir(here)) == NAMES


def main(folders: list[Path]) -> None:
    """Make two files in each folder, begin the third and say so, then wait to be killed."""
    begun = threading.Barrier(len(folders) + 1)

    def make(folder: Path, name: str) -> None:
        if name == "part-2":
            begun.wait()
            threading.Event().wait()
        (folder / name).write_text(name)

    for folder in folders:
        arguments = (folder, NAMES, lambda name, folder=folder: make(folder, name))
        threading.Thread(target=work, args=arguments, daemon=True).start()
    begun.wait()
    print(*["part-2"] * len(folders), flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
