"""Files that many workers make together: processes on any machine that sees the folder.

A worker claims a file by creating a hidden one beside it, which only one can, and touches that
while it works. A claim that is touched no longer is a dead worker's, and the next one takes over:
a lost worker costs what it was making, no more. Workers need not know of one another.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil

from sigdeg.errors import SigdegError

__all__ = ["STALE", "arrived", "work"]

STALE = 60.0  # seconds without a sign of life: file systems on a network show signs late
BEATS = 4  # signs of life in that time
FIRST_PAUSE = 0.05  # seconds; each pause is twice as long as the one before
CLAIM = ".claim-"


def work(
    folder: Path, names: Iterable[str], make: Callable[[str], object], stale: float = STALE
) -> None:
    """Make what files are missing, together with all who call this for the same folder.

    Returns when all files are there; what live workers are making is waited for. While all live, no
    file is made twice. One that was only taken for dead, because it was suspended, makes its file
    once more: that must give the same file.

    Arguments:
        folder: Where the files go; it is made.
        names: The names of the files, in the order they are wanted.
        make: Makes one file, given its name, and writes it atomically into the folder.
        stale: Seconds without a sign of life after which a worker counts as dead; one on this
            machine whose process is gone counts as dead at once.

    Raises:
        SigdegError: If `make` did not write its file; what it raises itself ends this worker, and
            leaves the file to the others.
    """
    names = list(names)
    folder.mkdir(parents=True, exist_ok=True)
    pause = FIRST_PAUSE
    while missing := without(names, arrived(folder, names)):
        claims = latest_claims(folder)
        made = [make_one(folder, name, make, claims.get(name, -1), stale) for name in missing]
        if any(made):
            pause = FIRST_PAUSE
        else:
            time.sleep(pause)
            pause = min(2 * pause, stale / BEATS)
    left = latest_claims(folder)
    for name in names:
        for number in range(left.get(name, -1) + 1):  # of workers that died
            claim_file(folder, name, number).unlink(missing_ok=True)


def arrived(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of the files that are there, in the order of their names."""
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    return [name for name in names if name in there]


def without(names: list[str], some: list[str]) -> list[str]:
    """The names that are not among some."""
    known = set(some)
    return [name for name in names if name not in known]


def make_one(
    folder: Path, name: str, make: Callable[[str], object], last: int, stale: float
) -> bool:
    """Make a file, unless it is another's to make; says whether it was made."""
    if last >= 0 and alive(claim_file(folder, name, last), stale):
        return False
    # A claim is never given away: who takes over makes the next one, and again only one can.
    claim = claim_file(folder, name, last + 1)
    try:
        with claim.open("x") as file:
            file.write(f"{socket.gethostname()} {os.getpid()}")
    except FileExistsError:
        return False
    with kept_alive(claim, stale / BEATS):
        if (folder / name).exists():  # made between the look into the folder and the claim
            return False
        make(name)
    if not (folder / name).exists():
        raise SigdegError(f"{folder / name} was to be made, and is not there")
    return True


def claim_file(folder: Path, name: str, number: int) -> Path:
    """The claim on a file that so many workers had died of."""
    return folder / f".{name}{CLAIM}{number}"


def latest_claims(folder: Path) -> dict[str, int]:
    """The number of the last claim on each file that has one."""
    found: dict[str, int] = {}
    for entry in os.listdir(folder):
        name, mark, number = entry.rpartition(CLAIM)
        if mark and number.isdecimal():
            found[name[1:]] = max(found.get(name[1:], 0), int(number))
    return found


def alive(claim: Path, stale: float) -> bool:
    """Whether a worker holds a claim; one that is just given up is held, too."""
    try:
        host, _, process = claim.read_text().partition(" ")
        touched = claim.stat().st_mtime
    except OSError:
        return True
    if host == socket.gethostname() and process and not psutil.pid_exists(int(process)):
        return False
    # Both times are the file system's: clocks of machines differ.
    with tempfile.TemporaryFile(dir=claim.parent) as probe:
        return os.fstat(probe.fileno()).st_mtime - touched < stale


@contextlib.contextmanager
def kept_alive(claim: Path, every: float) -> Iterator[None]:
    """Touch a claim from time to time, and give it up at the end."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(every):
            with contextlib.suppress(OSError):  # a network that comes back
                os.utime(claim)

    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    try:
        yield
    finally:
        done.set()
        beating.join()
        claim.unlink(missing_ok=True)
