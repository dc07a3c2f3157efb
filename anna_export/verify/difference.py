"""A difference of two scores, how sure it is, and what it is judged to be."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """Whether a score is as good as the reference's."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Difference:
    """A candidate's score minus the reference's, in the score's own unit."""

    reference: float
    candidate: float
    difference: float
    low: float  # of the paired 95 % interval
    high: float
    margin: float  # what may be lost
    noise_floor: float  # how far the reference is from itself in other batches, at most
    units: int  # queries, pairs, texts or documents
    groups: int  # those that share no text
    p_inferior: float  # one-sided, of a difference that is the margin's or better
