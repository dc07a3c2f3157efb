"""Long work in parts beside its output: a killed run goes on where it was.

The work folder holds the settings it was made with and what is finished, each file whole or not
there. A run with other settings, or over other files, empties it first.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from anna_export.errors import InputError
from anna_export.files.atomic import require_absent_file, staged_file, write_text
from anna_export.files.disk import room_for
from anna_export.files.locks import sole_writer
from anna_train.data.rows import Row

PART_ROWS: Final = 1_000
_STATE_FILE: Final = "state.json"


@dataclass(frozen=True, slots=True)
class Work:
    """A folder of finished parts.

    Args:
        folder: Where they are.
        restarted: Whether another run's parts were dropped.
    """

    folder: Path
    restarted: bool

    def text(self, name: str, make: Callable[[], str]) -> tuple[str, bool]:
        """Return a part's text and whether it was there already, making it where it was not."""
        path = self.folder / name
        if path.is_file():
            return path.read_bytes().decode(), True
        made = make()
        with staged_file(path) as aside:
            aside.write_bytes(made.encode())
        return made, False


@contextmanager
def work_beside(out: Path, state: Mapping[str, Any]) -> Iterator[Work]:
    """Give the work folder of an output; it goes when the block ends well, or with nothing done.

    Args:
        out: The file that the work ends in.
        state: All that decides its content, as JSON values.

    Raises:
        ExistsError: If another process is at it.
        SpaceError: If the disk fills up.
    """
    folder = out.with_name(f".{out.name}.work")
    text = json.dumps(state, indent=2, sort_keys=True)
    with room_for(out):
        folder.mkdir(exist_ok=True)
        with sole_writer(folder, out):
            known = folder / _STATE_FILE
            same = known.is_file() and known.read_bytes() == text.encode()
            restarted = not same and known.is_file()
            if not same:
                # the state goes first: what a run killed here leaves belongs to none
                known.unlink(missing_ok=True)
                _empty(folder)
                write_text(known, text)
            try:
                yield Work(folder, restarted)
            except BaseException:
                if [path.name for path in folder.iterdir()] == [_STATE_FILE]:
                    shutil.rmtree(folder)
                raise
            shutil.rmtree(folder)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


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
        raise InputError(f"expected --out to be another file than {rows}, found the same")
    require_absent_file(out, overwrite=overwrite)
