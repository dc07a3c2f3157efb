"""Outputs appear whole or not at all: written aside, synced, then renamed.

What is being written lies hidden beside the output, in a folder that its process holds a lock on.
A folder without that lock was left by a killed process, and is removed by the next one.
"""

import ctypes
import errno
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Final

from anna_export.errors import ExistsError, InputError, MissingError
from anna_export.files.disk import room_for
from anna_export.files.locks import Lock, locked, require_not_anothers

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


@contextmanager
def staged(out: Path, *, overwrite: bool, holding: str) -> Iterator[Path]:
    """Give a folder to fill, which becomes `out` if nothing fails.

    Args:
        out: The folder to make, its parents too.
        overwrite: Replace `out` if it exists; it is the old one or the new one at every moment, if
            its disk can exchange two folders in one step, as Linux's usual ones can.
        holding: A file that marks what may be replaced.

    Raises:
        ExistsError: If `out` exists and may not be overwritten, or another process is making it.
        SpaceError: If the disk fills up.
    """
    require_absent(out, overwrite=overwrite, holding=holding)
    out = out.resolve()  # a link stays one
    aside = out.with_name(f".{out.name}.partial-{secrets.token_hex(4)}")
    with room_for(out), ExitStack() as stack:
        for parent in (path for path in reversed(out.parents) if not path.exists()):
            parent.mkdir(exist_ok=True)
            stack.callback(_remove_if_empty, parent)
        with locked(out.parent, wait=True):
            _remove_leftovers(out)
            aside.mkdir()
            stack.callback(shutil.rmtree, aside, ignore_errors=True)
            stack.enter_context(locked(aside))
        yield aside
        for path in (aside, *aside.rglob("*")):
            if not path.is_symlink():  # what a link leads to was not written here
                _sync(path)
        replace_folder(aside, out, overwrite=overwrite)


@contextmanager
def staged_file(out: Path) -> Iterator[Path]:
    """Give a path to write, which becomes the file `out`, replacing it, if nothing fails.

    Raises:
        SpaceError: If the disk fills up.
    """
    aside = out.with_name(f".{out.name}.partial")
    with room_for(out):
        try:
            yield aside
            _sync(aside)
            aside.replace(out)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Put a text file in place, whole or not at all."""
    with staged_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Put a binary file in place, whole or not at all."""
    with staged_file(path) as aside:
        aside.write_bytes(content)


def make_parents(folder: Path, name: str) -> None:
    """Make the folders below `folder` that a file goes to, and own those that are links.

    A link leads to a folder of others, as in a store, whose content is not to change: it becomes,
    in one step, a folder with a link to each of its files.
    """
    for parent in reversed(PurePosixPath(name).parents):
        path = folder / parent
        if path != folder and path.is_symlink():
            _to_folder(path)
        path.mkdir(exist_ok=True)


def _to_folder(link: Path) -> None:
    aside = link.with_name(f".{link.name}.partial-{secrets.token_hex(4)}")
    aside.mkdir()
    try:
        for entry in link.iterdir() if link.is_dir() else ():
            # a way that stays right where the folder around it moves, as a staged one does
            (aside / entry.name).symlink_to(os.path.relpath(entry.resolve(), aside.resolve()))
        _exchange(aside, link)
    finally:
        if aside.is_symlink():
            aside.unlink()
        else:
            shutil.rmtree(aside, ignore_errors=True)


def require_absent(out: Path, *, overwrite: bool, holding: str) -> None:
    """Refuse an output folder that exists, unless it may be overwritten.

    Args:
        out: The folder to make.
        overwrite: Accept one that exists, if it is empty or holds the file `holding`.
        holding: Its mark; a mistyped path must not delete someone's folder.

    Raises:
        ExistsError: If it exists and may not be replaced, or cannot be a folder.
    """
    if out.exists() and not out.is_dir():
        raise ExistsError(f"expected {out} to be free or a folder, found a file")
    if out.exists() and not overwrite:
        raise _taken(out)
    if out.is_dir() and not (out / holding).is_file() and any(out.iterdir()):
        raise ExistsError(
            f"expected `overwrite` to replace a folder with a {holding}, found none in {out}; "
            "remove that folder yourself if it may go"
        )
    for parent in out.resolve().parents:
        if parent.exists() and not parent.is_dir():
            raise ExistsError(f"expected a folder at {parent} for {out}, found a file")


def require_outside(out: Path, *sources: Path) -> None:
    """Refuse an output that is one of its sources or holds one: replacing it would remove that.

    Raises:
        InputError: If `out` is or contains a source.
    """
    for source in sources:
        if source.resolve().is_relative_to(out.resolve()):
            raise InputError(
                f"expected `out` beside or below {source}, found {out}, which holds it"
            )


def require_absent_file(out: Path, *, overwrite: bool) -> None:
    """Refuse an output file that exists, unless it may be overwritten, or has no folder.

    Raises:
        ExistsError: If it exists and `overwrite` is off, or it is a folder.
        MissingError: If the folder it goes to does not exist.
    """
    if out.is_dir():
        raise ExistsError(f"expected a file or nothing at {out}, found a folder")
    if out.exists() and not overwrite:
        raise _taken(out)
    if not out.parent.is_dir():
        raise MissingError(f"expected the folder {out.parent} for {out.name}, found none; make it")


def replace_folder(source: Path, out: Path, *, overwrite: bool) -> None:
    """Rename `source` to `out`; what was there, if it may be overwritten, is then at `source`.

    Raises:
        ExistsError: If `out` has come to exist, and is not to be overwritten.
    """
    try:
        source.rename(out)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not overwrite:
            raise _taken(out) from None
        _exchange(source, out)
    _sync(out.parent)


def _taken(out: Path) -> ExistsError:
    return ExistsError(f"expected {out} to be free, found it there; `overwrite` replaces it")


def _exchange(source: Path, out: Path) -> None:
    """Swap two folders in one step; in three where kernel or disk have no such step."""
    libc = ctypes.CDLL(None)
    paths = (_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(out))
    if hasattr(libc, "renameat2") and libc.renameat2(*paths, _RENAME_EXCHANGE) == 0:
        return
    # under a name that no later run takes for a leftover: a process killed here leaves the old one
    old = out.with_name(f".{out.name}.old-{secrets.token_hex(4)}")
    out.rename(old)
    source.rename(out)
    old.rename(source)


def _remove_leftovers(out: Path) -> None:
    for path in out.parent.glob(f".{glob.escape(out.name)}.partial-*"):
        with suppress(FileNotFoundError), locked(path) as lock:
            require_not_anothers(lock, out)
            if lock is Lock.OURS:
                shutil.rmtree(path, ignore_errors=True)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
