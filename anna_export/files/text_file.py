"""Files of texts: one a line, or one JSON object a line."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anna_export.errors import InputError, MissingError, UnsupportedError
from anna_export.files.hashing import file_sha256

INPUTS: Final = (".txt", ".jsonl")
_INT64: Final = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class TextFile:
    """A file of texts, read once from end to end: every line has a text."""

    path: Path
    field: str
    ids: Sequence[object]  # the .jsonl's own, all int or all str; else the rows' numbers
    sha256: str

    def texts(self) -> Iterator[str]:
        """Yield the texts in order."""
        return (text for _, text in _rows(self.path, self.field))

    def is_unchanged(self) -> bool:
        """Say whether the file is still what it was."""
        return file_sha256(self.path) == self.sha256


def read_texts(path: Path, field: str = "text") -> TextFile:
    """Read a file of texts through; only its ids stay in memory.

    Args:
        path: A .txt file, one text a line, or a .jsonl file, one object a line.
        field: The text's key in a .jsonl object.

    Raises:
        InputError: For a line without a text, naming it; or if there is no text at all.
        MissingError: If there is no such file.
    """
    if path.suffix not in INPUTS:
        raise UnsupportedError(f"expected texts in {' or '.join(INPUTS)}, found {path.name}")
    if not path.is_file():
        raise MissingError(f"expected a file of texts, found none at {path}")
    ids = [key for key, _ in _rows(path, field)]
    if not ids:
        raise InputError(f"expected at least one text, found none in {path}")
    return TextFile(path, field, range(len(ids)) if ids[0] is None else ids, file_sha256(path))


def _rows(path: Path, field: str) -> Iterator[tuple[int | str | None, str]]:
    """Yield each line's id and text; ids are all int, all str, or all None."""
    kind: type | None = None
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                # some editors start a file with a byte order mark, which is no text
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"expected UTF-8, found {error} in {where}") from None
            line = line.removesuffix("\n").removesuffix("\r")
            if path.suffix == ".txt":
                yield None, line
            elif line.strip():
                key, text = _object(where, line, field)
                kind = kind or type(key)
                if type(key) is not kind:
                    raise InputError(
                        f"expected ids of one kind ({_kind(kind)} so far), found "
                        f"{_kind(type(key))} in {where}"
                    )
                yield key, text


def _object(where: str, line: str, field: str) -> tuple[int | str | None, str]:
    try:
        value = json.loads(line)
    except (RecursionError, ValueError) as error:
        raise InputError(f"expected JSON, found {error} in {where}") from None
    text = value.get(field) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise InputError(f"expected a text under {field!r}, found {line[:60]} in {where}")
    key = value.get("id")
    if type(key) not in (int, str, type(None)) or (isinstance(key, int) and key not in _INT64):
        raise InputError(
            f"expected an id that is a text or a 64-bit integer, found {key!r} in {where}"
        )
    try:
        f"{text}{key}".encode()
    except UnicodeEncodeError:
        raise InputError(f"expected valid Unicode, found a lone surrogate in {where}") from None
    return key, text


def _kind(kind: type) -> str:
    return "none" if kind is type(None) else kind.__name__
