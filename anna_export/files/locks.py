"""File locks that a killed process cannot leave behind."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Final

from anna_export.errors import ExistsError

# a disk that has no locks, or none of folders, as some network disks
_NO_LOCKS: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)


class Lock(Enum):
    """What came of asking for a lock."""

    OURS = "held by this process"
    ANOTHERS = "held by another"
    NONE = "this disk has no locks"


@contextmanager
def sole_writer(folder: Path, out: Path) -> Iterator[None]:
    """Keep a folder of unfinished work to one process; a disk without locks keeps nobody out.

    Raises:
        ExistsError: If another process is making `out` in it.
    """
    with locked(folder) as lock:
        require_not_anothers(lock, out)
        yield


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[Lock]:
    """Ask for a file's or folder's lock, and say what came of it; it goes with the process."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        lock = Lock.OURS
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            lock = Lock.ANOTHERS
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            lock = Lock.NONE
        yield lock
    finally:
        os.close(descriptor)


def require_not_anothers(lock: Lock, out: Path) -> None:
    """Refuse what another process holds the lock of.

    Raises:
        ExistsError: If another process is making `out`.
    """
    if lock is Lock.ANOTHERS:
        raise ExistsError(
            f"expected to be the only process that makes {out}, found another at it; wait for "
            "it, or choose another `out`"
        )
