"""How alike vectors are, and whether they are of unit length; in float64, whatever they hold."""

import numpy as np


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return (N,) float64 cosines of the rows of two (N, D) arrays.

    A row that is not finite, or is zero, counts as the opposite vector: -1.
    """
    left, right = left.astype(np.float64), right.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        values = (left * right).sum(axis=1) / lengths
    return np.where(np.isfinite(values), values, -1.0)


def length_errors(vectors: np.ndarray) -> np.ndarray:
    """Return (N,) float64: by how much each row's L2 length differs from 1; NaN stays NaN."""
    return np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) - 1)
