"""Soft labels: softmax(scores / temperature) over each row's texts, neither one-hot nor flat.

A teacher whose logits lie far apart teaches no more than the row's own positive does; one whose
logits lie close teaches nothing. One temperature for a file sets its mean entropy.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from anna_export.errors import InputError

_LOG10_TEMPERATURES: Final = (-9.0, 9.0)
_HALVINGS: Final = 60
_TEMPERATURE_DIGITS: Final = 5  # significant
# of the mean entropy: what a temperature of five digits leaves open, many times over
_TOLERANCE: Final = 1e-3


def padded(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """Return (R, K) float64 scores of R rows of up to K texts, -inf where there is none."""
    scores = np.full((len(rows), max(map(len, rows))), -np.inf)
    for number, row in enumerate(rows):
        scores[number, : len(row)] = row
    return scores


def mean_entropy(scores: np.ndarray, temperature: float) -> float:
    """Return the mean over rows of their labels' entropy, as a share of that of equal labels.

    Args:
        scores: (R, K) with two texts or more a row, as `padded` returns them.
        temperature: What they are divided by, above 0.
    """
    shifted = (scores - scores.max(axis=1, keepdims=True)) / temperature
    weights = np.exp(shifted)
    total = weights.sum(axis=1)
    # -inf times 0 is no number, and what is not there adds nothing
    expected = np.where(weights > 0, weights * np.where(weights > 0, shifted, 0), 0).sum(axis=1)
    entropy = np.log(total) - expected / total
    return float((entropy / np.log(np.isfinite(scores).sum(axis=1))).mean())


def find_temperature(scores: np.ndarray, low: float, high: float) -> float:
    """Return 1 if the mean entropy lies in low..high, else what brings it to the nearer end.

    Args:
        scores: (R, K) as `padded` returns them.
        low: Least mean entropy, above 0.
        high: The most, below 1.

    Raises:
        InputError: If no temperature does, since too many scores are equal.
    """
    entropy = mean_entropy(scores, 1.0)
    if low <= entropy <= high:
        return 1.0
    target = low if entropy < low else high
    below, above = _LOG10_TEMPERATURES
    for _ in range(_HALVINGS):
        middle = (below + above) / 2
        # entropy rises with temperature
        if mean_entropy(scores, 10**middle) < target:
            below = middle
        else:
            above = middle
    temperature = float(f"{10**above:.{_TEMPERATURE_DIGITS}g}")
    reached = mean_entropy(scores, temperature)
    if not math.isclose(reached, target, abs_tol=_TOLERANCE):
        raise InputError(
            f"expected scores that tell texts apart, found so many equal ones that the mean "
            f"entropy of labels is {reached:.3f} at best, not {target}; use another reranker, or "
            "other `entropy_low` and `entropy_high`"
        )
    return temperature
