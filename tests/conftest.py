"""Fixtures that several test modules share."""

import pytest


@pytest.fixture
def timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be timed runs once: its times matter elsewhere."""
    monkeypatch.setattr(
        "sigdeg.workflows.evaluate.paired_seconds",
        lambda functions: {k: 1.0 + len(f()) for k, f in functions.items()},
    )
