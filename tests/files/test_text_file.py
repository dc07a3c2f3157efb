"""Files of texts: what is a text, its id, and lines that are refused by their place."""

import json
from pathlib import Path

import pytest

from anna_export.errors import AnnaError, MissingError
from anna_export.files.text_file import read_texts

# -- texts and ids --


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\n\nb\n", ["a", "", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"\xef\xbb\xbfa\nb", ["a", "b"]),
        (b"a\n \n", ["a", " "]),
        (b"a\x0bb\x0cc\xc2\x85d\xe2\x80\xa8e\rf\n", ["a\x0bb\x0cc\x85d\u2028e\rf"]),
        (b"\n", [""]),
    ],
    ids=["blank line", "CRLF", "BOM", "spaces", "only newlines end a line", "one blank line"],
)
def test_line_of_a_txt_is_a_text(tmp_path: Path, content: bytes, expected: list[str]) -> None:
    (tmp_path / "texts.txt").write_bytes(content)
    source = read_texts(tmp_path / "texts.txt")
    assert list(source.texts()) == expected and list(source.ids) == list(range(len(expected)))


def test_blank_lines_of_a_jsonl_are_no_texts(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(
        b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": ""}\n{"text": "c", "id": null}'
    )
    source = read_texts(tmp_path / "t.jsonl")
    assert list(source.texts()) == ["a", "", "c"] and list(source.ids) == [0, 1, 2]


@pytest.mark.parametrize("ids", [[7, -3, 2**62], ["b", "a", "漢"]], ids=["int", "str"])
def test_ids_of_a_jsonl_are_its_own(tmp_path: Path, ids: list) -> None:
    rows = [json.dumps({"text": f"text {key}", "id": key, "more": 1}) for key in ids]
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    source = read_texts(tmp_path / "t.jsonl")
    assert list(source.ids) == ids
    assert list(source.texts()) == [f"text {key}" for key in ids]


def test_field_names_the_key_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "no", "body": "a b"}')
    assert list(read_texts(tmp_path / "t.jsonl", "body").texts()) == ["a b"]


def test_texts_can_be_read_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a\nb")
    source = read_texts(tmp_path / "t.txt")
    assert [list(source.texts()) for _ in range(2)] == [["a", "b"]] * 2


@pytest.mark.parametrize("content", ["a\nb\n", "a\nc", "a", ""])
def test_file_that_changed_is_known(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.txt").write_text("a\nb")
    source = read_texts(tmp_path / "t.txt")
    assert source.is_unchanged()
    (tmp_path / "t.txt").write_text(content)
    assert not source.is_unchanged()


# -- refusals --


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
    message = refused(tmp_path, "t.jsonl", content)
    assert expected in message and f"{tmp_path / 't.jsonl'}:2" in message


def test_line_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    message = refused(tmp_path, "t.txt", b"a\nb\nc \xff d\n")
    assert "expected UTF-8" in message and message.endswith("t.txt:3")


@pytest.mark.parametrize("name", ["t.txt", "t.jsonl"])
def test_file_without_texts_is_refused(tmp_path: Path, name: str) -> None:
    assert "expected at least one text" in refused(tmp_path, name, b"")


@pytest.mark.parametrize("name", ["t.csv", "t", "t.TXT"])
def test_unknown_kind_of_texts_is_refused(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path, name, b"a") == f"expected texts in .txt or .jsonl, found {name}"


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="expected a file of texts, found none at"):
        read_texts(tmp_path / "t.txt")
