"""The keys that requests must bring."""

from collections.abc import Sequence
from pathlib import Path

from anna_export.errors import InputError, MissingError


def read_keys(given: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """Return all keys, those of a file with one a line too; none for a server open to everybody.

    Raises:
        MissingError: If there is no such file.
        InputError: If a file was named and holds none.
    """
    keys = [key.strip() for key in given]
    if file is not None:
        if not file.is_file():
            raise MissingError(f"expected API keys, one a line, in {file}, found no file")
        lines = file.read_text(encoding="utf-8").splitlines()
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise InputError(f"expected API keys, one a line, in {file}, found none")
        keys += found
    if not all(keys):
        raise InputError("expected API keys that are not empty, found an empty one")
    return tuple(dict.fromkeys(keys))
