"""What a rule says of a row: where, how bad, and what to do about it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from anna_train.data.rows import Row, RowFile


class Severity(StrEnum):
    """Whether a file may be trained on as it is."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One place where one rule found something.

    Args:
        rule: The rule's name.
        severity: An error fails the check, a warning does not.
        path: The file.
        line: Its line, from 1.
        field: The field; empty: the line or file as a whole.
        message: What was expected, what was found, what to do.
    """

    rule: str
    severity: Severity
    path: Path
    line: int
    field: str
    message: str

    @property
    def location(self) -> str:
        """File, line and field, as a reader looks them up."""
        return f"{self.path}:{self.line}" + (f" {self.field}" if self.field else "")


@dataclass(frozen=True, slots=True)
class RowLocation:
    """A row's place in its file; small, since rules keep one for each text they have seen."""

    file: RowFile
    index: int

    def __str__(self) -> str:
        return f"line {self.line} of {self.file.path}"

    @property
    def line(self) -> int:
        """The row's line, from 1."""
        return self.file.line(self.index)

    @property
    def row(self) -> Row:
        """The row, read from disk."""
        return self.file[self.index]

    def error(self, rule: str, field: str, message: str) -> Finding:
        """Say that something here must be changed."""
        return Finding(rule, Severity.ERROR, self.file.path, self.line, field, message)

    def warning(self, rule: str, field: str, message: str) -> Finding:
        """Say that something here should be looked at."""
        return Finding(rule, Severity.WARNING, self.file.path, self.line, field, message)


# what a rule says of one row; it may remember those before it
Rule = Callable[[RowLocation, Row], Iterator[Finding]]


class CorpusRule(Protocol):
    """A rule that judges all files together, once all rows were seen."""

    def __call__(self, location: RowLocation, row: Row) -> Iterator[Finding]:
        """Take a row into account."""
        ...

    def finish(self) -> Iterator[Finding]:
        """Judge all that was seen."""
        ...


class FileRule(Protocol):
    """A rule that judges a file as a whole, once all its rows were seen."""

    def __call__(self, location: RowLocation, row: Row) -> Iterator[Finding]:
        """Take a row into account, and say what is wrong with it alone."""
        ...

    def end(self) -> Iterator[Finding]:
        """Judge the file that ends here, and start anew."""
        ...

    def figures(self) -> dict[str, float]:
        """Return what was measured of the file so far, by name; empty where nothing was."""
        ...
