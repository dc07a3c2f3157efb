"""Texts a second by the artifact and by PyTorch, the same texts in turn, in one process."""

import statistics
import tempfile
import time
from pathlib import Path

from anna_export.backends import open_encoder
from anna_export.backends.pytorch import open_reference
from anna_export.encoder import Encoder
from anna_export.merge import write_merged

ROUNDS = 5


def measure(base: Path, adapter: Path, artifact: Path, texts: list[str]) -> dict[str, float]:
    """Embed all texts by both, alternating; medians of five rounds after a warm-up.

    PyTorch runs the merged model: the unmerged one, which is the reference, would be slower still.
    """
    with tempfile.TemporaryDirectory() as scratch:
        merged = Path(scratch) / "merged"
        write_merged(base, adapter, merged)
        pytorch, exported = open_reference(merged), open_encoder(artifact)
        pytorch.encode(texts[:32])
        exported.encode(texts[:32])
        pairs = [(_seconds(pytorch, texts), _seconds(exported, texts)) for _ in range(ROUNDS)]
    return {
        "artifact_texts_per_second": len(texts) / statistics.median(ours for _, ours in pairs),
        "pytorch_texts_per_second": len(texts) / statistics.median(theirs for theirs, _ in pairs),
        "ratio": statistics.median(theirs / ours for theirs, ours in pairs),
    }


def _seconds(encoder: Encoder, texts: list[str]) -> float:
    started = time.perf_counter()
    encoder.encode(texts)
    return time.perf_counter() - started
