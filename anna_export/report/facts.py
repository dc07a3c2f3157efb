"""All that an artifact records about itself: parity, timings, calibration, engines."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.bench.result import ClosedLoop, Run, read_bench
from anna_export.engines.stored import StoredEngine, stored_engines
from anna_export.files.hub_cache import folder_name
from anna_export.quantise.calibration import Calibration, read_calibration
from anna_export.verify.parity_file import current_parity
from anna_export.verify.parity_report import ParityReport, TaskParity


@dataclass(frozen=True, slots=True)
class Facts:
    """One artifact's.

    Args:
        name: What the page calls it.
        artifact: The artifact.
        parity: The parity report of these weights; None where there is none.
        runs: What was timed of them, with no baseline or with one.
        calibration: How it was quantised; None where it was not.
        engines: The engines it holds.
    """

    name: str
    artifact: Artifact
    parity: ParityReport | None
    runs: tuple[Run, ...]
    calibration: Calibration | None
    engines: tuple[StoredEngine, ...]

    @property
    def loss(self) -> float | None:
        """Mean 1 - cosine to the reference."""
        return self.parity.vectors.loss if self.parity is not None else None

    @property
    def tasks(self) -> TaskParity | None:
        """Parity of scores; None where no tasks were run."""
        return self.parity.tasks if self.parity is not None else None

    @property
    def compute_label(self) -> str:
        """What it computed in when it was timed; empty where it was not."""
        return next((run.compute for run in self.runs if not run.prompt), "")

    def rows(self) -> dict[tuple[int, int], ClosedLoop]:
        """Return the latest run's rows without a prompt, by batch and tokens."""
        return {
            (row.batch, row.tokens): row for run in self.runs if not run.prompt for row in run.rows
        }


def read_facts(folder: Path) -> Facts:
    """Read an artifact; evidence about other weights is left out.

    Raises:
        AnnaError: If it is no artifact, or something in it is damaged.
    """
    artifact = open_artifact(folder)
    bench = read_bench(artifact)
    return Facts(
        folder_name(folder),
        artifact,
        current_parity(artifact),
        tuple(bench.runs) if bench is not None else (),
        read_calibration(artifact),
        tuple(stored_engines(artifact)),
    )


def read_all_facts(folders: Sequence[Path]) -> list[Facts]:
    """Read several artifacts; those with the same folder name get their parent's name too."""
    artifacts = [read_facts(folder) for folder in folders]
    names = [facts.name for facts in artifacts]
    return [
        facts
        if names.count(facts.name) == 1
        else replace(facts, name=f"{facts.artifact.folder.resolve().parent.name}/{facts.name}")
        for facts in artifacts
    ]
