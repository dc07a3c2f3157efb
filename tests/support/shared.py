"""Folders that cost time to make: each is made once a run, whichever process comes first."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


class SharedFolders:
    """Makes a folder once for all of a run's processes.

    A folder that is half made, by a process that was killed, is never seen: it is made aside, under
    a lock that ends with its process, and renamed.

    Args:
        shared: Where they lie, the same for all processes.
        own: Makes folders for this process, on the same disk.
    """

    def __init__(self, shared: Path, own: pytest.TempPathFactory) -> None:
        self._shared = shared
        self._own = own
        shared.mkdir(exist_ok=True)

    def copy(self, name: str, make: Callable[[Path], object], *arguments: object) -> Path:
        """Return a copy of `folder`, which may be changed."""
        made = self.folder(name, make, *arguments)
        return Path(shutil.copytree(made, self._own.mktemp(name) / name))

    def folder(self, name: str, make: Callable[[Path], object], *arguments: object) -> Path:
        """Return the folder of this name that `make` writes; it is for all, so none may change it.

        Args:
            name: What the folder is called.
            make: Writes the folder, which is not there yet; the same for equal name and arguments.
            arguments: All that what is written depends on; a path stands for its content.
        """
        key = hashlib.sha256(repr((name, *map(_content, arguments))).encode()).hexdigest()
        made = self._shared / key
        with FileLock(made.with_suffix(".lock")):
            if not made.exists():
                aside = self._own.mktemp("aside")
                make(aside / name)
                aside.rename(made)
        return made / name


def _content(argument: object) -> object:
    """Return what tells an argument from others in any process."""
    if not isinstance(argument, Path):
        return argument
    files = sorted(path for path in [argument, *argument.rglob("*")] if path.is_file())
    digest = hashlib.sha256(argument.name.encode())
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(argument)}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()
