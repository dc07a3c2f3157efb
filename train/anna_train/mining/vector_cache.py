"""Vectors kept on disk by what they are of, so that only what is new is computed.

A vector's key is the hash of encoder, prompt and text. A shard of vectors appears whole or not at
all, so a killed run loses at most the one it was at.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from anna_export.errors import DamagedError
from anna_export.files.atomic import staged_file
from anna_export.progress import Progress

SHARD_TEXTS: Final = 1_024
_SHARD: Final = ".npz"
_KEY_BYTES: Final = 32

Embed = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True, slots=True)
class VectorCache:
    """A folder of one encoder's vectors.

    Args:
        folder: The folder of all encoders' vectors; made where it does not exist.
        identity: What tells this encoder from others.
    """

    folder: Path
    identity: str

    def embed(
        self, texts: Sequence[str], prompt: str, embed: Embed, progress: Progress | None = None
    ) -> np.ndarray:
        """Return the vectors of texts, computing those that are not kept yet.

        Args:
            texts: N texts.
            prompt: What is put around each.
            embed: Computes (n, D) vectors of n texts.
            progress: Told how many texts have their vector.

        Returns:
            (N, D) float32, in the order of the texts.

        Raises:
            DamagedError: If a kept shard cannot be read, or a new vector is not finite.
        """
        folder = self.folder / hashlib.sha256(self.identity.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        keys = [self._key(prompt, text) for text in texts]
        wanted = dict(zip(keys, texts, strict=True))
        vector_of: dict[bytes, np.ndarray] = {}
        for path in sorted(folder.glob(f"*{_SHARD}")):
            vector_of |= _read(path, wanted)
        missing = [key for key in wanted if key not in vector_of]
        for start in range(0, len(missing), SHARD_TEXTS):
            if progress is not None:
                progress(len(vector_of), len(wanted))
            part = missing[start : start + SHARD_TEXTS]
            vectors = embed([wanted[key] for key in part]).astype(np.float32)
            if not np.isfinite(vectors).all():
                raise DamagedError(
                    "expected finite vectors, found NaN or infinity; check the encoder's weights"
                )
            _write(folder, part, vectors)
            vector_of |= dict(zip(part, vectors, strict=True))
        if progress is not None:
            progress(len(wanted), len(wanted))
        return np.stack([vector_of[key] for key in keys])

    def _key(self, prompt: str, text: str) -> bytes:
        return hashlib.sha256(json.dumps([self.identity, prompt, text]).encode()).digest()


def _read(path: Path, wanted: dict[bytes, str]) -> dict[bytes, np.ndarray]:
    try:
        with np.load(path) as shard:
            keys = [row.tobytes() for row in shard["keys"]]
            if wanted.keys().isdisjoint(keys):
                return {}
            vectors = shard["vectors"]
        return {key: row for key, row in zip(keys, vectors, strict=True) if key in wanted}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise DamagedError(
            f"expected kept vectors in {path}, found another file; remove it"
        ) from None


def _write(folder: Path, keys: Sequence[bytes], vectors: np.ndarray) -> None:
    name = hashlib.sha256(b"".join(keys)).hexdigest()[:16]
    with staged_file(folder / f"{name}{_SHARD}") as aside, aside.open("wb") as file:
        rows = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, _KEY_BYTES)
        np.savez(file, keys=rows, vectors=vectors)
