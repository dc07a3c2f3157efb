"""Training rows: FlagEmbedding's JSONL, one query a line with its positives, negatives and scores.

    {"query": "…", "pos": ["…"], "neg": ["…"], "pos_scores": [1.2], "neg_scores": [0.3],
     "prompt": "Given a claim, find documents that refute it", "type": "retrieval"}

Only `query` and `pos` must be there. Scores are a teacher's logits: their softmax over a row's
positives and negatives is the row's soft label. What else a line holds is kept and written back.
"""

import json
import math
import mmap
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self, overload

from anna_export.errors import InputError, MissingError


class TaskType(StrEnum):
    """What a row asks for; other queries' documents are negatives in retrieval alone."""

    RETRIEVAL = "retrieval"
    CLASSIFICATION = "classification"
    CLUSTERING = "clustering"
    STS = "sts"


# FlagEmbedding's own names; its trainer takes one negative of an only_1neg row, ours those it has
_OTHER_NAMES: Final = {
    "normal": TaskType.RETRIEVAL,
    "only_1neg": TaskType.RETRIEVAL,
    "symmetric_class": TaskType.CLASSIFICATION,
    "symmetric_clustering": TaskType.CLUSTERING,
    "symmetric_sts": TaskType.STS,
}
_FIELDS: Final = ("query", "pos", "neg", "pos_scores", "neg_scores", "prompt", "type")
# of a wrong value, in a message of one line
_SHOWN_CHARACTERS: Final = 60


class RowError(InputError):
    """A line that is no row.

    Args:
        message: What was expected, what was found.
        field: The field that is wrong; empty: the line as a whole.
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Row:
    """One query with what answers it and what does not.

    Args:
        query: The text to embed.
        pos: Its answers, one or more.
        neg: What does not answer it.
        pos_scores: A teacher's logit for each positive; None: not scored.
        neg_scores: The same for each negative.
        prompt: Its task's instruction; None: that of the recipe.
        type: What it asks for.
        other: The line's other fields, as they were.

    Raises:
        RowError: If a field cannot be what it is, naming it.
    """

    query: str
    pos: tuple[str, ...]
    neg: tuple[str, ...] = ()
    pos_scores: tuple[float, ...] | None = None
    neg_scores: tuple[float, ...] | None = None
    prompt: str | None = None
    type: TaskType = TaskType.RETRIEVAL
    other: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.pos:
            raise RowError("expected one text or more in pos, found none", "pos")
        if self.neg and (self.pos_scores is None) != (self.neg_scores is None):
            present, missing = (
                ("neg_scores", "pos_scores")
                if self.pos_scores is None
                else ("pos_scores", "neg_scores")
            )
            raise RowError(f"expected {missing} beside {present}, found none", missing)
        for name, scores, texts in (
            ("pos_scores", self.pos_scores, self.pos),
            ("neg_scores", self.neg_scores, self.neg),
        ):
            if scores is not None and len(scores) != len(texts):
                raise RowError(
                    f"expected {len(texts)} numbers in {name}, one for each text, found "
                    f"{len(scores)}",
                    name,
                )

    @property
    def scored(self) -> bool:
        """Whether every positive and negative has a teacher's score."""
        return self.pos_scores is not None

    def texts(self) -> Iterator[tuple[str, str]]:
        """Yield every text with the name of its field: query, pos[0], neg[2]."""
        yield "query", self.query
        for name, texts in (("pos", self.pos), ("neg", self.neg)):
            yield from ((f"{name}[{index}]", text) for index, text in enumerate(texts))

    @classmethod
    def of_json(cls, value: object) -> Self:
        """Take a line's JSON.

        Raises:
            RowError: Naming the field that is wrong.
        """
        if not isinstance(value, dict):
            raise RowError(f"expected an object, found {type(value).__name__}")
        for name in ("query", "pos"):
            if name not in value:
                fields = _shortened(", ".join(value) or "no fields")
                raise RowError(f"expected a field {name}, found {fields}", name)
        return cls(
            query=_text(value["query"], "query"),
            pos=_texts(value["pos"], "pos"),
            neg=() if value.get("neg") is None else _texts(value["neg"], "neg"),
            pos_scores=_scores(value.get("pos_scores"), "pos_scores"),
            neg_scores=_scores(value.get("neg_scores"), "neg_scores"),
            prompt=None if value.get("prompt") is None else _text(value["prompt"], "prompt"),
            type=_type(value.get("type")),
            other={name: part for name, part in value.items() if name not in _FIELDS},
        )

    def as_json(self) -> dict[str, Any]:
        """Return the line's fields, those without a value left out."""
        fields: dict[str, Any] = {
            "query": self.query,
            "pos": list(self.pos),
            "neg": list(self.neg),
            "pos_scores": None if self.pos_scores is None else list(self.pos_scores),
            "neg_scores": None if self.neg_scores is None else list(self.neg_scores),
            "prompt": self.prompt,
            "type": str(self.type),
        }
        return {name: part for name, part in fields.items() if part is not None} | dict(self.other)


class RowFile(Sequence[Row]):
    """A JSONL file of rows, read from disk one row at a time; blank lines are passed over.

    Args:
        path: The file; it must not change while this is in use.

    Raises:
        MissingError: If there is no such file.
        InputError: If it has no rows.
        RowError: When a row is read, if it is malformed (file, line, field).
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise MissingError(f"expected a file of training rows at {path}, found none")
        self.path = path
        self._starts = array("q")  # byte offset of each row
        self._lines = array("q")  # its line, from 1
        start = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    self._starts.append(start)
                    self._lines.append(number)
                start += len(line)
            if not self._starts:
                raise InputError(f"expected training rows in {path}, found none")
            self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        """Read one row, or some."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        start = self._starts[index]
        end = self._content.find(b"\n", start)
        line = self._content[start : end if end >= 0 else len(self._content)]
        return parse_row(line, self.path, self._lines[index])

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))

    def line(self, index: int) -> int:
        """Return the number of a row's line, from 1."""
        return self._lines[index]


def parse_row(line: bytes, path: Path, number: int) -> Row:
    """Parse one line.

    Raises:
        RowError: If it is malformed, naming the file, the line and the field.
    """
    field = ""
    try:
        # some editors start a file with a byte order mark, which is no text
        return Row.of_json(json.loads(line.decode("utf-8-sig")))
    except RowError as error:
        problem, field = str(error), error.field
    except json.JSONDecodeError as error:
        problem = f"expected JSON, found {error.msg.lower()} at character {error.pos + 1}"
    except UnicodeDecodeError:
        problem = "expected UTF-8, found other bytes"
    except RecursionError:
        problem = "expected a row, found JSON of too many levels"
    except ValueError:
        problem = "expected numbers of at most 4,300 digits, found a longer one"
    raise RowError(f"{problem}, in line {number} of {path}", field)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSONL; UTF-8, one a line."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row.as_json(), ensure_ascii=False) + "\n")


def text_key(text: str) -> str:
    """Return what equal texts share: whitespace and case do not tell texts apart."""
    return " ".join(text.split()).casefold()


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"expected a text in {name}, found {_describe(value)}", name)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(f"expected valid Unicode in {name}, found a lone surrogate", name) from None
    return value


def _texts(value: object, name: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise RowError(f"expected a list of texts in {name}, found {_describe(value)}", name)
    return tuple(_text(text, f"{name}[{index}]") for index, text in enumerate(value))


def _scores(value: object, name: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise RowError(f"expected a list of numbers in {name}, found {_describe(value)}", name)
    return tuple(_score(score, f"{name}[{index}]") for index, score in enumerate(value))


def _score(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(f"expected a number in {name}, found {_describe(value)}", name)
    try:
        score = float(value)
    except OverflowError:  # an integer past the largest float
        score = math.inf
    if not math.isfinite(score):
        raise RowError(f"expected a finite number in {name}, found {_describe(value)}", name)
    return score


def _type(value: object) -> TaskType:
    if value is None:
        return TaskType.RETRIEVAL
    if isinstance(value, str) and value in _OTHER_NAMES:
        return _OTHER_NAMES[value]
    if not isinstance(value, str) or value not in set(TaskType):
        names = ", ".join([*TaskType, *_OTHER_NAMES])
        raise RowError(f"expected a type of {names}, found {_describe(value)}", "type")
    return TaskType(value)


def _describe(value: object) -> str:
    if isinstance(value, str | int | float):
        return _shortened(repr(value))
    return "null" if value is None else type(value).__name__


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
