"""Records of other programs' data files: JSONL, CSV or Parquet, one at a time.

Which of them a file is, its first bytes say.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from anna_export.errors import DamagedError, InputError, MissingError, UnsupportedError

_PARQUET: Final = b"PAR1"
_MARK: Final = b"\xef\xbb\xbf"
# rows of Parquet in memory at once
_BATCH_ROWS: Final = 256
# a document may be longer than the library's usual 131,072 characters
_CELL_CHARACTERS: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Record:
    """One record.

    Args:
        fields: Its values by name; an empty cell of a CSV file is None.
        where: Its place, for messages.
        done_bytes: Of its file, up to its end.
    """

    fields: dict[str, Any]
    where: str
    done_bytes: int


def read_records(path: Path) -> Iterator[Record]:
    """Yield a file's records in order.

    Args:
        path: JSONL, one object a line; CSV or tab-separated, names in its first line; or Parquet.

    Raises:
        MissingError: If there is no such file.
        InputError: For a record that cannot be read, naming its line or row.
        DamagedError: If it starts as Parquet and is none.
        UnsupportedError: If it is one JSON array.
    """
    if not path.is_file():
        raise MissingError(f"expected a file of records at {path}, found none")
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(_MARK).lstrip()
    if start.startswith(_PARQUET):
        return _parquet(path)
    if start.startswith(b"["):
        raise UnsupportedError(
            f"expected one JSON object a line, found an array in {path}; write each of its "
            "elements on a line"
        )
    if start.startswith(b"{"):
        return _jsonl(path)
    head = start.partition(b"\n")[0]
    return _csv(path, "\t" if b"\t" in head and b"," not in head else ",")


def _jsonl(path: Path) -> Iterator[Record]:
    for number, line, done in _lines(path):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        try:
            fields = json.loads(line)
        except RecursionError:
            raise InputError(f"expected JSON, found too many levels of it, in {where}") from None
        except ValueError as error:
            raise InputError(f"expected JSON, found {error}, in {where}") from None
        if not isinstance(fields, dict):
            raise InputError(f"expected an object, found {type(fields).__name__}, in {where}")
        yield Record(fields, where, done)


def _csv(path: Path, delimiter: str) -> Iterator[Record]:
    done_bytes = 0

    def lines() -> Iterator[str]:
        nonlocal done_bytes
        for _, line, done in _lines(path):
            done_bytes = done
            yield line

    csv.field_size_limit(_CELL_CHARACTERS)
    reader = csv.DictReader(lines(), delimiter=delimiter, strict=True)
    number = 0
    try:
        for cells in reader:
            number += 1
            where = f"row {number} of {path}"
            if None in cells or None in cells.values():
                columns = len(reader.fieldnames or ())
                more = "more" if None in cells else "fewer"
                raise InputError(
                    f"expected {columns} cells as in the first line, found {more}, in {where}"
                )
            yield Record({name: cell or None for name, cell in cells.items()}, where, done_bytes)
    except csv.Error as error:
        raise InputError(f"expected CSV, found {error}, in row {number + 1} of {path}") from None


def _parquet(path: Path) -> Iterator[Record]:
    size_bytes, number = path.stat().st_size, 0
    try:
        file = pq.ParquetFile(path)
        total = file.metadata.num_rows
        for batch in file.iter_batches(_BATCH_ROWS):
            rows = batch.to_pylist()
            json.dumps(rows)
            for fields in rows:
                number += 1
                yield Record(fields, f"row {number} of {path}", number * size_bytes // total)
    except TypeError as error:  # dates, bytes and the like
        raise InputError(
            f"expected texts, numbers and lists of them, found: {error}, after row {number} of "
            f"{path}; leave that column out"
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(f"expected Parquet, found {error}, in {path}; write it anew") from None


def _lines(path: Path) -> Iterator[tuple[int, str, int]]:
    """Yield each line's number, its text, and the bytes up to its end."""
    done = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            done += len(raw)
            try:
                # some editors start a file with a byte order mark, which is no text
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8"), done
            except UnicodeDecodeError:
                raise InputError(
                    f"expected UTF-8, found other bytes, in line {number} of {path}"
                ) from None
