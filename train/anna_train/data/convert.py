"""From any trainer's data to any other's, through rows."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any

from anna_export.errors import InputError
from anna_export.files.atomic import require_absent_file, require_outside, staged_file
from anna_export.progress import Progress
from anna_train.data.readers import (
    Format,
    flagembedding_row,
    joined_rows,
    recognise,
    tevatron_row,
)
from anna_train.data.records import Record, read_records
from anna_train.data.rows import Row
from anna_train.data.writers import lost_fields, sentence_transformers_records, tevatron_record


@dataclass(frozen=True, slots=True)
class Conversion:
    """What to convert, into what.

    Args:
        source: JSONL, CSV or Parquet.
        out: The JSONL file to make.
        of: Whose data it is; None: its first record's fields say.
        to: Whose data to make.
        positive_score: The least number beside a pair of texts that makes it a positive.
    """

    source: Path
    out: Path
    of: Format | None = None
    to: Format = Format.FLAGEMBEDDING
    positive_score: float | None = None


@dataclass(slots=True)
class Converted:
    """What came of it.

    Args:
        of: Whose data it was.
        records: Records read.
        rows: Rows made of them.
        lines: Lines written.
        without_positive: Anchors left out since no pair of theirs is a positive.
        left_out: Rows by a field that could not be written.
    """

    of: Format
    records: int = 0
    rows: int = 0
    lines: int = 0
    without_positive: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def convert(
    conversion: Conversion, *, overwrite: bool = False, progress: Progress | None = None
) -> Converted:
    """Write a file of another format; it appears whole or not at all.

    Args:
        conversion: What is asked for.
        overwrite: Replace the output if it exists.
        progress: Told the bytes read.

    Raises:
        MissingError: If there is no such file, or no folder for the output.
        InputError: If a record is malformed, or its file has none.
        UnsupportedError: If its fields are nobody's.
        ExistsError: If the output exists and may not be overwritten.
        SpaceError: If the disk fills up.
    """
    source, out = conversion.source, conversion.out
    require_outside(out, source)
    records = read_records(source)
    first = next(records, None)
    if first is None:
        raise InputError(f"expected records in {source}, found none")
    require_absent_file(out, overwrite=overwrite)
    done = Converted(conversion.of or recognise(first))
    total = source.stat().st_size

    def counted() -> Iterator[Record]:
        for record in chain([first], records):
            done.records += 1
            yield record
            if progress is not None:
                progress(record.done_bytes, total)

    with staged_file(out) as aside, ExitStack() as stack:
        spool = stack.enter_context(tempfile.TemporaryFile(dir=out.parent))
        file = stack.enter_context(aside.open("w", encoding="utf-8"))
        columns: tuple[str, ...] | None = None
        for row in _rows(counted(), done.of, conversion.positive_score, spool):
            if row is None:
                done.without_positive += 1
                continue
            done.rows += 1
            for fields in _records(row, conversion.to, done):
                if conversion.to is Format.SENTENCE_TRANSFORMERS:
                    columns = columns or tuple(fields)
                    _require_columns(columns, tuple(fields), row)
                file.write(json.dumps(fields, ensure_ascii=False) + "\n")
                done.lines += 1
        if not done.rows:
            raise InputError(
                f"expected a pair of texts with a score of {conversion.positive_score} or more "
                f"in {source}, found none; give a lower `positive_score`"
            )
    return done


def _rows(
    records: Iterator[Record], of: Format, positive_score: float | None, spool: IO[bytes]
) -> Iterator[Row | None]:
    match of:
        case Format.TEVATRON:
            return map(tevatron_row, records)
        case Format.FLAGEMBEDDING:
            return map(flagembedding_row, records)
        case Format.SENTENCE_TRANSFORMERS:
            return joined_rows(records, spool, positive_score)


def _records(row: Row, to: Format, done: Converted) -> Iterator[dict[str, Any]]:
    match to:
        case Format.TEVATRON:
            yield tevatron_record(row, done.rows)
        case Format.FLAGEMBEDDING:
            yield row.as_json()
        case Format.SENTENCE_TRANSFORMERS:
            done.left_out.update(lost_fields(row))
            yield from sentence_transformers_records(row)


def _require_columns(expected: tuple[str, ...], columns: tuple[str, ...], row: Row) -> None:
    if columns != expected:
        raise InputError(
            f"expected the first row's columns ({', '.join(expected)}) in all, found "
            f"{', '.join(columns)} for the query {row.query!r:.60}; convert rows with and without "
            "negatives apart"
        )
