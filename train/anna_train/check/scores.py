"""Rules about a teacher's scores."""

import math
from collections.abc import Iterator, Sequence
from typing import Final

from anna_train.check.findings import Finding, RowLocation
from anna_train.data.rows import Row

NEGATIVE_ABOVE: Final = "negative above positive"
PARTLY_SCORED: Final = "partly scored"
TEACHER: Final = "teacher's entropy"
# mean of entropy / ln(texts) over a file: 0 is one text alone, 1 is all alike
MIN_ENTROPY: Final = 0.05
MAX_ENTROPY: Final = 0.95


class NegativesAbove:
    """Finds negatives that the teacher puts above one of the row's positives, and their share."""

    def __init__(self) -> None:
        self._scored = self._wrong = 0

    def __call__(self, location: RowLocation, row: Row) -> Iterator[Finding]:
        """Say how many of a row's negatives are."""
        if row.pos_scores is None or not row.neg_scores:
            return
        self._scored += 1
        lowest = min(row.pos_scores)
        above = [number for number, score in enumerate(row.neg_scores) if score > lowest]
        if above:
            self._wrong += 1
            yield location.warning(
                NEGATIVE_ABOVE,
                f"neg_scores[{above[0]}]",
                f"expected negatives scored below every positive ({lowest:.4g}), found "
                f"{len(above)} of {len(row.neg_scores)} above, up to {max(row.neg_scores):.4g}: "
                "they may be answers; remove them, or mine with a margin",
            )

    def end(self) -> Iterator[Finding]:
        """Start anew."""
        self._scored = self._wrong = 0
        yield from ()

    def figures(self) -> dict[str, float]:
        """Return the share of scored rows with such a negative."""
        if not self._scored:
            return {}
        return {"rows_with_negative_above": self._wrong / self._scored}


class PartlyScored:
    """Finds files with scores on some rows alone."""

    def __init__(self) -> None:
        self._scored = self._rows = 0
        self._first: RowLocation | None = None

    def __call__(self, location: RowLocation, row: Row) -> Iterator[Finding]:
        """Count a row."""
        self._rows += 1
        self._scored += row.scored
        if not row.scored and self._first is None:
            self._first = location
        yield from ()

    def end(self) -> Iterator[Finding]:
        """Judge the file, at its first row without scores."""
        if self._scored and self._first is not None:
            yield self._first.warning(
                PARTLY_SCORED,
                "pos_scores",
                f"expected scores on all {self._rows:,} rows or none, found them on "
                f"{self._scored:,}: the others have no soft labels; run anna-train score",
            )
        self._scored, self._rows, self._first = 0, 0, None

    def figures(self) -> dict[str, float]:
        """Return the number of scored rows."""
        return {"scored_rows": self._scored}


class TeacherEntropy:
    """Measures how soft a file's soft labels are."""

    def __init__(self) -> None:
        self._sum, self._rows = 0.0, 0
        self._first: RowLocation | None = None

    def __call__(self, location: RowLocation, row: Row) -> Iterator[Finding]:
        """Take a row's soft label into account, if it has one over two texts or more."""
        if row.pos_scores is not None and row.neg_scores:
            self._sum += relative_entropy([*row.pos_scores, *row.neg_scores])
            self._rows += 1
            self._first = self._first or location
        yield from ()

    def end(self) -> Iterator[Finding]:
        """Judge the mean, at the first scored row."""
        if self._first is not None:
            mean = self._sum / self._rows
            wanted = f"expected a mean entropy of {MIN_ENTROPY} to {MAX_ENTROPY} of the largest, "
            if mean < MIN_ENTROPY:
                yield self._first.warning(
                    TEACHER,
                    "pos_scores",
                    f"{wanted}found {mean:.3f}, one-hot: soft labels teach nothing; run "
                    "anna-train score, or give training a higher teacher temperature",
                )
            if mean > MAX_ENTROPY:
                yield self._first.warning(
                    TEACHER,
                    "pos_scores",
                    f"{wanted}found {mean:.3f}, flat: all texts are as good; give logits, not "
                    "probabilities, or give training a lower teacher temperature",
                )
        self._sum, self._rows, self._first = 0.0, 0, None

    def figures(self) -> dict[str, float]:
        """Return the mean over the file's scored rows."""
        return {"teacher_entropy": self._sum / self._rows} if self._rows else {}


def relative_entropy(scores: Sequence[float]) -> float:
    """Return entropy(softmax(scores)) / ln(number of scores), in 0..1.

    Args:
        scores: Two finite logits or more.
    """
    highest = max(scores)
    weights = [math.exp(score - highest) for score in scores]
    total = sum(weights)
    shares = [weight / total for weight in weights]
    return -sum(share * math.log(share) for share in shares if share) / math.log(len(scores))
