"""Files of texts and outputs that embed refuses: the line names the place and what was expected."""

from pathlib import Path

import pytest

from anna_export.embed import require_output
from anna_export.errors import AnnaError, ExistsError, MissingError, UnsupportedError
from anna_export.text_file import read_texts


def refused(tmp_path: Path, name: str, content: bytes, field: str = "text") -> str:
    """Return the one line that refuses a file."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AnnaError) as error:
        read_texts(tmp_path / name, field)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"text": "a"}\n{"text": \n', "expected JSON"),
        (b'{"text": "a"}\n{"body": "b"}\n', "expected a text under 'text'"),
        (b'{"text": "a"}\n["b"]\n', "expected a text under 'text'"),
        (b'{"text": "a"}\n{"text": 3}\n', "expected a text under 'text'"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', "expected UTF-8"),
        (b'{"text": "a"}\n{"text": "\\ud800"}\n', "lone surrogate"),
        (b'{"text": "a"}\n{"text": "b", "id": 1.5}\n', "expected an id that is a text or a"),
        (b'{"text": "a"}\n{"text": "b", "id": true}\n', "expected an id that is a text or a"),
        (b'{"text": "a"}\n{"text": "b", "id": 9223372036854775808}\n', "64-bit integer"),
        (b'{"text": "a", "id": 1}\n{"text": "b", "id": "2"}\n', "one kind (int so far), found"),
        (b'{"text": "a"}\n{"text": "b", "id": 2}\n', "one kind (none so far), found int"),
    ],
)
def test_line_that_has_no_text_is_named(tmp_path: Path, content: bytes, expected: str) -> None:
    found = refused(tmp_path, "t.jsonl", content)
    assert expected in found and f"{tmp_path / 't.jsonl'}:2" in found


def test_line_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    found = refused(tmp_path, "t.txt", b"a\nb\nc \xff d\n")
    assert "expected UTF-8" in found and found.endswith("t.txt:3")


@pytest.mark.parametrize("name", ["t.txt", "t.jsonl"])
def test_file_without_texts_is_refused(tmp_path: Path, name: str) -> None:
    assert "expected at least one text" in refused(tmp_path, name, b"")


@pytest.mark.parametrize("name", ["t.csv", "t", "t.TXT"])
def test_unknown_kind_of_texts_is_refused(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path, name, b"a") == f"expected texts in .txt or .jsonl, found {name}"


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="expected a file of texts, found none at"):
        read_texts(tmp_path / "t.txt")


def test_output_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there.npy").write_text("")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(UnsupportedError, match=r"\.parquet or \.npy, found v\.csv"):
        require_output(tmp_path / "v.csv", overwrite=True)
    with pytest.raises(ExistsError, match="--overwrite replaces it"):
        require_output(tmp_path / "there.npy", overwrite=False)
    with pytest.raises(ExistsError, match="found a folder"):
        require_output(tmp_path / "folder.npy", overwrite=True)
    with pytest.raises(MissingError, match="expected the folder"):
        require_output(tmp_path / "nowhere" / "v.npy", overwrite=False)
