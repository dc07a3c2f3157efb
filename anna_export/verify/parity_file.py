"""Reads parity.json, of this release and of the one before."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from anna_export.artifact.evidence import read_evidence
from anna_export.artifact.folder import Artifact
from anna_export.artifact.manifest import PARITY_FILE
from anna_export.errors import DamagedError
from anna_export.files.validation import validated
from anna_export.verify.parity_report import SCHEMA_VERSION, ParityReport, Verdict

# The thresholds' names in schema 2, where they stood among the figures.
_THRESHOLDS_2: Final = {
    "min_cosine": "floor",
    "max_loss": "max_loss",
    "batch1_min_cosine": "alone_floor",
    "batch1_max_abs": "alone_limit",
}
_FIGURES_2: Final = {
    "batch1_worst_cosine": "alone_worst_cosine",
    "batch1_max_abs": "alone_max_abs",
}


def read_parity(artifact: Artifact) -> ParityReport | None:
    """Read an artifact's parity report; None if it has none.

    Raises:
        DamagedError: If it is not what the manifest lists, or of an unknown schema.
    """
    content = read_evidence(artifact, PARITY_FILE)
    if content is None:
        return None
    path = artifact.folder / PARITY_FILE
    version = content.get("schema_version", 2)
    if version not in (2, SCHEMA_VERSION):
        raise DamagedError(
            f"expected parity schema {SCHEMA_VERSION} in {path}, found {version}; update "
            "anna-export, or run anna-export verify"
        )
    if version == 2:
        content = upgrade(content)
    fields = {name: content.get(name) for name in ("vectors", "tasks")}
    remedy = "run anna-export verify"
    return validated(ParityReport, fields, path, error=DamagedError, remedy=remedy)


def upgrade(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what schema 2 wrote under this schema's names."""
    vectors = dict(content.get("vectors", {}))
    thresholds = {name: vectors.pop(old, None) for name, old in _THRESHOLDS_2.items()}
    figures = {name: vectors.pop(old, None) for name, old in _FIGURES_2.items()}
    return {**content, "vectors": {**vectors, **figures, "thresholds": thresholds}}


def current_parity(artifact: Artifact) -> ParityReport | None:
    """Return the parity report of the artifact's present weights; None where there is none."""
    entry = artifact.manifest.evidence.get(PARITY_FILE)
    if entry is None or entry.covers != artifact.manifest.artifact_id:
        return None
    return read_parity(artifact)


def with_earlier_tasks(report: ParityReport, artifact: Artifact) -> ParityReport:
    """Add an earlier run's tasks, if this one ran none and weights and prompts are the same."""
    entry = artifact.manifest.evidence.get(PARITY_FILE)
    if (
        report.tasks is not None
        or report.vectors.verdict is not Verdict.PASS
        or entry is None
        or entry.prompts != artifact.manifest.prompts.hashes()
    ):
        return report
    try:
        earlier = current_parity(artifact)
    except DamagedError:  # this report takes its place
        return report
    return replace(report, tasks=earlier.tasks) if earlier is not None else report
