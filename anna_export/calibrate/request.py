"""What a calibration is asked for."""

from dataclasses import dataclass
from pathlib import Path

from anna_export.quantise.embedding import EmbeddingFormat
from anna_export.quantise.linear import LinearFormat


@dataclass(frozen=True, slots=True)
class Request:
    """What to calibrate for.

    Args:
        linear: How linear layers are quantised.
        embedding: How the embedding table is; None where it is not.
        allowed: Largest loss (mean 1 - cosine); layers are kept in high precision to reach it.
        work: Folder that keeps unfinished work.
    """

    linear: LinearFormat
    embedding: EmbeddingFormat | None
    allowed: float
    work: Path
