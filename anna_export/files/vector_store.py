"""Vectors on disk by what they are of, so that each text is embedded once, killed or not.

A folder holds `vectors`, rows of float32, and `index`, each row's key and the checksum of its key
and values. Both only grow, vectors first, and one process at a time writes to them: another is
refused. What a kill or a crash left at the end, rows that are not whole or not what their checksum
says, is cut off when the folder is opened again; a warning says how many, and they are computed
again. A damaged row before the last sound one is not a kill's doing: it is refused when it is read.
"""

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from anna_export.errors import DamagedError, ExistsError
from anna_export.files.atomic import write_text
from anna_export.files.disk import require_disk, room_for
from anna_export.files.locks import Lock, locked
from anna_export.progress import Progress

KEY_BYTES: Final = 16
# Texts that are computed and stored at once: what a kill may lose.
PART_TEXTS: Final = 1_024
_KEY: Final = f"S{KEY_BYTES}"
_ENTRY: Final = np.dtype([("key", f"V{KEY_BYTES}"), ("checksum", "<u4")])
_ITEM_BYTES: Final = 4
# New keys are looked up in a dictionary until there are this many, and are then sorted in.
_RECENT: Final = 1 << 16

Pair = tuple[bytes, str]  # a key and its text


def key_of(*parts: str) -> bytes:
    """Return the key of a text and of what is put around it."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()


def in_order(pairs: Sequence[Pair]) -> Iterator[Sequence[Pair]]:
    """Yield pairs in parts of `PART_TEXTS`."""
    for start in range(0, len(pairs), PART_TEXTS):
        yield pairs[start : start + PART_TEXTS]


class VectorStore:
    """Vectors of one encoder; made by `open_store`.

    Memory holds 40 bytes a row, and what is read.
    """

    def __init__(self, folder: Path, dim: int) -> None:
        self.folder, self.dim = folder, dim
        self._row_bytes = dim * _ITEM_BYTES
        self._vectors = folder / "vectors"
        self._index = folder / "index"
        for path in (self._vectors, self._index):
            path.touch()
        self._cut_tail()
        self._all = np.fromfile(self._index, _ENTRY)["key"].copy().view(_KEY)
        self._recent: dict[bytes, int] = {}
        self._sort()

    def __len__(self) -> int:
        return len(self._all) + len(self._recent)

    def embed(
        self,
        keys: Sequence[bytes],
        texts: Sequence[str],
        compute: Callable[[list[str]], np.ndarray],
        parts: Callable[[list[Pair]], Iterator[Sequence[Pair]]] = in_order,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Return (N, D) float32 vectors of N texts, computing and storing those that are absent.

        Args:
            keys: The texts' keys.
            texts: N texts.
            compute: Gives (n, D) vectors of n texts.
            parts: Splits what is absent into what is computed, and then stored, at once.
            progress: Is told how many of the N texts have their vector.

        Raises:
            DamagedError: If a stored vector is damaged, or a new one not finite.
            SpaceError: If the disk is full.
        """
        rows = self.rows(keys)
        absent = {keys[index]: texts[index] for index in np.flatnonzero(rows < 0).tolist()}
        left = len(absent)
        if progress is not None:
            progress(len(texts) - left, len(texts))
        if absent:
            for part in parts(list(absent.items())):
                self.append([key for key, _ in part], compute([text for _, text in part]))
                left -= len(part)
                if progress is not None:
                    progress(len(texts) - left, len(texts))
            rows = self.rows(keys)
        return self.read(rows)

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
            DamagedError: If one is not what its checksum says.
        """
        if not len(rows):
            return np.empty((0, self.dim), dtype=np.float32)
        vectors, sound = self._checked(rows)
        if not sound:
            raise DamagedError(
                f"expected vectors as they were written in {self.folder}, found others; remove "
                "that folder, and they are computed again"
            )
        return vectors

    def append(self, keys: Sequence[bytes], vectors: np.ndarray) -> None:
        """Add (N, D) float32 rows under keys that are not there yet.

        Raises:
            DamagedError: If a value is not finite.
            SpaceError: If the disk is full.
        """
        vectors = np.ascontiguousarray(vectors, dtype="<f4")
        if not np.isfinite(vectors).all():
            raise DamagedError(
                "expected finite vectors, found NaN or infinity; check the encoder's weights"
            )
        index = np.empty(len(keys), _ENTRY)
        index["key"] = np.frombuffer(b"".join(keys), index["key"].dtype)
        index["checksum"] = _checksums(index["key"], vectors)
        with room_for(self._vectors):
            for path, content in ((self._vectors, vectors), (self._index, index)):
                with path.open("ab") as file:
                    file.write(content.tobytes())
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
        require_disk(self._vectors, count * (self._row_bytes + _ENTRY.itemsize))

    def _checked(self, rows: np.ndarray) -> tuple[np.ndarray, bool]:
        """Return the rows' vectors, and whether all are what their checksums say."""
        # the last may be half there
        shape = (int(rows.max()) + 1,)
        vectors = np.asarray(np.memmap(self._vectors, "<f4", "r", shape=(*shape, self.dim))[rows])
        entries = np.asarray(np.memmap(self._index, _ENTRY, "r", shape=shape)[rows])
        return vectors, bool((_checksums(entries["key"], vectors) == entries["checksum"]).all())

    def _cut_tail(self) -> None:
        """Cut off what stands behind the last row that is whole and sound."""
        sizes = {self._vectors: self._row_bytes, self._index: _ENTRY.itemsize}
        started = max(-(-path.stat().st_size // size) for path, size in sizes.items())
        rows = min(path.stat().st_size // size for path, size in sizes.items())
        while rows and not self._checked(np.array([rows - 1]))[1]:
            rows -= 1
        for path, size in sizes.items():
            os.truncate(path, rows * size)
        if started > rows:
            logging.getLogger(__name__).warning(
                "anna-export: dropped %d unfinished vectors at the end of %s; they are computed "
                "again",
                started - rows,
                self.folder,
            )

    def _sort(self) -> None:
        self._order = np.argsort(self._all, kind="stable")
        self._sorted = self._all[self._order]


def _checksums(keys: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return (N,) uint32 over each key and its row."""
    sums = [
        zlib.crc32(vector, zlib.crc32(key.tobytes()))
        for key, vector in zip(keys, vectors, strict=True)
    ]
    return np.array(sums, dtype="<u4")


@contextmanager
def open_store(cache: Path, identity: Mapping[str, object], dim: int) -> Iterator[VectorStore]:
    """Open, or make, the store of one encoder for as long as this process writes to it.

    Args:
        cache: The folder that stores are in; made where it does not exist.
        identity: All that decides this encoder's vectors; another identity is another store.
        dim: D.

    Raises:
        ExistsError: If another process is writing to it.
    """
    text = json.dumps({**identity, "dim": dim}, indent=2, sort_keys=True)
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
