"""The keys that requests must bring."""

from collections.abc import Sequence
from pathlib import Path

from anna_export.errors import InputError, MissingError


def read_keys(keys: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """Return these keys and those of a file, one a line, each once.

    Raises:
        MissingError: If there is no such file.
        InputError: If the file holds no key, or a key is empty.
    """
    stripped = [key.strip() for key in keys]
    if file is not None:
        if not file.is_file():
            raise MissingError(f"expected API keys, one a line, in {file}, found no file")
        lines = file.read_text(encoding="utf-8").splitlines()
        of_file = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not of_file:
            raise InputError(f"expected API keys, one a line, in {file}, found none")
        stripped += of_file
    if not all(stripped):
        raise InputError("expected API keys that are not empty, found an empty one")
    return tuple(dict.fromkeys(stripped))
