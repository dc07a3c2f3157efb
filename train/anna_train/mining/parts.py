"""Rows in parts, as mine and score finish them, and the file that they end in."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

from anna_export.errors import InputError
from anna_export.files.atomic import require_absent_file
from anna_train.data.rows import Row

PART_ROWS: Final = 1_000


def parts(rows: int) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each part of so many rows."""
    return pairwise([*range(0, rows, PART_ROWS), rows])


def line_of(row: Row) -> str:
    """Return a row as its line, without the line's end."""
    return json.dumps(row.as_json(), ensure_ascii=False)


def require_output(out: Path, rows: Path, *, overwrite: bool) -> None:
    """Refuse an output that is there, cannot be written, or is the file that is read.

    Raises:
        AnnaError: Saying which.
    """
    if out.exists() and rows.exists() and out.samefile(rows):
        raise InputError(f"expected `out` to be another file than {rows}, found the same")
    require_absent_file(out, overwrite=overwrite)
