"""The texts of a file of rows: what is retrieved from, and what each query must not be given."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anna_export.errors import InputError, MissingError
from anna_export.files.hashing import file_sha256
from anna_train.data.rows import Row, RowFile, text_key


@dataclass(frozen=True, slots=True)
class Question:
    """A row's query, with indices into its collection's texts."""

    query: str
    pos: tuple[int, ...]  # of the row's own positives, in their order
    neg: tuple[int, ...]  # of the negatives it keeps
    answers: tuple[int, ...]  # of the positives that any row gives this query
    barred: frozenset[int]  # of all that is never a negative of it


@dataclass(frozen=True, slots=True)
class Collection:
    """Distinct texts; the first `corpus` of them, all different, are retrieved from.

    Args:
        texts: The corpus, then what is only scored: kept negatives, and positives that differ
            from a text of the corpus in whitespace or case alone.
        corpus: How many of them are the corpus.
        index_of: The index of each text.
        index_of_key: The index in the corpus of each text's key.
        answers: By a query's key, the indices of its positives in all rows.
    """

    texts: Sequence[str]
    corpus: int
    index_of: Mapping[str, int]
    index_of_key: Mapping[str, int]
    answers: Mapping[str, tuple[int, ...]]

    def question(self, row: Row, *, replace: bool = False) -> Question:
        """Place a row's texts.

        Args:
            row: One of the rows the collection was read from.
            replace: Whether its negatives are dropped.
        """
        key = text_key(row.query)
        negatives = () if replace else row.neg
        answers = self.answers[key]
        keys = [key, *(text_key(self.texts[index]) for index in answers)]
        keys += [text_key(text) for text in negatives]
        return Question(
            query=row.query,
            pos=tuple(self.index_of[text] for text in row.pos),
            neg=tuple(self.index_of[text] for text in negatives),
            answers=answers,
            barred=frozenset(self.index_of_key[key] for key in keys if key in self.index_of_key),
        )


def collect(
    rows: RowFile, *, corpus: Path | None = None, negatives: bool = False, replace: bool = False
) -> Collection:
    """Read the texts of rows.

    Args:
        rows: The rows; all distinct positives are the corpus.
        corpus: A file of more texts for it.
        negatives: Whether the rows' negatives belong to the corpus too.
        replace: Whether the rows' negatives are left out.

    Raises:
        InputError: For a malformed line, or if the corpus is one text alone.
        MissingError: If there is no such corpus file.
    """
    first: dict[str, str] = {}  # by key
    others: dict[str, None] = {}
    positives: dict[str, dict[str, None]] = {}
    for row in rows:
        positives.setdefault(text_key(row.query), {}).update(dict.fromkeys(row.pos))
        row_negatives = () if replace else row.neg
        for text in (*row.pos, *row_negatives) if negatives else row.pos:
            first.setdefault(text_key(text), text)
        others.update(dict.fromkeys((*row.pos, *row_negatives)))
    for text in read_corpus_texts(corpus) if corpus is not None else ():
        first.setdefault(text_key(text), text)
    if len(first) < 2:
        raise InputError(
            f"expected two different texts or more to choose negatives from, found {len(first)} in "
            f"{rows.path}; give more rows, or texts in `corpus`"
        )
    texts = list(first.values())
    corpus_texts = set(texts)
    texts += [text for text in others if text not in corpus_texts]
    index_of = {text: index for index, text in enumerate(texts)}
    return Collection(
        texts=texts,
        corpus=len(first),
        index_of=index_of,
        index_of_key={key: index for index, key in enumerate(first)},
        answers={
            key: tuple(index_of[text] for text in answer_texts)
            for key, answer_texts in positives.items()
        },
    )


def read_corpus_texts(path: Path) -> Iterator[str]:
    """Yield a file's texts: a .jsonl file's "text" fields, else its lines; empty ones are left out.

    Raises:
        InputError: For a line without a text, naming file and line.
        MissingError: If there is no such file.
    """
    if not path.is_file():
        raise MissingError(f"expected a file of texts at {path}, found none")
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                raise InputError(
                    f"expected UTF-8, found other bytes, in line {number} of {path}"
                ) from None
            text = _field(line, number, path) if path.suffix == ".jsonl" else line
            if text.strip():
                yield text


def _field(line: str, number: int, path: Path) -> str:
    if not line.strip():
        return ""
    try:
        value = json.loads(line)
    except (RecursionError, ValueError):
        raise InputError(
            f"expected JSON, found {line[:60]!r}, in line {number} of {path}"
        ) from None
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str) or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(
            f'expected an object with a text in "text", found {line[:60]!r}, in line {number} of '
            f"{path}"
        )
    return text


def folder_sha256(folder: Path) -> str:
    """Hash a model folder's files and their names; what a copy or a new date leaves as it was."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return texts_sha256(
        f"{path.relative_to(folder).as_posix()} {file_sha256(path)}" for path in files
    )


def texts_sha256(texts: Iterable[str]) -> str:
    """Hash texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()
