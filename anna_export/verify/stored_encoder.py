"""An encoder behind its store: a text that was embedded once, in whichever run, is only read."""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from anna_export.artifact.manifest import Manifest
from anna_export.files.vector_store import KEY_BYTES, Pair, VectorStore, key_of
from anna_export.progress import Progress
from anna_export.text.prompts import Prompt

# What a kill may lose: a part is stored when it is embedded.
PART_TEXTS = 256
PART_CHARACTERS = 1 << 16


def text_key(text: str, prompt: Prompt) -> bytes:
    """Return the key of a text with a prompt."""
    return key_of(prompt.front, prompt.back, text)


def behind(prefix: str, keys: Sequence[bytes]) -> list[bytes]:
    """Return the keys of texts behind a stored prefix with this sha256; "" is none."""
    if not prefix:
        return list(keys)
    salt = bytes.fromhex(prefix)[:KEY_BYTES]
    return [hashlib.blake2b(key, digest_size=KEY_BYTES, salt=salt).digest() for key in keys]


class Embedder(Protocol):
    """What is in front of a store: an Encoder, or any other of one prompt at a time."""

    def encode(self, texts: Sequence[str], prompt: Prompt) -> np.ndarray:
        """Return (N, D) float32 rows of unit L2 length, in order."""
        ...


class StoredEncoder:
    """Embeds what its store does not hold yet.

    Args:
        encoder: What embeds.
        store: Its vectors.
        prefixes: The sha256 of each stored prefix that the encoder uses, by prompt.
        shuffled: Compute texts in another order, for a run that shows how much order matters.
    """

    def __init__(
        self,
        encoder: Embedder,
        store: VectorStore,
        prefixes: Mapping[Prompt, str],
        *,
        shuffled: bool = False,
    ) -> None:
        self.encoder, self.store, self.shuffled = encoder, store, shuffled
        self.requested = self.embedded = 0
        self._prefixes = prefixes
        self._total = 0
        self._progress: Progress | None = None

    def expect(self, total: int, progress: Progress | None) -> None:
        """Report from here on how many of so many texts are embedded.

        Raises:
            SpaceError: If the disk does not hold that many vectors.
        """
        self.store.require_room(total)
        self._total, self._progress = total, progress
        self._report()

    def embed(self, texts: Sequence[str], prompt: Prompt) -> np.ndarray:
        """Return (N, D) float32 vectors, in order.

        Raises:
            DamagedError: If a stored vector is damaged, or a new one not finite.
            SpaceError: If the disk is full.
        """
        self.requested += len(texts)
        keys = self.keys([text_key(text, prompt) for text in texts], prompt)

        def compute(part: Sequence[str]) -> np.ndarray:
            vectors = self.encoder.encode(part, prompt)
            self.embedded += len(part)
            self._report()
            return vectors

        return self.store.embed(keys, texts, compute, self._parts)

    def keys(self, keys: Sequence[bytes], prompt: Prompt) -> list[bytes]:
        """Return what the store calls texts with this prompt."""
        return behind(self._prefixes.get(prompt, ""), keys)

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(self.embedded, max(self._total, self.embedded))

    def _parts(self, pairs: list[Pair]) -> Iterator[list[Pair]]:
        """Split pairs of a key and a text: alike in length, or shuffled."""
        if self.shuffled:
            random.Random(0).shuffle(pairs)
        else:
            pairs.sort(key=lambda pair: len(pair[1]))
        part: list[Pair] = []
        characters = 0
        for pair in pairs:
            if part and (len(part) == PART_TEXTS or characters + len(pair[1]) > PART_CHARACTERS):
                yield part
                part, characters = [], 0
            part.append(pair)
            characters += len(pair[1])
        yield part


def stored_prefixes(manifest: Manifest) -> dict[Prompt, str]:
    """Return the sha256 of each prefix that is computed already, by its prompt."""
    return {
        manifest.prompts.by_name[name]: entry.sha256 for name, entry in manifest.prefixes.items()
    }
