"""Long work in pieces beside its output: a killed run goes on at the piece it was at.

The folder holds what was asked for and the finished pieces, each whole or not there. A run that
asks for something else empties it first.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from anna_export.files.atomic import staged_file, write_text
from anna_export.files.disk import room_for
from anna_export.files.locks import sole_writer

_REQUEST_FILE: Final = "state.json"


@dataclass(frozen=True, slots=True)
class WorkFolder:
    """A folder of finished pieces.

    Args:
        path: The folder.
        restarted: Whether pieces of another request were dropped.
    """

    path: Path
    restarted: bool

    def text(self, name: str, make: Callable[[], str]) -> tuple[str, bool]:
        """Return a piece's text and whether it was there already; make it where it was not."""
        path = self.path / name
        if path.is_file():
            return path.read_bytes().decode(), True
        text = make()
        with staged_file(path) as aside:
            aside.write_bytes(text.encode())
        return text, False


@contextmanager
def work_folder(
    out: Path, request: Mapping[str, Any], suffix: str = "work"
) -> Iterator[WorkFolder]:
    """Give the work folder of an output; it goes when the block ends well, or with nothing done.

    Args:
        out: The file that the work ends in.
        request: All that decides its content, as JSON values.
        suffix: The folder's, which is hidden beside `out`.

    Raises:
        ExistsError: If another process is at it.
        SpaceError: If the disk fills up.
    """
    folder = out.with_name(f".{out.name}.{suffix}")
    stored, text = folder / _REQUEST_FILE, json.dumps(request, indent=2, sort_keys=True)
    with room_for(out):
        folder.mkdir(exist_ok=True)
        with sole_writer(folder, out):
            same = stored.is_file() and stored.read_bytes() == text.encode()
            restarted = not same and stored.is_file()
            try:
                if not same:
                    # the request goes first: what a run killed here leaves belongs to none
                    stored.unlink(missing_ok=True)
                    _empty(folder)
                    write_text(stored, text)
                yield WorkFolder(folder, restarted)
            except BaseException:
                if {path.name for path in folder.iterdir()} <= {_REQUEST_FILE}:
                    shutil.rmtree(folder)
                raise
            shutil.rmtree(folder)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
