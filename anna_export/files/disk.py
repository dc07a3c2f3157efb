"""Room on a disk: asked for beforehand, and a full disk told in one line."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from anna_export.errors import SpaceError

# a disk, a quota, or a limit on the size of files
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def room_for(out: Path) -> Iterator[None]:
    """Turn a full disk's error into ours, whatever was being written; let any other pass."""
    try:
        yield
    except OSError as error:
        raise out_of_space(error, out) from None


def out_of_space(error: OSError, out: Path) -> OSError:
    """Turn a full disk's error into ours; return any other as it is."""
    if error.errno not in _FULL:
        return error
    refusal = SpaceError(
        f"expected room for {out.name} in {out.parent}, found: {os.strerror(error.errno)}; "
        "make room there, or choose another place"
    )
    refusal.errno = error.errno  # so that an output this one is a part of is named instead
    return refusal


def disk_free_bytes(out: Path) -> int:
    """Return the free bytes of the disk an output is on, or will be."""
    out = out.absolute()
    while not out.exists():
        out = out.parent
    return shutil.disk_usage(out).free


def require_disk(out: Path, size_bytes: int) -> None:
    """Refuse to start what will not fit on its disk.

    Raises:
        SpaceError: Naming what is needed and what is free.
    """
    free = disk_free_bytes(out)
    if free < size_bytes:
        raise SpaceError(
            f"expected {size_bytes / 1e6:,.1f} MB free for {out}, found {free / 1e6:,.1f} MB on "
            "its disk; make room there, or choose another place"
        )
