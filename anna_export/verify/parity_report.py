"""What a comparison with the reference gives: the values that parity.json holds."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final

from anna_export.quantise.scheme import Thresholds
from anna_export.verify.golden import GoldenVector
from anna_export.verify.published import Summary

# Schema 2 named some fields otherwise; `parity_file` still reads it.
SCHEMA_VERSION: Final = 3


class Verdict(StrEnum):
    """Whether vectors or scores are as good as the reference's."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class ReferenceLibrary:
    """Which libraries ran the reference, and what was compared with them."""

    library: str  # name and version
    decoder: str  # its class, and the library that it is of
    adapter: str | None  # what put the adapter on; None without one
    modules: list[str]  # behind the decoder
    compared: list[str]


@dataclass(frozen=True, slots=True)
class VectorParity:
    """How close a candidate's vectors are to the reference's.

    Cosines and differences are over pairs of a text and a prompt. `batch1_*` compare the candidate
    with itself: a text at batch size 1 and the same text in a padded batch, in another order; None
    where that was not compared.
    """

    verdict: Verdict  # pass or fail
    reasons: list[str]
    texts: int
    prompts: list[str]
    longest_tokens: int
    worst_cosine: float
    worst_text: str
    mean_cosine: float
    max_abs: float
    nonfinite: int
    batch1_worst_cosine: float | None
    batch1_max_abs: float | None
    thresholds: Thresholds
    method: str
    reference: str
    candidate: str
    hardware: str
    versions: dict[str, str]
    measured: str  # date and time
    reference_sha256: dict[str, str] = field(default_factory=dict)  # of the files it was read from
    reference_library: ReferenceLibrary | None = None  # None before this was recorded
    golden: list[GoldenVector] = field(default_factory=list)  # a server checks its vectors by them

    @property
    def loss(self) -> float:
        """Mean 1 - cosine."""
        return 1 - self.mean_cosine

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Difference:
    """A candidate's score minus the reference's, in the score's own unit."""

    reference: float
    candidate: float
    difference: float
    low: float  # of the paired 95 % interval
    high: float
    margin: float  # what may be lost
    noise_floor: float  # the largest difference, at 95 %, of the reference to itself
    units: int  # queries, pairs, texts or documents
    groups: int  # those that share no text
    p_inferior: float  # one-sided, of a difference that is the margin's or better


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The artifact and the reference on one task."""

    name: str
    type: str
    metric: str  # mteb's main score
    revision: str  # of the data; "local-…" is not the leaderboard's
    verdict: Verdict
    difference: Difference
    trained_on: bool  # the model's training data holds this task's data


@dataclass(frozen=True, slots=True)
class TaskTexts:
    """How many texts the tasks asked a model for, and how many of them each run embedded."""

    requested: int
    distinct: int  # different texts with a prompt
    embedded_reference: int
    embedded_again: int
    embedded_candidate: int


@dataclass(frozen=True, slots=True)
class TaskParity:
    """How the artifact's scores compare with the reference's.

    `verdict` is "fail" if one task fails, "pass" if none does and the mean over tasks is not
    inferior, else "inconclusive".
    """

    verdict: Verdict
    reasons: list[str]
    tier: str
    tasks: list[TaskResult]
    mean: Difference
    summary: Summary
    texts: TaskTexts
    reference: str
    candidate: str
    hardware: str
    versions: dict[str, str]
    measured: str  # date and time


@dataclass(frozen=True, slots=True)
class ParityReport:
    """Parity of the vectors, and of the scores on tasks, where tasks were run."""

    vectors: VectorParity
    tasks: TaskParity | None = None

    @property
    def verdict(self) -> Verdict:
        """The verdict over both."""
        if self.tasks is None or self.vectors.verdict is not Verdict.PASS:
            return self.vectors.verdict
        return self.tasks.verdict

    @property
    def reasons(self) -> list[str]:
        """Why the verdict is not a pass."""
        return [*self.vectors.reasons, *(self.tasks.reasons if self.tasks is not None else ())]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"schema_version": SCHEMA_VERSION, "verdict": self.verdict, **asdict(self)}
