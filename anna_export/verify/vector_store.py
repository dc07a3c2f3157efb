"""Vectors on disk by the text they are of, so that each text is embedded once, killed or not.

A folder holds `vectors`, rows of float32, and `keys`, the 16 bytes that name each row. Both only
grow, vectors first: whatever a killed process leaves behind the last whole key is cut off when the
folder is opened again.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from anna_export.errors import DamagedError, ExistsError
from anna_export.files.atomic import write_text
from anna_export.files.disk import require_disk, room_for
from anna_export.files.locks import Lock, locked
from anna_export.text.prompts import Prompt

KEY_BYTES: Final = 16
_KEY: Final = f"S{KEY_BYTES}"
_ITEM_BYTES: Final = 4
# New keys are looked up in a dictionary until there are this many, and are then sorted in.
_RECENT: Final = 1 << 16
_LENGTH_TOLERANCE: Final = 1e-3


def text_key(text: str, prompt: Prompt) -> bytes:
    """Return the key of a text with a prompt."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in (prompt.front, prompt.back, text):
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()


def behind(prefix: str, keys: Sequence[bytes]) -> list[bytes]:
    """Return the keys of texts behind a stored prefix with this sha256; "" is none."""
    if not prefix:
        return list(keys)
    salt = bytes.fromhex(prefix)[:KEY_BYTES]
    return [hashlib.blake2b(key, digest_size=KEY_BYTES, salt=salt).digest() for key in keys]


class VectorStore:
    """Vectors of one encoder; made by `open_store`.

    Memory holds 24 bytes a row, and what is read.
    """

    def __init__(self, folder: Path, dim: int) -> None:
        self.folder, self.dim = folder, dim
        self._row_bytes = dim * _ITEM_BYTES
        self._vectors = folder / "vectors"
        self._keys = folder / "keys"
        for path in (self._vectors, self._keys):
            path.touch()
        rows = min(
            self._vectors.stat().st_size // self._row_bytes, self._keys.stat().st_size // KEY_BYTES
        )
        os.truncate(self._vectors, rows * self._row_bytes)
        os.truncate(self._keys, rows * KEY_BYTES)
        self._all = np.fromfile(self._keys, dtype=_KEY)
        self._recent: dict[bytes, int] = {}
        self._sort()

    def __len__(self) -> int:
        return len(self._all) + len(self._recent)

    def rows(self, keys: Sequence[bytes]) -> np.ndarray:
        """Return (N,) int64: the row of each key, -1 where there is none."""
        indices = np.full(len(keys), -1, dtype=np.int64)
        if not keys:
            return indices
        if len(self._all):
            wanted = np.frombuffer(b"".join(keys), dtype=_KEY)
            candidates = np.searchsorted(self._sorted, wanted)
            candidates[candidates == len(self._sorted)] = 0
            same = self._sorted[candidates] == wanted
            indices[same] = self._order[candidates[same]]
        for index in np.flatnonzero(indices < 0) if self._recent else ():
            indices[index] = self._recent.get(keys[index], -1)
        return indices

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return (N, D) float32, the vectors of rows.

        Raises:
            DamagedError: If one is not of unit length, as after a crash of the machine.
        """
        if not len(rows):
            return np.empty((0, self.dim), dtype=np.float32)
        stored = np.memmap(self._vectors, np.float32, mode="r").reshape(-1, self.dim)
        vectors = np.asarray(stored[rows])
        lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
        if not (np.abs(lengths - 1) <= _LENGTH_TOLERANCE).all():
            raise DamagedError(
                f"expected vectors of unit length in {self.folder}, found others; remove that "
                "folder, and they are computed again"
            )
        return vectors

    def append(self, keys: Sequence[bytes], vectors: np.ndarray) -> None:
        """Add (N, D) float32 rows under keys that are not there yet.

        Raises:
            SpaceError: If the disk is full.
        """
        with room_for(self._vectors):
            for path, content in (
                (self._vectors, np.ascontiguousarray(vectors, dtype="<f4").tobytes()),
                (self._keys, b"".join(keys)),
            ):
                with path.open("ab") as file:
                    file.write(content)
        start = len(self)
        self._recent.update(zip(keys, range(start, start + len(keys)), strict=True))
        if len(self._recent) > _RECENT:
            self._all = np.concatenate([self._all, np.array(list(self._recent), dtype=_KEY)])
            self._recent.clear()
            self._sort()

    def require_room(self, count: int) -> None:
        """Refuse to start on more new rows than fit on the disk.

        Raises:
            SpaceError: Naming what is needed and what is free.
        """
        require_disk(self._vectors, count * (self._row_bytes + KEY_BYTES))

    def _sort(self) -> None:
        self._order = np.argsort(self._all, kind="stable")
        self._sorted = self._all[self._order]


@contextmanager
def open_store(cache: Path, identity: Mapping[str, object], dim: int) -> Iterator[VectorStore]:
    """Open, or make, the store of one encoder for as long as this process writes to it.

    Args:
        cache: The folder that stores are in.
        identity: All that decides this encoder's vectors; another identity is another store.
        dim: D.

    Raises:
        ExistsError: If another process is writing to it.
    """
    text = json.dumps(identity, indent=2, sort_keys=True)
    folder = cache / hashlib.sha256(text.encode()).hexdigest()[:24]
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as lock:
        if lock is Lock.ANOTHERS:
            raise ExistsError(
                f"expected to be the only process that keeps vectors in {folder}, found another at "
                "it; wait for it, or choose another `cache`"
            )
        if not (folder / "identity.json").exists():
            write_text(folder / "identity.json", text + "\n")
        yield VectorStore(folder, dim)
