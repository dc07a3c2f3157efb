"""Files and folders that are made once and kept while what they were made from is the same.

Each is made aside and renamed, and recorded with its key and the hash of its content only then: a
killed or interrupted run leaves nothing half-written, and what was changed or damaged is made anew.
One run at a time per folder.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anna_export.files.atomic import write_text

RECORD_FILE = ".made-from.json"
_SCRATCH = ".making"


@dataclass(frozen=True, slots=True)
class OutputCache:
    """A folder of kept things.

    Args:
        folder: Where they are; made if it does not exist.
        seconds: Filled with what each thing that was made, and not reused, took.
    """

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def make(self, name: str, made_from: object, maker: Callable[[Path], None]) -> Path:
        """Return the path of a kept thing, making it unless it is there and still valid.

        Args:
            name: Its file or folder name.
            made_from: All that decides its content, as JSON values.
            maker: Writes it at the path it is given, which does not exist.
        """
        target, key = self.folder / name, _sha256(json.dumps(made_from, sort_keys=True).encode())
        if self._read().get(name) == {"key": key, "content": content_hash(target)}:
            return target
        started = time.perf_counter()
        with self._scratch() as scratch:
            maker(scratch / name)
            self._forget(name)
            _remove(target)
            os.replace(scratch / name, target)
            self._write(self._read() | {name: {"key": key, "content": content_hash(target)}})
        self.seconds[name] = time.perf_counter() - started
        return target

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        scratch = self.folder / _SCRATCH
        # left by a run that was killed
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch)

    def _forget(self, name: str) -> None:
        record = self._read()
        record.pop(name, None)
        self._write(record)

    def _read(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.folder / RECORD_FILE).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError):
            return {}

    def _write(self, record: dict[str, Any]) -> None:
        write_text(self.folder / RECORD_FILE, json.dumps(record, indent=2, sort_keys=True) + "\n")


def content_hash(path: Path) -> str | None:
    """Hash a file, or a folder's relative paths and bytes; None where there is nothing."""
    if path.is_file():
        return _sha256(path.read_bytes())
    if not path.is_dir():
        return None
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = (f"{file.relative_to(path).as_posix()} {_sha256(file.read_bytes())}" for file in files)
    return _sha256("\n".join(lines).encode())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
