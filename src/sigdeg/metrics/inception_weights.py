"""The weights of the FID Inception: found or downloaded, verified, loaded without surprises.

Source of the file: pytorch-fid (github.com/mseitzer/pytorch-fid).
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from sigdeg.datasets.download import fetch, read_verified
from sigdeg.errors import SigdegError, reason
from sigdeg.metrics.inception import FIDInception

__all__ = ["load_inception"]

NAME = "pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
MIRRORS = ["https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"]


def load_inception(
    path: str | Path | None = None,
    sha256: str | None = None,
    data_dir: str | Path | None = None,
) -> tuple[FIDInception, str]:
    """Load the network with its weights, downloaded once (96 MB) unless a file is given.

    Arguments:
        path: The published `.pth`, or the same weights as `.safetensors`. By default the file is
            found or downloaded by `sigdeg.datasets.download.fetch`, as the data set `inception`.
        sha256: The digest the file must have: that of the published file for any file but
            safetensors, which may come with any digest.
        data_dir: The data folder, where no path is given.

    Returns:
        The network, in evaluation mode and without gradients, and the file's sha256.

    Raises:
        SigdegError: If the file is missing, damaged, out of reach, of another format or holds the
            weights of another network.
    """
    if path is None:
        content, name = fetch("inception", NAME, sha256 or SHA256, MIRRORS, data_dir), Path(NAME)
    else:
        name = Path(path)
        needed = sha256 or (None if name.suffix == ".safetensors" else SHA256)
        content = read_verified(name, needed)
    weights = parse(content, name)
    network = FIDInception()
    fit(network, weights, name)
    return network.eval().requires_grad_(False), hashlib.sha256(content).hexdigest()


def parse(content: bytes, path: Path) -> dict[str, Tensor]:
    """Tensors of a file of safetensors, or of one made by `torch.save`.

    The one exception to "nothing is unpickled": these weights are published in no other form. The
    digest has been verified, and torch's restricted loader makes tensors and containers only, and
    runs no code of the file. It reads from memory: torch maps files of its newer format only, and
    the published one is, by its size of 95,628,359 bytes, of the older.
    """
    safe = path.suffix == ".safetensors"
    try:
        weights = (
            safetensors.torch.load(content)
            if safe
            else torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        )
    except Exception as error:  # half a file or another format fails in any way
        whole = "safetensors file" if safe else "file of weights"
        why = reason(error).partition(". ")[0]
        raise SigdegError(f"{path} is not a whole {whole}: {why}") from None
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise SigdegError(f"{path} holds no dictionary of tensors, as a file of weights does")
    return dict(weights)


def fit(network: FIDInception, weights: dict[str, Tensor], path: Path) -> None:
    """Load weights whose names and shapes are exactly the network's."""
    # The counts of training batches: older files have none, and they mean nothing here.
    needed, given = (
        {name: tuple(w.shape) for name, w in named.items() if "num_batches" not in name}
        for named in (network.state_dict(), weights)
    )
    for name in sorted(needed.keys() | given.keys()):
        if needed.get(name) != given.get(name):
            raise SigdegError(
                f"{path} holds the weights of another network: {name} is "
                f"{given.get(name, 'missing')} there, {needed.get(name, 'unknown')} in the FID "
                "Inception"
            )
    network.load_state_dict({name: weights[name] for name in needed})
