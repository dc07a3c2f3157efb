"""What tasks say of an artifact: a verdict on each, and over all."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from anna_export.verify.difference import Difference, Verdict
from anna_export.verify.published import Summary


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The artifact and the reference on one task."""

    name: str
    type: str
    metric: str  # mteb's main score
    revision: str  # of the data; "local-…" is not the leaderboard's
    verdict: Verdict
    difference: Difference
    trained_on: bool  # the model's training saw this task's data


@dataclass(frozen=True, slots=True)
class Texts:
    """How many texts the tasks asked a model for, and how many of them each run had to embed."""

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
    texts: Texts
    reference: str
    candidate: str
    hardware: str
    versions: dict[str, str]
    measured: str  # date and time

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return asdict(self)


def reasons_of(tasks: Sequence[TaskResult], mean: Difference) -> list[str]:
    """Say, a line each, what stands against a pass."""
    reasons = [
        f"{task.name} {task.verdict}: {_interval(task.difference)}"
        for task in tasks
        if task.verdict is not Verdict.PASS
    ]
    if not mean.low > -mean.margin:
        reasons.append(f"mean over tasks: {_interval(mean)}")
    return reasons


def _interval(found: Difference) -> str:
    return (
        f"{found.difference:+.4f} ({found.low:+.4f} to {found.high:+.4f}), margin "
        f"{found.margin:.4f}"
    )
