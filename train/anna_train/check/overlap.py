"""The rule about evaluation texts in training rows: a model that has seen them is not measured."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from anna_export.errors import InputError, MissingError
from anna_train.check.findings import Finding, RowLocation
from anna_train.check.words import digest, grams, words
from anna_train.data.rows import Row

EVALUATION_TEXT: Final = "evaluation text"
OVERLAP: Final = "evaluation overlap"
# runs this long are hardly ever shared by chance; the length GPT-3's report took
_GRAM_WORDS: Final = 13
# Labels and ids of evaluation sets are shorter; they are no texts to have seen.
MIN_WORDS: Final = 3


class EvaluationTexts:
    """Finds training texts that are, or share a run of words with, an evaluation text.

    Case, spaces and punctuation do not count, nor texts of fewer than MIN_WORDS words.
    Hashes are kept and no text: some 100 bytes a word of evaluation text.

    Args:
        paths: Files of rows, of JSONL whose every string is taken, or of one text a line.

    Raises:
        MissingError: If there is no such file.
        InputError: If it is not UTF-8, or has no text long enough.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._texts: dict[int, tuple[int, int]] = {}  # the file's place in paths, its line
        self._grams: dict[int, tuple[int, int]] = {}
        for file, path in enumerate(paths):
            texts = 0
            for line, text in evaluation_texts(path):
                text_words = words(text)
                if len(text_words) < MIN_WORDS:
                    continue
                texts += 1
                where = (file, line)
                self._texts.setdefault(digest(*text_words), where)
                if len(text_words) >= _GRAM_WORDS:
                    for gram in grams(text_words, _GRAM_WORDS):
                        self._grams.setdefault(digest(gram), where)
            if not texts:
                raise InputError(
                    f"expected evaluation texts of {MIN_WORDS} words or more in {path}, found none"
                )

    def __call__(self, location: RowLocation, row: Row) -> Iterator[Finding]:
        """Compare a row's texts with all evaluation texts."""
        for field, text in row.texts():
            text_words = words(text)
            if (where := self._texts.get(digest(*text_words))) is not None:
                yield location.error(
                    EVALUATION_TEXT,
                    field,
                    f"expected no evaluation text, found that in {self._name_of(where)}; remove it",
                )
            elif len(text_words) >= _GRAM_WORDS and (where := self._shared(text_words)) is not None:
                yield location.warning(
                    OVERLAP,
                    field,
                    f"expected no evaluation text, found {_GRAM_WORDS} words in a row of "
                    f"{self._name_of(where)}; compare them, and remove it if it is the same",
                )

    def _shared(self, text_words: list[str]) -> tuple[int, int] | None:
        hashes = (digest(gram) for gram in grams(text_words, _GRAM_WORDS))
        return min(
            (self._grams[key] for key in hashes if key in self._grams),
            default=None,
        )

    def _name_of(self, where: tuple[int, int]) -> str:
        return f"line {where[1]} of {self._paths[where[0]]}"


def evaluation_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield a file's texts with their lines: each line's, or every string of each line's JSON.

    Raises:
        MissingError: If there is no such file.
        InputError: If it is not UTF-8, or starts with JSON and goes on otherwise.
    """
    if not path.is_file():
        raise MissingError(f"expected a file of evaluation texts at {path}, found none")
    is_json: bool | None = None  # as its first line is
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            where = f"in line {number} of {path}"
            try:
                line = raw.decode("utf-8-sig")
            except UnicodeDecodeError:
                raise InputError(f"expected UTF-8, found other bytes, {where}") from None
            if not line.strip():
                continue
            value = _value(line) if is_json is not False else None
            if is_json and value is None:
                raise InputError(
                    f"expected JSON as in the lines before, found {line.strip()[:40]!r}, {where}"
                )
            is_json = value is not None
            for text in _strings(line if value is None else value):
                yield number, text


def _value(line: str) -> object:
    """Return a line's JSON object or array; None if it is neither."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value.encode("utf-8", "replace").decode()  # JSON may hold lone surrogates
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
