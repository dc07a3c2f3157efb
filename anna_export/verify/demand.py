"""Which texts tasks ask for, found by a run that embeds none of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from anna_export.files.vector_store import KEY_BYTES
from anna_export.text.prompts import Prompt
from anna_export.verify.stored_encoder import StoredEncoder, text_key

# Values of the vectors that stand in for a model's: as few as mteb's evaluators can work with.
_DIM: Final = KEY_BYTES // 2


@dataclass(slots=True)
class Demand:
    """Counts what is asked of it; its vectors are made of the texts' hashes."""

    requested: int = 0
    keys: dict[Prompt, set[bytes]] = field(default_factory=dict)

    def embed(self, texts: Sequence[str], prompt: Prompt) -> np.ndarray:
        """Return (N, 8) float32 vectors of unit length, the same for the same text."""
        self.requested += len(texts)
        keys = [text_key(text, prompt) for text in texts]
        self.keys.setdefault(prompt, set()).update(keys)
        words = np.frombuffer(b"".join(keys), dtype="<u2").reshape(len(keys), _DIM)
        vectors = words.astype(np.float32) - np.float32(32767.5)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    @property
    def distinct(self) -> int:
        """How many different texts with a prompt were asked for."""
        return sum(map(len, self.keys.values()))

    def missing(self, stored: StoredEncoder) -> int:
        """Count those whose vectors a store does not hold yet."""
        return sum(
            int((stored.store.rows(stored.keys(list(keys), prompt)) < 0).sum())
            for prompt, keys in self.keys.items()
        )
