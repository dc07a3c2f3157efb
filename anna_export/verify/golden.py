"""Golden vectors: the reference's vectors of a few texts, to which whoever serves holds its own."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from anna_export.artifact.evidence import read_evidence
from anna_export.artifact.folder import Artifact
from anna_export.artifact.manifest import PARITY_FILE
from anna_export.errors import DamagedError

COUNT: Final = 4
MOST_TOKENS: Final = 64
# What another processor or runtime may add to what the artifact was off by when it was proved.
SLACK: Final = 0.01


@dataclass(frozen=True, slots=True)
class GoldenVector:
    """One text's.

    Args:
        ids: Its token ids, framed, without a prompt.
        vector: The reference's, as base64 of D little-endian float32.
        cosine: The artifact's own vector to it, when it was proved.
    """

    ids: list[int]
    vector: str
    cosine: float

    def values(self) -> np.ndarray:
        """Return the reference's vector, (D,) float32."""
        return np.frombuffer(base64.b64decode(self.vector), dtype="<f4")


def golden_of(
    rows: Sequence[Sequence[int]], vectors: np.ndarray, cosines: np.ndarray
) -> list[GoldenVector]:
    """Choose a few texts of those that were compared.

    Args:
        rows: Token ids of N texts.
        vectors: (N, D) the reference's.
        cosines: (N,) the artifact's to these.
    """
    chosen: list[GoldenVector] = []
    for row, vector, cosine in zip(rows, vectors, cosines, strict=True):
        known = [one.ids for one in chosen]
        if len(row) <= MOST_TOKENS and list(row) not in known and len(chosen) < COUNT:
            told = base64.b64encode(vector.astype("<f4").tobytes()).decode()
            chosen.append(GoldenVector(list(row), told, float(cosine)))
    return chosen


def read_golden(artifact: Artifact) -> list[GoldenVector]:
    """Return the golden vectors of an artifact's weights; none where these were not proved.

    Raises:
        DamagedError: If they are not what was written.
    """
    entry = artifact.manifest.evidence.get(PARITY_FILE)
    if entry is None or entry.covers != artifact.manifest.artifact_id:
        return []
    found: Any = read_evidence(artifact, PARITY_FILE)
    try:
        return [GoldenVector(**one) for one in found["vectors"].get("golden", [])]
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(
            f"expected golden vectors in {artifact.folder / PARITY_FILE}, found: {error}; run "
            "anna-export verify"
        ) from None


def require_golden(golden: Sequence[GoldenVector], vectors: np.ndarray, compute_label: str) -> None:
    """Hold vectors of the golden texts to what they were when the artifact was proved.

    Raises:
        DamagedError: If one is further from the reference's than SLACK explains.
    """
    for one, vector in zip(golden, vectors, strict=True):
        expected = one.values()
        lengths = float(np.linalg.norm(vector) * np.linalg.norm(expected))
        cosine = float(vector @ expected) / max(lengths, 1e-12)
        if not cosine >= one.cosine - SLACK:
            raise DamagedError(
                f"expected a cosine of {one.cosine:.4f} to a golden vector, as when the artifact "
                f"was proved, found {cosine:.4f} in {compute_label}; run anna-export verify"
            )
