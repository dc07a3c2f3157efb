"""All that is known of an artifact, read from it."""

from dataclasses import dataclass
from pathlib import Path

from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.bench.result import Row, Run, read_bench
from anna_export.engines.stored import StoredEngine, stored_engines
from anna_export.quantise.calibration import Calibration, read_calibration
from anna_export.report.card import current_parity
from anna_export.verify.parity_report import ParityReport


@dataclass(frozen=True, slots=True)
class Facts:
    """One artifact's.

    Args:
        name: What the page calls it.
        artifact: It.
        proof: What was proved of these weights; None for nothing.
        runs: What was timed of them, with no rival or with one.
        calibration: How it was quantised; None where it was not.
        engines: Those it holds.
    """

    name: str
    artifact: Artifact
    proof: ParityReport | None
    runs: tuple[Run, ...]
    calibration: Calibration | None
    engines: tuple[StoredEngine, ...]

    @property
    def loss(self) -> float | None:
        """Mean 1 - cosine to the reference."""
        return self.proof.vectors.loss if self.proof is not None else None

    @property
    def arithmetic(self) -> str:
        """What it was timed in; nothing where it was not."""
        return next((run.arithmetic for run in self.runs if not run.prompt), "")

    def rows(self) -> dict[tuple[int, int], Row]:
        """Return the latest run's rows without a prompt's cost, by batch and tokens."""
        found: dict[tuple[int, int], Row] = {}
        for run in self.runs:
            if not run.prompt:
                found |= {(row.batch, row.tokens): row for row in run.rows}
        return found


def read_facts(folder: Path) -> Facts:
    """Read an artifact; evidence about other weights is left out.

    Raises:
        AnnaError: If it is no artifact, or something in it is damaged.
    """
    artifact = open_artifact(folder)
    bench = read_bench(artifact)
    return Facts(
        folder.resolve().name,
        artifact,
        current_parity(artifact),
        tuple(bench.runs) if bench is not None else (),
        read_calibration(artifact),
        tuple(stored_engines(artifact)),
    )


def named(folders: list[Path]) -> list[Facts]:
    """Read several artifacts; those of one name are called by their folders too."""
    found = [read_facts(folder) for folder in folders]
    names = [facts.name for facts in found]
    return [
        facts
        if names.count(facts.name) == 1
        else Facts(
            f"{facts.artifact.folder.resolve().parent.name}/{facts.name}",
            facts.artifact,
            facts.proof,
            facts.runs,
            facts.calibration,
            facts.engines,
        )
        for facts in found
    ]
