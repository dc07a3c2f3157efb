"""Training rows: FlagEmbedding's JSONL, one query a line with its positives, negatives and scores.

    {"query": "…", "pos": ["…"], "neg": ["…"], "pos_scores": [1.2], "neg_scores": [0.3],
     "prompt": "Given a claim, find documents that refute it", "type": "retrieval"}

Only `query` and `pos` must be there. Scores are a teacher's logits: their softmax over a row's
positives and negatives is the row's soft label. What else a line holds is kept and written back.
"""

import json
import math
import mmap
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


# FlagEmbedding's own names
_OTHER_NAMES: Final = {
    "normal": TaskType.RETRIEVAL,
    "symmetric_class": TaskType.CLASSIFICATION,
    "symmetric_clustering": TaskType.CLUSTERING,
    "symmetric_sts": TaskType.STS,
}
_FIELDS: Final = ("query", "pos", "neg", "pos_scores", "neg_scores", "prompt", "type")


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
        InputError: If a field cannot be what it is, naming it.
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
            raise InputError("expected one text or more in pos, found none")
        if self.neg and (self.pos_scores is None) != (self.neg_scores is None):
            given, missing = (
                ("pos_scores", "neg_scores") if self.pos_scores else ("neg_scores", "pos_scores")
            )
            raise InputError(f"expected {missing} beside {given}, found none")
        for name, scores, texts in (
            ("pos_scores", self.pos_scores, self.pos),
            ("neg_scores", self.neg_scores, self.neg),
        ):
            if scores is not None and len(scores) != len(texts):
                raise InputError(
                    f"expected {len(texts)} numbers in {name}, one for each text, found "
                    f"{len(scores)}"
                )

    @property
    def scored(self) -> bool:
        """Whether every positive and negative has a teacher's score."""
        return self.pos_scores is not None

    @classmethod
    def of_json(cls, value: object) -> Self:
        """Take a line's JSON.

        Raises:
            InputError: Naming the field that is wrong.
        """
        if not isinstance(value, dict):
            raise InputError(f"expected an object, found {type(value).__name__}")
        if "query" not in value or "pos" not in value:
            raise InputError(f"expected a query and pos, found {', '.join(value) or 'no fields'}")
        return cls(
            query=_text(value["query"], "query"),
            pos=_texts(value["pos"], "pos"),
            neg=_texts(value.get("neg") or [], "neg"),
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
        InputError: If it has no rows; when a row is read, if it is malformed (file, line, field).
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise MissingError(f"expected a file of training rows at {path}, found none")
        self.path = path
        self._starts: list[int] = []  # byte offset of each row
        self._lines: list[int] = []  # its line, from 1
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
            return [self[place] for place in range(*index.indices(len(self)))]
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
        InputError: If it is malformed, naming the file, the line and the field.
    """
    try:
        return Row.of_json(json.loads(line.decode()))
    except json.JSONDecodeError as error:
        found = f"expected JSON, found {error.msg.lower()} at character {error.pos + 1}"
    except UnicodeDecodeError:
        found = "expected UTF-8, found other bytes"
    except InputError as error:
        found = str(error)
    raise InputError(f"{found}, in line {number} of {path}")


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSONL; UTF-8, one a line."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row.as_json(), ensure_ascii=False) + "\n")


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"expected a text in {name}, found {_shown(value)}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"expected valid Unicode in {name}, found a lone surrogate")
    return value


def _texts(value: object, name: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise InputError(f"expected a list of texts in {name}, found {_shown(value)}")
    return tuple(_text(text, f"{name}[{place}]") for place, text in enumerate(value))


def _scores(value: object, name: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise InputError(f"expected a list of numbers in {name}, found {_shown(value)}")
    for place, score in enumerate(value):
        if isinstance(score, bool) or not isinstance(score, int | float) or math.isnan(score):
            raise InputError(f"expected a number in {name}[{place}], found {_shown(score)}")
        if math.isinf(score):
            raise InputError(f"expected a finite number in {name}[{place}], found {score}")
    return tuple(float(score) for score in value)


def _type(value: object) -> TaskType:
    if value is None:
        return TaskType.RETRIEVAL
    if isinstance(value, str) and value in _OTHER_NAMES:
        return _OTHER_NAMES[value]
    if not isinstance(value, str) or value not in set(TaskType):
        known = ", ".join([*TaskType, *_OTHER_NAMES])
        raise InputError(f"expected a type of {known}, found {_shown(value)}")
    return TaskType(value)


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, str | int | float) else type(value).__name__
