"""Embeds a corpus through verify's store, as mteb asks for it; run by vector_store.py."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anna_export.files.vector_store import open_store
from anna_export.text.prompts import NO_PROMPT, Prompt
from anna_export.verify.demand import Demand
from anna_export.verify.stored_encoder import StoredEncoder


class Random:
    """Gives random vectors of unit length."""

    def __init__(self, dim: int) -> None:
        self.dim, self.generator = dim, np.random.default_rng(0)

    def encode(self, texts: Sequence[str], prompt: Prompt) -> np.ndarray:
        """Return (N, D) float32 vectors."""
        vectors = self.generator.standard_normal((len(texts), self.dim), dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main() -> None:
    """Ask for all texts, a chunk at a time, as mteb does of a corpus."""
    folder, task = Path(sys.argv[1]), sys.argv[2]
    texts, dim, chunk = map(int, sys.argv[3:])
    if task == "empty":
        return
    demand = Demand()
    with open_store(folder, {}, dim) as store:
        stored = StoredEncoder(Random(dim), store, {})
        for start in range(0, texts, chunk):
            part = [
                f"text {index} of a corpus" for index in range(start, min(texts, start + chunk))
            ]
            demand.embed(part, NO_PROMPT)
            assert stored.embed(part, NO_PROMPT).shape == (len(part), dim)
        assert stored.embedded == (texts if task == "embed" else 0)
        assert demand.missing(stored) == 0 and demand.distinct == texts


if __name__ == "__main__":
    main()
