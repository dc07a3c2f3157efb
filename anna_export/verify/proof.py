"""All that is proved of an artifact: what parity.json holds."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from anna_export.artifact.evidence import read_evidence
from anna_export.artifact.folder import Artifact
from anna_export.artifact.manifest import PARITY_FILE
from anna_export.errors import DamagedError
from anna_export.verify.task_parity import TaskParity
from anna_export.verify.vectors import Parity


@dataclass(frozen=True, slots=True)
class Proof:
    """The vectors' parity, and the tasks', where tasks were run."""

    vectors: Parity
    tasks: TaskParity | None = None

    @property
    def verdict(self) -> str:
        """The verdict over both: "pass", "fail" or "inconclusive"."""
        if self.tasks is None or self.vectors.verdict != "pass":
            return self.vectors.verdict
        return str(self.tasks.verdict)

    @property
    def reasons(self) -> list[str]:
        """What stands against a pass."""
        return [*self.vectors.reasons, *(self.tasks.reasons if self.tasks is not None else ())]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"verdict": self.verdict, **asdict(self)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave."""
        told = {name: value for name, value in found.items() if name != "verdict"}
        return TypeAdapter(cls).validate_python(told)


def read_proof(artifact: Artifact) -> Proof | None:
    """Read an artifact's proof; None if it has none.

    Raises:
        DamagedError: If it is not what the manifest lists, or of another version of anna-export.
    """
    found = read_evidence(artifact, PARITY_FILE)
    if found is None:
        return None
    try:
        return Proof.from_json(found)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DamagedError(
            f"expected a proof in {artifact.folder / PARITY_FILE}, found {place}: {first['msg']}; "
            "run anna-export verify"
        ) from None


def with_tasks_of(proof: Proof, artifact: Artifact) -> Proof:
    """Take over what an earlier run said of tasks, if this one ran none and it still holds."""
    entry = artifact.manifest.evidence.get(PARITY_FILE)
    now = artifact.manifest.prompts.hashes()
    if (
        proof.tasks is not None
        or proof.vectors.verdict != "pass"
        or entry is None
        or entry.covers != artifact.manifest.artifact_id
        or entry.prompts != now
    ):
        return proof
    try:
        before = read_proof(artifact)
    except DamagedError:  # this one takes its place
        return proof
    return replace(proof, tasks=before.tasks) if before is not None else proof
