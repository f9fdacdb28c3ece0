"""Public data files: found in a folder or downloaded once, and always verified.

A file is identified by the sha256 of its *content*, after decompression for a name in `.gz`: the
same data compressed by another tool is the same data.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from sigdeg.errors import SigdegError, extra

__all__ = ["fetch", "read_verified"]


def fetch(
    dataset: str,
    name: str,
    sha256: str,
    mirrors: Sequence[str],
    data_dir: str | Path | None = None,
) -> bytes:
    """Return the verified content of one file of a data set.

    The folder is `data_dir`, else the environment variable `SIGDEG_DATA`: the file is then read
    from `FOLDER/DATASET/NAME` or `FOLDER/NAME`, and never downloaded. Without either it is the
    user's cache folder, into which a missing file is downloaded.

    Arguments:
        dataset: The data set's name, which is also its folder's.
        name: The file's name.
        sha256: The hexadecimal digest of the file's content.
        mirrors: Addresses, tried in this order: of the file, or of a folder with it, which end in
            "/".
        data_dir: The folder of all data sets.

    Returns:
        The content, decompressed for a name in `.gz`.

    Raises:
        SigdegError: If the file is missing, damaged or out of reach.
    """
    given = data_dir or os.environ.get("SIGDEG_DATA")
    if not given:
        with extra("benchmarks"):
            import pooch
        path = Path(pooch.os_cache("sigdeg")) / dataset / name
        return read_verified(path, sha256) if path.is_file() else _download(path, sha256, mirrors)
    candidates = Path(given) / dataset / name, Path(given) / name
    for path in candidates:
        if path.is_file():
            return read_verified(path, sha256)
    raise SigdegError(
        f"no {dataset} in the data folder {given}: {name} is missing, looked for "
        + " and ".join(map(str, candidates))
    )


def read_verified(path: Path, sha256: str | None) -> bytes:
    """Read one file, decompressed for a name in `.gz`, and check the sha256 of its content, if any.

    Raises:
        SigdegError: If the file cannot be read or its content is not the expected one.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            # A truncated stream yields what it holds, and so has a checksum to report.
            content = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS).decompress(content)
        found = hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise SigdegError(f"cannot read {path}: {error.strerror}") from error
    except zlib.error:
        found = "an unreadable gzip stream"
    if sha256 not in (None, found):
        raise SigdegError(
            f"{path} is damaged or incomplete: expected content of sha256 {sha256}, "
            f"found {found}; delete it and fetch it again"
        )
    return content


def _download(path: Path, sha256: str, mirrors: Sequence[str]) -> bytes:
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    # One name a process: another process may be downloading the same file.
    partial = path.with_name(f"{os.getpid()}-{path.name}")
    failures = []
    for mirror in mirrors:
        try:
            downloader = pooch.HTTPDownloader(timeout=20)
            address = mirror + path.name if mirror.endswith("/") else mirror
            pooch.retrieve(address, None, partial.name, partial.parent, None, downloader)
            content = read_verified(partial, sha256)
            partial.replace(path)  # only now: the cache never holds an unverified file
        except OSError as error:  # the parent of every error of requests too
            failures.append(f"{urlsplit(mirror).netloc}: {type(error).__name__}")
        except SigdegError:
            failures.append(f"{urlsplit(mirror).netloc}: wrong checksum")
        else:
            return content
        finally:
            partial.unlink(missing_ok=True)
    raise SigdegError(
        f"cannot download {path.name} ({'; '.join(failures)}): "
        "name a folder that holds it in SIGDEG_DATA (run: --data-dir), or have network access"
    )
