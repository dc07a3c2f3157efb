"""What to calibrate for."""

from dataclasses import dataclass
from pathlib import Path

from anna_export.quantise.embedding import EmbeddingFormat
from anna_export.quantise.linear import LinearFormat


@dataclass(frozen=True, slots=True)
class CalibrationRequest:
    """One calibration.

    Args:
        linear: How linear layers are quantised.
        embedding: How the embedding table is; None where it is not.
        max_loss: Largest loss (mean 1 - cosine); layers stay unquantised to reach it.
        state_folder: Folder for the state of an unfinished calibration.
    """

    linear: LinearFormat
    embedding: EmbeddingFormat | None
    max_loss: float
    state_folder: Path
