"""The small text: where it is found, how it is cut."""

import hashlib
from pathlib import Path

import pytest
import torch

from sigdeg.datasets import text as module
from sigdeg.datasets.text import load_text, split_text, windows
from sigdeg.errors import SigdegError

TEXT = "To be, or not to be: that is the question.\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a tiny text whose checksum is the registered one."""
    made = tmp_path / "data" / "text"
    made.mkdir(parents=True)
    (made / module.NAME).write_text(TEXT)
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(TEXT.encode()).hexdigest())
    monkeypatch.delenv("SIGDEG_DATA", raising=False)
    return made


def test_the_text_lies_in_the_data_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_text(folder.parent) == load_text(folder) == TEXT
    monkeypatch.setenv("SIGDEG_DATA", str(folder.parent))
    assert load_text() == TEXT
    (folder / module.NAME).write_text(TEXT[:-2])
    with pytest.raises(SigdegError, match="damaged or incomplete"):
        load_text()


def test_the_parts_are_the_text_in_its_order() -> None:
    split = split_text(TEXT * 10, (0.6, 0.2))
    assert "".join(split) == TEXT * 10
    assert [len(part) for part in split] == [258, 86, 86]
    with pytest.raises(SigdegError, match="cut into parts of 2, 0, 0"):
        split_text("ab")


def test_windows_cover_a_text_once() -> None:
    tokens = torch.arange(11)
    assert windows(tokens, 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert windows(tokens, 4, 1).shape == (8, 4)
    assert windows(tokens, 4, 1)[-1].tolist() == [7, 8, 9, 10]
    with pytest.raises(SigdegError, match="no piece of 12"):
        windows(tokens, 12)
