"""The sha256 of a file."""

import hashlib
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Return a file's sha256 in hexadecimal, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
