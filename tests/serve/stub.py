"""A server whose encoder computes nothing: as fast or as slow as it is told, or broken.

    python -m tests.serve.stub ARTIFACT --port 0 [--us-per-token N] [--max-queue-seconds S]

Some words do things: "nanword" gives NaN, "lostword" NaN in the safe precision too, "killword"
kills the process that computes, "slowword" takes a second.
"""

import argparse
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anna_export.artifact.folder import open_artifact
from anna_export.artifact.prefixes import StoredPrefixes
from anna_export.encoder import Encoder
from anna_export.serve.config import ServerConfig
from anna_export.serve.server import run_server
from anna_export.serve.worker import LoadedModel
from anna_export.spec import EmbeddingSpec
from anna_export.text.batch import TokenBatch
from anna_export.text.tokeniser import Tokeniser

WORDS = ("nanword", "lostword", "killword", "slowword")


def vector_of(ids: np.ndarray, dim: int) -> np.ndarray:
    """Return a unit vector that is this row's alone."""
    drawn = np.random.default_rng(ids.tolist()).standard_normal(dim).astype(np.float32)
    return drawn / np.linalg.norm(drawn)


@dataclass
class StubBackend:
    """Vectors from token ids, after a while."""

    spec: EmbeddingSpec
    words: dict[str, tuple[int, ...]]
    us_per_token: float
    safe: bool = False
    name: str = "stub"
    compute_label: str = "stub"

    def run(self, batch: TokenBatch) -> np.ndarray:
        """Return (B, D) float32 rows."""
        rows = [row[:length] for row, length in zip(batch.ids, batch.lengths, strict=True)]
        words = [{word for word, ids in self.words.items() if _holds(row, ids)} for row in rows]
        everything = set().union(*words) if words else set()
        if "killword" in everything:
            os.kill(os.getpid(), signal.SIGKILL)
        if "slowword" in everything:
            time.sleep(1)
        time.sleep(batch.ids.size * self.us_per_token * 1e-6)
        vectors = np.zeros((len(rows), self.spec.dim), dtype=np.float32)
        for index, row in enumerate(rows):
            vectors[index] = vector_of(row, self.spec.dim)
            if "lostword" in words[index] or ("nanword" in words[index] and not self.safe):
                vectors[index, 0] = np.nan
        return vectors


def _holds(row: np.ndarray, ids: tuple[int, ...]) -> bool:
    tokens = row.tolist()
    return any(tuple(tokens[start : start + len(ids)]) == ids for start in range(len(tokens)))


@dataclass(frozen=True)
class OpenStub:
    """Opens the stub in the process that computes."""

    artifact: Path
    us_per_token: float

    def __call__(self) -> LoadedModel:
        """Return it."""
        opened = open_artifact(self.artifact)
        tokeniser = opened.tokeniser()
        words = word_ids(tokeniser)

        def encoder(*, safe: bool) -> Encoder:
            backend = StubBackend(opened.manifest.spec, words, self.us_per_token, safe)
            return Encoder(backend, tokeniser, opened.manifest.prompts)

        return LoadedModel(
            encoder(safe=False),
            lambda: encoder(safe=True),
            prefix_ids=StoredPrefixes(opened).ids,
        )


def word_ids(tokeniser: Tokeniser) -> dict[str, tuple[int, ...]]:
    """Return the token ids of each word, as a text that starts with it has them."""
    rows = tokeniser.ids(WORDS)
    return {word: tuple(row[1:-1]) for word, row in zip(WORDS, rows, strict=True)}


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--us-per-token", type=float, default=0.0)
    parser.add_argument("--max-queue-seconds", type=float, default=1.0)
    parser.add_argument("--payload-limit", type=int, default=16 << 20)
    parser.add_argument("--max-concurrent-requests", type=int, default=2048)
    parser.add_argument("--stall-seconds", type=float, default=120.0)
    parser.add_argument("--body-seconds", type=float, default=30.0)
    parser.add_argument("--drain-seconds", type=float, default=30.0)
    options = parser.parse_args()
    config = ServerConfig(
        "stub",
        payload_bytes=options.payload_limit,
        max_requests=options.max_concurrent_requests,
        queue_seconds=options.max_queue_seconds,
        stall_seconds=options.stall_seconds,
        body_seconds=options.body_seconds,
        drain_seconds=options.drain_seconds,
    )
    opened = open_artifact(options.artifact)
    stub = OpenStub(options.artifact, options.us_per_token)
    run_server(opened, config, stub, ("127.0.0.1", options.port))


if __name__ == "__main__":
    main()
