"""Texts a second by artifacts and by PyTorch, the same texts in turn, in one process."""

import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from anna_export.backends import open_encoder
from anna_export.encoder import Encoder
from anna_export.reference.load import open_reference
from anna_export.weights.merge import write_merged

ROUNDS = 5
PYTORCH = "pytorch"


def measure(
    base: Path, adapter: Path, artifacts: Mapping[str, Path], texts: list[str]
) -> dict[str, dict[str, float]]:
    """Embed all texts by each, alternating; medians of five rounds after a warm-up.

    PyTorch runs the merged model: the unmerged one, which is the reference, would be slower still.

    Args:
        base: The base model's folder.
        adapter: The LoRA adapter's folder.
        artifacts: Their folders, by name.
        texts: What each embeds, in every round.

    Returns:
        By name, and for "pytorch", texts a second and how many times PyTorch's that is: the median
        of the rounds' own ratios.
    """
    with tempfile.TemporaryDirectory() as scratch:
        merged = Path(scratch) / "merged"
        write_merged(base, adapter, merged)
        encoders: dict[str, Encoder] = {PYTORCH: open_reference(merged)}
        encoders |= {name: open_encoder(folder) for name, folder in artifacts.items()}
        for encoder in encoders.values():
            encoder.encode(texts[:32])
        rounds = [
            {name: _seconds(encoder, texts) for name, encoder in encoders.items()}
            for _ in range(ROUNDS)
        ]
    return {
        name: {
            "texts_per_second": len(texts)
            / statistics.median(round_speeds[name] for round_speeds in rounds),
            "ratio": statistics.median(
                round_speeds[PYTORCH] / round_speeds[name] for round_speeds in rounds
            ),
        }
        for name in encoders
    }


def _seconds(encoder: Encoder, texts: list[str]) -> float:
    started = time.perf_counter()
    encoder.encode(texts)
    return time.perf_counter() - started
