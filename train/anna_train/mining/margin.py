"""The adaptive margin: how far below its positive a candidate must score to be a negative.

    keep d⁻  ⇔  s(q, d⁻) ≤ s(q, d⁺) − max(δ, η·|s(q, d⁺)|, β·σ_q)

σ_q is the standard deviation of the query's candidate scores. Alone, η is TopK-PercPos and the
relative_margin of sentence-transformers, and δ is TopK-MarginPos and its absolute_margin. Scores
are cosines or probabilities: a share of a raw logit means nothing where that is near 0.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from anna_export.errors import InputError


class Rule(StrEnum):
    """Which term of the margin was the largest, and so decided."""

    MARGIN = "margin"
    RELATIVE = "relative"
    SPREAD = "spread"


RULES: Final = tuple(Rule)


@dataclass(frozen=True, slots=True)
class Decision:
    """What the margin says of B queries with up to C candidates each."""

    keep: np.ndarray  # (B, C) bool: may be a negative
    threshold: np.ndarray  # (B,) float64: highest score of a negative
    spread: np.ndarray  # (B,) float64: σ_q, 0 where there is no candidate
    rule: np.ndarray  # (B,) int64: index in RULES


@dataclass(frozen=True, slots=True)
class AdaptiveMargin:
    """The three terms, of which the largest counts.

    Args:
        absolute: δ, in units of the score.
        relative: η, as a share of the positive's score.
        spread: β, in standard deviations of the query's candidate scores.

    Raises:
        InputError: If a term is negative or not finite.
    """

    absolute: float = 0.02
    relative: float = 0.05
    spread: float = 0.25

    def __post_init__(self) -> None:
        for name, value in (
            ("absolute", self.absolute),
            ("relative", self.relative),
            ("spread", self.spread),
        ):
            if not math.isfinite(value) or value < 0:
                raise InputError(f"expected `{name}` to be 0 or more, found {value}")

    def decide(self, positives: np.ndarray, scores: np.ndarray, candidates: np.ndarray) -> Decision:
        """Say which candidates are far enough below their query's positive.

        Args:
            positives: (B,) the lowest score of each query's positives.
            scores: (B, C) scores on the same scale; any value where there is no candidate.
            candidates: (B, C) bool, where there is one.
        """
        positives = positives.astype(np.float64)
        scores = np.where(candidates, scores, 0.0).astype(np.float64)
        count = np.maximum(candidates.sum(axis=1), 1)
        mean = scores.sum(axis=1) / count
        squares = np.where(candidates, (scores - mean[:, None]) ** 2, 0.0)
        spread = np.sqrt(squares.sum(axis=1) / count)
        terms = np.stack(
            [
                np.full_like(positives, self.absolute),
                self.relative * np.abs(positives),
                self.spread * spread,
            ]
        )
        threshold = positives - terms.max(axis=0)
        return Decision(
            keep=candidates & (scores <= threshold[:, None]),
            threshold=threshold,
            spread=spread,
            rule=terms.argmax(axis=0),
        )
