"""Golden vectors: the reference's vectors of a few texts; a server checks its own against them."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from anna_export.artifact.evidence import read_evidence
from anna_export.artifact.folder import Artifact
from anna_export.artifact.manifest import PARITY_FILE
from anna_export.cosine import cosines
from anna_export.errors import DamagedError

COUNT: Final = 4
MOST_TOKENS: Final = 64
# By how much a cosine may be below the one at the time of the proof: processors round otherwise.
SLACK: Final = 0.01


@dataclass(frozen=True, slots=True)
class GoldenVector:
    """The reference's vector of one text.

    Args:
        ids: The text's token ids, framed, without a prompt.
        vector: The reference's, as base64 of D little-endian float32.
        cosine: Between it and the artifact's own vector, when the artifact was proved.
    """

    ids: list[int]
    vector: str
    cosine: float

    def values(self) -> np.ndarray:
        """Return the reference's vector, (D,) float32."""
        return np.frombuffer(base64.b64decode(self.vector), dtype="<f4")


def golden_of(
    rows: Sequence[Sequence[int]], vectors: np.ndarray, likeness: np.ndarray
) -> list[GoldenVector]:
    """Choose a few short and different texts of those that were compared.

    Args:
        rows: Token ids of N texts.
        vectors: (N, D) the reference's.
        likeness: (N,) cosines between these and the artifact's.
    """
    chosen: dict[tuple[int, ...], GoldenVector] = {}
    for row, vector, cosine in zip(rows, vectors, likeness, strict=True):
        if len(row) <= MOST_TOKENS and tuple(row) not in chosen and len(chosen) < COUNT:
            encoded = base64.b64encode(vector.astype("<f4").tobytes()).decode()
            chosen[tuple(row)] = GoldenVector(list(row), encoded, float(cosine))
    return list(chosen.values())


def read_golden(artifact: Artifact) -> list[GoldenVector]:
    """Return the golden vectors of an artifact's weights; none where these were not proved.

    Raises:
        DamagedError: If they are not what was written.
    """
    entry = artifact.manifest.evidence.get(PARITY_FILE)
    if entry is None or entry.covers != artifact.manifest.artifact_id:
        return []
    content: Any = read_evidence(artifact, PARITY_FILE)
    try:
        return [GoldenVector(**fields) for fields in content["vectors"].get("golden", [])]
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(
            f"expected golden vectors in {artifact.folder / PARITY_FILE}, found: {error}; run "
            "anna-export verify"
        ) from None


def require_golden(golden: Sequence[GoldenVector], vectors: np.ndarray, label: str) -> None:
    """Refuse (N, D) vectors of the golden texts that are not what they were at the proof.

    Raises:
        DamagedError: If one is further from the reference's than SLACK explains.
    """
    expected = np.stack([text.values() for text in golden])
    for text, cosine in zip(golden, cosines(vectors, expected), strict=True):
        if not cosine >= text.cosine - SLACK:
            raise DamagedError(
                f"expected a cosine of {text.cosine:.4f} to a golden vector, as when the artifact "
                f"was proved, found {cosine:.4f} in {label}; run anna-export verify"
            )
