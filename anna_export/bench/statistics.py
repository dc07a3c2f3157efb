"""What times say: medians with an interval, and whether two are different at all."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

# Student's distribution, two-sided, by degrees of freedom; beyond those listed, the normal one.
_INTERVAL_95: Final = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 1.96)
# A table of several shapes has as many chances of a difference that is none.
_DIFFERENCE_99: Final = (63.66, 9.92, 5.84, 4.60, 4.03, 3.71, 3.50, 3.36, 3.25, 3.17, 2.58)
# What is closer than this is the same for whoever chooses between them.
SAME: Final = 0.02


@dataclass(frozen=True, slots=True)
class Interval:
    """A value, and between what nearly all measurements like this one would find it."""

    value: float
    low: float
    high: float

    def overlaps(self, other: "Interval") -> bool:
        """Say whether two measurements agree."""
        return self.low <= other.high and other.low <= self.high


def interval(values: Sequence[float], factors: Sequence[float] = _INTERVAL_95) -> Interval:
    """Return the geometric mean of rounds' medians with its interval.

    Of positive values, one a round. The rounds of a run are as far apart as the run is long, and in
    several processes, so that what drifts in between or differs from one to the next widens it.
    """
    logs = [math.log(value) for value in values]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return Interval(values[0], 0.0, math.inf)
    factor = factors[min(len(logs) - 2, len(factors) - 1)]
    # of single rounds, not of their mean: rounds that follow one another are not independent
    half = factor * statistics.stdev(logs) / math.sqrt(2)
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many times as fast the artifact is as a baseline, by pairs of rounds."""

    ratio: Interval

    @property
    def verdict(self) -> str:
        """One of "faster", "slower" and "no difference"."""
        if self.ratio.low > 1 + SAME:
            return "faster"
        if self.ratio.high < 1 / (1 + SAME):
            return "slower"
        return "no difference"


def compare(ours: Sequence[float], theirs: Sequence[float]) -> Comparison:
    """Compare seconds of rounds that were measured in pairs."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return Comparison(interval(ratios, _DIFFERENCE_99))


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return p50, p90 and p99 in milliseconds."""
    values = np.percentile(np.asarray(seconds) * 1e3, (50, 90, 99))
    return {f"p{share}_ms": float(value) for share, value in zip((50, 90, 99), values, strict=True)}
