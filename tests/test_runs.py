"""What a run keeps of itself."""

from pathlib import Path

from sigdeg.runs import remember


def test_what_is_remembered_is_not_computed_again(tmp_path: Path) -> None:
    file = tmp_path / "judged" / "a.json"
    assert remember(file, lambda: {"draws": [1.5]}) == {"draws": [1.5]}
    assert remember(file, lambda: {"draws": [2.5]}) == {"draws": [1.5]}
